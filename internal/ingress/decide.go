package ingress

import (
	"net/http"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/policy"
)

// decide asks the policy. It is the only place where an allow comes from.
func (x *exchange) decide() {
	d := x.rules.Policy.Decide(x.selection, x.request, x.caller, x.g.now())
	if !d.Allowed() {
		x.refuse(d, status(d.Code))
		return
	}
	if x.asked != nil && x.selection.Route.Local {
		x.deny(policy.NoRoute, "the gate answers this itself, and whoever asks would forward it to the service")
		return
	}
	if x.alive() {
		x.decision, x.status = d, 0
	}
}

// record puts the decision into the audit log. If the log does not accept it, nothing happens but a 503.
func (x *exchange) record() bool {
	x.restate()
	err := x.g.config.Audit.Record(audit.Record{
		ID:       x.id,
		Time:     x.began,
		Point:    "ingress",
		Decision: x.decision,
		Method:   x.request.Method,
		Path:     x.request.Path,
		Host:     x.request.Host,
		Source:   x.request.Source,
		Caller:   x.caller,
		Detail:   x.detail(),
	})
	if err != nil {
		x.g.log.Error("record a decision: the request is refused", "request", x.id, "error", err)
		x.fail(codeAudit)
		return false
	}
	x.recorded = true
	return true
}

// detail is what a record says of a request beside its own fields.
func (x *exchange) detail() map[string]any {
	var detail map[string]any
	add := func(name string, value any) {
		if detail == nil {
			detail = map[string]any{}
		}
		detail[name] = value
	}
	if how := provenBy(x.bound); how != "" {
		add("proof", how)
	}
	if x.asked != nil {
		add("entry", x.asked.Entry)
		return detail // whose the connection is, the proxy has judged
	}
	if uid, ok := peerUID(x.r.RemoteAddr); ok {
		add("peer_uid", uid)
	}
	if x.g.config.SPIFFE != nil {
		if c := x.certificate(); c != nil && len(c.URIs) == 1 {
			add("spiffe_id", c.URIs[0].String())
		}
	}
	return detail
}

// assert makes the statement of who calls, which the service receives in place of the token. The allow is on record
// already, but nothing has been forwarded.
func (x *exchange) assert() bool {
	if x.r.Context().Err() != nil {
		x.fail(codeCanceled)
		return false
	}
	if x.rules.Assert == nil || x.caller == nil {
		return true
	}
	if x.stated != nil {
		x.assertion = x.stated.text
		return true
	}
	assertion, err := x.rules.Assert.Sign(*x.caller, x.selection.Route.Name, x.id)
	if err != nil {
		x.g.log.Error("assert the caller: the request is refused", "request", x.id, "error", err)
		x.fail(codeAssertion)
		return false
	}
	x.assertion = assertion
	x.state()
	return true
}

// fail answers a request that was decided but cannot be served.
func (x *exchange) fail(code policy.Code) {
	x.failure = code
	if x.w.begun() {
		panic(http.ErrAbortHandler) // all that can still be said is that the answer is not whole
	}
	x.answer(policy.Deny(code, ""), status(code))
}
