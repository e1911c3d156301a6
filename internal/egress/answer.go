package egress

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/wire"
	"github.com/sallyport/sallyport/safedial"
)

// The codes of this package, beside those of policy, of wire and of safedial.
const (
	// before the dial: denials
	codeName     policy.Code = "name_not_allowed" // a question for a name that no destination has
	codeHello    policy.Code = "hello_malformed"  // what should begin with a ClientHello does not
	codeResolve  policy.Code = "resolve_failed"
	codeLimit    policy.Code = "limit_reached"
	codeUpgrade              = policy.Code(wire.UpgradeRefused) // to anything but WebSocket
	codeOverride policy.Code = "override_refused"               // a header asks for another method or path than the request's
	codeTooLarge policy.Code = "body_too_large"
	codeHost                 = policy.Code(safedial.CodeAmbiguousHost)
	codeNetwork  policy.Code = "network_not_allowed" // UDP, other than to port 53
	codeInternal policy.Code = "internal_error"
	codeAudit    policy.Code = "audit_unavailable"

	codeCapability policy.Code = "capability_invalid" // one was presented, and is of no request in flight here
	codeLeaving    policy.Code = "token_leaving"      // what leaves holds an inbound token
	codeAmbiguous  policy.Code = "cause_ambiguous"    // a credential of one caller is to be attached, and it may be for several

	// behind an allow
	codeDial          policy.Code = "dial_failed"
	codeDialTimeout   policy.Code = "dial_timeout"
	codeTLS           policy.Code = "tls_failed"
	codeBadAnswer     policy.Code = "bad_answer"
	codeAnswerTimeout policy.Code = "answer_timeout"
	codeStale         policy.Code = "stale_connection" // a kept connection ended before the answer: the request was sent anew
	codeClientGone    policy.Code = "client_gone"
	codeIdle          policy.Code = "idle"
	codeLifetime      policy.Code = "lifetime"
	codeClosing       policy.Code = "closing"
	codeBroken        policy.Code = "connection_broken"
	codeCredential    policy.Code = "credential_unavailable" // and those of package credential
	codeCauseOver     policy.Code = "cause_over"             // the request whose capability opened the tunnel has ended
)

// status is the one table from a code to the status that answers it.
func status(code policy.Code) int {
	switch code {
	case policy.HostMismatch:
		return http.StatusMisdirectedRequest
	case codeTooLarge:
		return http.StatusRequestEntityTooLarge
	case policy.Code(wire.HeaderTooLarge):
		return http.StatusRequestHeaderFieldsTooLarge
	case policy.Code(wire.HeaderTimeout), policy.Code(wire.BodyTimeout):
		return http.StatusRequestTimeout
	case policy.Code(wire.ExpectationUnknown):
		return http.StatusExpectationFailed
	case codeInternal:
		return http.StatusInternalServerError
	case codeResolve, codeDial, codeTLS, codeBadAnswer, codeBroken:
		return http.StatusBadGateway
	case codeDialTimeout, codeAnswerTimeout:
		return http.StatusGatewayTimeout
	case codeLimit, codeAudit, codeClosing, codeCredential:
		return http.StatusServiceUnavailable
	case codeHost, codeUpgrade:
		return http.StatusBadRequest
	}
	if isWireCode(code) {
		return http.StatusBadRequest
	}
	return http.StatusForbidden
}

// isWireCode reports whether a request was refused for its form.
func isWireCode(code policy.Code) bool {
	switch wire.Code(code) {
	case wire.RequestLineMalformed, wire.MethodInvalid, wire.HTTPVersion, wire.TargetForm, wire.PathNoncanonical,
		wire.QueryNoncanonical, wire.HostInvalid, wire.HeaderMalformed, wire.HeaderName, wire.HeaderValue, wire.BareLF,
		wire.BareCR, wire.ObsFold, wire.ContentLength, wire.TransferEncoding, wire.ChunkMalformed, wire.TrailerMalformed:
		return true
	}
	return false
}

