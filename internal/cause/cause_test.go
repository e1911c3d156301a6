package cause

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func caller(token string, scopes ...string) *identity.Caller {
	return &identity.Caller{Issuer: "https://issuer.example", Subject: "s", Digest: token, Scopes: scopes}
}

func request(id, route, token string) Request {
	r := Request{ID: id, Route: route}
	if token != "" {
		r.Caller = caller(token, "a", "b")
	}
	return r
}

func TestCapabilityEndsWithItsTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight()
		e := f.Begin(request("1", "r", "t"))
		if e.Own != e.Trace || len(e.Capability) != 32 || len(e.Trace) != 32 || e.Capability == e.Trace {
			t.Fatalf("capability %q, trace %q", e.Capability, e.Trace)
		}
		time.Sleep(time.Hour)
		if got, ok := f.ByCapability(e.Capability); !ok || got != e {
			t.Error("a request in flight is not found")
		}
		e.Done()
		e.Done()
		time.Sleep(Tail - time.Nanosecond)
		if got, ok := f.ByTrace(e.Trace); !ok || got != e || e.Over() {
			t.Error("a request in its tail is not found")
		}
		time.Sleep(time.Nanosecond)
		if _, ok := f.ByCapability(e.Capability); ok || !e.Over() {
			t.Error("a capability outlives the tail")
		}
		synctest.Wait()
		if len(f.byCapability)+len(f.byTrace)+len(f.shared)+len(f.classes)+f.size+f.live != 0 || f.newest != nil || f.tail.first != nil || f.tail.last != nil || f.abandoned.first != nil {
			t.Errorf("something is left: %+v", f)
		}
	})
}

// TestUnansweredCountsForLonger: who sends a request and goes does not choose when it is forgotten.
func TestUnansweredCountsForLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight()
		gone := f.Begin(Request{ID: "gone"})
		gone.Watched()
		var ended atomic.Int32
		f.Watch(func(c Change, _ *Class) {
			if c == Ended {
				ended.Add(1)
			}
		})
		gone.Abandon()
		gone.Done()
		other := f.Begin(Request{ID: "other"})
		other.Done()
		time.Sleep(Tail)
		synctest.Wait()
		if _, ok := f.ByCapability(other.Capability); ok || f.size != 1 {
			t.Errorf("%v, %d in their tail", ok, f.size)
		}
		time.Sleep(Unanswered - Tail - time.Millisecond)
		if w := f.Window(); w.Only != gone || gone.Over() || ended.Load() != 0 {
			t.Errorf("%+v %v %d", w, gone.Over(), ended.Load())
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if w := f.Window(); w.Requests != 0 || !gone.Over() || ended.Load() != 1 {
			t.Errorf("%+v %v %d", w, gone.Over(), ended.Load())
		}
	})
}

func TestCapabilityOfAnotherInstance(t *testing.T) {
	f, other := NewFlight(), NewFlight()
	e := other.Begin(request("1", "r", "t"))
	defer e.Done()
	if _, ok := f.ByCapability(e.Capability); ok {
		t.Error("it is known")
	}
	if f.IsBackground(other.Background()) || !f.IsBackground(f.Background()) || f.IsBackground("") {
		t.Error("background")
	}
}

func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight()
		if w := f.Window(); w.Requests != 0 || len(w.Classes) != 0 || w.One() != nil {
			t.Errorf("an empty window has %+v", w)
		}
		var entries []*Entry
		for i := range 20 {
			entries = append(entries, f.Begin(request(fmt.Sprint(i), "r", fmt.Sprint("t", i%2))))
		}
		w := f.Window()
		if w.Requests != 20 || len(w.Classes) != 2 || len(w.IDs) != Listed || w.IDs[0] != "19" || w.One() != nil {
			t.Errorf("%+v", w)
		}
		for _, e := range entries[1:] {
			e.Done()
		}
		time.Sleep(Tail)
		w = f.Window()
		if w.Requests != 1 || w.Only != entries[0] || !slices.Equal(w.IDs, []string{"0"}) || w.One() != entries[0].Class() {
			t.Errorf("%+v", w)
		}
		f.Begin(request("other route", "q", "t0")).Done()
		if w := f.Window(); len(w.Classes) != 2 || w.One() == nil {
			t.Error("one token on two routes is one caller")
		}
		if w := f.Window(); !slices.Equal(w.Routes(), []string{"q", "r"}) {
			t.Errorf("the routes are %q", w.Routes())
		}
		f.Begin(request("public", "p", "")).Done()
		if w := f.Window(); w.One() != nil {
			t.Error("a request without token may have caused it")
		}
		n, ids := f.Since(w.Mark)
		if n != 2 || !slices.Equal(ids, []string{"public", "other route"}) {
			t.Errorf("since then began %d: %v", n, ids)
		}
	})
}

