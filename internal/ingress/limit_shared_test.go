package ingress

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/limit"
	"github.com/sallyport/sallyport/internal/natstest"
	"github.com/sallyport/sallyport/internal/state"
)

// replica is a gate that shares what it counts through a store, and the issuer with another one.
func replica(t *testing.T, store state.Store, with *stage) *stage {
	t.Helper()
	return open(t, func(s *stage) {
		if with != nil {
			s.issuer, s.config.Rules.Verifier = with.issuer, with.config.Rules.Verifier
		}
		s.config.State, s.config.Bus = store, store.(state.Bus)
		s.config.Rules.Policy = limitedRoutes(t, limit.Rate{Requests: 20, Per: time.Hour})
		s.config.Rules.RateLimits = RateLimits{
			Source:   limit.Rate{Requests: 60, Per: time.Hour},
			Caller:   limit.Rate{Requests: 40, Per: time.Hour},
			Failures: limit.Lockout{Count: 4, Within: time.Hour, For: time.Hour},
			Shared:   true,
		}
	})
}

// hearing waits until each gate hears itself and the other.
func hearing(t *testing.T, a, b *stage) {
	t.Helper()
	for _, s := range []*stage{a, b} {
		inTime(t, "a replica hears itself", func() bool { return counted(t, s.registry, "sallyport_ingress_limits_shared") == 1 })
	}
}

// together is what holds of two replicas that hear each other: what one lets in counts at the other.
func together(t *testing.T, a, b *stage) {
	t.Helper()
	token := func(sub string) string {
		return bearerHeader(a.issuer.Token(map[string]any{"sub": sub, "scope": "orders:read"}))
	}
	for _, c := range []struct {
		limit   int
		atA, by string // addresses
		raw     string
	}{
		{20, "127.0.0.11", "127.0.0.12", get("/orders/1", token("by-route"))},
		{40, "127.0.0.13", "127.0.0.14", get("/events", token("by-caller"))},
		{60, "127.0.0.15", "127.0.0.15", get("/public/x")},
	} {
		for range c.limit {
			a.expect(c.atA, c.raw, 200, "")
		}
		// What the other has not heard yet it lets in; long before its own limit it has.
		n := 0
		for b.from(c.by, c.raw).code != "rate_limited" {
			if n++; n == c.limit-1 {
				t.Errorf("%.40q: %d requests at one, and %d more at the other", c.raw, c.limit, n)
				break
			}
			time.Sleep(shareEvery)
		}
	}
	for n := range 2 {
		a.expect("127.0.0.16", get("/orders/1", a.forgery(n)), 401, "bad_signature")
		b.expect("127.0.0.16", get("/orders/1", b.forgery(n)), 401, "bad_signature")
	}
	for _, s := range []*stage{a, b} {
		inTime(t, "who tried half of its tokens at each is locked out at both", func() bool {
			return s.from("127.0.0.16", get("/options")).code == "locked_out"
		})
	}
	b.expect("127.0.0.17", get("/events", token("somebody")), 200, "")
}

// Two gates in one process, by the local store.
func TestSharedLimits(t *testing.T) {
	store := localState(t)
	a := replica(t, store, nil)
	b := replica(t, store, a)
	hearing(t, a, b)
	together(t, a, b)
	next := b.config.Rules
	next.RateLimits.Shared = false
	if err := b.gateway.Swap(next); err != nil {
		t.Fatal(err)
	}
	if counted(t, b.registry, "sallyport_ingress_limits_shared") != 0 {
		t.Error("who does not share says that it does")
	}
}

