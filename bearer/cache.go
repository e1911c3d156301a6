package bearer

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/jws"
)

const (
	maxRemember = 5 * time.Minute // that a proof is remembered, whatever its token says
	maxShards   = 64
	minShard    = 256 << 10 // bytes: below that, fewer shards
	doorShare   = 16        // one byte in so many is for knowing a first use again
	entryShare  = 8         // one entry takes at most one byte in so many of its shard
)

// name is what a token is called in the cache: SHA-256 of a secret and its bytes. All of it is compared, so whoever can make
// two tokens of one name can break SHA-256; the secret keeps anybody from choosing where a token lands.
type name [sha256.Size]byte

// cache remembers proofs, so that a token that comes again needs no second check of its signature. What it must never do is
// remember that somebody was let in: judge and stands run on each use.
//
// It belongs to one Verifier, and so to one configuration. An entry dies with its token's exp (without leeway), after its
// issuer's longest lifetime or after maxRemember, whichever comes first. The first use of a token only leaves a trace, the second one
// admits it: tokens that are used once push nothing out. A nil cache remembers nothing. Safe for concurrent use.
type cache struct {
	secret [32]byte
	texts  sync.Pool // of *[]byte: secret and token, side by side
	shards []shard   // a power of two
}

// shard is a part of the cache with a lock of its own.
type shard struct {
	mu      sync.RWMutex
	entries map[name]*entry
	ring    []*entry // where the hand looks for what to forget; nil is a free place
	free    []int    // the free places
	hand    int
	bytes   int64 // of the entries
	limit   int64
	door    []uint32 // traces of tokens that were used once, each in the one place where its name puts it
	flights map[name]*flight

	hits, misses atomic.Uint64
	_            [64]byte // two shards share no cache line
}

// entry is a proof and the time in which it may be used.
type entry struct {
	proof      *proof
	born, dies int64 // nanoseconds; outside, also when the clock was put back, it is as if it were not there
	size       int64
	place      int         // in the ring
	used       atomic.Bool // since the hand was here
}

// newCache returns a cache of at most so many bytes; nil for none.
func newCache(bytes int64) *cache {
	if bytes <= 0 {
		return nil
	}
	n := int64(1)
	for n < maxShards && bytes/(2*n) >= minShard {
		n *= 2
	}
	c := &cache{shards: make([]shard, n)}
	rand.Read(c.secret[:]) // which does not fail
	c.texts.New = func() any { text := make([]byte, 0, len(c.secret)+jws.MaxLength); return &text }
	for i := range c.shards {
		s := &c.shards[i]
		s.entries, s.flights = map[name]*entry{}, map[name]*flight{}
		s.limit = bytes/n - bytes/n/doorShare
		places := 1
		for int64(places)*2*4 <= bytes/n/doorShare {
			places *= 2
		}
		s.door = make([]uint32, places)
	}
	return c
}

// nameOf returns the name of a token of at most jws.MaxLength bytes.
func (c *cache) nameOf(raw string) name {
	text := c.texts.Get().(*[]byte)
	*text = append(append((*text)[:0], c.secret[:]...), raw...)
	n := name(sha256.Sum256(*text))
	clear(*text) // no token outlives its request here
	c.texts.Put(text)
	return n
}

func (c *cache) shard(n name) *shard { return &c.shards[int(n[0])&(len(c.shards)-1)] }

// show returns the proof of a token, and whether it was remembered. The signature is checked unless it was.
func (v *Verifier) show(ctx context.Context, raw string) (p *proof, remembered bool, refusal *Error) {
	if v == nil || v.cache == nil || len(raw) > jws.MaxLength {
		p, refusal = v.establish(raw)
		return p, false, refusal
	}
	n := v.cache.nameOf(raw)
	s := v.cache.shard(n)
	if p := s.recall(n, v.now()); p != nil {
		standing, refusal := p.stands()
		if refusal != nil {
			return nil, false, refusal
		}
		if standing {
			s.hits.Add(1)
			return p, true, nil
		}
	}
	p, refusal = s.once(ctx, n, func() (*proof, *Error) { return v.establish(raw) })
	return p, false, refusal
}

