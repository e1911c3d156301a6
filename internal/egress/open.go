package egress

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/credential"
	"github.com/sallyport/sallyport/internal/leak"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/safedial"
)

// The ways in that a record names.
const (
	viaProxy   = "proxy"   // a request in absolute-form
	viaConnect = "connect" // CONNECT, and what is inside
	viaLed     = "led"     // a connection that was led here
	viaDirect  = "direct"  // a connection that was let go
	viaSocket  = "socket"  // a unix socket
	viaDNS     = "dns"     // a question
)

// A passage is one attempt to get out on its way down the line, and what the steps have found. Its decision is a denial
// until decide has found evidence.
type passage struct {
	p       *Proxy
	rules   *rules // those of the moment when it began
	id      string
	began   time.Time
	via     string
	process int        // of the caller, where a broker said so
	peer    netip.Addr // of the client

	out    policy.Outbound
	fixed  netip.AddrPort // of a led connection: where it was going; the name is not resolved
	greet  func() (policy.Hello, error)
	header http.Header // of a request
	claim  claim       // of the client: why it makes the attempt

	incoming *http.Request // to be forwarded; nil: none
	removed  http.Header   // what it had of credentials
	body     *leak.Stream  // that its body is searched by; nil: it is not
	attached credential.Header
	scrub    *leak.Scrubber // that masks it in the answer
	alone    bool           // not on a kept connection

	sized     bool     // the request says how long its body is
	websocket bool     // it asks for an upgrade to WebSocket
	unmetered bool     // it is no attempt: each request inside the tunnel is one, or it is a question
	dropped   []string // credentials that the service tried to send itself
	skipped   int      // denials of names that have no record of their own

	exit        policy.Exit
	destination *destination // nil: none, in report mode
	decision    policy.Decision
	refused     *safedial.DeniedError // by the guard; nil: not
	waived      policy.Code           // what report mode let pass; empty: nothing
	lenient     bool                  // the guard's refusal among it
	cause       attribution
	cut         atomic.Pointer[policy.Code]
	placed      bool
	recorded    bool

	link     *link  // what open opened
	left     string // the traceparent that took the place of ours; empty: none did
	status   int
	in, back int64          // bytes to and from the destination
	later    map[string]any // of the outcome: what became known after the record
	failure  policy.Code    // what went wrong behind the decision; empty: nothing
	why      string         // in words, for the service
}

func (p *Proxy) begin(via string) *passage {
	now := time.Now()
	return &passage{
		p: p, rules: p.rules.Load(), id: audit.NewID(now), began: now, via: via,
		decision: policy.Deny(codeInternal, "no step has denied or allowed"),
	}
}

// open is the straight line: destination, cause, decide by name, search, resolve once, decide by address, hello, record,
// credential, dial. It reports whether x.link is there: a connection to where x wants to go, for which an allow is on record. If not,
// x.decision or x.failure says why not. The caller ends the line with x.outcome, always.
func (p *Proxy) open(ctx context.Context, x *passage) (ok bool) {
	defer x.rescue(&ok)
	switch {
	case !x.admit():
	case !x.find():
	case !x.caused():
	case !x.byName():
	case !x.search(): // before anything is done that a token could be part of
	case x.keeps(): // its address was judged when it was dialled, by the same rules
		x.decide()
	case !x.resolve(ctx):
	case !x.byAddress():
	case !x.hello():
	default:
		x.decide()
	}
	if !x.record() || !x.decision.Allowed() {
		x.link.close()
		return false
	}
	if !x.credential(ctx) {
		x.link.close()
		return false
	}
	if x.link != nil {
		return true
	}
	guard := x.rules.guard
	if x.lenient {
		guard = x.rules.lenient
	}
	began := time.Now()
	c, err := guard.DialAddr(ctx, x.out.Host.Name, x.out.Addresses)
	p.metrics.dialled(x, time.Since(began), err)
	if err != nil {
		return x.unreachable(ctx, err)
	}
	x.link, err = x.secure(ctx, c)
	if err != nil && ctx.Err() == nil {
		return x.fail(codeTLS, err)
	} else if err != nil {
		return x.unreachable(ctx, err)
	}
	return true
}

// admit takes a place, which outcome gives back.
func (x *passage) admit() bool {
	x.placed = true
	if n := x.p.inFlight.Add(1); n > int64(x.p.config.Limits.Tunnels) {
		return x.denyAs(codeLimit, fmt.Sprintf("%d connections are open", n-1))
	}
	return true
}

// find finds the destination.
func (x *passage) find() bool {
	exit, d := x.rules.exits.Select(x.out)
	if exit.Destination == nil {
		if x.escapes() {
			return x.refuse()
		}
		return x.deny(d)
	}
	x.exit, x.destination = exit, x.rules.destinations[exit.Destination.Name]
	return true
}

// byName decides by name and by what is asked for there, so that a name that is denied is never looked up.
func (x *passage) byName() bool {
	if x.destination == nil {
		return true // in report mode
	}
	x.dropOwn()
	_, d := x.rules.exits.Select(x.out)
	if name := override(x.header, x.exit.Destination); name != "" && d.Code == "" {
		d = policy.Deny(codeOverride, name+" asks for another method or path than the request's, which is the one that was judged")
	}
	return d.Code == "" || x.deny(d)
}

