package ingress

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/proof"
)

// Explanation is what the line said, step by step.
type Explanation struct {
	Steps    []Step          `json:"steps"`
	Route    string          `json:"route,omitempty"`
	Decision policy.Decision `json:"-"`
	Status   int             `json:"status"` // 0 when the request would be forwarded
}

// Step is one step of the line and what it found.
type Step struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Explain runs the line up to the decision for a request that is not there (sallyport check --explain): sent by
// 127.0.0.1, with no header but the token. token may be the zero Token: none was sent. Nothing is recorded.
func (g *Gateway) Explain(ctx context.Context, method, target, host string, token bearer.Token) Explanation {
	r := &http.Request{
		Method: method, RequestURI: target, Host: host, Header: http.Header{}, URL: &url.URL{},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: "127.0.0.1:0",
	}
	_, r.URL.RawQuery, _ = strings.Cut(target, "?")
	x := &exchange{g: g, rules: g.rules.Load(), r: r.WithContext(ctx), began: g.now()}
	x.request = policy.Request{Method: method, Path: target, Host: host, Source: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	var e Explanation
	step := func(name string, run func() bool, found func() string) bool {
		s := Step{Name: name, OK: run()}
		if s.OK {
			s.Detail = found()
		} else {
			s.Detail = fmt.Sprintf("%s: %s", x.decision.Code, x.decision.Reason)
		}
		e.Steps = append(e.Steps, s)
		return s.OK
	}
	func() {
		defer x.rescue()
		switch {
		case !step("canonical", x.canonical, func() string { return x.target.Path + " on " + x.host.String() }):
		case !step("route", x.route, x.explainRoute):
		case !step("token", func() bool { return x.given(token) }, x.explainToken):
		case !step("verify", x.verify, x.explainCaller):
		case !step("proof", x.provable, x.explainProof):
		case !step("standing", x.standing, x.explainStanding):
		case x.limits() != "" && !step("limit", func() bool { return true }, x.limits):
		default:
			step("decide", func() bool { x.decide(); return x.decision.Allowed() }, func() string { return x.decision.Reason })
		}
	}()
	e.Route, e.Decision, e.Status = x.decision.Route, x.decision, x.status
	return e
}

// given is credential for a token that did not come in a request.
func (x *exchange) given(token bearer.Token) bool {
	if x.selection.Route.Public != nil {
		return x.credential()
	}
	if token == (bearer.Token{}) {
		return x.deny(policy.MissingToken, "no token was sent")
	}
	x.token = token
	return true
}

// provable is proof for a token that nobody sends: whether it could be sent, not whether it is.
func (x *exchange) provable() bool {
	if x.caller == nil {
		return true
	}
	bound, err := proof.Read(x.caller.Claims)
	switch {
	case err != nil:
		return x.denyProof(err)
	case bound == proof.Binding{} && x.selection.Route.Bound:
		return x.deny(codeUnbound, "the token is bound to nothing, and the route is sender_constrained: required")
	case bound.Key != "" && x.g.config.PublicURL == "":
		return x.deny(codeBinding, "the token is bound to a key, and without ingress.public_url no proof can be of this gate")
	}
	x.bound = bound
	return true
}

func (x *exchange) explainProof() string {
	switch how := provenBy(x.bound); how {
	case "":
		return "none is needed: the token is bound to nothing"
	default:
		return "the token is bound (" + how + "): a request needs its proof, which is not examined here"
	}
}

func (x *exchange) explainStanding() string {
	switch {
	case x.caller == nil:
		return "nobody's"
	case x.g.config.State == nil:
		return "not examined here: what has been revoked is known to the running gate"
	}
	return "not revoked"
}

func (x *exchange) explainRoute() string {
	r := x.selection.Route
	found := r.Name + " (" + r.Match + ")"
	if len(r.ACR) > 0 {
		found += ", by a login of acr " + strings.Join(r.ACR, " or ")
	}
	if r.MaxAge > 0 {
		found += ", by a login of the last " + r.MaxAge.String()
	}
	if r.Local {
		found += ", answered by the gate itself"
	}
	return found
}

func (x *exchange) explainToken() string {
	if p := x.selection.Route.Public; p != nil {
		return fmt.Sprintf("none is asked for: public until %s, %s (%s)", p.Expires.Format("2006-01-02"), p.Reason, p.Owner)
	}
	return "one bearer token"
}

func (x *exchange) explainCaller() string {
	if x.caller == nil {
		return "nobody need be proved"
	}
	return fmt.Sprintf("subject %q, client %q, issuer %q, scopes %q, until %s", x.caller.Subject, x.caller.Client, x.caller.Issuer,
		x.caller.Scopes, x.caller.Expires.UTC().Format("2006-01-02 15:04:05Z"))
}
