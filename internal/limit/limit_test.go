package limit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// bucket is the model of a Meter for one key: credit in nanoseconds, of which a request costs an interval.
type bucket struct {
	credit, at int64
	known      bool
}

func (b *bucket) take(p Pace, now int64) (wait int64) {
	full := p.slack + p.interval
	if !b.known {
		*b = bucket{full, now, true}
	}
	if now > b.at {
		b.credit, b.at = min(full, b.credit+now-b.at), now
	}
	if b.credit < p.interval {
		return p.interval - b.credit
	}
	b.credit -= p.interval
	return 0
}

// A Meter is the token bucket, to the nanosecond, whatever comes when.
func TestMeterIsTheTokenBucket(t *testing.T) {
	for seed := range uint64(200) {
		dice := rand.New(rand.NewPCG(seed, 7))
		rate := Rate{Requests: 1 + dice.IntN(50), Per: time.Millisecond * time.Duration(1+dice.IntN(5000)), Burst: dice.IntN(40)}
		if err := rate.Check(); err != nil {
			t.Fatalf("%+v: %v", rate, err)
		}
		p := rate.Pace()
		meter, keys := NewMeter(1<<10), NewKeys()
		models := map[Key]*bucket{}
		now := int64(1)
		for step := range 500 {
			k := keys.Of("k", fmt.Sprint(dice.IntN(5)))
			if models[k] == nil {
				models[k] = &bucket{}
			}
			switch dice.IntN(4) {
			case 0:
				now += dice.Int64N(p.interval*3 + 1)
			case 1:
				now += dice.Int64N(p.interval/10 + 1)
			}
			got, want := meter.Take(k, p, now), models[k].take(p, now)
			if got != want {
				t.Fatalf("seed %d step %d %+v: waits %d ns, the model %d", seed, step, rate, got, want)
			}
			if got > 0 && dice.IntN(3) == 0 { // who waits as told is let in, and not a nanosecond earlier
				if early := meter.Take(k, p, now+got-1); early == 0 {
					t.Fatalf("let in before the time was over")
				}
				models[k].take(p, now+got-1)
				now += got
				if again := meter.Take(k, p, now); again != 0 {
					t.Fatalf("waited %d ns and is told to wait %d more", got, again)
				}
				models[k].take(p, now)
			}
		}
	}
}

// A reload that lowers a limit does not make anybody wait for longer than the new one lets them owe.
func TestPaceChanges(t *testing.T) {
	meter, k := NewMeter(8), NewKeys().Of("a")
	wide, narrow := Rate{Requests: 1000, Per: time.Hour}.Pace(), Rate{Requests: 1, Per: time.Second, Burst: 2}.Pace()
	for range 1000 {
		if meter.Take(k, wide, 1) != 0 {
			t.Fatal("refused within the burst")
		}
	}
	if wait := meter.Take(k, narrow, 1); wait != int64(time.Second) {
		t.Errorf("waits %s, want a second", time.Duration(wait))
	}
	if wait := meter.Take(k, narrow, 1+int64(time.Second)); wait != 0 {
		t.Errorf("waits %s still", time.Duration(wait))
	}
}

// sieve is the model of a Guard for one key.
type sieve []int64

func (s *sieve) fail(l Lockout, now int64) bool {
	*s = append(*s, now)
	n := len(*s)
	if n >= l.Count && now-(*s)[n-l.Count] <= int64(l.Within) {
		*s = nil
		return true
	}
	return false
}

func TestGuardCountsExactly(t *testing.T) {
	for seed := range uint64(200) {
		dice := rand.New(rand.NewPCG(seed, 8))
		l := Lockout{Count: 1 + dice.IntN(12), Within: time.Second * time.Duration(1+dice.IntN(20)), For: time.Second * time.Duration(1+dice.IntN(50))}
		g, keys := NewGuard(l), NewKeys()
		models, until := map[Key]*sieve{}, map[Key]int64{}
		now := int64(1)
		for range 1000 {
			k := keys.Of(fmt.Sprint(dice.IntN(4)))
			if models[k] == nil {
				models[k] = &sieve{}
			}
			now += dice.Int64N(int64(l.Within)/int64(l.Count) + 1)
			if got, want := g.Locked(k, now), max(until[k]-now, 0); got != want {
				t.Fatalf("seed %d %+v: locked for %d, the model %d", seed, l, got, want)
			}
			locked := models[k].fail(l, now)
			if got := g.Fail(k, now); got != locked {
				t.Fatalf("seed %d %+v: locks out %t, the model %t", seed, l, got, locked)
			}
			if locked {
				until[k] = max(until[k], now+int64(l.For))
			}
		}
	}
}

