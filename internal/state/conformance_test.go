package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// place is where stores of one state can be opened, one after another or, where there may be many, at once.
type place struct {
	open func(t *testing.T, reg prometheus.Registerer) Store
	many bool
}

func localPlace(t *testing.T) place {
	path := filepath.Join(t.TempDir(), "state.db")
	return place{open: func(t *testing.T, reg prometheus.Registerer) Store {
		t.Helper()
		s, err := Open(Config{Driver: Local, Path: path}, discard(), reg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeStore(t, s) })
		return s
	}}
}

func closeStore(t *testing.T, s Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// becomes waits, for as long as a busy machine may need.
func becomes(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

func ready(t *testing.T, s Store) {
	t.Helper()
	becomes(t, "ready", func() bool { return s.Ready() == nil })
}

func TestLocalConforms(t *testing.T) {
	conforms(t, localPlace)
}

// conforms is what every driver does alike.
func conforms(t *testing.T, at func(*testing.T) place) {
	for name, test := range map[string]func(*testing.T, place){
		"revokes by each selector": revokesBySelector,
		"survives":                 survives,
		"once":                     once,
		"once among many":          onceAmongMany,
		"is idempotent":            idempotent,
		"refuses a wrong form":     refusesForm,
		"tells in order":           tellsInOrder,
		"lists":                    lists,
		"counts":                   counts,
		"is closed":                isClosed,
		"obeys a context":          obeysContext,
		"carries messages":         carries,
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) { test(t, at(t)) })
	}
}

func revokesBySelector(t *testing.T, p place) {
	s := p.open(t, nil)
	ready(t, s)
	issued := time.Now().Truncate(time.Second)
	mine := Token{Issuer: issuerA, TokenID: "jti", Digest: "dig", Subject: "sub", Client: "cli", Session: "sid", KeyID: "kid", IssuedAt: issued}
	for _, c := range []struct {
		name   string
		r      Revocation
		change func(*Token) // makes it another's
	}{
		{"token id", Revocation{TokenID: "jti"}, func(o *Token) { o.TokenID = "other" }},
		{"digest", Revocation{Digest: "dig"}, func(o *Token) { o.Digest = "other" }},
		{"subject", Revocation{Subject: "sub"}, func(o *Token) { o.Subject = "" }},
		{"client", Revocation{Client: "cli"}, func(o *Token) { o.Client = "CLI" }},
		{"session", Revocation{Session: "sid"}, func(o *Token) { o.Session = "sid " }},
		{"key", Revocation{KeyID: "kid"}, func(o *Token) { o.KeyID = "k" }},
		{"subject, before", Revocation{Subject: "sub", Before: issued}, func(o *Token) { o.IssuedAt = issued.Add(time.Second) }},
		{"client, before", Revocation{Client: "cli", Before: issued.Add(-time.Minute)}, nil},
		{"issuer", Revocation{}, func(o *Token) { o.Issuer += "/" }},
		{"issuer, before", Revocation{Before: issued}, func(o *Token) { o.IssuedAt = issued.Add(time.Second) }},
	} {
		// Each with an issuer of its own, or they would end each other's tokens.
		c.r.Issuer, c.r.Until = issuerA+"/"+c.name, hour()
		tok := mine
		tok.Issuer = c.r.Issuer
		if _, ok := s.Revoked(tok); ok {
			t.Errorf("%s: revoked before", c.name)
		}
		if err := s.Revoke(t.Context(), c.r); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		r, ok := s.Revoked(tok)
		if ok != (c.change != nil) {
			t.Errorf("%s: revoked %v", c.name, ok)
		}
		if c.change == nil {
			continue
		}
		if keyOf(r) != keyOf(c.r) || r.At.IsZero() {
			t.Errorf("%s: %+v of %+v", c.name, r, c.r)
		}
		c.change(&tok)
		if r, ok := s.Revoked(tok); ok {
			t.Errorf("%s: another's token falls under %+v", c.name, r)
		}
	}
}

