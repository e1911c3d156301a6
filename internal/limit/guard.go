package limit

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Lockout is how often a credential may be refused: whoever reaches Count Within that time is locked out For so long. The
// zero value locks out nobody.
type Lockout struct {
	Count  int
	Within time.Duration
	For    time.Duration
}

// MaxFailures bounds Lockout.Count: an instant is held for each.
const MaxFailures = 100

// Check refuses what is no lockout. The zero value is one.
func (l Lockout) Check() error {
	switch {
	case l == Lockout{}:
		return nil
	case l.Count < 1 || l.Count > MaxFailures:
		return fmt.Errorf("a lockout is after 1 to %d failures, not %d", MaxFailures, l.Count)
	case l.Within < time.Second || l.Within > maxPer || l.For < time.Second || l.For > maxPer:
		return fmt.Errorf("a lockout is within 1s to 24h and for 1s to 24h, not within %s and for %s", l.Within, l.For)
	}
	return nil
}

// A Guard counts failures and locks out. It is safe for concurrent use.
type Guard struct {
	locked   *table // until when
	counts   atomic.Pointer[counts]
	lockouts atomic.Uint64
}

const (
	lockedPlaces = 1 << 15
	countBytes   = 8 << 20 // that the counts may take
)

// NewGuard is a guard by a Lockout that Check has passed.
func NewGuard(l Lockout) *Guard {
	g := &Guard{locked: newTable(lockedPlaces)}
	g.counts.Store(newCounts(l))
	return g
}

// Set changes what locks out. Who is locked out stays so, and what has failed counts on.
func (g *Guard) Set(l Lockout) {
	if old := g.counts.Load(); old.Lockout != l {
		made := newCounts(l)
		if l.Count > 0 {
			old.pour(made)
		}
		g.counts.Store(made)
	}
}

// Locked is for how much longer a key is locked out, in nanoseconds; zero: it is not.
func (g *Guard) Locked(k Key, now int64) (wait int64) {
	set, l := g.locked.lock(k)
	if here, found := find(set, k); found {
		wait = max(here.at-now, 0)
	}
	l.Unlock()
	return wait
}

// Fail counts one refused credential, and reports whether it was one too many: the key is locked out from now on.
func (g *Guard) Fail(k Key, now int64) (locked bool) {
	c := g.counts.Load()
	if c.Count == 0 || !c.fail(k, now) {
		return false
	}
	set, l := g.locked.lock(k)
	here, found := find(set, k)
	if !found && here.key != 0 && here.at > now {
		g.locked.evicted.Add(1)
	}
	if until := now + int64(c.For); !found || until > here.at {
		*here = place{k, until}
	}
	l.Unlock()
	g.lockouts.Add(1)
	return true
}

// Lockouts is how often a key was locked out, and Evicted how many were let go before their time, since there were more than
// there is room for.
func (g *Guard) Lockouts() uint64 { return g.lockouts.Load() }

// Evicted is how many were let go before their time.
func (g *Guard) Evicted() uint64 { return g.locked.evicted.Load() }

// counts holds the latest failures of a fixed number of keys.
type counts struct {
	Lockout
	sets  [][ways]tries
	times []int64 // Count for each place: a ring of instants
	locks [locks]padded
}

// tries is one key's ring.
type tries struct {
	key  Key
	last int64
	n    int32 // instants in the ring
	next int32 // where the next goes
}

func newCounts(l Lockout) *counts {
	n := 128 / ways
	for n*2*ways*(24+8*l.Count) <= countBytes {
		n *= 2
	}
	if l.Count == 0 {
		n = 1
	}
	return &counts{Lockout: l, sets: make([][ways]tries, n), times: make([]int64, n*ways*l.Count)}
}

// fail notes a failure, and reports whether it was the one too many: then the count of the key begins anew.
func (c *counts) fail(k Key, now int64) bool {
	i := int(k) & (len(c.sets) - 1)
	l := &c.locks[i%locks]
	l.Lock()
	defer l.Unlock()
	w := c.find(&c.sets[i], k, now)
	t := &c.sets[i][w]
	if t.key != k {
		*t = tries{key: k}
	}
	ring := c.ring(i, w)
	ring[t.next] = now
	t.last, t.next, t.n = now, (t.next+1)%int32(c.Count), min(t.n+1, int32(c.Count))
	if t.n == int32(c.Count) && now-ring[t.next] <= int64(c.Within) { // the next to be overwritten is the oldest
		*t = tries{}
		return true
	}
	return false
}

// find is the place of a key, or the one that it would take.
func (c *counts) find(set *[ways]tries, k Key, now int64) int {
	best := 0
	for w := range set {
		if set[w].key == k {
			return w
		}
		if c.loses(&set[w], &set[best], now) {
			best = w
		}
	}
	return best
}

// loses reports whether a has less to lose than b.
func (c *counts) loses(a, b *tries, now int64) bool {
	over := func(t *tries) bool { return t.key == 0 || now-t.last > int64(c.Within) }
	switch {
	case over(a) != over(b):
		return over(a)
	case a.n != b.n:
		return a.n < b.n
	}
	return a.last < b.last
}

func (c *counts) ring(set, way int) []int64 {
	at := (set*ways + way) * c.Count
	return c.times[at : at+c.Count]
}

// pour notes all failures again in other counts. One that would lock out there does so with the next failure.
func (c *counts) pour(into *counts) {
	for i := range c.sets {
		l := &c.locks[i%locks]
		l.Lock()
		for w := range c.sets[i] {
			t := &c.sets[i][w]
			if t.key == 0 {
				continue
			}
			ring := c.ring(i, w)
			keep := min(int(t.n), into.Count-1)
			for j := keep; j > 0; j-- {
				into.fail(t.key, ring[(int(t.next)-j+2*c.Count)%c.Count])
			}
		}
		l.Unlock()
	}
}