// A reload forgets no failure and lets nobody go.
func TestGuardSet(t *testing.T) {
	l := Lockout{Count: 5, Within: time.Minute, For: time.Minute}
	g, keys := NewGuard(l), NewKeys()
	out, near := keys.Of("out"), keys.Of("near")
	for i := range 5 {
		g.Fail(out, int64(i)+1)
	}
	for i := range 4 {
		g.Fail(near, int64(i)+1)
	}
	for _, count := range []int{7, 3, 5} {
		l.Count = count
		g.Set(l)
		if g.Locked(out, 10) == 0 {
			t.Errorf("count %d: who was locked out is let go", count)
		}
	}
	// With 3 all but the two latest failures are beyond what matters.
	if g.Fail(near, 20) || g.Fail(near, 21) || !g.Fail(near, 22) {
		t.Error("failures were forgotten, or counted twice")
	}
	g.Set(Lockout{})
	if g.Fail(near, 30) || g.Locked(out, 30) == 0 {
		t.Error("a guard that was turned off locks out, or lets go")
	}
}

// A flood of sources takes no more memory than one, and none of them makes a table forget who owes or who is locked out.
func TestFlood(t *testing.T) {
	const n = 400_000 // three times as many as there are places
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	meter, g, keys := NewMeter(1<<17), NewGuard(Lockout{Count: 3, Within: time.Minute, For: time.Hour}), NewKeys()
	pace := Rate{Requests: 5, Per: time.Minute}.Pace()
	now := int64(1)
	owing, locked, near := keys.Source(netip.MustParseAddr("192.0.2.1")), keys.Source(netip.MustParseAddr("192.0.2.2")), keys.Source(netip.MustParseAddr("192.0.2.3"))
	for range 6 {
		meter.Take(owing, pace, now)
	}
	for range 3 {
		g.Fail(locked, now)
	}
	g.Fail(near, now)
	g.Fail(near, now)
	var b [16]byte
	b[0] = 0x20
	for i := range n { // each fails once, all within a second
		b[1], b[2], b[3], b[4] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
		k := keys.Source(netip.AddrFrom16(b))
		if meter.Take(k, pace, now) != 0 || g.Locked(k, now) != 0 {
			t.Fatal("a new source is refused")
		}
		g.Fail(k, now)
		now += int64(time.Second) / int64(n)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("%d sources took %d bytes", n, grown)
	}
	if meter.Take(owing, pace, now) == 0 {
		t.Error("who had used up its burst is as good as new")
	}
	if g.Locked(locked, now) == 0 {
		t.Error("who was locked out is let go")
	}
	if !g.Fail(near, now) {
		t.Error("who had two failures of three is as good as new")
	}
	if meter.Evicted() == 0 {
		t.Error("nothing was evicted: the table was not full, and this test shows nothing")
	}
	runtime.KeepAlive(meter)
}

func TestSources(t *testing.T) {
	keys := NewKeys()
	of := func(s string) Key { return keys.Source(netip.MustParseAddr(s)) }
	for _, same := range [][2]string{{"2001:db8::1", "2001:db8::ffff:1"}, {"192.0.2.1", "::ffff:192.0.2.1"}} {
		if of(same[0]) != of(same[1]) {
			t.Errorf("%s and %s are two sources", same[0], same[1])
		}
	}
	for _, other := range [][2]string{{"2001:db8::1", "2001:db8:0:1::1"}, {"192.0.2.1", "192.0.2.2"}, {"0.0.0.0", "::"}} {
		if of(other[0]) == of(other[1]) {
			t.Errorf("%s and %s are one source", other[0], other[1])
		}
	}
	if nowhere := keys.Source(netip.Addr{}); nowhere != keys.Source(netip.Addr{}) || nowhere == of("0.0.0.0") {
		t.Error("those without an address are not one source of their own")
	}
	if keys.Of("a", "bc") == keys.Of("ab", "c") {
		t.Error("words run together")
	}
	if other := NewKeys(); other.Of("a") == keys.Of("a") {
		t.Error("keys can be known beforehand")
	}
}