func survives(t *testing.T, p place) {
	full := Revocation{Issuer: issuerA, Subject: "s\u2028<&>\x00", Before: time.Now().Truncate(time.Second), Until: hour(), At: time.Now(), By: "event", Reason: "said so"}
	s := p.open(t, nil)
	ready(t, s)
	if err := s.Revoke(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	if first, err := s.Once(t.Context(), "dpop", "x", hour()); !first || err != nil {
		t.Fatal(first, err)
	}
	closeStore(t, s)
	s = p.open(t, nil)
	ready(t, s)
	r, ok := s.Revoked(Token{Issuer: issuerA, Subject: full.Subject})
	if !ok || !r.Before.Equal(full.Before) || !r.Until.Equal(full.Until) || !r.At.Equal(full.At) || r.By != full.By || r.Reason != full.Reason || r.Subject != full.Subject {
		t.Errorf("%+v became %+v", full, r)
	}
	if first, err := s.Once(t.Context(), "dpop", "x", hour()); first || err != nil {
		t.Error(first, err)
	}
}

func once(t *testing.T, p place) {
	s := p.open(t, nil)
	ready(t, s)
	for _, c := range []struct {
		kind, id string
		want     bool
	}{
		{"dpop", "a", true}, {"dpop", "a", false}, {"event", "a", true}, {"event", "a", false}, {"dpop", "A", true}, {"dpop", "a.*.>", true},
		{"dpop", "a.*.>", false}, {"dpop", strings.Repeat("x", maxField), true}, {"dpop", "\x00\xff", true}, {"dpop", "\x00\xff", false}, {"dpo", "pa", true},
	} {
		if first, err := s.Once(t.Context(), c.kind, c.id, hour()); first != c.want || err != nil {
			t.Errorf("%s %q: %v %v", c.kind, c.id, first, err)
		}
	}
}

// Of many who ask at once, in one store or in several, one hears that it is the first.
func onceAmongMany(t *testing.T, p place) {
	stores := []Store{p.open(t, nil)}
	if p.many {
		stores = append(stores, p.open(t, nil), p.open(t, nil))
	}
	for _, s := range stores {
		ready(t, s)
	}
	raceOnce(t, stores, 60, 12, false)
}

// raceOnce has many goroutines use the same identifiers. Each is first for one of them; where errors may be, for at most one.
func raceOnce(t *testing.T, stores []Store, ids, goroutines int, mayFail bool) {
	t.Helper()
	run := fmt.Sprint(time.Now().UnixNano(), "-")
	firsts := make([]atomic.Int32, ids)
	answered := make([]atomic.Int32, ids)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for n := range ids {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				first, err := stores[g%len(stores)].Once(ctx, "dpop", run+fmt.Sprint(n), hour())
				cancel()
				switch {
				case err != nil && !mayFail:
					t.Error(err)
				case err == nil && first:
					firsts[n].Add(1)
					fallthrough
				case err == nil:
					answered[n].Add(1)
				}
			}
		})
	}
	wg.Wait()
	known := 0
	for n := range ids {
		got, all := firsts[n].Load(), int(answered[n].Load()) == goroutines
		if all {
			known++
		}
		if got > 1 || all && got != 1 {
			t.Errorf("%d: %d were first, %d of %d were answered", n, got, answered[n].Load(), goroutines)
		}
	}
	if known == 0 && !mayFail {
		t.Error("of no identifier everybody was answered")
	}
	t.Logf("of %d identifiers, all of %d were answered for %d", ids, goroutines, known)
}

func idempotent(t *testing.T, p place) {
	s := p.open(t, nil)
	ready(t, s)
	var heard atomic.Int32
	defer s.Subscribe(func(Revocation) { heard.Add(1) })()
	until := hour()
	r := Revocation{Issuer: issuerA, Client: "c", Before: until.Add(-time.Hour).Truncate(time.Second), Until: until}
	narrower := r
	narrower.Before = narrower.Before.Add(-time.Minute)
	for _, again := range []Revocation{r, r, narrower} {
		if err := s.Revoke(t.Context(), again); err != nil {
			t.Fatal(err)
		}
	}
	if list, total := s.List(10); total != 1 || len(list) != 1 || heard.Load() != 1 {
		t.Errorf("%d, heard %d: %+v", total, heard.Load(), list)
	}
}

