package oauth

import (
	"container/list"
	"time"
)

// entryCost is what an entry takes beside its answer; answerCost what a byte of an answer becomes when it is read.
const (
	entryCost  = 512
	answerCost = 4
)

// memory is what was said of tokens, at most so many bytes of it: what was said longest ago is given up first. It must be guarded.
type memory struct {
	max, used int
	kept      map[[32]byte]*list.Element
	order     list.List // of *memorised, by when it was said
}

type memorised struct {
	key    [32]byte
	said   said
	cost   int
	forget time.Time // when it is not even known any more
}

func newMemory(max int) memory {
	return memory{max: max, kept: map[[32]byte]*list.Element{}}
}

// get returns what may be used of what was said.
func (m *memory) get(key [32]byte, now time.Time) (said, bool) {
	e := m.kept[key]
	if e == nil {
		return said{}, false
	}
	s := e.Value.(*memorised).said
	return s, now.Before(s.until)
}

// has reports whether something was said, though it may not be used any more.
func (m *memory) has(key [32]byte) bool { return m.kept[key] != nil }

// put remembers what was said of a token now; of an answer so many bytes long.
func (m *memory) put(key [32]byte, s said, length int, forget, now time.Time) {
	m.remove(key)
	n := &memorised{key: key, said: s, cost: entryCost + answerCost*length, forget: forget}
	m.kept[key] = m.order.PushBack(n)
	m.used += n.cost
	for e := m.order.Front(); e != nil; e = m.order.Front() {
		first := e.Value.(*memorised)
		if m.used <= m.max && now.Before(first.forget) {
			break
		}
		m.remove(first.key)
	}
}

func (m *memory) remove(key [32]byte) {
	if e := m.kept[key]; e != nil {
		m.used -= m.order.Remove(e).(*memorised).cost
		delete(m.kept, key)
	}
}

// outdate has nothing of what was said used any more.
func (m *memory) outdate() {
	for e := m.order.Front(); e != nil; e = e.Next() {
		e.Value.(*memorised).said.until = time.Time{}
	}
}