func TestCheck(t *testing.T) {
	for _, r := range []Rate{{}, {Requests: 1, Per: time.Second}, {Requests: 1_000_000, Per: time.Millisecond, Burst: 1_000_000}, {Requests: 1, Per: 24 * time.Hour, Burst: 300}} {
		if err := r.Check(); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, r := range []Rate{{Requests: 1}, {Per: time.Second}, {Requests: -1, Per: time.Second}, {Requests: 1, Per: time.Second, Burst: -1}, {Requests: 1, Per: 25 * time.Hour},
		{Requests: 1, Per: 24 * time.Hour, Burst: 1_000_000}, {Requests: 2_000_000, Per: time.Second}, {Burst: 1}} {
		if r.Check() == nil {
			t.Errorf("%+v is a rate", r)
		}
	}
	for _, l := range []Lockout{{Count: 1}, {Count: 101, Within: time.Minute, For: time.Minute}, {Count: 1, Within: time.Minute}, {Count: -1, Within: time.Minute, For: time.Minute}, {For: time.Minute}} {
		if l.Check() == nil {
			t.Errorf("%+v is a lockout", l)
		}
	}
}

// Whoever comes at once gets no more than the burst.
func TestTogether(t *testing.T) {
	meter, g, keys := NewMeter(64), NewGuard(Lockout{Count: 50, Within: time.Minute, For: time.Minute}), NewKeys()
	pace := Rate{Requests: 100, Per: time.Hour}.Pace()
	var passed, locked atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if meter.Take(keys.Of("a"), pace, 1) == 0 {
					passed.Add(1)
				}
				if g.Fail(keys.Of("a"), 1) {
					locked.Add(1)
				}
				g.Locked(keys.Of("a"), 1)
			}
		})
	}
	wg.Wait()
	if passed.Load() != 100 || locked.Load() != 800/50 {
		t.Errorf("%d passed, want 100; locked out %d times, want 16", passed.Load(), locked.Load())
	}
}

func BenchmarkTake(b *testing.B) {
	meter, g, keys := NewMeter(1<<17), NewGuard(Lockout{Count: 20, Within: time.Minute, For: time.Minute}), NewKeys()
	pace := Rate{Requests: 1_000_000, Per: time.Second}.Pace()
	address := netip.MustParseAddr("192.0.2.1")
	b.Run("one source", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			k := keys.Source(address)
			g.Locked(k, int64(i)*100)
			meter.Take(k, pace, int64(i)*100)
		}
	})
	b.Run("each its own", func(b *testing.B) {
		b.ReportAllocs()
		var raw [16]byte
		raw[0] = 0x20
		for i := range b.N {
			raw[1], raw[2], raw[3], raw[4] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
			k := keys.Source(netip.AddrFrom16(raw))
			g.Locked(k, int64(i)*100)
			meter.Take(k, pace, int64(i)*100)
		}
	})
	b.Run("caller", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			meter.Take(keys.Of("read-order", "https://auth.example.com", "s", "somebody"), pace, int64(i)*100)
		}
	})
	b.Run("failure", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			g.Fail(Key(i+1), int64(i)*100)
		}
	})
}

// What others have let in counts as if it had come here.
func TestCharge(t *testing.T) {
	pace := Rate{Requests: 10, Per: time.Second}.Pace()
	for seed := range uint64(100) {
		dice := rand.New(rand.NewPCG(seed, 9))
		together, one, k := NewMeter(8), NewMeter(8), NewKeys().Of("a")
		now := int64(1)
		for range 200 {
			now += dice.Int64N(int64(200 * time.Millisecond))
			if dice.IntN(2) == 0 {
				if got, want := together.Take(k, pace, now), one.Take(k, pace, now); got != want {
					t.Fatalf("waits %d, want %d", got, want)
				}
				continue
			}
			n := int64(0) // that another replica lets in
			for range dice.Int64N(4) {
				if one.Take(k, pace, now) == 0 {
					n++
				}
			}
			together.Charge(k, pace, n, now)
		}
	}
	m, k := NewMeter(8), NewKeys().Of("a")
	m.Charge(k, pace, 1<<62, 1)
	if wait := m.Take(k, pace, 1); wait != int64(100*time.Millisecond) {
		t.Errorf("waits %s", time.Duration(wait))
	}
}
