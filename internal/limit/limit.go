// Package limit counts what comes from whom, and says when it is too much, in memory that does not grow.
//
//	keys := limit.NewKeys()
//	meter := limit.NewMeter(1 << 17)
//	pace := limit.Rate{Requests: 100, Per: time.Second, Burst: 200}.Pace()
//	if wait := meter.Take(keys.Source(address), pace, now); wait > 0 {
//		// too much: one more may come after wait
//	}
//
// A Meter is the generic cell rate algorithm: for each key one instant, at which what was taken will have been paid for.
// It is the token bucket of the same rate and burst, in whole nanoseconds and without a clock of its own. A Guard locks out
// those whose credentials were refused too often; its count is exact, since it holds the instants themselves.
//
// # What is bounded
//
// A table has a fixed number of places, in sets of eight; a key has its set by a hash that nobody outside can compute. Where
// a set is full, the new key takes the place of the one with the least to lose: in a Meter the one that is paid for first,
// which mostly has nothing to pay for and so is as good as new; among failures one whose are too old to count, or else the
// fewest; among those locked out the one whose time ends first. So whoever would have its own count forgotten must
// bring eight others of the same set as far as itself, and whoever is forgotten begins anew: a full table lets more in, and
// locks out nobody. Those locked out have a table of their own, in which a place costs as many refused credentials as a lockout.
//
// # Limits
//
// Two keys in 2^64 share a count. Counts are of this process; what others have let in can be charged.
package limit

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Rate is how much may come: Burst at once, and Requests in each Per for as long as it lasts. The zero value limits nothing.
type Rate struct {
	Requests int
	Per      time.Duration
	Burst    int // zero means Requests
}

const (
	maxRequests = 1_000_000
	maxPer      = 24 * time.Hour
	// maxSpan is how long an emptied burst may take to come back: beyond that the limit is of another kind.
	maxSpan = 366 * 24 * time.Hour
)

// Check refuses what is no rate. The zero value is one.
func (r Rate) Check() error {
	switch {
	case r == Rate{}:
		return nil
	case r.Requests < 1 || r.Requests > maxRequests:
		return fmt.Errorf("a rate has 1 to %d requests, not %d", maxRequests, r.Requests)
	case r.Per < time.Millisecond || r.Per > maxPer:
		return fmt.Errorf("a rate is per 1ms to 24h, not %s", r.Per)
	case r.Burst < 0 || r.Burst > maxRequests:
		return fmt.Errorf("a burst has 1 to %d requests, not %d", maxRequests, r.Burst)
	}
	if p := r.Pace(); p.interval > int64(maxSpan)/(int64(r.Burst)+1) {
		return errors.New("a burst that was used up would take more than a year to come back")
	}
	return nil
}

// Pace is a Rate in nanoseconds. The zero value limits nothing.
type Pace struct {
	interval int64 // that one request costs, rounded up: never more than Requests in Per
	slack    int64 // how much may be owed when one more comes
}

// Pace is of a rate that Check has passed.
func (r Rate) Pace() Pace {
	if r.Requests < 1 {
		return Pace{}
	}
	burst := r.Burst
	if burst == 0 {
		burst = r.Requests
	}
	interval := (int64(r.Per) + int64(r.Requests) - 1) / int64(r.Requests)
	return Pace{interval: interval, slack: interval * int64(burst-1)}
}

// Limits reports whether it limits anything.
func (p Pace) Limits() bool { return p.interval > 0 }

// A Key is who is counted.
type Key uint64

// Keys makes keys. Those of two Keys, and so of two processes, are different.
type Keys struct{ seed maphash.Seed }

// NewKeys draws the secret by which keys are made.
func NewKeys() Keys { return Keys{maphash.MakeSeed()} }