// escapes reports whether a place that no destination names is an escape target by its address or port, which is worth
// more to whoever reads the record than that it is unknown, and is not to be let pass in report mode. Nothing is looked up.
func (x *passage) escapes() bool {
	to := x.fixed
	if a, err := netip.ParseAddr(x.out.Host.Name); !to.IsValid() && err == nil {
		to = netip.AddrPortFrom(a, x.out.Host.Port)
	}
	var denied *safedial.DeniedError
	if !to.IsValid() || !errors.As(x.rules.guard.Check(x.out.Host.Name, to), &denied) || denied.Code != safedial.CodeEscapeTarget {
		return false
	}
	x.refused = denied
	return true
}

// keeps takes a connection to the same host that an earlier request left.
func (x *passage) keeps() bool {
	if x.alone || x.destination == nil || !x.out.Request || x.waived != "" {
		return false
	}
	if x.link = x.rules.kept.take(x.out.Host); x.link == nil {
		return false
	}
	x.out.Addresses = []netip.AddrPort{x.link.address}
	return true
}

// resolve finds the addresses of the name, once: they are what is judged and dialled. Those of a led connection are known.
func (x *passage) resolve(ctx context.Context) bool {
	if x.fixed.IsValid() {
		x.out.Addresses = []netip.AddrPort{x.fixed}
		return true
	}
	found, err := x.rules.guard.Resolve(ctx, x.out.Host.Name, x.out.Host.Port)
	if errors.As(err, &x.refused) && x.refuse() && x.lenient {
		found, err = x.rules.lenient.Resolve(ctx, x.out.Host.Name, x.out.Host.Port)
		errors.As(err, &x.refused)
	}
	switch {
	case x.refused != nil && err != nil:
		return x.refuse()
	case err != nil:
		return x.denyAs(codeResolve, "the name could not be resolved: "+err.Error())
	}
	for _, a := range found {
		x.p.names.learn(x.out.Host.Name, a.Addr())
	}
	x.out.Addresses = found
	return true
}

// byAddress decides by each address. What resolve has found was judged there already; what a broker said was not.
func (x *passage) byAddress() bool {
	if !x.fixed.IsValid() {
		return true
	}
	err := x.rules.guard.Check(x.out.Host.Name, x.fixed)
	if err == nil {
		return true
	}
	if !errors.As(err, &x.refused) {
		return x.denyAs(codeInternal, err.Error())
	}
	return x.refuse()
}

// refuse denies for the guard's reason. In report mode most of its refusals are waived.
func (x *passage) refuse() bool {
	r := x.refused
	d := policy.Deny(policy.Code(r.Code), r.Reason)
	switch r.Code {
	case safedial.CodeEscapeTarget, safedial.CodeAmbiguousHost, safedial.CodeOwnAddress, safedial.CodeNotTCP:
		x.decision = d
		return false
	}
	x.lenient = x.deny(d)
	return x.lenient
}

// hello asks the client, where it speaks TLS, for the server that it wants.
func (x *passage) hello() bool {
	if x.greet == nil || x.destination == nil || !x.exit.Destination.Named {
		return true
	}
	h, err := x.greet()
	if err != nil {
		return x.denyAs(codeHello, "the client did not begin with a ClientHello: "+err.Error())
	}
	x.out.Hello = &h
	return true
}

// decide asks the policy with all that was found. It is the only place where an allow comes from, but for report mode's.
func (x *passage) decide() {
	if x.waived != "" {
		return
	}
	if d := x.rules.exits.Decide(x.exit, x.out); d.Allowed() || !x.deny(d) {
		x.decision = d
	}
}

// deny ends the line, unless report mode lets the denial pass: then the decision is the allow that says so.
func (x *passage) deny(d policy.Decision) bool {
	waived, ok := x.rules.exits.Waive(d)
	if !ok {
		x.decision = d
		return false
	}
	if x.waived == "" {
		x.decision, x.waived = waived, d.Code
	}
	return true
}

// denyAs ends the line for a reason that is no rule's, in report mode too.
func (x *passage) denyAs(code policy.Code, reason string) bool {
	x.decision = policy.Deny(code, reason)
	return false
}

// unreachable says why nothing was dialled. What the guard refuses here, on the socket, it let pass before.
func (x *passage) unreachable(ctx context.Context, err error) bool {
	var denied *safedial.DeniedError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &denied):
		return x.fail(policy.Code(denied.Code), err)
	case context.Cause(ctx) == errClosing:
		return x.fail(codeClosing, err)
	case ctx.Err() == context.Canceled:
		return x.fail(codeClientGone, err)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return x.fail(codeDialTimeout, err)
	}
	return x.fail(codeDial, err)
}

// fail notes what went wrong behind an allow. The first reason is the reason. A parser quotes what it could not read, which
// may repeat what was attached.
func (x *passage) fail(code policy.Code, err error) bool {
	if x.failure == "" {
		x.failure, x.why = code, x.scrub.Value(err.Error())
		x.p.log.Debug("an attempt failed", "attempt", x.id, "host", x.out.Host.String(), "code", string(code), "error", x.why)
	}
	return false
}

// rescue turns a panic of a step into a denial, or a failure if the allow is on record.
func (x *passage) rescue(ok *bool) {
	if p := recover(); p != nil {
		*ok = false
		x.fault(p)
		if x.recorded {
			x.failure = codeInternal
			return
		}
		x.decision = policy.Deny(codeInternal, "a step panicked; the log has the stack")
		x.record()
	}
}

// fault logs a panic. Its value may hold anything of the request, so only that of the runtime is written out.
func (x *passage) fault(p any) {
	what := fmt.Sprintf("%T", p)
	if err, ok := p.(interface {
		error
		RuntimeError()
	}); ok {
		what = err.Error()
	}
	x.p.log.Error("panic in an attempt", "attempt", x.id, "panic", what, "stack", string(debug.Stack()))
}
