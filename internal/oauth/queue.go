package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// queue is where the questions of one source about tokens that are not known wait for each other.
type queue struct {
	turns chan struct{}
	users int
}

var errNoTurn = errors.New("too many questions wait for it")

// enter waits until a question may be asked, for no longer than an answer may take; leave must be called after it. About a token
// that is known that is at once. Of the others a source has a few under way, and what it has spent by the time of its turn counts:
// who sends very many at a time is refused, and stands before nobody else.
func (i *Introspector) enter(ctx context.Context, key [32]byte, source netip.Addr) (leave func(), err error) {
	i.mu.Lock()
	if i.active.has(key) {
		i.mu.Unlock()
		return func() {}, nil
	}
	own := i.queueOf(source)
	i.mu.Unlock()
	patience := time.NewTimer(timeout)
	defer patience.Stop()
	wait := func(turns chan struct{}) error {
		select {
		case turns <- struct{}{}:
			return nil
		case <-ctx.Done():
			return &Error{Err: ctx.Err()}
		case <-patience.C:
			return &Error{Err: fmt.Errorf("ask %s: %w", i.client.config.Endpoint, errNoTurn)}
		}
	}
	if err := wait(own.turns); err != nil {
		i.leaveQueue(source, own)
		return nil, err
	}
	leaveOwn := func() { <-own.turns; i.leaveQueue(source, own) }
	i.mu.Lock()
	left := i.budget.left(source, i.now())
	i.mu.Unlock()
	if !left {
		leaveOwn()
		return nil, ErrTooMany
	}
	if err := wait(i.strangers); err != nil {
		leaveOwn()
		return nil, err
	}
	return func() { <-i.strangers; leaveOwn() }, nil
}

// queueOf is the queue of a source, which the caller leaves. Those that are nobody in particular do not wait for each other. The
// caller holds i.mu.
func (i *Introspector) queueOf(source netip.Addr) *queue {
	if !source.IsValid() {
		return &queue{turns: make(chan struct{}, 1)}
	}
	source = network(source)
	q := i.queues[source]
	if q == nil {
		q = &queue{turns: make(chan struct{}, maxOfSource)}
		i.queues[source] = q
	}
	q.users++
	return q
}

func (i *Introspector) leaveQueue(source netip.Addr, q *queue) {
	if !source.IsValid() {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if q.users--; q.users == 0 {
		delete(i.queues, network(source))
	}
}
