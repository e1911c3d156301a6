package ingress

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/proof"
	"github.com/sallyport/sallyport/internal/state"
)

// What a request was let in for can end while the service still answers, in a stream for as long as that is open: its token
// is revoked or expires, its key is withdrawn, its route is gone. This file ends it then, within a second.
//
// Nothing is asked per request. Every sweepEvery, and as soon as something happens that may end requests, all of them are
// judged again: by token here, in the Flight, where the gate behind sees it too; by route in Swap.

const (
	sweepEvery = 500 * time.Millisecond
	sweepGap   = 20 * time.Millisecond // between two sweeps, however much happens
)

// live is the requests that are being forwarded, and what has happened to them.
type live struct {
	mu        sync.Mutex
	exchanges map[*exchange]struct{}
	withdrawn []signer      // keys that have gone since the last sweep
	wake      chan struct{} // of capacity 1
	swapping  sync.Mutex    // held by Swap
	unwatch   func()        // the verifier of the rules before; guarded by swapping
}

// signer names a key of an issuer.
type signer struct{ issuer, keyID string }

// fly makes a request one that can be ended. Whatever happened since it began was not asked of it by a sweep, so it is now.
func (g *Gateway) fly(x *exchange) {
	g.live.mu.Lock()
	g.live.exchanges[x] = struct{}{}
	g.live.mu.Unlock()
	x.loseStanding() // it may be of a class that was ended before
	if g.epoch.Load() == x.epoch {
		return
	}
	rules, now := g.rules.Load(), g.now()
	j := judgement{g: g, rules: rules, now: now}
	lost := j.of(x.selection.Route.Name, x.caller)
	if lost == nil { // a key may have been replaced under its name, which j does not see
		lost = lostProof(rules, x.token, x.caller)
	}
	if lost == nil && rules != x.rules {
		lost = x.lostRoute(rules, now)
	}
	if lost != nil {
		x.lose(lost)
	}
}

// lose ends a request.
func (x *exchange) lose(lost *cause.Lost) {
	if x.direct == nil {
		x.end(lost)
	} else if x.lost.CompareAndSwap(nil, lost) {
		x.direct.Interrupt(x.number)
	}
}

// loseStanding ends it if its token has lost what it was let in for. Those that net/http forwards hear of that by a context.
func (x *exchange) loseStanding() {
	if x.direct == nil {
		return
	}
	if lost := x.entry.Class().Lost(); lost != nil {
		x.lose(lost)
	}
}

// land takes a request out, if it is in. Nobody reads its http.Request any more: the engine uses that again.
func (g *Gateway) land(x *exchange) {
	g.live.mu.Lock()
	delete(g.live.exchanges, x)
	g.live.mu.Unlock()
	x.judging.Lock()
	defer x.judging.Unlock()
	x.landed = true
}

// watch sweeps until ctx ends.
func (g *Gateway) watch(ctx context.Context) {
	if s := g.config.State; s != nil {
		defer s.Subscribe(func(state.Revocation) { g.stir() })()
	}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-g.live.wake:
		}
		g.sweep()
		g.noticeStanding()
		select { // a flood of revocations is one sweep now and one behind it
		case <-ctx.Done():
			return
		case <-time.After(sweepGap):
		}
	}
}

// stir has watch sweep soon.
func (g *Gateway) stir() {
	select {
	case g.live.wake <- struct{}{}:
	default: // one is waiting already, and will see this too
	}
}

// withdrawn hears of a key that verifies nothing any more.
func (g *Gateway) withdrawn(issuer, keyID string) {
	g.live.mu.Lock()
	g.live.withdrawn = append(g.live.withdrawn, signer{issuer, keyID})
	g.live.mu.Unlock()
	g.stir()
}

// sweep judges again by what the tokens of all requests in flight say, and ends those that have lost.
func (g *Gateway) sweep() {
	g.live.mu.Lock()
	gone := g.live.withdrawn
	g.live.withdrawn = nil
	g.live.mu.Unlock()
	g.epoch.Add(1) // before the sweep: what it cannot see yet asks for itself
	j := judgement{g: g, rules: g.rules.Load(), gone: gone, now: g.now()}
	g.config.Flight.Sweep(func(r *cause.Request) *cause.Lost { return j.of(r.Route, r.Caller) })
	for _, x := range g.flying() {
		x.loseStanding()
	}
}

// flying is the requests that are being forwarded.
func (g *Gateway) flying() []*exchange {
	g.live.mu.Lock()
	defer g.live.mu.Unlock()
	made := make([]*exchange, 0, len(g.live.exchanges))
	for x := range g.live.exchanges {
		made = append(made, x)
	}
	return made
}

// judgement is one sweep's, of what ends without anybody changing the rules.
type judgement struct {
	g     *Gateway
	rules *rules
	gone  []signer // keys that have been withdrawn, another of whose name may have taken their place
	now   time.Time

	last   signer // of most requests it is that of the one before
	usable bool
	leeway time.Duration
}

