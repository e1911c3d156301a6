// Package cause holds the requests that a service is serving, so that what leaves the service can be traced to what caused
// it, and ends when that ends.
//
// The gate in front begins an Entry for each request that it forwards, and ends it when the request has its answer. The
// gate behind asks which of them an attempt may come from:
//
//	e, ok := flight.ByCapability(c) // whoever presents it acts for that request
//	e, ok := flight.ByTrace(t)      // the service says so: believed where it narrows
//	w := flight.Window()            // else it may be any of these
//
// # The tail
//
// A request counts for two seconds (Tail) after its answer, in each of the three: a handler may end its work after it has
// answered. Then its capability is no more; an attempt that began before goes on. One that ended without its answer, because
// its client has gone say, counts for 30 seconds (Unanswered): nobody has told the service to stop, and whoever sent it could
// else choose when it is forgotten, and have it act with the rights of those that are in flight then.
//
// # Classes
//
// Requests that no rule tells apart, of one token on one route, are one Class. They win and lose their rights together, and
// rights are compared class by class: what a judgement costs grows with how many callers there are and not with how many
// requests. Where there are more than 4096 classes the window says that it overflows, and does not list them all.
//
// # Limits
//
// Capabilities are of this process: those of another instance are unknown here. Of the requests that have been answered
// 32768 are remembered; where more are in their tail the oldest lose their capability early, and the window overflows.
package cause

import (
	"cmp"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
)

const (
	// Tail is how long a request counts after its answer.
	Tail = 2 * time.Second

	// Unanswered is how long a request counts that ended without its answer.
	Unanswered = 30 * time.Second

	// Listed is how many requests are named where there are more.
	Listed = 8

	maxClasses = 4096
	maxTail    = 32768
	maxRecent  = 64
	nameBytes  = 16 // of a capability, and of a trace id (W3C Trace Context, section 3.2.2.3)
)

// Request is one request that the gate in front has let in.
type Request struct {
	ID     string // in the audit log
	Route  string
	Caller *identity.Caller // nil: on a public route nobody proved anything; must not be changed
	Token  bearer.Token     // that proved the caller; zero if none did
	Source netip.Addr       // the client
	Began  time.Time

	Continues string // the trace id of somebody trusted that this request goes on with; empty: it has one of its own
	Sampled   bool   // spans of it are sent
}

// Flight is the requests in flight and in their tail. Safe for concurrent use.
type Flight struct {
	background string

	mu           sync.Mutex
	byCapability map[string]*Entry
	byTrace      map[string]*Entry
	newest       *Entry // of all, by when they began
	size         int
	tail         list // those that have their answer, the first to end first
	abandoned    list // those that ended without it, the same
	timer        *time.Timer
	armed        bool
	armedFor     time.Time

	shared    map[key]*Class
	classes   []*Class // all that somebody is interested in
	live      int      // of those that have requests
	over      int      // requests of classes that were too many
	overUntil time.Time

	random   [32 * 2 * nameBytes]byte // unused from drawn on
	drawn    int
	begun    uint64
	recent   [maxRecent]string // the ids of the last that began
	watchers []func(Change, *Class)
}

// Entry is a request in flight.
type Entry struct {
	Request
	Capability string // unguessable; who presents it acts for this request
	Trace      string // the trace id that the service is given, 32 hex digits
	Own        string // 32 hex digits that no other request has; Trace, where it continues none
	flight     *Flight
	class      *Class

	older, newer *Entry
	next         *Entry // in the tail
	until        time.Time
	answered     bool
	over         bool
	watched      bool
	ambiguous    bool // others in flight, or in their tail, had the same trace id when it began
}

// list is a queue of entries.
type list struct {
	first, last *Entry
	size        int
}

// NewFlight is an empty one.
func NewFlight() *Flight {
	f := &Flight{
		background: rand.Text(), byCapability: map[string]*Entry{}, byTrace: map[string]*Entry{}, shared: map[key]*Class{},
	}
	f.drawn = len(f.random)
	return f
}

// Begin takes a request into flight. The caller must call Done. Whoever watches has been told when it returns.
func (f *Flight) Begin(r Request) *Entry {
	e := &Entry{Request: r, flight: f}
	now := time.Now()
	f.mu.Lock()
	emptied := f.prune(now) && f.size == 0
	f.name(e)
	fresh := f.join(e)
	e.ambiguous = f.byTrace[e.Trace] != nil
	f.byCapability[e.Capability], f.byTrace[e.Trace] = e, e
	if e.older = f.newest; e.older != nil {
		e.older.newer = e
	}
	f.newest = e
	f.size++
	f.recent[f.begun%maxRecent] = e.ID
	f.begun++
	f.mu.Unlock()
	if emptied {
		f.tell(Ended, nil)
	}
	if fresh {
		f.tell(Began, e.class)
	}
	return e
}

