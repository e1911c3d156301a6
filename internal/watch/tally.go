package watch

import "time"

// tally counts, for many keys, what happened to each within a time. It holds a bounded number of keys: the one that has
// been there for longest goes first. Keys are hashes: two that meet share a count, which raises an alarm early and never
// late.
type tally struct {
	most   int
	slots  map[uint64]*slot
	oldest []uint64 // a ring of the keys in the order in which they came; nil until it is needed
	next   int
}

// slot is what is known of one key.
type slot struct {
	began  int64 // of the window, Unix nanoseconds
	raised int64 // when it was last an alarm
	n      uint32
	values []uint64 // that differ, with distinct
}

func newTally(most int) *tally { return &tally{most: most, slots: map[uint64]*slot{}} }

// add counts one for the key, and returns how many there are within the time that ends now: at most twice the time back,
// since a window begins with the first that it counts. A value other than zero counts only if it differs.
func (t *tally) add(key, value uint64, now time.Time, within time.Duration) (*slot, int) {
	s := t.slots[key]
	if s == nil {
		t.forget(key)
		s = &slot{}
		t.slots[key] = s
	}
	if at := now.UnixNano(); at-s.began > int64(within) || s.n == 0 && len(s.values) == 0 {
		s.began, s.n, s.values = at, 0, s.values[:0]
	}
	if value == 0 {
		s.n++
		return s, int(s.n)
	}
	for _, v := range s.values {
		if v == value {
			return s, len(s.values)
		}
	}
	if len(s.values) < maxDistinct {
		s.values = append(s.values, value)
	}
	return s, len(s.values)
}

// forget makes room for a key.
func (t *tally) forget(key uint64) {
	if len(t.oldest) < t.most {
		t.oldest = append(t.oldest, key)
		return
	}
	delete(t.slots, t.oldest[t.next])
	t.oldest[t.next] = key
	t.next = (t.next + 1) % t.most
}

// quiet reports whether an alarm for the slot may be raised: not again while it goes on.
func (s *slot) quiet(now time.Time, pause time.Duration) bool {
	if s.raised != 0 && now.UnixNano()-s.raised < int64(pause) {
		return false
	}
	s.raised = now.UnixNano()
	return true
}
