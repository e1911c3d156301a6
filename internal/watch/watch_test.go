package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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

// A token without jti is ended by its digest; the subject too, if the rule says so; nobody, if it may have been several.
func TestWhomQuarantineEnds(t *testing.T) {
	rule := Rule{Name: "r", Says: "s", Point: "egress", Codes: []string{"escape_target"}, Do: []string{doQuarantine}, Subject: 15 * time.Minute}
	p := newPost(t, Config{Rules: []Rule{rule}})
	r := out("escape_target", "t-1", nil)
	r.Caller.TokenID = ""
	p.see(r)
	p.pass(2 * time.Minute)
	p.see(out("escape_target", "", map[string]any{"requests": []string{"a", "b"}}))
	list := p.raised()
	if len(list) != 2 || len(p.ended) != 2 {
		t.Fatalf("%+v, %+v", list, p.ended)
	}
	token, subject := p.ended[0], p.ended[1]
	if token.TokenID != "" || token.Digest != "digest-t-1" || token.Subject != "" {
		t.Errorf("%+v", token)
	}
	if at := p.at.Add(-2 * time.Minute); subject.Subject != "alice" || subject.Digest != "" || !subject.Before.Equal(at.Add(15*time.Minute)) || !subject.Until.After(subject.Before) {
		t.Errorf("%+v", subject)
	}
	if list[1].Not == "" || len(list[1].Did) > 0 || !slices.Equal(list[1].Requests, []string{"a", "b"}) {
		t.Errorf("%+v", list[1])
	}
}

