package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/safedial"
)

// Explanation is what the line would say of an attempt, as far as that can be told without a network.
type Explanation struct {
	Steps       []Step      `json:"steps"`
	Destination string      `json:"destination,omitempty"`
	Allowed     bool        `json:"allowed"`
	Code        policy.Code `json:"code"`
	Hint        string      `json:"hint,omitempty"` // what would let it pass, if it was meant
}

// Step is one step of the line and what it found.
type Step struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Explain runs the line up to the decision for an attempt that is not there (sallyport check --egress). host is
// "name:port"; without a method it is a connection, of which no request is known. Nothing is sent, recorded or looked up,
// except in the machine's own hosts file. of is what is taken for its cause; nil: nothing is known, and the step says who may.
func (p *Proxy) Explain(host, method, path string, of *policy.Cause) Explanation {
	x := p.begin(viaProxy)
	x.out = policy.Outbound{Request: method != "", Method: method, Path: path}
	var e Explanation
	step := func(name string, ok bool, found string) bool {
		if !ok {
			found = fmt.Sprintf("%s: %s", x.decision.Code, x.decision.Reason)
		} else if x.waived != "" {
			found = fmt.Sprintf("%s, in report mode: %s", x.decision.Code, x.decision.Reason)
		}
		e.Steps = append(e.Steps, Step{Name: name, OK: ok, Detail: found})
		return ok
	}
	var err error
	if x.out.Host, err = parseHost(host); err != nil {
		x.denyAs(codeHost, err.Error())
		step("host", false, "")
		return x.explained(e)
	}
	step("host", true, x.out.Host.String())
	if ok := x.find(); !step("destination", ok, x.explainDestination()) {
		return x.explained(e)
	}
	if ok := x.explainCause(of); !step("cause", ok, x.explainFor(of)) {
		return x.explained(e)
	}
	if ok := x.explainName(); !ok {
		step("request", false, "")
		return x.explained(e)
	} else if x.out.Request {
		step("request", true, method+" "+path)
	}
	found, ok := x.explainAddress()
	if step("address", ok, found) {
		e.Allowed = true
	}
	return x.explained(e)
}

// explainName decides by name. A connection to a destination whose requests are judged is told so, and not refused.
func (x *passage) explainName() bool {
	if d := x.destination; d != nil && !x.out.Request && (d.Originate || d.Protocol == ProtocolHTTP) {
		return true
	}
	return x.byName()
}

// explainCause decides by a cause that is not there.
func (x *passage) explainCause(of *policy.Cause) bool {
	if x.destination == nil || of == nil {
		return true
	}
	x.cause.level, x.cause.background = levelCapability, of.Background
	x.out.Causes = policy.Causes{Known: true, All: []policy.Cause{*of}}
	d := x.rules.exits.DecideCause(x.exit, x.out.Causes)
	return d.Code == "" || x.deny(d)
}

// explainFor says what the destination is for.
func (x *passage) explainFor(of *policy.Cause) string {
	if x.destination == nil {
		return "none"
	}
	f := x.destination.For
	var words []string
	switch {
	case f.Any:
		return "whatever causes it may"
	case len(f.Routes) > 0 && len(f.Scopes) > 0:
		words = append(words, "requests on route "+strings.Join(f.Routes, ", ")+" whose caller has "+strings.Join(f.Scopes, " "))
	case len(f.Routes) > 0:
		words = append(words, "requests on route "+strings.Join(f.Routes, ", "))
	case len(f.Scopes) > 0:
		words = append(words, "requests whose caller has "+strings.Join(f.Scopes, " "))
	}
	if f.Background {
		words = append(words, "what no request causes")
	}
	said := strings.Join(words, ", and ") + " may cause it"
	if of == nil {
		said += "; without a capability every request in flight must be one of them"
	}
	return said
}

func (x *passage) explainDestination() string {
	d := x.destination
	if d == nil {
		return "none"
	}
	what := "nobody looks at what is sent"
	switch {
	case d.Originate || d.Protocol == ProtocolHTTP:
		what = "each request is judged: " + list(d.Methods, "any method") + " of " + list(d.Paths, "any path")
		if d.Originate {
			what += "; we speak TLS to it"
		}
	case d.Protocol == ProtocolTLS:
		what = "the service must ask for it by this name in its ClientHello"
	case d.Direct:
		what += "; it connects by itself"
	}
	return fmt.Sprintf("%q: %s", d.Name, what)
}

func list(words []string, none string) string {
	if len(words) == 0 {
		return none
	}
	return strings.Join(words, ", ")
}

// explainAddress judges the host as the guard does, with a resolver that asks nobody.
func (x *passage) explainAddress() (found string, ok bool) {
	g := x.rules.guard
	offline := errors.New("no name server is asked here")
	guard := &safedial.Guard{Allow: g.Allow, Deny: g.Deny, Unlock: g.Unlock, Own: g.Own, Resolver: &net.Resolver{
		PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, offline },
	}}
	addresses, err := guard.Resolve(context.Background(), x.out.Host.Name, x.out.Host.Port)
	switch {
	case errors.As(err, &x.refused):
		return "", x.refuse()
	case err != nil:
		return "not looked up here; every answer is judged when it is: ordinary addresses, and private ones since the name is written down, but no escape target, nothing of egress.deny, nothing of ours", true
	}
	return "safe to dial: " + addressList(addresses), true
}

func addressList(all []netip.AddrPort) string {
	words := make([]string, len(all))
	for i, a := range all {
		words[i] = a.Addr().String()
	}
	return strings.Join(words, ", ")
}

func (x *passage) explained(e Explanation) Explanation {
	e.Code = x.decision.Code
	if x.destination != nil {
		e.Destination = x.destination.Name
	}
	if !e.Allowed {
		e.Hint = x.hint()
	} else if x.waived == "" {
		e.Code = policy.Allowed
	}
	return e
}
