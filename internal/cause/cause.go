// Package cause holds the requests that a service is serving, so that what leaves the service can be traced to what caused
// it, and ends when that ends.
package cause

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
)

// Request is one request that the gate in front has let in.
type Request struct {
	ID     string // in the audit log
	Route  string
	Caller *identity.Caller // nil: on a public route nobody proved anything
	Token  bearer.Token     // that proved the caller; zero if none did
	Source netip.Addr       // the client
	Began  time.Time
}

// Flight is the requests in flight. Safe for concurrent use.
type Flight struct {
	mu      sync.Mutex
	entries map[string]*Entry // by capability
}

// Entry is a request in flight.
type Entry struct {
	Request
	Capability string // unguessable; who presents it acts for this request
	Trace      string // the trace id that the service is given, 32 hex digits
	flight     *Flight
	ctx        context.Context
	end        context.CancelCauseFunc
}

// NewFlight is an empty one.
func NewFlight() *Flight { return &Flight{entries: map[string]*Entry{}} }

// Begin takes a request into flight. The caller must call Done.
func (f *Flight) Begin(r Request) *Entry {
	var trace [16]byte
	rand.Read(trace[:])
	e := &Entry{Request: r, Capability: rand.Text(), Trace: hex.EncodeToString(trace[:]), flight: f}
	e.ctx, e.end = context.WithCancelCause(context.Background())
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entries[e.Capability] = e
	return e
}

// Done says that the request has its answer.
func (e *Entry) Done() {
	e.flight.mu.Lock()
	defer e.flight.mu.Unlock()
	delete(e.flight.entries, e.Capability)
}

// Standing ends, with a cause, when the request loses what it was let in for: its token was revoked or has expired, its
// key was withdrawn, its route is gone. It does not end because the request has its answer.
func (e *Entry) Standing() context.Context { return e.ctx }

// Lost is why a request lost its standing: the cause of the end of Standing.
type Lost struct {
	Code   string // "revoked", "expired", "key_withdrawn", "route_removed"
	Reason string // for the operator
}

func (l *Lost) Error() string { return l.Code + ": " + l.Reason }

// Why is the Lost that ended a context; nil if none did.
func Why(ctx context.Context) *Lost {
	lost, _ := errors.AsType[*Lost](context.Cause(ctx))
	return lost
}

// Sweep asks of each request in flight, and of each that has its answer and may still cause something, whether it has
// lost its standing, and ends those that have. It returns how many it ended.
func (f *Flight) Sweep(lost func(*Request) *Lost) (ended int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.entries {
		if e.ctx.Err() != nil {
			continue
		}
		if l := lost(&e.Request); l != nil {
			e.end(l)
			ended++
		}
	}
	return ended
}