// of judges one request.
func (j *judgement) of(route string, caller *identity.Caller) *cause.Lost {
	if caller == nil {
		if d := j.rules.Policy.Admits(route, nil, j.now); !d.Allowed() {
			return &cause.Lost{Code: lostRoute, Reason: d.Reason}
		}
		return nil
	}
	if len(caller.Workloads) > 0 { // by a hop: its key is another gate's, though the issuer is that of the first token
		if lost := j.standing(caller, assertionLeeway); lost != nil {
			return lost
		}
		_, lost := j.rules.lostHop(caller)
		return lost
	}
	if by := (signer{caller.Issuer, caller.KeyID}); by != j.last {
		j.last, j.leeway = by, j.rules.Verifier.Leeway(by.issuer)
		j.usable = j.rules.Verifier.Usable(by.issuer, by.keyID) && !slices.Contains(j.gone, by)
	}
	if lost := j.standing(caller, j.leeway); lost != nil {
		return lost
	}
	if !j.usable {
		return &cause.Lost{Code: lostKey, Reason: "the key of the token is in use no more"}
	}
	return nil
}

// standing judges revocation and expiry.
func (j *judgement) standing(caller *identity.Caller, leeway time.Duration) *cause.Lost {
	if s := j.g.config.State; s != nil {
		if r, ok := s.Revoked(tokenOf(caller)); ok {
			return &cause.Lost{Code: lostRevoked, Reason: because(r)}
		}
	}
	if !j.now.Before(caller.Expires.Add(leeway)) {
		return &cause.Lost{Code: lostExpired, Reason: "the token has expired"}
	}
	return nil
}

// again judges by new rules whatever was let in by the ones before: the tokens of all requests in the Flight, and the route
// of each that is being forwarded.
func (g *Gateway) again(rules *rules) {
	g.epoch.Add(1)
	now := g.now()
	g.config.Flight.Sweep(func(r *cause.Request) *cause.Lost {
		if lost := lostProof(rules, r.Token, r.Caller); lost != nil {
			return lost
		}
		if d := rules.Policy.Admits(r.Route, rules.narrowed(r.Caller), now); !d.Allowed() {
			return &cause.Lost{Code: lostRoute, Reason: d.Reason}
		}
		return nil
	})
	for _, x := range g.flying() {
		x.loseStanding()
		x.againstRoutes(rules, now)
	}
}

// narrowed is a caller as far as these rules believe whoever passed it on; nil of none.
func (r *rules) narrowed(c *identity.Caller) *identity.Caller {
	if c == nil || len(c.Workloads) == 0 {
		return c
	}
	narrowed, _ := r.lostHop(c)
	return &narrowed
}

// lostProof verifies a token again.
func lostProof(rules *rules, token bearer.Token, caller *identity.Caller) *cause.Lost {
	if caller == nil {
		return nil
	}
	if len(caller.Workloads) > 0 {
		_, lost := rules.lostHop(caller)
		return lost
	}
	err := rules.Verifier.Still(token, *caller)
	if err == nil {
		return nil
	}
	lost := &cause.Lost{Code: lostKey, Reason: err.Error()}
	if refused, ok := errors.AsType[*bearer.Error](err); ok && refused.Code == lostExpired {
		lost.Code = lostExpired
	}
	return lost
}

// againstRoutes ends a request that new rules would not let in.
func (x *exchange) againstRoutes(rules *rules, now time.Time) {
	x.judging.Lock()
	defer x.judging.Unlock()
	if x.landed || x.ctx.Err() != nil || x.lost.Load() != nil {
		return
	}
	if lost := x.lostRoute(rules, now); lost != nil {
		x.lose(lost)
	}
}

// lostRoute asks rules that are not those of the request which route it would have, and whether it would be let in.
func (x *exchange) lostRoute(rules *rules, now time.Time) *cause.Lost {
	no := func(reason string) *cause.Lost { return &cause.Lost{Code: lostRoute, Reason: reason} }
	request := x.request
	var d *headerFault
	if request.Header, d = readHeaders(rules.headers, x.r.Header); d != nil {
		return no(d.reason)
	}
	selection, denial := rules.Policy.Select(request)
	if selection.Route == nil {
		return no(denial.Reason)
	}
	if decision := rules.Policy.Decide(selection, request, rules.narrowed(x.caller), now); !decision.Allowed() {
		return no(decision.Reason)
	}
	route := selection.Route
	switch {
	case route.Bound && x.bound == proof.Binding{}:
		return no("the route takes bound tokens only")
	case route.TokenID && x.caller != nil && x.caller.TokenID == "":
		return no("the route takes no token without jti")
	case x.upgrades() && !slices.Contains(route.Upgrades, "websocket"):
		return no("the route has no upgrades: [websocket] any more")
	}
	return nil
}