// name gives an entry its capability and its trace.
func (f *Flight) name(e *Entry) {
	if f.drawn == len(f.random) {
		rand.Read(f.random[:])
		f.drawn = 0
	}
	drawn := f.random[f.drawn : f.drawn+2*nameBytes]
	f.drawn += 2 * nameBytes
	var text [4 * nameBytes]byte
	hex.Encode(text[:], drawn)
	clear(drawn)
	both := string(text[:])
	e.Capability, e.Own = both[:2*nameBytes], both[2*nameBytes:]
	e.Trace = cmp.Or(e.Continues, e.Own)
}

// Done says that the request has its answer. Its tail begins.
func (e *Entry) Done() { e.end(&e.flight.tail, Tail) }

// Abandon says that the request has ended, and the service not with it. A longer tail begins. After Done it does nothing,
// nor Done after it.
func (e *Entry) Abandon() { e.end(&e.flight.abandoned, Unanswered) }

func (e *Entry) end(in *list, after time.Duration) {
	f := e.flight
	now := time.Now()
	f.mu.Lock()
	if e.answered {
		f.mu.Unlock()
		return
	}
	e.answered, e.until = true, now.Add(after)
	if e.class.over {
		f.over--
		f.overflows(e.until)
	}
	if in.last == nil {
		in.first = e
	} else {
		in.last.next = e
	}
	in.last = e
	in.size++
	ended := f.prune(now)
	if in.size > maxTail {
		f.overflows(e.until)
		ended = f.drop(in) || ended
	}
	f.arm(now)
	f.mu.Unlock()
	if ended {
		f.tell(Ended, nil)
	}
}

// overflows says that until then there are more than are known.
func (f *Flight) overflows(until time.Time) {
	if until.After(f.overUntil) {
		f.overUntil = until
	}
}

// prune ends the tails whose time is over. It reports whether somebody watches for that, or none is left.
func (f *Flight) prune(now time.Time) (ended bool) {
	for _, l := range []*list{&f.tail, &f.abandoned} {
		for l.first != nil && !now.Before(l.first.until) {
			ended = f.drop(l) || ended
		}
	}
	return ended
}

// drop ends the first tail of a list, and tells as prune does.
func (f *Flight) drop(l *list) bool {
	e := l.first
	if l.first = e.next; e.next == nil {
		l.last = nil
	}
	e.next = nil
	l.size--
	delete(f.byCapability, e.Capability)
	if f.byTrace[e.Trace] == e {
		delete(f.byTrace, e.Trace)
	}
	if e.newer == nil {
		f.newest = e.older
	} else {
		e.newer.older = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	}
	e.newer, e.older = nil, nil
	f.size--
	e.over = true
	f.leave(e.class)
	return e.watched || f.size == 0
}

// arm sets the timer that ends tails where nothing else happens.
func (f *Flight) arm(now time.Time) {
	var until time.Time
	for _, l := range []*list{&f.tail, &f.abandoned} {
		if l.first != nil && (until.IsZero() || l.first.until.Before(until)) {
			until = l.first.until
		}
	}
	if until.IsZero() || f.armed && !until.Before(f.armedFor) {
		return
	}
	f.armed, f.armedFor = true, until
	if f.timer == nil {
		f.timer = time.AfterFunc(until.Sub(now), f.tick)
	} else {
		f.timer.Reset(until.Sub(now))
	}
}

func (f *Flight) tick() {
	now := time.Now()
	f.mu.Lock()
	f.armed = false
	ended := f.prune(now)
	f.arm(now)
	f.mu.Unlock()
	if ended {
		f.tell(Ended, nil)
	}
}

// Background is the capability of what no request caused: whoever presents it says so, and has what background has.
func (f *Flight) Background() string { return f.background }

// IsBackground reports whether a capability is Background's.
func (f *Flight) IsBackground(capability string) bool {
	return subtle.ConstantTimeCompare([]byte(capability), []byte(f.background)) == 1
}

// ByCapability finds the request whose capability this is. There is none if the request has ended, and its tail, or if it
// is another instance's.
func (f *Flight) ByCapability(capability string) (*Entry, bool) {
	return f.find(f.byCapability, capability)
}

// ByTrace finds the request whose trace id this is, as ByCapability does. A trace id is no secret of the service's: it
// proves nothing. Where several requests go on with one trace, it names none of them.
func (f *Flight) ByTrace(trace string) (*Entry, bool) {
	e, ok := f.find(f.byTrace, trace)
	if !ok || e.ambiguous {
		return nil, false
	}
	return e, true
}

func (f *Flight) find(m map[string]*Entry, name string) (*Entry, bool) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := m[name]
	if !ok || e.answered && !now.Before(e.until) {
		return nil, false // the timer, or the next request, takes it away
	}
	return e, true
}

// Class is the requests that this one belongs to.
func (e *Entry) Class() *Class { return e.class }

// Over reports whether the request has ended, and its tail.
func (e *Entry) Over() bool {
	now := time.Now()
	e.flight.mu.Lock()
	defer e.flight.mu.Unlock()
	return e.over || e.answered && !now.Before(e.until)
}

// Watched has watchers told (Ended) when the request and its tail have ended.
func (e *Entry) Watched() {
	e.flight.mu.Lock()
	defer e.flight.mu.Unlock()
	e.watched = true
}
