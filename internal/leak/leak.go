// Package leak knows a secret again, however it is spelled: an inbound token in what leaves (Set), a secret of our own in
// what an answer echoes (Scrubber).
//
//	set := leak.NewSet(100_000)
//	set.Add(token.Reveal(), requestID, caller.Expires)
//	if id, found := set.Find(path, query, authorization, cookie); found {
//		// refused: the token of request id is leaving
//	}
//
// # What a Set holds
//
// No token. Of each it keeps keyed 64-bit hashes of a few windows of 16 bytes, placed so that every half of what makes the token
// a secret holds a whole window. That is the signature where the token is a signed one: its header and payload are alike in
// all tokens of an issuer, and worth nothing without the signature. A secret of fewer than 16 bytes is not
// watched, nor one that no Authorization header can carry after Bearer. The key is the process's own. Where the set is full, the token that expires first is given up, and counted.
//
// # What Find finds
//
// As it is; with + and / for - and _ or the other way; in standard and in URL base64, at any alignment, with or without
// padding, broken into lines or with escaped slashes; in hexadecimal; percent-encoded up to three times over; the
// percent-encoded base64 of it, and base64 in base64; across neighbouring parts; and one half of it, in any of these spellings.
//
// # Limits
//
// Who has the secret and wants to carry it out unseen can: encrypted, compressed, reversed, a few characters at a time. Find
// ends what a service does by carelessness and what an attacker does with somebody else's tools; that a destination is
// reached at all is for the gate to decide. A Stream sees a secret when the last byte of a window has come, not before: what came before it
// has left by then.
package leak

import (
	"container/heap"
	"crypto/rand"
	"encoding/binary"
	"math/bits"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	window     = 16 // bytes that one fingerprint covers: 96 bits of a base64 text
	maxWindows = 7  // of one secret
	minFilter  = 20 // the smallest filter has 1 << minFilter bits: 128 KiB
	perBit     = 32 // bits of the filter for each fingerprint
)

// Set is the fingerprints of secrets, each until its end. Safe for concurrent use.
type Set struct {
	max     int
	now     func() time.Time
	in, out [256]uint64 // of the rolling hash: what a byte is worth as it comes, and as it leaves
	filter  atomic.Pointer[filter]
	dropped atomic.Uint64
	finders sync.Pool // of *finder

	mu      sync.RWMutex
	windows map[uint64]uint32 // fingerprint to the place of its entry
	entries []entry
	free    []uint32 // places in entries that are not in use
	ends    ends
	stale   int // fingerprints that the filter still has and windows does not
}

type entry struct {
	id      string
	until   int64 // in seconds since 1970
	windows [maxWindows]uint64
	count   uint8
}

// NewSet makes a set of at most max secrets, which must be positive.
func NewSet(max int) *Set {
	s := &Set{max: max, now: time.Now, windows: map[uint64]uint32{}}
	s.finders.New = func() any { return new(finder) }
	var key [8 * 256]byte
	rand.Read(key[:])
	for b := range 256 {
		s.in[b] = binary.LittleEndian.Uint64(key[8*b:])
	}
	// One character in both alphabets of base64, so that a signature that was written again in the other is the same.
	s.in['+'], s.in['/'] = s.in['-'], s.in['_']
	for b := range 256 {
		s.out[b] = bits.RotateLeft64(s.in[b], window-1)
	}
	s.filter.Store(newFilter(0))
	return s
}

// Add has a secret watched for until a time; id is what Find says of it. One that is there already is watched for the
// longer of the two times, with the latest id. One that is shorter than 16 bytes, or no b64token (RFC 6750), is not watched.
func (s *Set) Add(secret, id string, until time.Time) {
	e := entry{id: id, until: until.Unix() + 1}
	core := essence(secret)
	if len(core) < window || !isToken(core) || !until.After(s.now()) {
		return
	}
	for _, at := range places(len(core)) {
		e.windows[e.count] = s.fingerprint(core[at : at+window])
		e.count++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.windows[e.windows[0]]; ok && s.entries[at].windows == e.windows {
		s.entries[at].until = max(s.entries[at].until, e.until)
		s.entries[at].id = id
		return
	}
	s.expire()
	s.insert(e)
}

// Len is how many secrets are watched for.
func (s *Set) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.ends)
}

// Dropped is how many secrets were given up before their end because the set was full.
func (s *Set) Dropped() uint64 { return s.dropped.Load() }

