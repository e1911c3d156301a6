package egress

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/policy"
)

// The levels of what is known of why an attempt is made, the weakest first.
const (
	levelProcess    = "process"    // the service made it; nothing is known of requests
	levelWindow     = "window"     // one of the requests in flight, or of those just answered; or none, where there are none
	levelTrace      = "trace"      // the same, and the service says which one
	levelCapability = "capability" // the one whose capability was presented
)

const (
	maxHeld       = 256 // classes of one attempt whose standing it is bound to
	maxCapability = 64
)

// claim is what a client says of why it makes an attempt.
type claim struct {
	presented  bool // a capability; an empty one is none that could be valid
	capability string
	trace      string
	parent     string // the span in it
}

// attribution is what may have caused an attempt.
type attribution struct {
	level      string
	invalid    bool         // a capability was presented, and is none
	background bool         // no request caused it
	entry      *cause.Entry // whose capability was presented, or whom the trace names
	window     cause.Window // at the levels window and trace
	held       []*cause.Class
}

// claimOf reads what a request says of its cause. CONNECT says nothing by a trace: what is inside comes later.
func claimOf(r *http.Request) (c claim) {
	present := func(capability string) {
		if c.presented && c.capability != capability {
			capability = "" // two that differ are none
		}
		c.presented, c.capability = true, capability
	}
	for _, v := range r.Header["X-Sallyport-Capability"] {
		present(v)
	}
	for _, v := range r.Header["Proxy-Authorization"] {
		present(credentialsOf(v))
	}
	if len(c.capability) > maxCapability {
		c.capability = ""
	}
	if r.Method != http.MethodConnect && len(r.Header["Traceparent"]) == 1 {
		c.trace, c.parent = traceOf(r.Header["Traceparent"][0])
	}
	return c
}

// credentialsOf is the capability in a Proxy-Authorization field: "Bearer CAPABILITY", or the password of "Basic", which
// is what clients make of http://any:CAPABILITY@proxy. Empty: there is none.
func credentialsOf(v string) string {
	scheme, rest, _ := strings.Cut(v, " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return rest
	case strings.EqualFold(scheme, "Basic"):
		pair, err := base64.StdEncoding.DecodeString(rest)
		if err != nil {
			return ""
		}
		_, password, _ := strings.Cut(string(pair), ":")
		return password
	}
	return ""
}

// traceOf is the trace id and the parent id of a traceparent field (W3C Trace Context, section 3.2); empty if it is none.
func traceOf(v string) (trace, parent string) {
	if len(v) < len("00-")+32+len("-")+16+len("-00") || v[2] != '-' || v[35] != '-' || v[52] != '-' {
		return "", ""
	}
	return v[3:35], v[36:52]
}

// attribute goes down the ladder: capability, trace, window, background. A capability that is none is never passed over
// for what is below it.
func (x *passage) attribute() {
	if x.cause.level != "" {
		return
	}
	f := x.p.config.Flight
	a := &x.cause
	switch {
	case f == nil:
		a.level, a.invalid = levelProcess, x.claim.presented
		return
	case x.claim.presented && f.IsBackground(x.claim.capability):
		a.level, a.background = levelCapability, true
		return
	case x.claim.presented:
		a.level = levelCapability
		e, ok := f.ByCapability(x.claim.capability)
		if a.entry, a.invalid = e, !ok; ok {
			a.held = []*cause.Class{e.Class()}
			f.Hold(a.held)
		}
		return
	}
	a.level, a.window = levelWindow, f.Window()
	a.background = a.window.Requests == 0
	if len(a.window.Classes) <= maxHeld {
		a.held = a.window.Classes
		f.Hold(a.held)
	}
	if x.claim.trace != "" {
		if e, ok := f.ByTrace(x.claim.trace); ok {
			a.level, a.entry = levelTrace, e
		}
	}
}

// release gives up what attribute holds.
func (x *passage) release() {
	if len(x.cause.held) > 0 {
		x.p.config.Flight.Release(x.cause.held)
		x.cause.held = nil
	}
}

// caused decides by what may have caused the attempt. A trace changes nothing: it is the service's word.
func (x *passage) caused() bool {
	x.attribute()
	if x.cause.invalid {
		return x.denyAs(codeCapability, "the capability that was presented is of no request in flight here")
	}
	if x.destination == nil {
		return true // in report mode
	}
	x.out.Causes = x.causes()
	d := x.rules.exits.DecideCause(x.exit, x.out.Causes)
	if d.Code == policy.StandingLost {
		x.decision = d // no rule's, so in report mode too
		return false
	}
	return (d.Code == "" || x.deny(d)) && x.unambiguous()
}