func TestClassesWithOneTokenAndOtherScopes(t *testing.T) {
	f := NewFlight()
	a := f.Begin(Request{ID: "1", Route: "r", Caller: caller("t", "x", "y")})
	b := f.Begin(Request{ID: "2", Route: "r", Caller: caller("t", "x")})
	c := f.Begin(Request{ID: "3", Route: "r", Caller: &identity.Caller{Issuer: "i"}})
	d := f.Begin(Request{ID: "4", Route: "r", Caller: &identity.Caller{Issuer: "i"}})
	if w := f.Window(); len(w.Classes) != 4 || w.One() != nil {
		t.Errorf("%d classes", len(w.Classes))
	}
	for _, e := range []*Entry{a, b, c, d} {
		e.Done()
	}
}

func TestOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight()
		var entries []*Entry
		for i := range maxClasses {
			entries = append(entries, f.Begin(request("", "r", fmt.Sprint(i))))
		}
		if f.Window().Overflow {
			t.Error("it overflows early")
		}
		one := f.Begin(request("", "r", "one too many"))
		w := f.Window()
		if !w.Overflow || w.Requests != maxClasses+1 || w.Classes != nil || w.One() != nil {
			t.Error("it does not overflow")
		}
		if f.Sweep(func(r *Request) *Lost {
			if r.Caller.Digest == "one too many" {
				return &Lost{Code: "revoked"}
			}
			return nil
		}) != 1 || one.Standing().Err() == nil {
			t.Error("what is too many is not swept")
		}
		one.Done()
		if !f.Window().Overflow {
			t.Error("the tail of what was too many does not count")
		}
		time.Sleep(Tail)
		if f.Window().Overflow {
			t.Error("it overflows for ever")
		}
		for _, e := range entries {
			e.Done()
		}
	})
}

func TestTailIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight()
		first := f.Begin(request("", "r", "t"))
		first.Done()
		for range maxTail {
			f.Begin(request("", "r", "t")).Done()
		}
		if _, ok := f.ByCapability(first.Capability); ok || f.size != maxTail {
			t.Errorf("%d are remembered", f.size)
		}
		if !f.Window().Overflow {
			t.Error("one is forgotten, and the window claims to be whole")
		}
		time.Sleep(Tail)
		if w := f.Window(); w.Overflow || w.Requests != 0 {
			t.Errorf("%+v", w)
		}
	})
}

func TestStanding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight()
		a, b := f.Begin(request("1", "r", "t")), f.Begin(request("2", "r", "t"))
		other := f.Begin(request("3", "r", "u"))
		a.Done()
		standing := a.Standing()
		revoke := func(r *Request) *Lost {
			if r.Caller.Digest == "t" {
				return &Lost{Code: "revoked", Reason: "for a test"}
			}
			return nil
		}
		if n := f.Sweep(revoke); n != 2 {
			t.Errorf("%d ended", n)
		}
		if f.Sweep(revoke) != 0 {
			t.Error("the same ended twice")
		}
		if l := Why(standing); l == nil || l.Code != "revoked" || Why(b.Standing()) != l || a.Class().Lost() != l {
			t.Error("one in flight, or in its tail, keeps its standing")
		}
		if other.Standing().Err() != nil {
			t.Error("another loses it")
		}
		again := f.Begin(request("4", "r", "t")) // the gate in front let it in again
		if again.Standing().Err() != nil || again.Class() == a.Class() {
			t.Error("it begins without standing")
		}
		if w := f.Window(); len(w.Classes) != 3 {
			t.Errorf("%d classes", len(w.Classes))
		}
		for _, e := range []*Entry{b, other, again} {
			e.Done()
		}
		time.Sleep(Tail)
		synctest.Wait()
		if len(f.classes)+len(f.shared) != 0 {
			t.Error("classes are left")
		}
	})
}

func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight()
		e := f.Begin(request("1", "r", "t"))
		held := []*Class{e.Class()}
		f.Hold(held)
		e.Done()
		time.Sleep(2 * Tail)
		if f.Window().Requests != 0 {
			t.Error("what is held is in the window")
		}
		if again := f.Begin(request("2", "r", "t")); again.Class() != held[0] {
			t.Error("the class is another")
		} else {
			again.Done()
		}
		time.Sleep(2 * Tail)
		f.Sweep(func(*Request) *Lost { return &Lost{Code: "revoked"} })
		if held[0].Lost() == nil {
			t.Error("what is held is not swept")
		}
		f.Release(held)
		f.Release(held) // of what is forgotten: nothing
		if len(f.classes)+len(f.shared) != 0 {
			t.Error("it is not forgotten")
		}
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight()
		var mu sync.Mutex
		var told []Change
		f.Watch(func(what Change, c *Class) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, what)
			if (what == Ended) != (c == nil) {
				t.Errorf("%v of %v", what, c)
			}
			f.Window() // a watcher may look
		})
		expect := func(want ...Change) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(told, want) {
				t.Errorf("told %v, want %v", told, want)
			}
			told = nil
		}
		a := f.Begin(request("1", "r", "t"))
		expect(Began)
		b := f.Begin(request("2", "r", "t"))
		expect()
		b.Watched()
		b.Done()
		time.Sleep(Tail)
		expect(Ended)
		f.Sweep(func(*Request) *Lost { return nil })
		expect()
		f.Sweep(func(*Request) *Lost { return &Lost{} })
		expect(Lose)
		a.Done()
		time.Sleep(Tail)
		expect(Ended)
	})
}