// essence is the part of a secret without which the rest is worth nothing and like others: of a token of three
// segments, the signature.
func essence(secret string) string {
	if strings.Count(secret, ".") == 2 {
		if signature := secret[strings.LastIndexByte(secret, '.')+1:]; len(signature) >= 2*window {
			return signature
		}
	}
	return secret
}

func isToken(s string) bool {
	for i := range len(s) {
		if classes[s[i]]&inToken == 0 {
			return false
		}
	}
	return true
}

// places are where windows begin, so that every half of n bytes holds one whole; a piece of 19 bytes where that is more.
func places(n int) []int {
	stride := max(n/2-window+1, 4)
	list := make([]int, 0, maxWindows)
	for at := 0; at < n-window; at += stride {
		list = append(list, at)
	}
	return append(list, n-window)
}

func (s *Set) fingerprint(window string) uint64 {
	var h uint64
	for i := range len(window) {
		h = bits.RotateLeft64(h, 1) ^ s.in[window[i]]
	}
	return h
}

// insert puts an entry in, in the place of the one that ends first if there is no room.
func (s *Set) insert(e entry) {
	for len(s.ends) >= s.max {
		s.remove(s.first())
		s.dropped.Add(1)
	}
	var at uint32
	if n := len(s.free); n > 0 {
		at, s.free = s.free[n-1], s.free[:n-1]
		s.entries[at] = e
	} else {
		at = uint32(len(s.entries))
		s.entries = append(s.entries, e)
	}
	heap.Push(&s.ends, end{e.until, at})
	for _, w := range e.windows[:e.count] {
		s.windows[w] = at
	}
	f := s.filter.Load()
	if len(s.windows)+s.stale > f.room {
		f = newFilter(len(s.windows))
		for w := range s.windows {
			f.set(w)
		}
		s.stale = 0
		s.filter.Store(f)
	}
	for _, w := range e.windows[:e.count] {
		f.set(w)
	}
}

// expire gives up a few of those that have ended, so that none waits for all of them.
func (s *Set) expire() {
	now := s.now().Unix()
	for range 4 {
		if len(s.ends) == 0 || s.ends[0].until > now {
			return
		}
		if at := s.first(); s.entries[at].until <= now {
			s.remove(at)
		}
	}
}

// first is the entry that ends first. It stands at the top of the heap when first returns.
func (s *Set) first() uint32 {
	for {
		top := &s.ends[0]
		until := s.entries[top.at].until
		if top.until >= until {
			return top.at
		}
		top.until = until // it was added again since, for longer
		heap.Fix(&s.ends, 0)
	}
}

// remove gives up the entry that first returned.
func (s *Set) remove(at uint32) {
	heap.Pop(&s.ends)
	e := &s.entries[at]
	for _, w := range e.windows[:e.count] {
		if s.windows[w] == at { // two secrets may share a window
			delete(s.windows, w)
			s.stale++
		}
	}
	*e = entry{}
	s.free = append(s.free, at)
}

// known is the id of the secret that has a fingerprint.
func (s *Set) known(fingerprint uint64) (string, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, ok := s.windows[fingerprint]
	if !ok || s.entries[at].until <= s.now().Unix() {
		return "", false
	}
	return s.entries[at].id, true
}

// filter answers for most windows that they are in no secret, without a lock. It has one bit for several fingerprints.
type filter struct {
	shift int
	room  int // fingerprints, beyond which it should be replaced by a larger one
	words []atomic.Uint64
}

// newFilter is an empty one with room for twice as many fingerprints.
func newFilter(fingerprints int) *filter {
	size := minFilter
	for 1<<size < 2*fingerprints*perBit {
		size++
	}
	return &filter{shift: 64 - size, room: 1 << size / perBit, words: make([]atomic.Uint64, 1<<size/64)}
}

func (f *filter) set(fingerprint uint64) {
	bit := fingerprint >> f.shift
	f.words[bit/64].Or(1 << (bit % 64))
}

// end is when the entry at a place ends; not after the entry's own until.
type end struct {
	until int64
	at    uint32
}

// ends is a heap, the earliest first.
type ends []end

func (e ends) Len() int           { return len(e) }
func (e ends) Less(i, j int) bool { return e[i].until < e[j].until }
func (e ends) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *ends) Push(x any)        { *e = append(*e, x.(end)) }
func (e *ends) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}
