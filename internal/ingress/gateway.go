package ingress

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/h2"
	"github.com/sallyport/sallyport/internal/http1"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/proof"
	"github.com/sallyport/sallyport/internal/wire"
)

// ServeHTTP is the straight line: limit, canonical, route, token, verify, proof, standing, limit, decide, record, assert, forward,
// outcome.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := g.begin(w, r)
	defer x.outcome()

	x.judge()
	if !x.record() {
		return
	}
	if !x.decision.Allowed() {
		x.answer(x.decision, x.status)
		return
	}
	if x.selection.Route.Local {
		x.local()
		return
	}
	if !x.assert() {
		return
	}
	x.forward()
}

// judge is the line up to the decision. Each step either finds what the next one needs or denies.
func (x *exchange) judge() {
	defer x.noteFailure()
	defer x.rescue()
	switch {
	case !x.admit():
	case !x.heed():
	case !x.limitSource():
	case !x.canonical():
	case !x.route():
	case !x.credential():
	case !x.timedVerify():
	case !x.proof():
	case !x.standing():
	case !x.limitCaller():
	default:
		x.decide()
	}
}

// An exchange is one request on its way down the line, and what the steps have found. Its decision is a denial until
// decide has found evidence.
type exchange struct {
	g     *Gateway
	rules *rules // those of the moment when the request began
	w     writer
	r     *http.Request
	wire  *wire.Conn // nil behind another server, and for HTTP/2
	asked *Inquiry   // nil: the request itself is here
	grpc  bool       // the answer is one of gRPC
	id    string
	began time.Time

	refused   *wire.Refusal // nil: it was not
	sourced   bool          // request.Source is the client's, or sourceErr why it is not known
	sourceErr error
	limited   limited
	target    canonical
	host      canonicalHost
	request   policy.Request
	selection policy.Selection
	token     bearer.Token
	dpop      bool             // the token was sent by the scheme DPoP
	caller    *identity.Caller // nil: none
	bound     proof.Binding    // that the request has shown to hold
	nonce     string           // that the client is told to use; empty: none
	decision  policy.Decision
	status    int // that answers the decision, if it denies
	recorded  bool
	assertion string
	stated    *statement // the assertion of an earlier request, which is this one's too; nil: it has its own

	epoch   uint64                  // of the last sweep before it began
	entry   *cause.Entry            // while it is being forwarded
	ctx     context.Context         // of the forwarded request: ends with its token and its standing
	end     context.CancelCauseFunc // ends ctx; nil: the engine forwards it
	lost    atomic.Pointer[cause.Lost]
	direct  *http1.Conn // nil: net/http reads the client's connection, or a tunnel is asked for
	number  int64       // on that connection
	judging sync.Mutex  // held by who reads r while another forwards it
	landed  bool        // nobody else may read r
	upload  upload
	readErr error       // that ended the service's answer
	failure policy.Code // what went wrong behind the decision; empty: nothing
	spans   spans
}

func (g *Gateway) begin(w http.ResponseWriter, r *http.Request) *exchange {
	now, epoch := g.now(), g.epoch.Load() // before the rules: what changes from now on is asked again when it flies
	x := &exchange{g: g, epoch: epoch, rules: g.rules.Load(), r: r, id: audit.NewID(now), began: now, wire: wire.Of(r), ctx: r.Context()}
	x.w = writer{ResponseWriter: w, wire: x.wire, cut: cutter{w: w}}
	if r.ProtoMajor == 2 {
		x.grpc = isGRPC(r)
		x.w.pace = newPace(g.config.Limits.BodyTimeout, func() { x.w.cut.writing(time.Now()) })
		if c := h2.Of(r); c != nil {
			r.TLS = c.TLSState()
		}
	}
	x.decision = policy.Deny(codeInternal, "no step has denied or allowed")
	x.status = http.StatusInternalServerError
	x.spans.Context = g.traced(x)
	g.inFlight.Add(1)
	return x
}

// deny ends the line. It returns false, for the step to return.
func (x *exchange) deny(code policy.Code, reason string) bool {
	return x.refuse(policy.Deny(code, reason), status(code))
}

func (x *exchange) refuse(d policy.Decision, status int) bool {
	if x.selection.Route != nil {
		d.Route = x.selection.Route.Name
	}
	x.decision, x.status = d, status
	return false
}

// alive denies if the request has ended meanwhile: nobody waits for the answer, and what a step found under an ended
// context may be less than the truth.
func (x *exchange) alive() bool {
	if err := x.r.Context().Err(); err != nil {
		return x.deny(codeCanceled, "the request ended before it was decided: "+err.Error())
	}
	return true
}

// rescue turns a panic of a step into a denial.
func (x *exchange) rescue() {
	if p := recover(); p != nil {
		x.fault(p)
		x.deny(codeInternal, "a step panicked; the log has the stack")
	}
}

// fault logs a panic. Its value may hold anything of the request, so only that of the runtime is written out.
func (x *exchange) fault(p any) {
	what := fmt.Sprintf("%T", p)
	if err, ok := p.(interface {
		error
		RuntimeError()
	}); ok {
		what = err.Error()
	}
	x.g.log.Error("panic in a request", "request", x.id, "panic", what, "stack", string(debug.Stack()))
}

// admit takes what the wire let pass, while there is room for it.
func (x *exchange) admit() bool {
	if x.wire != nil {
		if r := x.wire.Next(); r != nil {
			x.refused = r
			code := policy.Code(r.Code)
			x.request = policy.Request{Method: r.Method, Path: pathOf(r.Path), Host: r.Host, Source: x.wire.Peer()}
			x.g.metrics.refuse(code)
			return x.deny(code, "refused on the wire")
		}
	}
	x.request = policy.Request{Method: x.r.Method, Path: pathOf(x.r.RequestURI), Host: x.r.Host, Source: x.peer()}
	if x.r.ProtoMajor == 2 && !x.admitHTTP2() {
		return false
	}
	if n := x.g.inFlight.Load(); n > int64(x.g.config.Limits.Requests) {
		return x.deny(codeOverloaded, fmt.Sprintf("%d requests in flight", n))
	}
	return x.alive()
}

// peer is the address at the other end of the connection; invalid if it has none.
func (x *exchange) peer() netip.Addr {
	if x.wire != nil {
		return x.wire.Peer()
	}
	a, err := netip.ParseAddrPort(x.r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}
