package watch

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const issuer = "https://auth.example.com"

// post is a watcher at its post: what it recorded and revoked, and a clock.
type post struct {
	*Watcher
	t       testing.TB
	mu      sync.Mutex
	at      time.Time
	records []audit.Record
	ended   []state.Revocation
	failing error
	stop    func()
	n       int
}

func newPost(t testing.TB, c Config) *post {
	p := &post{t: t, at: time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)}
	c.Record = func(r audit.Record) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.records = append(p.records, r)
		return nil
	}
	c.Revoke = func(_ context.Context, r state.Revocation) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.failing == nil {
			p.ended = append(p.ended, r)
		}
		return p.failing
	}
	c.Lifetime = func(string) time.Duration { return time.Hour }
	c.Now = func() time.Time { p.mu.Lock(); defer p.mu.Unlock(); return p.at }
	w, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	p.Watcher = w
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	p.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(p.stop)
	return p
}

func (p *post) pass(d time.Duration) { p.mu.Lock(); defer p.mu.Unlock(); p.at = p.at.Add(d) }

// see shows a record, with an id and the time unless it has them.
func (p *post) see(r audit.Record) string {
	p.n++
	if r.ID == "" {
		r.ID = fmt.Sprintf("%s-%d", r.Point, p.n)
	}
	p.mu.Lock()
	r.Time = p.at
	p.mu.Unlock()
	p.Observe(&r, nil)
	return r.ID
}

// raised ends the watch and returns the alarms, oldest first.
func (p *post) raised() []Alarm {
	p.stop()
	list := p.Alarms(maxAlarms)
	slices.Reverse(list)
	return list
}

func caller(jti string) *identity.Caller {
	return &identity.Caller{Issuer: issuer, Subject: "alice", Client: "shop", TokenID: jti, Digest: "digest-" + jti, Expires: time.Date(2027, 3, 1, 13, 0, 0, 0, time.UTC)}
}

var allowed = func() policy.Decision { // of package policy itself: nobody else makes one
	p, err := policy.New([]policy.Route{{Name: "read-order", Match: "GET /orders/{id}", AnyCaller: true}})
	if err != nil {
		panic(err)
	}
	r := policy.Request{Method: "GET", Path: "/orders/1", Source: netip.MustParseAddr("203.0.113.7")}
	s, _ := p.Select(r)
	d := p.Decide(s, r, caller("t"), time.Now())
	if !d.Allowed() {
		panic(d.Code + ": " + policy.Code(d.Reason))
	}
	return d
}()

func in(code, jti, source, path string) audit.Record {
	r := audit.Record{Point: "ingress", Decision: policy.Deny(policy.Code(code), ""), Method: "GET", Path: path, Source: netip.MustParseAddr(source)}
	if code == "allowed" {
		r.Decision = allowed
	}
	if jti != "" {
		r.Caller = caller(jti)
	}
	return r
}

func out(code, jti string, detail map[string]any) audit.Record {
	r := audit.Record{Point: "egress", Decision: policy.Deny(policy.Code(code), ""), Host: "10.0.0.1", Detail: detail}
	if code == "allowed" {
		r.Decision = allowed
		r.Decision.Route = ""
	}
	if jti != "" {
		r.Caller = caller(jti)
	}
	return r
}