// recall returns the proof of that name which may be used now, or nil.
func (s *shard) recall(n name, now time.Time) *proof {
	s.mu.RLock()
	e := s.entries[n]
	s.mu.RUnlock()
	if at := now.UnixNano(); e == nil || at < e.born || at >= e.dies {
		return nil
	}
	if !e.used.Load() { // a line that others read is not written to again and again
		e.used.Store(true)
	}
	return e.proof
}

// keep remembers the proof of a token that has been accepted now, if it is the token's second use.
func (c *cache) keep(p *proof, now time.Time) {
	if c == nil {
		return
	}
	expires, _, refusal := readTime(p.claims, "exp")
	dies := now.Add(min(maxRemember, p.authority.MaxLifetime))
	if refusal != nil || !now.Before(expires) {
		return // it lives by the leeway, which nothing is remembered for
	}
	if expires.Before(dies) {
		dies = expires
	}
	e := &entry{proof: p, born: now.UnixNano(), dies: dies.UnixNano(), size: sizeOf(p)}
	s := c.shard(p.name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.entries[p.name]; old != nil {
		s.remove(old)
	} else if !s.secondUse(p.name) {
		return
	}
	if e.size > s.limit/entryShare {
		return
	}
	s.makeRoom(e.size, e.born)
	s.insert(e)
}

// secondUse reports whether a token of that name has left a trace, and leaves one. Where another's has taken its place it
// counts as new; that two tokens leave the same trace in the same place, once in 2^32, lets one in early.
func (s *shard) secondUse(n name) bool {
	place := &s.door[binary.LittleEndian.Uint32(n[4:])&uint32(len(s.door)-1)]
	trace := binary.LittleEndian.Uint32(n[8:])
	seen := *place == trace
	*place = trace
	return seen
}

// makeRoom forgets entries until so many bytes fit: those that are dead, or that nobody used since the hand last passed.
func (s *shard) makeRoom(size, now int64) {
	for s.bytes+size > s.limit && len(s.entries) > 0 {
		if s.hand >= len(s.ring) {
			s.hand = 0
		}
		if e := s.ring[s.hand]; e != nil && (now >= e.dies || !e.used.Swap(false)) {
			s.remove(e)
		}
		s.hand++
	}
	// and one dead entry at a time goes where there is room
	if s.hand < len(s.ring) && s.ring[s.hand] != nil && now >= s.ring[s.hand].dies {
		s.remove(s.ring[s.hand])
		s.hand++
	}
}

func (s *shard) insert(e *entry) {
	if last := len(s.free) - 1; last >= 0 {
		e.place, s.free = s.free[last], s.free[:last]
		s.ring[e.place] = e
	} else {
		e.place = len(s.ring)
		s.ring = append(s.ring, e)
	}
	s.entries[e.proof.name] = e
	s.bytes += e.size
}

func (s *shard) remove(e *entry) {
	delete(s.entries, e.proof.name)
	s.ring[e.place] = nil
	s.free = append(s.free, e.place)
	s.bytes -= e.size
}

// Remembered says how many tokens were verified by what was known of them, and how many by their signature; and how many
// tokens are known now, in so many bytes. All are zero where Options.Remember is.
func (v *Verifier) Remembered() (hits, misses uint64, entries int, bytes int64) {
	if v == nil || v.cache == nil {
		return 0, 0, 0, 0
	}
	for i := range v.cache.shards {
		s := &v.cache.shards[i]
		hits, misses = hits+s.hits.Load(), misses+s.misses.Load()
		s.mu.RLock()
		entries += len(s.entries)
		bytes += s.bytes + int64(len(s.door))*4
		s.mu.RUnlock()
	}
	return hits, misses, entries, bytes
}
