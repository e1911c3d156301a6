package ingress

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/sallyport/sallyport/internal/http1"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/proof"
	"github.com/sallyport/sallyport/internal/wire"
)

// The codes of this package, beside those of canonicalise, of wire, of policy, of bearer and of a hop (hop.go).
const (
	// before a route is looked for
	codeOverloaded       policy.Code = "overloaded"
	codeMethodRefused    policy.Code = "method_refused" // CONNECT and TRACE, on any path
	codeForwardedInvalid policy.Code = "forwarded_invalid"
	codeIdentitySpoof    policy.Code = "identity_spoof"
	codeHeaderRepeated   policy.Code = "header_repeated" // one that a condition reads
	codeHeaderWithheld   policy.Code = "header_withheld" // the same, named by Connection
	codeBodyTooLarge     policy.Code = "body_too_large"
	codeUpgradeRefused               = policy.Code(wire.UpgradeRefused)
	codeGRPCMalformed    policy.Code = "grpc_malformed"     // not a gRPC request, or not a gRPC message
	codeGRPCType         policy.Code = "grpc_content_type"  // begins like that of gRPC, and is not
	codePreflight        policy.Code = "preflight_answered" // not an allow: nothing is forwarded
	codeCORSRefused      policy.Code = "preflight_refused"

	// on the way to a decision
	codeTokenInQuery policy.Code = "token_in_query"
	codeTokenRefused policy.Code = "token_refused" // a verifier's error without a code of its own
	codeInvalidProof             = policy.Code(proof.CodeInvalid)
	codeNonce                    = policy.Code(proof.CodeNonce)
	codeBinding                  = policy.Code(proof.CodeBinding)
	codeCertificate              = policy.Code(proof.CodeCertificate)
	codeUnbound      policy.Code = "binding_required" // the route takes bound tokens only
	codeReplay       policy.Code = "replay_unknown"   // nobody can say whether a proof was used before
	codeNoTokenID    policy.Code = "jti_required"     // the route takes no token without jti
	codeRevoked      policy.Code = lostRevoked
	codeStanding     policy.Code = "standing_unknown" // what was revoked lately is not known
	codeCanceled     policy.Code = "canceled"
	codeInternal     policy.Code = "internal_error"
	codeAudit        policy.Code = "audit_unavailable"
	codeAssertion    policy.Code = "assertion_failed"
	codeUnreachable  policy.Code = "upstream_unreachable"
	codeBadAnswer    policy.Code = "upstream_bad_answer"
	codeUpstreamSlow policy.Code = "upstream_timeout"
	codeClientGone   policy.Code = "client_gone"
	codeStreamEnded  policy.Code = "stream_terminated" // by our own end

	// why a request that was let in is ended (cause.Lost)
	lostRevoked = "revoked"
	lostExpired = "expired"
	lostKey     = "key_withdrawn"
	lostRoute   = "route_removed"

	lostInactive = "token_inactive" // its issuer does not vouch for it any more
)

// The codes of bearer about introspection that are answered in a way of their own; it brings their status.
const (
	codeTooMany       policy.Code = "too_many_unknown_tokens"
	codeIntrospection policy.Code = "introspection_unavailable"
)

// The errors of RFC 6750, section 3.1.
const (
	challengeRequest      = "invalid_request"
	challengeToken        = "invalid_token"
	challengeInsufficient = "insufficient_scope"
)

// status is the one table from a code to the status that answers it. Codes of bearer bring their own status.
func status(code policy.Code) int {
	switch code {
	case policy.NoRoute:
		return http.StatusNotFound
	case policy.MethodNotAllowed, codeMethodRefused:
		return http.StatusMethodNotAllowed
	case policy.MissingToken, codeInvalidProof, codeNonce, codeBinding, codeCertificate, codeUnbound, codeNoTokenID, codeRevoked, lostExpired, lostKey, lostInactive,
		policy.InsufficientAuthentication:
		return http.StatusUnauthorized
	case lostRoute, policy.InsufficientScope, policy.ConditionFalse, policy.PolicyError, policy.PublicExpired, codeCORSRefused, AskerRefused, InquiryMalformed:
		return http.StatusForbidden
	case codePreflight:
		return http.StatusNoContent
	case policy.Code(wire.HeaderTimeout), policy.Code(wire.BodyTimeout):
		return http.StatusRequestTimeout
	case codeBodyTooLarge:
		return http.StatusRequestEntityTooLarge
	case codeTargetTooLong:
		return http.StatusRequestURITooLong
	case policy.Code(wire.ExpectationUnknown):
		return http.StatusExpectationFailed
	case policy.Code(wire.HeaderTooLarge):
		return http.StatusRequestHeaderFieldsTooLarge
	case codeRateLimited, codeLockedOut:
		return http.StatusTooManyRequests
	case codeGRPCType:
		return http.StatusUnsupportedMediaType
	case codeInternal:
		return http.StatusInternalServerError
	case codeUnreachable, codeBadAnswer:
		return http.StatusBadGateway
	case codeUpstreamSlow:
		return http.StatusGatewayTimeout
	case codeOverloaded, codeCanceled, codeAudit, codeAssertion, codeStreamEnded, codeReplay, codeStanding:
		return http.StatusServiceUnavailable
	default: // what is malformed or ambiguous
		return http.StatusBadRequest
	}
}