func refusesForm(t *testing.T, p place) {
	s := p.open(t, nil)
	ready(t, s)
	if err := s.Revoke(t.Context(), Revocation{TokenID: "x", Until: hour()}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if err := s.Revoke(t.Context(), Revocation{Issuer: issuerA, TokenID: "x", Until: time.Now().Add(-time.Minute)}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if first, err := s.Once(t.Context(), "dpop", "", hour()); first || !errors.Is(err, ErrInvalid) {
		t.Error(first, err)
	}
	if _, n := s.List(1); n != 0 {
		t.Errorf("%d are held", n)
	}
}

func tellsInOrder(t *testing.T, p place) {
	stores := []Store{p.open(t, nil)}
	if p.many {
		stores = append(stores, p.open(t, nil))
	}
	var mu sync.Mutex
	heard := make([][]string, len(stores))
	for i, s := range stores {
		ready(t, s)
		defer s.Subscribe(func(r Revocation) {
			if !holds(s, r.TokenID) {
				t.Error("told before it holds")
			}
			mu.Lock()
			defer mu.Unlock()
			heard[i] = append(heard[i], r.TokenID)
		})()
	}
	var want []string
	for n := range 50 {
		name := fmt.Sprint(n)
		want = append(want, name)
		if err := revokeToken(stores[0], name); err != nil {
			t.Fatal(err)
		}
	}
	for i := range stores {
		becomes(t, "all are told", func() bool { mu.Lock(); defer mu.Unlock(); return len(heard[i]) == len(want) })
		if !slices.Equal(heard[i], want) {
			t.Errorf("store %d: %v", i, heard[i])
		}
	}
}

func lists(t *testing.T, p place) {
	s := p.open(t, nil)
	ready(t, s)
	at := time.Now().Add(-time.Minute)
	for n := range 5 {
		if err := s.Revoke(t.Context(), Revocation{Issuer: issuerA, TokenID: fmt.Sprint(n), Until: hour(), At: at.Add(time.Duration(n) * time.Second)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		list, total := s.List(2)
		if total != 5 || len(list) != 2 || list[0].TokenID != "4" || list[1].TokenID != "3" {
			t.Errorf("%d: %+v", total, list)
		}
		closeStore(t, s)
		s = p.open(t, nil)
		ready(t, s)
	}
}

func counts(t *testing.T, p place) {
	reg := prometheus.NewPedanticRegistry()
	s := p.open(t, reg)
	ready(t, s)
	if err := revokeToken(s, "1"); err != nil {
		t.Fatal(err)
	}
	_ = s.Revoke(t.Context(), Revocation{})
	for range 3 {
		if _, err := s.Once(t.Context(), "dpop", "x", hour()); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = s.Once(t.Context(), "dpop", "", hour())
	want := `
# HELP sallyport_state_once_total Identifiers that may be used once, by what was found: first, used, or error where it is not known.
# TYPE sallyport_state_once_total counter
sallyport_state_once_total{result="error"} 1
sallyport_state_once_total{result="first"} 1
sallyport_state_once_total{result="used"} 2
# HELP sallyport_state_revocations Revocations that this process holds.
# TYPE sallyport_state_revocations gauge
sallyport_state_revocations 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "sallyport_state_once_total", "sallyport_state_revocations"); err != nil {
		t.Error(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range families {
		switch f.GetName() {
		case "sallyport_state_revoke_duration_seconds":
			for _, m := range f.GetMetric() {
				if got, want := m.GetHistogram().GetSampleCount(), map[string]uint64{"done": 1}[m.GetLabel()[0].GetValue()]; got != want {
					t.Errorf("%v", m)
				}
			}
			seen++
		case "sallyport_state_feed_age_seconds":
			if v := f.GetMetric()[0].GetGauge().GetValue(); v < 0 || v > 10 {
				t.Errorf("the feed is %v s old", v)
			}
			seen++
		}
	}
	if seen != 2 {
		t.Errorf("%d of two families: %v", seen, families)
	}
	if _, err := newMetrics(reg, nil, nil); err == nil {
		t.Error("registered twice")
	}
	closeStore(t, s)
	if families, err := reg.Gather(); err != nil || len(families) != 0 {
		t.Errorf("closed, and it has metrics: %v %v", families, err)
	}
}

func isClosed(t *testing.T, p place) {
	s := p.open(t, nil)
	ready(t, s)
	if err := revokeToken(s, "1"); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	closeStore(t, s)
	if s.Ready() == nil {
		t.Error("closed, and ready")
	}
	if !holds(s, "1") {
		t.Error("closed, and what was revoked is not")
	}
	if err := revokeToken(s, "2"); err == nil {
		t.Error("closed, and it revokes")
	}
	if first, err := s.Once(t.Context(), "dpop", "x", hour()); first || err == nil {
		t.Error("closed, and it answers", first)
	}
}

func obeysContext(t *testing.T, p place) {
	s := p.open(t, nil)
	ready(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Which of two ready things happens is chance; that it ends, and says true only if it is so, is not.
	for n := range 20 {
		name := fmt.Sprint(n)
		first, err := s.Once(ctx, "dpop", name, hour())
		if first && err != nil {
			t.Error("first, and an error")
		}
		again, aerr := s.Once(t.Context(), "dpop", name, hour())
		if aerr != nil || first && again {
			t.Error(first, again, aerr)
		}
	}
}

// What one sends all hear, the sender too, one at a time and by topic; nobody hears what is not for it.
func carries(t *testing.T, p place) {
	stores := []Store{p.open(t, nil)}
	if p.many {
		stores = append(stores, p.open(t, nil), p.open(t, nil))
	}
	var mu sync.Mutex
	heard := map[string]int{}
	var cancels []func()
	for i, s := range stores {
		ready(t, s)
		cancel, err := s.(Bus).Hear("rates", func(m []byte) {
			mu.Lock()
			defer mu.Unlock()
			heard[fmt.Sprint(i, " ", string(m))]++
		})
		if err != nil {
			t.Fatal(err)
		}
		cancels = append(cancels, cancel)
	}
	all := func(m string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			for i := range stores {
				if heard[fmt.Sprint(i, " ", m)] != 1 {
					return false
				}
			}
			return true
		}
	}
	for i, s := range stores {
		m := fmt.Sprint("first of ", i)
		becomes(t, "the subscriptions are known everywhere", func() bool {
			if err := s.(Bus).Send("others", []byte("for others")); err != nil {
				t.Fatal(err)
			}
			if err := s.(Bus).Send("rates", []byte("probe "+m)); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for j := range stores {
				if heard[fmt.Sprint(j, " probe ", m)] == 0 {
					return false
				}
			}
			return true
		})
		if err := s.(Bus).Send("rates", []byte(m)); err != nil {
			t.Fatal(err)
		}
		becomes(t, "all hear "+m, all(m))
	}
	cancels[0]()
	if err := stores[0].(Bus).Send("rates", []byte("after")); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	if heard["0 after"] != 0 || heard["0 for others"] != 0 {
		t.Error("heard what was not for it")
	}
	mu.Unlock()
	for _, topic := range []string{"", "A", "a.b", "a>"} {
		if _, err := stores[0].(Bus).Hear(topic, func([]byte) {}); !errors.Is(err, ErrInvalid) {
			t.Errorf("topic %q: %v", topic, err)
		}
		if err := stores[0].(Bus).Send(topic, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("topic %q: %v", topic, err)
		}
	}
	if err := stores[0].(Bus).Send("rates", make([]byte, maxMessage+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a message that is too long: %v", err)
	}
	closeStore(t, stores[0])
	if err := stores[0].(Bus).Send("rates", nil); err == nil {
		t.Error("a closed store sends")
	}
}