// TestModel holds the flight against a list of requests that is searched.
func TestModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		f := NewFlight()
		type known struct {
			*Entry
			done time.Time
		}
		var all []*known
		for step := range 5000 {
			switch n := random.IntN(10); {
			case n < 4:
				all = append(all, &known{Entry: f.Begin(request(fmt.Sprint(step), fmt.Sprint("r", random.IntN(3)), []string{"", "t", "u"}[random.IntN(3)]))})
			case n < 8 && len(all) > 0:
				if k := all[random.IntN(len(all))]; k.done.IsZero() {
					k.done = time.Now()
					k.Done()
				}
			default:
				time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
			}
			all = slices.DeleteFunc(all, func(k *known) bool {
				over := !k.done.IsZero() && time.Since(k.done) >= Tail
				if _, ok := f.ByCapability(k.Capability); ok == over || k.Over() != over {
					t.Fatalf("step %d: over is %v, found is %v", step, over, ok)
				}
				return over
			})
			w := f.Window()
			classes := map[key]bool{}
			for _, k := range all {
				classes[keyOf(&k.Request)] = true
			}
			if w.Requests != len(all) || len(w.Classes) != len(classes) || w.Overflow {
				t.Fatalf("step %d: %d requests in %d classes, want %d in %d", step, w.Requests, len(w.Classes), len(all), len(classes))
			}
			for _, c := range w.Classes {
				if !classes[c.key] {
					t.Fatalf("step %d: a class is not there: %+v", step, c.key)
				}
			}
		}
		for _, k := range all {
			k.Done()
		}
	})
}

func TestParallel(t *testing.T) {
	f := NewFlight()
	f.Watch(func(Change, *Class) { f.Window() })
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				e := f.Begin(request("", "r", fmt.Sprint(i, n%3)))
				w := f.Window()
				f.Hold(w.Classes)
				if got, ok := f.ByCapability(e.Capability); !ok || got != e {
					t.Error("not found")
				}
				if n%50 == 0 {
					f.Sweep(func(r *Request) *Lost { return &Lost{Code: "revoked"} })
				}
				context.AfterFunc(e.Standing(), func() {})()
				e.Done()
				f.Release(w.Classes)
			}
		})
	}
	wg.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.classes {
		if c.holds != 0 || c.members == 0 {
			t.Errorf("class with %d holds and %d members", c.holds, c.members)
		}
	}
}

// Requests of one token that come by a hop bring statements that differ, and are one caller's all the same.
func TestOneByAHop(t *testing.T) {
	by := func(f *Flight, id, jti string, workloads ...string) *Entry {
		return f.Begin(Request{ID: id, Route: "r", Token: bearer.NewToken(id), Caller: &identity.Caller{Issuer: "https://a.example", TokenID: jti, Workloads: workloads}})
	}
	f := NewFlight()
	for _, id := range []string{"1", "2"} {
		defer by(f, id, "t", "shop").Done()
	}
	if w := f.Window(); w.One() == nil || w.One().Caller.TokenID != "t" {
		t.Errorf("%+v", w.One())
	}
	for name, other := range map[string]func(f *Flight) *Entry{
		"another token": func(f *Flight) *Entry { return by(f, "3", "u", "shop") },
		"another way":   func(f *Flight) *Entry { return by(f, "3", "t", "desk", "shop") },
		"no token's id": func(f *Flight) *Entry { return by(f, "3", "", "shop") },
	} {
		f := NewFlight()
		a, b := by(f, "1", "t", "shop"), other(f)
		if w := f.Window(); w.One() != nil {
			t.Errorf("%s: %+v", name, w.One())
		}
		a.Done()
		b.Done()
	}
}

// A trace that somebody else began may have several requests at once: its id then names none of them, and the one that is left
// neither, since who said it may have meant another.
func TestContinuedTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight()
		const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
		begin := func(id string) *Entry {
			r := request(id, "r", "t")
			r.Continues = trace
			return f.Begin(r)
		}
		a := begin("1")
		if e, ok := f.ByTrace(trace); !ok || e != a || a.Trace != trace || a.Own == trace || len(a.Own) != 32 {
			t.Errorf("one alone: %v %+v", ok, a)
		}
		b := begin("2")
		if _, ok := f.ByTrace(trace); ok {
			t.Error("one of two is named")
		}
		a.Done()
		time.Sleep(2 * Tail)
		if _, ok := f.ByTrace(trace); ok {
			t.Error("the one that is left is named")
		}
		b.Done()
		time.Sleep(2 * Tail)
		synctest.Wait()
		c := begin("3")
		if e, ok := f.ByTrace(trace); !ok || e != c {
			t.Error("one alone is not named any more")
		}
		c.Done()
		time.Sleep(2 * Tail)
		synctest.Wait()
		if len(f.byTrace) != 0 {
			t.Errorf("left: %v", f.byTrace)
		}
	})
}