// Each rule of the file that comes with sallyport: what raises it, what is done, and what must stay quiet.
func TestBuiltinRules(t *testing.T) {
	for name, c := range map[string]struct {
		loud, quiet func(*post)
		revokes     bool
	}{
		"escape-target": {
			loud: func(p *post) {
				p.see(out("escape_target", "t-1", map[string]any{"requests": []string{"r-7"}, "port": 2375}))
			},
			quiet: func(p *post) {
				p.see(out("destination_unknown", "t-1", nil))
				p.see(in("escape_target", "t-1", "192.0.2.1", "/"))
			},
			revokes: true,
		},
		"escape-attempt": {
			loud: func(p *post) {
				p.see(audit.Record{Point: "sandbox", Decision: policy.Deny("exec_denied", ""), Path: "/bin/sh", Caller: caller("t-1")})
			},
			quiet:   func(p *post) { p.see(audit.Record{Point: "sandbox", Decision: policy.Deny("other", "")}) },
			revokes: true,
		},
		"token-leaving": {
			loud:    func(p *post) { p.see(out("token_leaving", "t-1", nil)) },
			quiet:   func(p *post) { p.see(out("cause_not_allowed", "t-1", nil)) },
			revokes: true,
		},
		"two-networks": {
			loud: func(p *post) {
				p.see(in("allowed", "t-1", "192.0.2.1", "/orders/1"))
				p.see(in("allowed", "t-1", "198.51.100.1", "/orders/1"))
			},
			quiet: func(p *post) {
				p.see(in("allowed", "t-1", "192.0.2.1", "/orders/1"))
				p.see(in("allowed", "t-1", "192.0.2.99", "/orders/1"))       // the same network
				p.see(in("allowed", "t-2", "198.51.100.1", "/orders/1"))     // another token
				p.see(in("bad_signature", "t-1", "198.51.100.1", "/orders")) // denied
				p.pass(11 * time.Second)
				p.see(in("allowed", "t-1", "198.51.100.1", "/orders/1")) // not at once
			},
		},
		"forgeries": {
			loud: func(p *post) {
				for range 20 {
					p.see(in("bad_signature", "", "192.0.2.1", "/orders/1"))
				}
			},
			quiet: func(p *post) {
				for i := range 60 {
					p.see(in("bad_signature", "", fmt.Sprintf("192.0.2.%d", i%4), "/orders/1")) // 15 of each
				}
				for range 60 {
					p.see(in("expired", "", "192.0.2.9", "/orders/1")) // no forgery
				}
				for range 30 {
					p.pass(4 * time.Second)
					p.see(in("bad_signature", "", "192.0.2.8", "/orders/1")) // slowly
				}
			},
		},
		"denied-routes": {
			loud: func(p *post) {
				for i := range 15 {
					p.see(in("no_route", "", "192.0.2.1", fmt.Sprint("/", i)))
				}
			},
			quiet: func(p *post) {
				for range 100 {
					p.see(in("no_route", "", "192.0.2.1", "/favicon.ico")) // one and the same
				}
			},
		},
		"after-revocation": {
			loud:  func(p *post) { p.see(in("revoked", "t-1", "192.0.2.1", "/orders/1")) },
			quiet: func(p *post) { p.see(in("expired", "t-1", "192.0.2.1", "/orders/1")) },
		},
		"new-egress": {
			loud: func(p *post) {
				p.see(out("allowed", "t-1", map[string]any{"routes": []string{"read-order"}, "destination": "billing"}))
				p.pass(24 * time.Hour)
				p.see(out("allowed", "t-1", map[string]any{"routes": []string{"read-order"}, "destination": "rates"}))
			},
			quiet: func(p *post) {
				for _, route := range []string{"read-order", "create-order"} { // while it is learned
					p.see(out("allowed", "t-1", map[string]any{"routes": []string{route}, "destination": "billing"}))
				}
				p.pass(25 * time.Hour)
				for _, route := range []string{"read-order", "create-order"} {
					p.see(out("allowed", "t-2", map[string]any{"routes": []string{route}, "destination": "billing"}))
				}
				p.see(out("cause_not_allowed", "t-2", map[string]any{"routes": []string{"read-order"}, "destination": "rates"})) // nothing was caused
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPost(t, Config{Rules: Rules()})
			c.loud(p)
			list := p.raised()
			if len(list) != 1 || list[0].Rule != name {
				t.Fatalf("raised %+v", list)
			}
			if len(p.records) != 1 || p.records[0].Point != "watch" || string(p.records[0].Decision.Code) != name || p.records[0].ID != list[0].ID {
				t.Errorf("recorded %+v", p.records)
			}
			if c.revokes != (len(p.ended) == 1) {
				t.Errorf("revoked %+v", p.ended)
			}
			q := newPost(t, Config{Rules: Rules()})
			c.quiet(q)
			if list := q.raised(); len(list) > 0 {
				t.Errorf("it must stay quiet, and raised %+v", list)
			}
		})
	}
	for _, r := range Rules() {
		if r.Says == "" || len(r.Do) == 0 {
			t.Errorf("%+v", r)
		}
	}
}

// What the alarm tells: the token, the request, and what led there; and the token is ended.
func TestStoryAndQuarantine(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	p.see(in("allowed", "other", "192.0.2.9", "/orders/9"))
	first := p.see(in("allowed", "t-1", "192.0.2.1", "/orders/1"))
	seventh := p.see(in("allowed", "t-1", "192.0.2.1", "/fetch"))
	attempt := p.see(out("escape_target", "t-1", map[string]any{"requests": []string{seventh}, "port": 2375}))
	list := p.raised()
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	a := list[0]
	if a.Issuer != issuer || a.TokenID != "t-1" || a.Digest != "" || a.Subject != "alice" || a.Code != "escape_target" || a.Record != attempt ||
		!slices.Equal(a.Requests, []string{seventh}) || !slices.Equal(a.Did, []string{"quarantine"}) {
		t.Errorf("%+v", a)
	}
	var told []string
	for _, e := range a.Story {
		told = append(told, e.ID)
	}
	if !slices.Equal(told, []string{first, seventh, attempt}) || a.Story[2].What != "10.0.0.1:2375" || a.Story[1].What != "GET /fetch" {
		t.Errorf("story %+v", a.Story)
	}
	want := state.Revocation{Issuer: issuer, TokenID: "t-1", Until: p.at.Add(time.Hour).UTC(), By: "watch", Reason: "escape-target (" + attempt + ")"}
	if !reflect.DeepEqual(p.ended, []state.Revocation{want}) {
		t.Errorf("ended %+v", p.ended)
	}
	d := p.records[0].Detail
	if d["token_id"] != "t-1" || d["record"] != attempt || !reflect.DeepEqual(d["requests"], []string{seventh}) || !reflect.DeepEqual(d["did"], []string{"quarantine"}) {
		t.Errorf("record %+v", d)
	}
}

