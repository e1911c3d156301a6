package cause

import (
	"slices"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// Class is the requests that no rule tells apart: one token on one route. Its Request is the first of them.
type Class struct {
	Request
	flight  *Flight
	key     key
	shares  bool // it is in Flight.shared
	over    bool // it is one of too many
	at      int  // in Flight.classes
	members int  // requests in flight and in their tail
	holds   int
	standing
}

// key is what makes two requests one class.
type key struct {
	route  string
	issuer string
	digest string           // of the token; empty: no caller
	caller *identity.Caller // where no digest names the token
}

func keyOf(r *Request) key {
	k := key{route: r.Route}
	switch {
	case r.Caller == nil:
	case r.Caller.Digest != "":
		k.issuer, k.digest = r.Caller.Issuer, r.Caller.Digest
	default:
		k.caller = r.Caller
	}
	return k
}

// Scopes are what its caller has; none on a public route.
func (c *Class) Scopes() []string {
	if c.Caller == nil {
		return nil
	}
	return c.Caller.Scopes
}

// join puts an entry into its class, and reports whether that is a new one.
func (f *Flight) join(e *Entry) (fresh bool) {
	k := keyOf(&e.Request)
	c := f.shared[k]
	// A digest names what was signed, and a token has a signature beside it.
	if c != nil && c.lost.Load() == nil && slices.Equal(c.Scopes(), scopesOf(&e.Request)) && c.Token.Reveal() == e.Token.Reveal() {
		e.class = c
		e.Token = c.Token // the same: its tail then keeps one copy, and not one of each request's
		if c.members++; c.members == 1 {
			f.live++
			return true
		}
		return false
	}
	made := &Class{Request: e.Request, flight: f, key: k, members: 1}
	e.class = made
	if made.over = f.live >= maxClasses; made.over {
		f.over++
	} else if c == nil || c.lost.Load() != nil {
		if c != nil {
			c.shares = false
		}
		made.shares = true
		f.shared[k] = made
	}
	f.live++
	made.at = len(f.classes)
	f.classes = append(f.classes, made)
	return true
}

func scopesOf(r *Request) []string {
	if r.Caller == nil {
		return nil
	}
	return r.Caller.Scopes
}

// leave takes a request out of its class.
func (f *Flight) leave(c *Class) {
	if c.members--; c.members == 0 {
		f.live--
		f.forget(c)
	}
}

// forget drops a class in which nobody is interested.
func (f *Flight) forget(c *Class) {
	if c.members > 0 || c.holds > 0 {
		return
	}
	if c.shares {
		delete(f.shared, c.key)
	}
	last := len(f.classes) - 1
	moved := f.classes[last]
	f.classes[c.at], moved.at = moved, c.at
	f.classes[last] = nil
	f.classes = f.classes[:last]
}

// Window is what may have caused an attempt of which nothing better is known: the requests in flight and in their tail.
type Window struct {
	Requests int      // how many
	IDs      []string // of the latest of them, at most Listed, the latest first
	Only     *Entry   // where there is but one
	Classes  []*Class // of all of them, unless it overflows
	Overflow bool     // there are more classes than are looked at, or were
	Mark     uint64   // for Since
}

// Window is the requests of now.
func (f *Flight) Window() Window {
	now := time.Now()
	f.mu.Lock()
	ended := f.prune(now)
	w := Window{Requests: f.size, Overflow: f.over > 0 || now.Before(f.overUntil), Mark: f.begun}
	if n := min(f.size, Listed); n > 0 {
		w.IDs = make([]string, 0, n)
		for e := f.newest; e != nil && len(w.IDs) < n; e = e.older {
			w.IDs = append(w.IDs, e.ID)
		}
	}
	if f.size == 1 {
		w.Only = f.newest
	}
	if f.live > 0 && !w.Overflow {
		w.Classes = make([]*Class, 0, f.live)
		for _, c := range f.classes {
			if c.members > 0 {
				w.Classes = append(w.Classes, c)
			}
		}
	}
	f.mu.Unlock()
	if ended {
		go f.tell(Ended, nil) // who looks may hold what a watcher wants
	}
	return w
}

// Since tells how many requests have begun since a window was looked at, and names the latest of them, at most Listed.
func (f *Flight) Since(mark uint64) (requests int, ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.begun - mark
	for i := uint64(1); i <= min(n, Listed); i++ {
		ids = append(ids, f.recent[(f.begun-i)%maxRecent])
	}
	return int(n), ids
}

// sameToken reports whether two classes are of one token. Each request that comes by a hop brings a statement of its own, and
// is a class of its own: of those it is the token that the first gate was sent, by the same way.
func sameToken(a, b *Class) bool {
	if a.key.issuer == b.key.issuer && a.key.digest == b.key.digest && a.key.caller == b.key.caller {
		return true
	}
	x, y := a.Caller, b.Caller
	return len(x.Workloads) > 0 && slices.Equal(x.Workloads, y.Workloads) && x.Issuer == y.Issuer && x.TokenID == y.TokenID &&
		x.Digest == y.Digest && x.TokenID+x.Digest != ""
}

// One is a class whose token is that of every request in the window; nil if there are several, or one without token.
func (w *Window) One() *Class {
	if w.Overflow || len(w.Classes) == 0 || w.Classes[0].Caller == nil {
		return nil
	}
	first := w.Classes[0]
	for _, c := range w.Classes[1:] {
		if c.Caller == nil || !sameToken(c, first) || !slices.Equal(c.Scopes(), first.Scopes()) {
			return nil
		}
	}
	return first
}

// Routes are the names of the routes of the requests in the window, each once, at most Listed; none where it overflows.
func (w *Window) Routes() []string {
	var names []string
	for _, c := range w.Classes {
		if c.Route != "" && !slices.Contains(names, c.Route) {
			if names = append(names, c.Route); len(names) == Listed {
				break
			}
		}
	}
	slices.Sort(names)
	return names
}