// A store that is down is said so, in the alarm's record.
func TestQuarantineThatFails(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	p.failing = errors.New("no quorum")
	p.see(out("escape_target", "t-1", nil))
	if list := p.raised(); len(list) != 1 || !strings.Contains(list[0].Not, "no quorum") || !strings.Contains(fmt.Sprint(p.records[0].Detail["not"]), "no quorum") {
		t.Errorf("%+v", list)
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

func TestWebhook(t *testing.T) {
	var tries atomic.Int32
	got := make(chan Alarm, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		var a Alarm
		if r.Header.Get("Authorization") != "Bearer s3cret" || json.NewDecoder(r.Body).Decode(&a) != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		got <- a
	}))
	defer server.Close()
	client := server.Client()
	defer client.CloseIdleConnections()
	p := newPost(t, Config{Rules: Rules(), Webhook: &Webhook{URL: server.URL, Client: client, Secret: func() (string, error) { return "s3cret", nil }}})
	p.see(out("escape_target", "t-1", nil))
	select {
	case a := <-got:
		if a.Rule != "escape-target" || a.TokenID != "t-1" || !slices.Equal(a.Did, []string{"quarantine"}) {
			t.Errorf("%+v", a)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was sent")
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

// Twice as many tokens as are counted: what is held is bounded.
func TestMemoryIsBounded(t *testing.T) {
	const most = maxKeys / 8
	tally, now, before := newTally(most), time.Now(), held()
	fill(tally, 1, most, now)
	full := held()
	fill(tally, most+1, most, now)
	if len(tally.slots) > most {
		t.Errorf("%d keys are held", len(tally.slots))
	}
	again := held()
	if perKey := (full - before) / most; perKey > 200 {
		t.Errorf("%d bytes for each token", perKey)
	}
	if again > full+full/4 {
		t.Errorf("it grows: %d, then %d", full, again)
	}
	runtime.KeepAlive(tally)
}

func fill(t *tally, from, n uint64, now time.Time) {
	for i := range n {
		t.add(from+i, i|1, now, time.Minute)
	}
}

func held() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMillionTokens measures what a rule holds that counts by token.
func BenchmarkMillionTokens(b *testing.B) {
	for b.Loop() {
		before := held()
		tally := newTally(maxKeys)
		fill(tally, 1, maxKeys, time.Now())
		b.ReportMetric(float64(held()-before)/maxKeys, "B/token")
		runtime.KeepAlive(tally)
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

// Whoever was forgotten first counts anew; whoever came last does not.
func TestTallyForgetsTheOldest(t *testing.T) {
	tally, now := newTally(3), time.Now()
	for key := range uint64(4) {
		tally.add(key+1, 0, now, time.Minute)
	}
	if _, n := tally.add(4, 0, now, time.Minute); n != 2 {
		t.Errorf("the last key counts %d", n)
	}
	if _, n := tally.add(1, 0, now, time.Minute); n != 1 {
		t.Errorf("the first key counts %d", n)
	}
}

func TestParseRulesRefuses(t *testing.T) {
	rule := "version: 1\nrules:\n  - {name: a, says: b, point: egress, codes: [c], do: [record]}\n"
	if _, err := ParseRules("good.yml", strings.NewReader(rule)); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ file, want string }{
		"nothing":             {"", "bad.yml:1: not a file of rules"},
		"another version":     {"version: 2\nrules: []\n", "version 2 is not 1"},
		"an unknown key":      {"version: 1\nrulez: []\n", "not a file of rules"},
		"a rule's typo":       {strings.Replace(rule, "codes", "coeds", 1), "bad.yml:3: rule"},
		"a second document":   {rule + "---\nversion: 1\n", "second document"},
		"twice the name":      {rule + "  - {name: a, says: b, point: egress, codes: [c], do: [record]}\n", "bad.yml:4: rule a: its name is that of another rule"},
		"no name":             {strings.Replace(rule, "name: a, ", "", 1), "name:"},
		"no records":          {strings.Replace(rule, "codes: [c], ", "", 1), "codes or decision"},
		"another point":       {strings.Replace(rule, "egress", "somewhere", 1), `point: "somewhere"`},
		"no action":           {strings.Replace(rule, "[record]", "[]", 1), "do:"},
		"another action":      {strings.Replace(rule, "[record]", "[explode]", 1), `do: "explode"`},
		"a count and no time": {strings.Replace(rule, "do:", "count: 5, do:", 1), "within"},
		"no time":             {strings.Replace(rule, "do:", "count: 5, within: soon, do:", 1), "soon"},
		"distinct of one":     {strings.Replace(rule, "do:", "distinct: path, do:", 1), "distinct: with count"},
		"novel and count":     {strings.Replace(rule, "do:", "novel: [route], warmup: 1h, count: 5, within: 1m, do:", 1), "novel: it excludes"},
		"novel at once":       {strings.Replace(rule, "do:", "novel: [route], do:", 1), "warmup"},
		"whoever is the last": {strings.Replace(rule, "do: [record]", "by: source, count: 5, within: 1m, do: [quarantine]", 1), "by: with quarantine"},
		"a subject for free":  {strings.Replace(rule, "do:", "subject: 1h, do:", 1), "subject: it belongs"},
	} {
		_, err := ParseRules("bad.yml", strings.NewReader(c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

// FuzzParseRules holds that what is accepted builds a watcher, which survives any record.
func FuzzParseRules(f *testing.F) {
	f.Add(string(builtin), "escape_target")
	f.Add("version: 1\nrules:\n  - {name: a, says: b, point: egress, codes: [c], do: [record]}\n", "c")
	f.Fuzz(func(t *testing.T, file, code string) {
		rules, err := ParseRules("f", strings.NewReader(file))
		if err != nil {
			return
		}
		w, err := New(Config{
			Rules: rules, Record: func(audit.Record) error { return nil }, Revoke: func(context.Context, state.Revocation) error { return nil },
			Lifetime: func(string) time.Duration { return time.Hour },
		})
		if err != nil {
			t.Fatalf("accepted, and it does not build: %v", err)
		}
		for _, point := range []string{"ingress", "egress", "sandbox"} {
			w.Observe(&audit.Record{ID: "x", Point: point, Decision: policy.Deny(policy.Code(code), "")}, nil)
			w.Observe(&audit.Record{ID: "x", Point: point, Decision: allowed, Caller: caller("t"), Detail: map[string]any{"requests": []string{"y"}, "destination": 7}}, nil)
		}
	})
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

// A webhook that does not answer must not keep the program from ending.
func TestEndsBesideASlowWebhook(t *testing.T) {
	called := make(chan struct{}, 100)
	stuck := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or it is not noticed that the client goes
		called <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(stuck.Close)
	p := newPost(t, Config{Rules: Rules(), Webhook: &Webhook{URL: stuck.URL, Client: stuck.Client()}})
	for i := range 20 {
		p.see(out("escape_target", fmt.Sprint("t-", i), nil))
	}
	<-called
	began := time.Now()
	p.stop()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if len(p.ended) != 20 || len(p.records) != 20 {
		t.Errorf("%d are ended, %d on record", len(p.ended), len(p.records))
	}
}

// A store that does not answer holds up nobody else's end: a revocation holds here before it is stored.
func TestSlowStoreHoldsUpNobody(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	asked, answered := make(chan string, 10), make(chan struct{})
	p.config.Revoke = func(_ context.Context, r state.Revocation) error {
		asked <- r.TokenID
		<-answered
		return nil
	}
	for _, token := range []string{"t-1", "t-2"} {
		p.see(out("escape_target", token, nil))
	}
	for range 2 {
		select {
		case <-asked:
		case <-time.After(5 * time.Second):
			t.Error("one waits for the other")
		}
	}
	close(answered)
	p.stop()
	if len(p.records) != 2 {
		t.Errorf("%d on record", len(p.records))
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

// Each token that causes what a rule ends tokens for is ended, however soon after another, and once.
func TestEveryTokenIsEnded(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	p.see(out("escape_target", "", nil)) // nobody's, and it must not be anybody's cover
	for range 3 {
		for _, token := range []string{"t-1", "t-2", "t-3"} {
			p.see(out("escape_target", token, nil))
		}
		p.see(out("escape_target", "", nil))
	}
	var ended []string
	alarms := p.raised()
	for _, r := range p.ended {
		ended = append(ended, r.TokenID)
	}
	slices.Sort(ended)
	if !slices.Equal(ended, []string{"t-1", "t-2", "t-3"}) || len(alarms) != 4 {
		t.Errorf("ended %q, %d alarms", ended, len(alarms))
	}
}