// problem is the body of every answer of ours (RFC 9457). The client is told the code, the operator the reason.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Code      string `json:"code"`
	RequestID string `json:"request_id"`
}

// answer sends the client what it is told of a refusal.
func (x *exchange) answer(d policy.Decision, status int) {
	if c, ok := x.w.ResponseWriter.(*http1.Conn); ok {
		c.Resume() // if it was interrupted: this is what it is to be told
	}
	h := x.w.Header()
	clear(h)
	x.identify(h)
	x.rules.cors.allow(h, x.r)
	h.Set("Cache-Control", "no-store")
	x.varies(h)
	x.challenge(h, d, status)
	x.limited.retryAfter(h)
	switch {
	case d.Code == codeOverloaded, d.Code == codeTooMany:
		h.Set("Retry-After", "1")
	case d.Code == codeIntrospection:
		h.Set("Retry-After", "5")
	case len(d.Allow) > 0:
		h.Set("Allow", strings.Join(d.Allow, ", "))
	}
	if x.mustClose() {
		x.hangUp(h, d.Code)
	}
	switch {
	case d.Code == codePreflight:
		x.rules.cors.answerPreflight(h)
		x.w.WriteHeader(status)
		return
	case x.grpc:
		x.answerGRPC(d.Code, status)
		return
	}
	body, err := json.Marshal(problem{"about:blank", http.StatusText(status), status, string(d.Code), x.id})
	if err != nil { // strings and a number: cannot be
		x.g.log.Error("write a problem body", "error", err, "request", x.id)
	}
	h.Set("Content-Type", "application/problem+json")
	x.w.WriteHeader(status)
	x.w.Write(body)
}

// varies tells caches whose answer it is.
func (x *exchange) varies(h http.Header) {
	addVary(h, "Authorization")
	if len(x.rules.hops) > 0 {
		addVary(h, headerTransaction)
	}
}

// challenge says what would help (RFC 6750, section 3; RFC 9449, section 7.1), and where the rest is to be read (RFC 9728,
// section 5.1). Without a token there was no error.
func (x *exchange) challenge(h http.Header, d policy.Decision, status int) {
	var problem string
	proves := x.g.config.PublicURL != ""
	switch {
	case proves && (d.Code == codeInvalidProof || d.Code == codeNonce):
		problem = string(d.Code)
	case status == http.StatusUnauthorized && (d.Code == policy.MissingToken || d.Code == codeScheme):
	case d.Code == policy.InsufficientAuthentication:
		problem = string(d.Code)
	case status == http.StatusUnauthorized:
		problem = challengeToken
	case d.Code == policy.InsufficientScope:
		problem = challengeInsufficient
	case d.Code == codeMultiple || d.Code == codeMalformed || d.Code == codeTokenInQuery:
		problem = challengeRequest
	default:
		return
	}
	if x.nonce != "" {
		h["DPoP-Nonce"] = []string{x.nonce}
	}
	bound := x.dpop || d.Code == codeBinding || d.Code == codeUnbound || x.selection.Route != nil && x.selection.Route.Bound
	switch {
	case proves && bound:
		h.Set("WWW-Authenticate", x.challengeOf("DPoP", problem, d.Missing))
	case proves && status == http.StatusUnauthorized:
		h["Www-Authenticate"] = []string{x.challengeOf("Bearer", problem, d.Missing), x.challengeOf("DPoP", "", nil)}
	default:
		h.Set("WWW-Authenticate", x.challengeOf("Bearer", problem, d.Missing))
	}
}

// challengeOf is the challenge of one scheme.
func (x *exchange) challengeOf(scheme, problem string, missing []string) string {
	v := scheme + ` realm="` + x.g.config.Realm + `"`
	if problem != "" {
		v += `, error="` + problem + `"`
	}
	if scheme == "DPoP" {
		v += `, algs="` + strings.Join(proof.Algorithms(), " ") + `"`
	}
	if len(missing) > 0 {
		v += `, scope="` + strings.Join(missing, " ") + `"`
	}
	if problem == string(policy.InsufficientAuthentication) {
		v += stepUp(x.selection.Route)
	}
	if where := x.g.config.ResourceMetadata; where != "" {
		v += `, resource_metadata="` + where + `"`
	}
	return v
}

// mustClose reports whether bytes may follow the request that must not be taken for the next one: a body that nobody
// wanted, or the first bytes of an upgrade that was not granted.
func (x *exchange) mustClose() bool {
	return x.refused != nil || x.r.ContentLength != 0 || x.upgrades() || x.lost.Load() != nil
}

// lastOne says that no other request is read behind this one, where that is the connection's matter.
func (x *exchange) lastOne(h http.Header) {
	if x.r.ProtoMajor != 2 {
		h.Set("Connection", "close")
	}
}

// hangUp ends the connection behind the answer. One of HTTP/2 can stay: what is left there is that of one stream.
func (x *exchange) hangUp(h http.Header, code policy.Code) {
	if x.r.ProtoMajor == 2 {
		return
	}
	h.Set("Connection", "close")
	if x.wire != nil {
		x.wire.HangUp(wire.Code(code))
	}
}