// Source is the key of an address: of an IPv6 address its /64, since a site has that many for nothing. Those without an
// address are one source.
func (k Keys) Source(a netip.Addr) Key {
	if a = a.Unmap(); a.Is6() {
		b := a.As16()
		return key(maphash.Bytes(k.seed, b[:8]))
	}
	if !a.IsValid() {
		return key(maphash.Bytes(k.seed, nil))
	}
	b := a.As4()
	return key(maphash.Bytes(k.seed, b[:]))
}

// Of is the key of some words, in their order. None but the last may be chosen by whoever is counted.
func (k Keys) Of(words ...string) Key {
	var h maphash.Hash
	h.SetSeed(k.seed)
	for _, w := range words {
		h.WriteString(w)
		h.WriteByte(0)
	}
	return key(h.Sum64())
}

// key keeps 0 for a place that is free.
func key(h uint64) Key { return Key(max(h, 1)) }

// ways is how many keys share a set. A set of a Meter is two cache lines.
const ways = 8

// locks is how many sets can be worked on at once.
const locks = 64

// A padded lock has a cache line of its own.
type padded struct {
	sync.Mutex
	_ [56]byte
}

// place is one key of a table, and the instant that is held of it.
type place struct {
	key Key
	at  int64
}

// table holds an instant for each of a fixed number of keys.
type table struct {
	sets    [][ways]place
	locks   [locks]padded
	evicted atomic.Uint64 // keys that had something to lose
}

// newTable has a power of two of places, at least as many as asked for.
func newTable(places int) *table {
	n := 1
	for n*ways < places {
		n *= 2
	}
	return &table{sets: make([][ways]place, n)}
}

// lock returns the set of a key, which the caller unlocks.
func (t *table) lock(k Key) (*[ways]place, *padded) {
	i := int(k) & (len(t.sets) - 1)
	l := &t.locks[i%locks]
	l.Lock()
	return &t.sets[i], l
}

// find returns the place of a key, or the one that it would take.
func find(set *[ways]place, k Key) (p *place, found bool) {
	p = &set[0]
	for i := range set {
		if set[i].key == k {
			return &set[i], true
		}
		if set[i].at < p.at {
			p = &set[i]
		}
	}
	return p, false
}

// A Meter holds keys to a pace. It is safe for concurrent use.
type Meter struct{ table *table }

// NewMeter remembers at least as many keys as asked for, at 16 bytes each.
func NewMeter(places int) *Meter { return &Meter{newTable(places)} }

// Take counts one request, unless that is too much: then it returns how long to wait, in nanoseconds. What is refused costs
// nothing. now is in nanoseconds since any instant of the caller's choice. A key that was counted at another pace keeps
// what it owes, up to what this one lets it owe.
func (m *Meter) Take(k Key, p Pace, now int64) (wait int64) {
	set, l := m.table.lock(k)
	here, found := find(set, k)
	if !found {
		if here.key != 0 && here.at > now {
			m.table.evicted.Add(1)
		}
		*here = place{k, now}
	}
	owed := min(max(here.at-now, 0), p.slack+p.interval)
	if owed > p.slack {
		wait = owed - p.slack
		here.at = now + owed
	} else {
		here.at = now + owed + p.interval
	}
	l.Unlock()
	return wait
}

// Charge counts n requests that somebody else has let in. They are counted whether or not they were too many, up to what
// the pace lets anybody owe.
func (m *Meter) Charge(k Key, p Pace, n, now int64) {
	most := p.slack + p.interval
	set, l := m.table.lock(k)
	here, found := find(set, k)
	if !found {
		if here.key != 0 && here.at > now {
			m.table.evicted.Add(1)
		}
		*here = place{k, now}
	}
	owed := most // n may be more than can be multiplied
	if n <= most/p.interval {
		owed = min(max(here.at-now, 0)+n*p.interval, most)
	}
	here.at = now + owed
	l.Unlock()
}

// Evicted is how many keys have been forgotten that were not as good as new.
func (m *Meter) Evicted() uint64 { return m.table.evicted.Load() }