// problem is the body of every answer of ours (RFC 9457). Our client is the service, or whoever took it over, and its
// developer reads what it logs: it is told which rule, and what to write if this was meant.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Code      string `json:"code"`
	RequestID string `json:"request_id"`
	Detail    string `json:"detail,omitempty"`
	Hint      string `json:"hint,omitempty"`
}

// code is what the client is told: why it was denied, or what went wrong behind the allow.
func (x *passage) code() policy.Code {
	if x.failure != "" {
		return x.failure
	}
	return x.decision.Code
}

// problem says what became of the attempt, and the status that goes with it.
func (x *passage) problem() ([]byte, int) {
	code := x.code()
	s := status(code)
	p := problem{Type: "about:blank", Title: http.StatusText(s), Status: s, Code: string(code), RequestID: x.id}
	if p.Detail = x.why; x.failure == "" {
		p.Detail, p.Hint = x.decision.Reason, x.hint()
	}
	body, err := json.Marshal(p)
	if err != nil { // strings and a number: cannot be
		x.p.log.Error("write a problem body", "error", err, "attempt", x.id)
	}
	return body, s
}

// answer sends the problem in place of an answer of the destination. hangUp says that something may follow the request
// that must not be taken for the next one: a body, or the first bytes of a tunnel.
func (x *passage) answer(w http.ResponseWriter, hangUp bool) {
	body, s := x.problem()
	h := w.Header()
	clear(h)
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Request-Id", x.id)
	if s == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	if hangUp {
		h.Set("Connection", "close")
	}
	x.status = s
	w.WriteHeader(s)
	w.Write(body)
}

// hint is the line of configuration that would have let the attempt pass, for whoever meant it to. Empty where there is none.
func (x *passage) hint() string {
	host := x.out.Host
	switch x.decision.Code {
	case policy.DestinationUnknown:
		protocol := ", protocol: tcp"
		switch {
		case x.out.Request:
			protocol = ", protocol: http"
		case host.Port == 443:
			protocol = ""
		}
		return fmt.Sprintf("egress: {destinations: [{name: %s, hosts: [%q], for: %s%s}]}", nameFor(host.Name), host.String(), x.forCause(), protocol)
	case codeName:
		return fmt.Sprintf("egress: {destinations: [{name: %s, hosts: [%q], for: %s}]}, with the port that is connected to", nameFor(host.Name), host.Name+":443", x.forCause())
	case policy.CauseNotAllowed, policy.BackgroundNotAllowed, codeAmbiguous:
		return x.causeHint()
	case policy.OutMethod:
		return fmt.Sprintf("in the destination: methods: [..., %s]", x.out.Method)
	case policy.OutPath:
		return fmt.Sprintf("in the destination: paths: [..., %q]", x.out.Path)
	case policy.SocketNotAllowed:
		return "sandbox: {sockets: [PATH]}"
	case policy.Code(safedial.CodeEscapeTarget):
		return fmt.Sprintf("egress: {unlock: [{name: %s, reason: WHY}]}; it leads to the host, think twice", x.refused.Entry)
	case policy.Code(safedial.CodeDeniedAddress):
		return "the address is in egress.deny"
	}
	return ""
}

// causeHint says how the cause could have been known better, or what would let it pass.
func (x *passage) causeHint() string {
	switch {
	case x.cause.level == levelProcess:
		return "in the destination: for: any"
	case x.cause.background:
		return "in the destination: for: {..., background: true}; or present the request's capability"
	case x.cause.window.Requests > 1:
		return "present the capability of the request that causes it: Proxy-Authorization: Bearer CAPABILITY"
	case len(x.out.Causes.All) == 1:
		return fmt.Sprintf("in the destination: for: {routes: [..., %s]}", x.out.Causes.All[0].Route)
	}
	return ""
}

// forCause is what a destination would say of what caused this attempt, as far as it is known.
func (x *passage) forCause() string {
	c := x.one()
	switch {
	case x.cause.background:
		return "background"
	case c != nil:
		return "{routes: [" + c.Route + "]}"
	}
	return "any"
}

// nameFor makes a destination's name of a host.
func nameFor(host string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, host)
	return strings.Trim(name[:min(len(name), 60)], "-")
}