// inTime waits for as long as a cluster on a busy machine may need to agree.
func inTime(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// Two gates at two servers of a real cluster. One that is cut off says so, and counts alone: it lets in what it would have let in
// by itself, and no more.
func TestSharedLimitsInACluster(t *testing.T) {
	servers, err := natstest.Start(natstest.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer servers.Close()
	stores := make([]state.Store, 2)
	for i := range stores {
		if stores[i], err = state.Open(state.Config{Driver: state.NATS, URL: servers.URLs(i), Bucket: "rates"}, slog.New(slog.DiscardHandler), nil); err != nil {
			t.Fatal(err)
		}
		defer stores[i].Close()
	}
	for _, s := range stores {
		inTime(t, "the store is ready", func() bool { return s.Ready() == nil })
	}
	a := replica(t, stores[0], nil)
	b := replica(t, stores[1], a)
	defer a.stop()
	defer b.stop()
	hearing(t, a, b)
	together(t, a, b)

	servers.Client(1).Cut(true)
	inTime(t, "who is cut off says so", func() bool {
		return counted(t, b.registry, "sallyport_ingress_limits_shared") == 0 && strings.Contains(b.log.String(), "limits are counted by this replica alone")
	})
	for _, s := range []*stage{a, b} {
		for range 60 {
			s.expect("127.0.0.20", get("/public/x"), 200, "")
		}
		s.expect("127.0.0.20", get("/public/x"), 429, "rate_limited")
	}
	servers.Client(1).Cut(false)
	inTime(t, "it is heard again", func() bool {
		return counted(t, b.registry, "sallyport_ingress_limits_shared") == 1 && strings.Contains(b.log.String(), "by all replicas together again")
	})
	for range 60 {
		a.expect("127.0.0.21", get("/public/x"), 200, "")
	}
	n := 0
	inTime(t, "what one lets in counts at the other again", func() bool {
		n++
		time.Sleep(shareEvery)
		return b.from("127.0.0.21", get("/public/x")).StatusCode == 429
	})
	if n >= 60 {
		t.Errorf("it counts alone: %d requests", n)
	}

	// A server that is cut off from the others, with its clients: it tells them what they have said themselves.
	servers.Isolate(1, true)
	inTime(t, "who hears itself alone says so", func() bool { return counted(t, b.registry, "sallyport_ingress_limits_shared") == 0 })
	servers.Isolate(1, false)
	inTime(t, "it is heard again", func() bool { return counted(t, b.registry, "sallyport_ingress_limits_shared") == 1 })
}

// Whatever a message says, it is one that is read within bounds.
func FuzzHear(f *testing.F) {
	for _, t := range []tally{{From: "x", Source: map[string]int64{"192.0.2.1": 3, "2001:db8::/64": 1 << 62, "invalid IP": -1}},
		{Failures: map[string]int64{"192.0.2.2": 1 << 40}}, {Caller: map[string]int64{"\x00subject\x00i\x00s": 2}, Route: map[string]int64{"health\x00address\x00\x00192.0.2.3": 9}}} {
		b, err := json.Marshal(t)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"source":{"":1},"route":{"":1}}`))
	s := setStage(f, func(s *stage) {
		s.config.Rules.RateLimits = RateLimits{
			Source: limit.Rate{Requests: 20, Per: time.Hour}, Caller: limit.Rate{Requests: 6, Per: time.Hour},
			Failures: limit.Lockout{Count: 4, Within: time.Hour, For: time.Hour}, Shared: true,
		}
	})
	f.Fuzz(func(t *testing.T, message []byte) {
		begun := time.Now()
		s.gateway.hear(message)
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// What there is no room for is counted here, and how much of it was not said.
func TestSharingIsBounded(t *testing.T) {
	s := newSharing(localState(t).(state.Bus))
	for n := range 50_000 {
		s.note(bySource, fmt.Sprintf("2001:db8:%x::/64", n), 1)
	}
	if s.tally.bytes > shareBytes+64 || s.unsaid.Load() == 0 || len(s.tally.Source)+int(s.unsaid.Load()) != 50_000 {
		t.Errorf("%d bytes, %d sources, %d unsaid", s.tally.bytes, len(s.tally.Source), s.unsaid.Load())
	}
	message, err := json.Marshal(s.tally)
	if err != nil || len(message) > 512<<10 {
		t.Errorf("a message of %d bytes, %v", len(message), err)
	}
}
