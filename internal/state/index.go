package state

import (
	"container/heap"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// index is what holds, in memory. It is exact: what it reports was revoked, and what was revoked it reports. A question
// costs a look-up for the issuer and one for each thing that the token names, whatever else is revoked.
//
// Of one target there may be several entries, for Before and Until can differ. Those that another covers are dropped; the
// rest are a list in which a later Before has an earlier Until, nearly always of length one.
type index struct {
	now   func() time.Time
	count atomic.Int64 // of entries, so that a store that holds none costs nothing

	order sync.Mutex // one addition and its calls to the subscribers at a time; taken before mu
	subs  subscribers[Revocation]

	mu      sync.RWMutex
	issuers map[string]*issuer
	expiry  expiry
	newest  *entry // the list of all, by newer and older
	oldest  *entry
}

// issuer is what is revoked of one. Its maps are by selector and what it selects; all has the one key "".
type issuer struct {
	name    string
	by      [selectors]map[string]*entry
	entries int
}

// selector is what of a token is compared.
type selector uint8

const (
	all selector = iota
	byTokenID
	byDigest
	bySubject
	byClient
	bySession
	byKeyID
	selectors
)

// forever is the Before of a revocation that ends tokens whenever they were issued.
const forever = math.MaxInt64

// entry is a Revocation in half the bytes. What is said of its target is never changed; the links are guarded by
// index.mu, seen and durable by index.order.
type entry struct {
	issuer *issuer
	value  string
	before int64 // unix seconds
	until  int64 // unix nanoseconds
	at     int64
	by     string
	reason string

	next         *entry // of the same target: a later Before and an earlier Until
	newer, older *entry
	place        int32  // in expiry; -1 when it is in none
	seen         uint32 // the last snapshot of the feed that it was in
	selector     selector
	durable      bool // stored: after a restart it holds again
}

// target takes the selector out of a revocation that is valid.
func (r *Revocation) target() (selector, string) {
	for s, v := range [...]string{byTokenID: r.TokenID, byDigest: r.Digest, bySubject: r.Subject, byClient: r.Client, bySession: r.Session, byKeyID: r.KeyID} {
		if v != "" {
			return selector(s), v
		}
	}
	return all, ""
}

func (e *entry) revocation() Revocation {
	r := Revocation{Issuer: e.issuer.name, Until: time.Unix(0, e.until).UTC(), At: time.Unix(0, e.at).UTC(), By: e.by, Reason: e.reason}
	if e.before != forever {
		r.Before = time.Unix(e.before, 0).UTC()
	}
	switch e.selector {
	case byTokenID:
		r.TokenID = e.value
	case byDigest:
		r.Digest = e.value
	case bySubject:
		r.Subject = e.value
	case byClient:
		r.Client = e.value
	case bySession:
		r.Session = e.value
	case byKeyID:
		r.KeyID = e.value
	}
	return r
}

// cutoff is Before in unix seconds.
func cutoff(r Revocation) int64 {
	if r.Before.IsZero() {
		return forever
	}
	return r.Before.Unix()
}

func newIndex(now func() time.Time) *index {
	return &index{now: now, issuers: make(map[string]*issuer)}
}

// revoked is Store.Revoked.
func (x *index) revoked(t Token) (Revocation, bool) {
	if x.count.Load() == 0 {
		return Revocation{}, false
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	is := x.issuers[t.Issuer]
	if is == nil {
		return Revocation{}, false
	}
	issued := int64(math.MinInt64) // without iat it was issued before whatever is asked
	if !t.IssuedAt.IsZero() {
		issued = t.IssuedAt.Unix() // of a fraction of a second the part below counts: closed
	}
	now := x.now()
	for s, v := range [...]string{all: "", byTokenID: t.TokenID, byDigest: t.Digest, bySubject: t.Subject, byClient: t.Client, bySession: t.Session, byKeyID: t.KeyID} {
		if v == "" && selector(s) != all {
			continue
		}
		for e := is.by[s][v]; e != nil; e = e.next {
			if issued <= e.before && now.UnixNano() < e.forgotten() {
				return e.revocation(), true
			}
		}
	}
	return Revocation{}, false
}

// forgotten is when an entry ends to hold, in unix nanoseconds.
func (e *entry) forgotten() int64 { return e.until + int64(grace) }

// addition is what came of adding a revocation.
type addition struct {
	held    *entry   // what now holds: the new entry, or one that covers it
	fresh   bool     // held is new, and begins to hold
	dropped []*entry // those that it covers, which are no longer needed
}

// add makes a revocation hold, which must be valid, and tells the subscribers if that is new.
func (x *index) add(r Revocation) addition {
	x.order.Lock()
	defer x.order.Unlock()
	return x.tell(x.insert(r))
}

// addStored adds a revocation that was read from what is stored; snapshot says in which reading.
func (x *index) addStored(r Revocation, snapshot uint32) {
	x.order.Lock()
	defer x.order.Unlock()
	a := x.insert(r)
	// One that covers it need not be stored itself.
	if a.held.until == r.Until.UnixNano() && a.held.before == cutoff(r) {
		a.held.durable, a.held.seen = true, snapshot
	}
	x.tell(a)
}

// tell calls the subscribers; x.order is held.
func (x *index) tell(a addition) addition {
	if a.fresh {
		x.subs.call(a.held.revocation())
	}
	return a
}

// lost notes that what was not in a reading that is complete is not stored, whoever acknowledged it, and counts it.
func (x *index) lost(snapshot uint32) (count int) {
	x.order.Lock()
	defer x.order.Unlock()
	x.mu.RLock()
	defer x.mu.RUnlock()
	for e := x.oldest; e != nil; e = e.newer {
		if e.seen != snapshot {
			e.durable = false
			count++
		}
	}
	return count
}

// owed lists what holds and was never stored.
func (x *index) owed() []*entry {
	x.order.Lock()
	defer x.order.Unlock()
	x.mu.RLock()
	defer x.mu.RUnlock()
	var list []*entry
	for e := x.oldest; e != nil; e = e.newer {
		if !e.durable {
			list = append(list, e)
		}
	}
	return list
}

// stored notes that an entry is durable.
func (x *index) stored(e *entry) {
	x.order.Lock()
	defer x.order.Unlock()
	e.durable = true
}

// isStored reports whether what came of add was stored before.
func (x *index) isStored(e *entry) bool {
	x.order.Lock()
	defer x.order.Unlock()
	return e.durable
}

func (x *index) insert(r Revocation) addition {
	x.mu.Lock()
	defer x.mu.Unlock()
	s, value := r.target()
	e := &entry{value: value, before: cutoff(r), until: r.Until.UnixNano(), at: r.At.UnixNano(), by: r.By, reason: r.Reason, selector: s}
	is := x.issuers[r.Issuer]
	if is == nil {
		is = &issuer{name: r.Issuer}
		x.issuers[r.Issuer] = is
	}
	e.issuer = is
	for o := is.by[s][value]; o != nil; o = o.next {
		if o.covers(e) {
			return addition{held: o}
		}
	}
	a := addition{held: e, fresh: true}
	for o := is.by[s][value]; o != nil; {
		following := o.next
		if e.covers(o) {
			a.dropped = append(a.dropped, o)
			x.remove(o)
		}
		o = following
	}
	if x.issuers[r.Issuer] == nil { // what was dropped was its last
		x.issuers[r.Issuer] = is
	}
	x.link(e)
	return a
}

// covers reports whether o adds nothing to e: it ends no other tokens, and is forgotten no later.
func (e *entry) covers(o *entry) bool { return e.before >= o.before && e.until >= o.until }

// link puts an entry into everything that finds it; x.mu is held.
func (x *index) link(e *entry) {
	m := e.issuer.by[e.selector]
	if m == nil {
		m = make(map[string]*entry)
		e.issuer.by[e.selector] = m
	}
	if first := m[e.value]; first == nil || e.before < first.before {
		e.next = first
		m[e.value] = e
	} else {
		o := first
		for o.next != nil && o.next.before < e.before {
			o = o.next
		}
		e.next, o.next = o.next, e
	}
	e.issuer.entries++
	e.older = x.newest
	if x.newest != nil {
		x.newest.newer = e
	} else {
		x.oldest = e
	}
	x.newest = e
	heap.Push(&x.expiry, e)
	x.count.Add(1)
}

// remove takes an entry out of everything; x.mu is held.
func (x *index) remove(e *entry) {
	m := e.issuer.by[e.selector]
	if first := m[e.value]; first != e {
		o := first
		for o.next != e {
			o = o.next
		}
		o.next = e.next
	} else if e.next != nil {
		m[e.value] = e.next
	} else {
		delete(m, e.value)
	}
	if e.issuer.entries--; e.issuer.entries == 0 {
		delete(x.issuers, e.issuer.name) // and with it the maps, which do not shrink
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		x.newest = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		x.oldest = e.newer
	}
	e.next, e.newer, e.older = nil, nil, nil
	heap.Remove(&x.expiry, int(e.place))
	x.count.Add(-1)
}

// sweep forgets what has expired, a little at a time so that nobody waits for it.
func (x *index) sweep() {
	const atOnce = 1000
	for more := true; more; {
		x.mu.Lock()
		now := x.now().UnixNano()
		more = false
		for n := 0; len(x.expiry) > 0 && x.expiry[0].forgotten() <= now; n++ {
			if n == atOnce {
				more = true
				break
			}
			x.remove(x.expiry[0])
		}
		x.mu.Unlock()
	}
}

// list is Store.List.
func (x *index) list(limit int) ([]Revocation, int) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	now := x.now().UnixNano()
	out := []Revocation{}
	for e := x.newest; e != nil && len(out) < limit; e = e.older {
		if now < e.forgotten() {
			out = append(out, e.revocation())
		}
	}
	return out, len(x.expiry)
}

// expiry is a heap of all entries, by when they are forgotten.
type expiry []*entry

func (h expiry) Len() int           { return len(h) }
func (h expiry) Less(i, j int) bool { return h[i].until < h[j].until }
func (h expiry) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = int32(i), int32(j)
}

func (h *expiry) Push(e any) {
	e.(*entry).place = int32(len(*h))
	*h = append(*h, e.(*entry))
}

func (h *expiry) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.place = -1
	return e
}

// subscribers are called in the order in which they came.
type subscribers[T any] struct {
	mu   sync.Mutex // not held during a call: f may cancel
	list []*func(T)
}

func (s *subscribers[T]) add(f func(T)) (cancel func()) {
	p := &f
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list[:len(s.list):len(s.list)], p)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		var rest []*func(T)
		for _, o := range s.list {
			if o != p {
				rest = append(rest, o)
			}
		}
		s.list = rest
	}
}

func (s *subscribers[T]) call(r T) {
	s.mu.Lock()
	list := s.list
	s.mu.Unlock()
	for _, f := range list {
		(*f)(r)
	}
}