// causes is what the policy is told.
func (x *passage) causes() policy.Causes {
	a := &x.cause
	c := policy.Causes{Known: a.level != levelProcess}
	switch {
	case a.level == levelProcess:
	case a.background:
		c.All = []policy.Cause{{Background: true}}
	case a.level == levelCapability:
		c.All = []policy.Cause{causeOf(a.entry.Class())}
	case x.destination.For.Any && !a.window.Overflow:
		c.All = oneOf(a.window.Classes)
	default:
		c = windowCauses(a.window)
	}
	return c
}

// windowCauses are the causes that a window admits.
func windowCauses(w cause.Window) policy.Causes {
	c := policy.Causes{Known: true, Overflow: w.Overflow}
	if w.Requests == 0 {
		c.All = []policy.Cause{{Background: true}}
	}
	for _, class := range w.Classes {
		c.All = append(c.All, causeOf(class))
	}
	return c
}

// oneOf is one of the classes that has its standing, or one that has not, if none has: where any cause may, they are all
// the same.
func oneOf(classes []*cause.Class) []policy.Cause {
	i := slices.IndexFunc(classes, func(c *cause.Class) bool { return c.Lost() == nil })
	switch {
	case i >= 0:
		return []policy.Cause{causeOf(classes[i])}
	case len(classes) > 0:
		return []policy.Cause{causeOf(classes[0])}
	}
	return nil
}

func causeOf(c *cause.Class) policy.Cause {
	made := policy.Cause{Route: c.Route, Scopes: c.Scopes()}
	if l := c.Lost(); l != nil {
		made.Lost = l.Code
	}
	return made
}

// one is a request of the caller that the attempt is made for, if there is one for certain: the one whose capability was
// presented, or any where nobody else has a request in flight. What a trace says is not enough.
func (x *passage) one() *cause.Request {
	if e := x.only(); e != nil {
		return &e.Request
	}
	if x.cause.level == levelWindow || x.cause.level == levelTrace {
		if c := x.cause.window.One(); c != nil {
			return &c.Request
		}
	}
	return nil
}

// only is the request that the attempt is made for, if there is one for certain.
func (x *passage) only() *cause.Entry {
	if x.cause.level == levelCapability {
		return x.cause.entry
	}
	return x.cause.window.Only
}

// caller is the one caller, for the record; nil: there is none, or there are several.
func (x *passage) caller() *identity.Caller {
	if c := x.one(); c != nil {
		return c.Caller
	}
	return nil
}

// describe adds to a record what is known of the cause.
func (x *passage) describe(detail map[string]any) {
	x.attribute()
	a := &x.cause
	detail["level"] = a.level
	switch {
	case a.background:
		detail["cause"] = "background"
	case a.entry != nil:
		detail["requests"] = []string{a.entry.ID}
		if a.entry.Route != "" {
			detail["routes"] = []string{a.entry.Route}
		}
	case len(a.window.IDs) > 0:
		detail["requests"] = a.window.IDs
		if routes := a.window.Routes(); len(routes) > 0 {
			detail["routes"] = routes
		}
	}
	if a.window.Requests > 0 {
		detail["window"] = a.window.Requests
	}
}

// meanwhile are the requests that began while a tunnel was open of which nobody can say whose its bytes are.
func (x *passage) meanwhile() map[string]any {
	a := &x.cause
	if a.level != levelWindow && a.level != levelTrace {
		return nil
	}
	n, ids := x.p.config.Flight.Since(a.window.Mark)
	if n == 0 {
		return nil
	}
	for _, id := range a.window.IDs {
		if len(ids) < cause.Listed {
			ids = append(ids, id)
		}
	}
	return map[string]any{"requests": ids, "window": n + a.window.Requests}
}

// untrace replaces a trace id of ours by one that is made of it: who learns ours could name the request. The same request
// has the same one at every destination. One that goes on with somebody else's is no secret, and leaves as it is. It returns
// what took the place of ours; empty: nothing.
func (p *Proxy) untrace(h http.Header) (left string) {
	f := p.config.Flight
	if f == nil {
		return ""
	}
	for i, v := range h["Traceparent"] {
		trace, parent := traceOf(v)
		if e, ok := f.ByTrace(strings.ToLower(trace)); !ok || e.Continues != "" {
			continue
		}
		sum := sha256.Sum256([]byte("traceparent " + strings.ToLower(trace)))
		if strings.EqualFold(parent, trace[:16]) { // that of the gate in front, which says half of ours
			parent = hex.EncodeToString(sum[16:24])
		}
		left = v[:3] + hex.EncodeToString(sum[:16]) + "-" + parent + v[52:]
		h["Traceparent"][i] = left
	}
	return left
}
