package cause

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
)

// Lost is why a request lost its standing: the cause of the end of Standing.
type Lost struct {
	Code   string // "revoked", "expired", "key_withdrawn", "token_inactive", "route_removed"
	Reason string // for the operator
}

func (l *Lost) Error() string { return l.Code + ": " + l.Reason }

// Why is the Lost that ended a context; nil if none did.
func Why(ctx context.Context) *Lost {
	lost, _ := errors.AsType[*Lost](context.Cause(ctx))
	return lost
}

// standing is what a class keeps while it has what it was let in for. Its context is made when it is asked for.
type standing struct {
	lost atomic.Pointer[Lost]
	mu   sync.Mutex
	ctx  context.Context
	end  context.CancelCauseFunc
}

func (s *standing) context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil {
		s.ctx, s.end = context.WithCancelCause(context.Background())
		if l := s.lost.Load(); l != nil {
			s.end(l)
		}
	}
	return s.ctx
}

func (s *standing) lose(l *Lost) (first bool) {
	if !s.lost.CompareAndSwap(nil, l) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil {
		s.end(l)
	}
	return true
}

// Lost is why its requests lost their standing; nil: they have it.
func (c *Class) Lost() *Lost { return c.lost.Load() }

// Standing ends, with a cause, when the request loses what it was let in for: its token was revoked or has expired, its
// key was withdrawn, its route is gone. It does not end because the request has its answer. The requests of a class share
// it.
func (e *Entry) Standing() context.Context { return e.class.context() }

// Sweep asks of the requests in flight, and of those that have their answer and may still cause something, whether they
// have lost their standing, and ends those that have. It asks once for each class, of the first request of it. It returns
// how many requests it ended; whoever watches has been told.
func (f *Flight) Sweep(lost func(*Request) *Lost) (ended int) {
	f.mu.Lock()
	classes := slices.Clone(f.classes)
	f.mu.Unlock()
	for _, c := range classes {
		if c.Lost() != nil {
			continue
		}
		l := lost(&c.Request)
		if l == nil || !c.lose(l) {
			continue
		}
		f.mu.Lock()
		ended += c.members
		f.mu.Unlock()
		f.tell(Lose, c)
	}
	return ended
}

// Hold keeps classes from being forgotten when their requests end, so that they can still lose their standing: what they
// began goes on. The caller must Release them.
func (f *Flight) Hold(classes []*Class) { f.hold(classes, 1) }

// Release undoes a Hold.
func (f *Flight) Release(classes []*Class) { f.hold(classes, -1) }

func (f *Flight) hold(classes []*Class, by int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range classes {
		if c.at >= len(f.classes) || f.classes[c.at] != c {
			continue // it was forgotten between the look and the hold: its requests are over
		}
		c.holds += by
		f.forget(c)
	}
}

// Change is what has happened to the requests in flight.
type Change int

// The changes that watchers are told of.
const (
	Began Change = iota // a request has begun of a class that had none, which is named
	Ended               // the last request in flight has ended, or one that is Watched, and its tail
	Lose                // the requests of the class that is named have lost their standing
)

// Watch has f called after each change: before Begin returns, so before the service sees the request. f must not wait for
// anything, and may be called by several at once. Nobody stops watching.
func (f *Flight) Watch(told func(Change, *Class)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers = append(slices.Clone(f.watchers), told)
}

func (f *Flight) tell(what Change, c *Class) {
	f.mu.Lock()
	watchers := f.watchers
	f.mu.Unlock()
	for _, told := range watchers {
		told(what, c)
	}
}
