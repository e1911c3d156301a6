package oauth

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestIntrospectorFlood is row I08: tokens that nobody has issued, a million of them, take a bounded memory, cost the server a
// bounded number of questions, and stand in nobody's way.
func TestIntrospectorFlood(t *testing.T) {
	a := newAsked(t, MaxKeep)
	a.ask(Question{Token: "good"})
	attacker := netip.MustParseAddr("192.0.2.1")
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	asked, refused := a.count.Load(), 0
	for n := range floodSize {
		_, err := a.Ask(t.Context(), Question{Token: fmt.Sprintf("bad-%d", n), Source: attacker})
		switch {
		case errors.Is(err, ErrTooMany):
			refused++
		case !errors.Is(err, ErrInactive):
			t.Fatal(err)
		}
	}
	if n := int(a.count.Load() - asked); n != tries || refused != floodSize-tries {
		t.Errorf("the server was asked %d times and %d refused, want %d", n, refused, tries)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d tokens have taken %d bytes", floodSize, grown)
	}
	asked = a.count.Load()
	if !a.ask(Question{Token: "good", Source: attacker}) || a.count.Load() != asked {
		t.Error("a token that is active was driven out")
	}
	// a token that was known is asked for, also of a source that is not asked for any more, and also when what was said is old
	a.tick(2 * MaxKeep)
	for range 2000 {
		_, _ = a.Ask(t.Context(), Question{Token: fmt.Sprint("bad", a.count.Load()), Source: attacker})
	}
	if _, err := a.Ask(t.Context(), Question{Token: "bad-new", Source: attacker}); !errors.Is(err, ErrTooMany) {
		t.Errorf("the budget is not spent: %v", err)
	}
	if !a.ask(Question{Token: "good", Source: attacker}) || !a.ask(Question{Token: "good", Fresh: true, Source: attacker}) {
		t.Error("a token that was active is refused for its source")
	}
	if !a.ask(Question{Token: "unheard", Source: netip.MustParseAddr("192.0.2.2")}) {
		t.Error("another source is refused")
	}
	a.tick(tryEvery)
	if !a.ask(Question{Token: "unheard-2", Source: attacker}) {
		t.Error("after a while nothing more may be tried")
	}
	a.mu.Lock()
	kept, used := len(a.inactive.kept), a.inactive.used
	a.mu.Unlock()
	if kept > maxInactive/entryCost || used > maxInactive {
		t.Errorf("%d entries of %d bytes", kept, used)
	}
}

// TestManyAtOnce holds that a source which sends very many tokens at a time is asked for little beyond its budget, and that
// nobody else waits behind them.
func TestManyAtOnce(t *testing.T) {
	a := newAsked(t, MaxKeep)
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release)
	plain := a.answer
	a.answer = func(w http.ResponseWriter, token string) {
		if strings.HasPrefix(token, "bad") {
			<-hold
		}
		plain(w, token)
	}
	const many = 4 * tries
	attacker := netip.MustParseAddr("192.0.2.1")
	ended := make(chan error, many)
	for n := range many {
		go func() {
			_, err := a.Ask(t.Context(), Question{Token: fmt.Sprint("bad-", n), Source: attacker})
			ended <- err
		}()
	}
	waitFor(t, func() bool {
		a.Introspector.mu.Lock()
		defer a.Introspector.mu.Unlock()
		return a.begun == many && a.count.Load() == maxOfSource
	})
	if !a.ask(Question{Token: "good", Source: netip.MustParseAddr("192.0.2.2")}) || !a.ask(Question{Token: "other"}) {
		t.Error("a token of another source is refused")
	}
	release()
	refused := 0
	for range many {
		switch err := <-ended; {
		case errors.Is(err, ErrTooMany):
			refused++
		case !errors.Is(err, ErrInactive):
			t.Fatal(err)
		}
	}
	if n := many - refused; n < tries || n > tries+maxOfSource {
		t.Errorf("%d were asked for", n)
	}
	a.mu.Lock()
	told := a.results[TooMany]
	a.mu.Unlock()
	if told != refused || len(a.queues) != 0 {
		t.Errorf("%d refused, told of %d; %d queues are left", refused, told, len(a.queues))
	}
}

// TestNegativesAreBounded holds the same where every one was asked for, from as many sources as there are.
func TestNegativesAreBounded(t *testing.T) {
	a := newAsked(t, MaxKeep)
	now := a.clock()
	a.remember(a.nameOf("good"), said{answer: Answer{Claims: map[string]any{}}, until: now.Add(MaxKeep)}, 100, netip.Addr{}, 0)
	for n := range 3 * maxSources {
		source := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
		a.remember(a.nameOf(fmt.Sprint("bad", n)), said{err: ErrInactive, until: now.Add(inactiveFor)}, 0, source, 0)
	}
	if n := len(a.inactive.kept); n > maxInactive/entryCost || n != a.inactive.order.Len() || a.inactive.used > maxInactive || len(a.budget.spent) > maxSources {
		t.Errorf("%d entries of %d bytes, and %d sources", n, a.inactive.used, len(a.budget.spent))
	}
	if s, ok := a.active.get(a.nameOf("good"), now); !ok || s.err != nil {
		t.Error("a token that is active was driven out")
	}
	stranger := netip.MustParseAddr("192.0.2.9")
	if a.budget.left(stranger, now) {
		t.Error("more sources than can be told apart have a budget of their own each")
	}
	if !a.budget.left(netip.Addr{}, now) || !a.budget.left(stranger, now.Add(time.Minute)) {
		t.Error("nobody in particular, or somebody after a while, has no budget")
	}
	a.tick(time.Minute)
	a.remember(a.nameOf("bad"), said{err: ErrInactive, until: a.clock().Add(inactiveFor)}, 0, stranger, 0)
	if n := len(a.budget.spent); n != 1 {
		t.Errorf("after a minute %d sources have spent something", n)
	}
	host, neighbour := netip.MustParseAddr("2001:db8:1:1::1"), netip.MustParseAddr("2001:db8:1:1:ffff::2")
	for range tries {
		a.budget.spend(host, a.clock())
	}
	if a.budget.left(neighbour, a.clock()) || !a.budget.left(netip.MustParseAddr("2001:db8:1:2::1"), a.clock()) {
		t.Error("a host is not one source with all addresses of its /64, or another network is")
	}
}

// TestIntrospectorBytes holds that what is kept of active tokens is bounded in bytes.
func TestIntrospectorBytes(t *testing.T) {
	a := newAsked(t, MaxKeep)
	a.answer = func(w http.ResponseWriter, _ string) {
		fmt.Fprintf(w, `{"active":true,"x":%q}`, strings.Repeat("x", 60<<10))
	}
	for n := range 80 {
		a.ask(Question{Token: fmt.Sprint("t", n)})
	}
	if a.active.used > maxActive || len(a.active.kept) < 10 || len(a.active.kept) > 100 || a.active.order.Len() != len(a.active.kept) {
		t.Errorf("%d answers of %d bytes are kept", len(a.active.kept), a.active.used)
	}
}
