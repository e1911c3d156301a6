package bearer

import (
	"fmt"
	"net/http"

	"github.com/sallyport/sallyport/internal/jws"
)

// Error is a refusal. Code is stable and may be told to the client; Detail is for the operator and never
// holds the token.
//
// The codes up to bad_signature depend on the token and on what an authorization
// server publishes anyway (its name, its keys, its algorithms). The others say
// something of this service's configuration, and are only reached with an
// authentic token.
type Error struct {
	Code   string
	Detail string
	Err    error
}

func (e *Error) Error() string {
	switch {
	case e.Err != nil && e.Detail != "":
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Detail, e.Err)
	case e.Err != nil:
		return fmt.Sprintf("%s: %v", e.Code, e.Err)
	case e.Detail != "":
		return e.Code + ": " + e.Detail
	}
	return e.Code
}

func (e *Error) Unwrap() error { return e.Err }

// Status is the HTTP status that answers a request refused with e: 400 for a credential that cannot be
// told from another (RFC 6750, invalid_request), 403 for one that does not suffice (insufficient_scope), 429 for
// one of too many, 503 while nothing can be verified, 401 for everything else.
func (e *Error) Status() int {
	for _, r := range reasons {
		if r.code == e.Code {
			return r.status
		}
	}
	return http.StatusUnauthorized
}

// challenge is the error of RFC 6750, section 3.1, that goes into WWW-Authenticate with e;
// empty when the request made no attempt that the scheme knows.
func (e *Error) challenge() string {
	switch {
	case e.Code == codeMissing, e.Code == codeScheme:
		return ""
	case e.Status() == http.StatusBadRequest:
		return "invalid_request"
	case e.Status() == http.StatusForbidden:
		return "insufficient_scope"
	}
	return "invalid_token"
}

const (
	codeMissing     = "missing_token"
	codeScheme      = "unsupported_scheme"
	codeMalformed   = "malformed_authorization"
	codeMultiple    = "multiple_credentials"
	codeCanceled    = "verification_canceled"
	codeIssuer      = "unknown_issuer"
	codeAlgorithm   = "alg_not_allowed"
	codeUnavailable = "keys_unavailable"
	codeKey         = "unknown_key"
	codeAmbiguous   = "ambiguous_key"
	codeSignature   = "bad_signature"
	codeType        = "wrong_type"
	codeIDToken     = "id_token"
	codeLegacy      = "legacy_token"
	codeSubject     = "wrong_subject"
	codeUnbound     = "unbound_token"
	codeAudience    = "wrong_audience"
	codeExpired     = "expired"
	codeNotYet      = "not_yet_valid"
	codeFuture      = "issued_in_future"
	codeLifetime    = "lifetime_too_long"
	codeBound       = "sender_constrained"
	codeAbsent      = "missing_claim"
	codeClaim       = "invalid_claim"
	codeUnexpected  = "unexpected_claims"
	codeScopeForm   = "invalid_scope_claim"
	codeScope       = "insufficient_scope"

	codeInactive      = "token_inactive"
	codeIntrospection = "introspection_unavailable"
	codeTooMany       = "too_many_unknown_tokens"
	codeOccupied      = "authorization_present"
	codeHost          = "host_mismatch"
	codeTransport     = "transport_unusable"
)

// reasons is every code of an Error, in the order in which they are reached.
var reasons = [...]struct {
	code   string
	status int
	text   string
}{
	// taking the credential
	{codeMissing, 401, "the request has no Authorization header"},
	{codeScheme, 401, "the Authorization header is of another scheme than Bearer"},
	{codeMalformed, 400, "the Authorization header is not one scheme, one space and one token"},
	{codeMultiple, 400, "the request has more than one credential"},
	// the form
	{jws.CodeTooLong, 401, "the token is longer than 8 KiB"},
	{jws.CodeNotCompact, 401, "the token is not a signed JWT in compact form"},
	{jws.CodeBase64, 401, "a segment of the token is not canonical base64url"},
	{jws.CodeJSON, 401, "header or payload is not one JSON object"},
	{jws.CodeEncoding, 401, "header or payload is not clean Unicode"},
	{jws.CodeDuplicate, 401, "header or payload has a member twice"},
	{jws.CodeDepth, 401, "header or payload is nested too deep"},
	{jws.CodeNumber, 401, "header or payload has a number out of range"},
	{jws.CodeCritical, 401, "the header asks for an extension"},
	{jws.CodeHeader, 401, "the header has a member other than alg, typ and kid"},
	{jws.CodeAlgorithm, 401, "alg is absent, none or not a name"},
	{jws.CodeType, 401, "typ is not a name"},
	{jws.CodeKeyIDFormat, 401, "kid is not a printable string of 1 to 256 bytes"},
	// the proof
	{codeCanceled, 503, "the request ended before its token was verified"},
	{codeIssuer, 401, "iss is not exactly a configured issuer"},
	{codeAlgorithm, 401, "alg is not one that the issuer, or the key named, is used with"},
	{codeUnavailable, 503, "the issuer's keys have not been fetched, or not for too long"},
	{codeKey, 401, "the issuer has no such key; it may have soon"},
	{codeAmbiguous, 401, "more than one key of the issuer could be meant"},
	{codeSignature, 401, "the signature is not by the key"},
	// the claims
	{codeType, 401, "typ is not one that is accepted"},
	{codeIDToken, 401, "it is an ID token, which is for its client and opens nothing"},
	{codeLegacy, 401, "it is a service account token without audience and end, as Kubernetes once made them"},
	{codeSubject, 401, "sub does not name whom the rest of the token names, or somebody of another trust domain"},
	{codeUnbound, 401, "the service account token is not bound to a pod, or not to what is asked for"},
	{codeAudience, 401, "aud names another audience"},
	{codeExpired, 401, "exp has passed"},
	{codeNotYet, 401, "nbf has not come"},
	{codeFuture, 401, "iat has not come"},
	{codeLifetime, 401, "exp is further from iat than is accepted"},
	{codeBound, 401, "the token is bound by cnf to a proof that is not checked here"},
	{codeAbsent, 401, "a claim that must be there is not"},
	{codeClaim, 401, "a claim is of the wrong type or makes no sense"},
	{codeUnexpected, 401, "a claim is there that must not be"},
	{codeScopeForm, 401, "the scope claim is not a list of scope tokens (RFC 6749, section 3.3)"},
	// the requirement
	{codeScope, 403, "the token lacks a scope"},
	// introspection
	{codeInactive, 401, "the authorization server does not vouch for the token"},
	{codeIntrospection, 503, "the authorization server cannot be asked about the token"},
	{codeTooMany, 429, "too many tokens of the same source were not active; the server was not asked about this one"},
	// attaching one (Transport)
	{codeOccupied, 400, "the request has an Authorization header already"},
	{codeHost, 400, "the request's Host is not that of its URL"},
	{codeTransport, 503, "the Transport's fields do not fit together"},
}

func refuse(code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// copy is another Error that says the same, since who is refused may change what it is given.
func (e *Error) copy() *Error {
	other := *e
	return &other
}

// brief quotes what somebody else wrote, for an operator's eyes.
func brief(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%q (%d bytes)", s[:80], len(s))
	}
	return fmt.Sprintf("%q", s)
}
