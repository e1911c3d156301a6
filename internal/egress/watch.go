package egress

import (
	"sync"
	"sync/atomic"

	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/policy"
)

// watch is what is open, so that it ends when its cause does.
type watch struct {
	mu     sync.Mutex
	open   map[*guarded]struct{}
	opaque atomic.Int64 // those of them that are judged again when a request begins or ends
}

// guarded is what is open of a passage, as it was when guard was called: of the passage itself nothing is read that changes
// later.
type guarded struct {
	*passage
	opaque bool           // nobody sees whose the bytes are, and not everyone's may be there
	held   []*cause.Class // that may have caused it
	end    func(policy.Code)
}

// guard binds what is open to its cause, until done is called. end is called at most once, with why, and must not wait.
//
// Whatever is open ends when its cause loses its standing. Where nobody sees whose the bytes are (opaque), and not every
// cause may reach the destination, it also ends when somebody comes who may not: at the level of the window before a
// request that is not entitled reaches the service, or when the last request is over and background is not entitled; at
// the level of a capability when its request is over.
func (x *passage) guard(opaque bool, end func(policy.Code)) (done func()) {
	p := x.p
	if p.config.Flight == nil || x.destination == nil {
		return func() {}
	}
	opaque = opaque && x.destination.For.Narrow() && x.waived == ""
	var once sync.Once
	g := &guarded{passage: x, opaque: opaque, held: x.cause.held, end: func(code policy.Code) { once.Do(func() { end(code) }) }}
	if opaque {
		if x.cause.level == levelCapability && x.cause.entry != nil {
			x.cause.entry.Watched()
		}
		p.watch.opaque.Add(1)
	}
	p.watch.mu.Lock()
	p.watch.open[g] = struct{}{}
	p.watch.mu.Unlock()
	// After it can be found: what began between the decision and now is seen here, what begins later sees it.
	if code := g.again(); code != "" {
		g.end(code)
	}
	return sync.OnceFunc(func() {
		p.watch.mu.Lock()
		delete(p.watch.open, g)
		p.watch.mu.Unlock()
		if opaque {
			p.watch.opaque.Add(-1)
		}
		once.Do(func() {}) // who found it before will not end what is no longer ours
	})
}

// changed is told by the flight.
func (p *Proxy) changed(what cause.Change, c *cause.Class) {
	if what == cause.Began {
		p.remember(c)
	}
	if what == cause.Lose {
		p.forget(c)
	}
	if what != cause.Lose && p.watch.opaque.Load() == 0 {
		return
	}
	p.watch.mu.Lock()
	var open []*guarded
	for g := range p.watch.open {
		if what == cause.Lose || g.opaque {
			open = append(open, g)
		}
	}
	p.watch.mu.Unlock()
	for _, g := range open {
		code := policy.Code("")
		if what == cause.Began {
			code = g.joined(c)
		} else {
			code = g.again()
		}
		if code != "" {
			g.end(code)
		}
	}
}

// joined judges what is open when a request of a new class begins. Empty: it may stay.
func (g *guarded) joined(c *cause.Class) policy.Code {
	if g.cause.level == levelCapability {
		return ""
	}
	return g.rules.exits.DecideCause(g.exit, policy.Causes{Known: true, All: []policy.Cause{causeOf(c)}}).Code
}

// again judges what is open once more. Empty: it may stay.
func (g *guarded) again() policy.Code {
	a := &g.cause
	switch {
	case g.lost():
		return policy.StandingLost
	case !g.opaque || a.level == levelCapability && a.background:
		return ""
	case a.level == levelCapability && a.entry.Over():
		return codeCauseOver
	case a.level == levelCapability:
		return ""
	}
	return g.rules.exits.DecideCause(g.exit, windowCauses(g.p.config.Flight.Window())).Code
}

// lost reports whether what may have caused it has lost its standing: where everything may cause it, all of it, and
// otherwise some.
func (g *guarded) lost() bool { return haveLost(g.held, g.destination.For.Narrow()) }

func haveLost(held []*cause.Class, narrow bool) bool {
	some, all := false, len(held) > 0
	for _, c := range held {
		if c.Lost() == nil {
			all = false
		} else {
			some = true
		}
	}
	return all || some && narrow
}