// A service in a loop fills neither the log nor the list.
func TestAlarmsPause(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	for range 5000 {
		p.see(out("escape_target", "t-1", nil))
	}
	p.pass(time.Minute)
	p.see(out("escape_target", "t-1", nil))
	if list := p.raised(); len(list) != 2 {
		t.Errorf("%d alarms", len(list))
	}
}

// What was learned outlives a restart, and so does the time for which it was.
func TestBaselineIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "baseline.json")
	caused := func(destination string) audit.Record {
		return out("allowed", "t-1", map[string]any{"routes": []string{"read-order"}, "destination": destination})
	}
	p := newPost(t, Config{Rules: Rules(), Baseline: path})
	p.see(caused("billing"))
	p.stop()

	q := newPost(t, Config{Rules: Rules(), Baseline: path})
	q.pass(23 * time.Hour)
	q.see(caused("rates"))
	q.pass(2 * time.Hour)
	q.see(caused("billing"))
	q.see(caused("rates"))
	if list := q.raised(); len(list) > 0 {
		t.Errorf("raised %+v", list)
	}
	r := newPost(t, Config{Rules: Rules(), Baseline: path})
	r.pass(26 * time.Hour)
	r.see(caused("elsewhere"))
	if list := r.raised(); len(list) != 1 {
		t.Errorf("raised %+v", list)
	}
	if _, err := New(Config{Rules: Rules(), Baseline: "watch_test.go", Record: r.config.Record, Revoke: r.config.Revoke, Lifetime: r.config.Lifetime}); err == nil {
		t.Error("what is no baseline was taken for one")
	}
}

// Who has one IPv6 address has all of its network: it is one source.
func TestSourceOfIPv6(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	for i := range 20 {
		p.see(in("bad_signature", "", fmt.Sprintf("2001:db8:1:2::%x", i+1), "/orders/1"))
		p.see(in("expired", "", fmt.Sprintf("2001:db8:1:%x::1", i+10), "/orders/1"))
	}
	if list := p.raised(); len(list) != 1 || list[0].Rule != "forgeries" {
		t.Errorf("%+v", list)
	}
}

// Whoever reaches for the host after somebody else did, or after an attempt of which nobody knows whose it was, is ended all
// the same: one alarm a minute is one for each token.
func TestNobodyHidesBehindAnothersAlarm(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	p.see(out("escape_target", "", map[string]any{"requests": []string{"a", "b"}}))
	for _, token := range []string{"t-1", "t-2", "t-1", "t-2"} {
		p.see(out("escape_target", token, nil))
	}
	p.see(out("escape_target", "", map[string]any{"requests": []string{"c", "d"}}))
	if list := p.raised(); len(list) != 3 {
		t.Errorf("%d alarms", len(list))
	}
	var ended []string
	for _, r := range p.ended {
		ended = append(ended, r.TokenID)
	}
	slices.Sort(ended)
	if !slices.Equal(ended, []string{"t-1", "t-2"}) {
		t.Errorf("ended %v", ended)
	}
}

// At the gate behind a record's decision names the destination; what caused it are the routes of the requests.
func TestNewEgressIsByRoute(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	see := func(route string) {
		r := out("allowed", "t-1", map[string]any{"routes": []string{route}, "destination": "billing"})
		r.Decision.Route = "billing"
		p.see(r)
	}
	see("create-order")
	p.pass(25 * time.Hour)
	see("create-order")
	see("read-order")
	if list := p.raised(); len(list) != 1 || list[0].Rule != "new-egress" || list[0].Route != "read-order" {
		t.Errorf("%+v", list)
	}
}

func BenchmarkObserve(b *testing.B) {
	w, err := New(Config{
		Rules: Rules(), Record: func(audit.Record) error { return nil }, Revoke: func(context.Context, state.Revocation) error { return nil },
		Lifetime: func(string) time.Duration { return time.Hour },
	})
	if err != nil {
		b.Fatal(err)
	}
	callers := make([]*identity.Caller, 10000)
	for i := range callers {
		callers[i] = caller(fmt.Sprint("t-", i))
	}
	r := in("allowed", "t", "192.0.2.1", "/orders/1")
	r.ID, r.Time = "0190", time.Now()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r.Caller = callers[i%len(callers)]
		w.Observe(&r, nil)
	}
}
