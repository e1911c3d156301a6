package ingress

import (
	"errors"
	"net/http"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/policy"
)

// The codes of bearer that are answered in a way of their own.
const (
	codeScheme    policy.Code = "unsupported_scheme"
	codeMalformed policy.Code = "malformed_authorization"
	codeMultiple  policy.Code = "multiple_credentials"
)

// credential takes the one token of the request. On a public route none is taken, and none reaches the service.
func (x *exchange) credential() bool {
	if x.selection.Route.Public != nil {
		if x.strayToken(nil) {
			return x.deny(codeTokenInQuery, "the query of a public route has an access_token, which must not reach the service")
		}
		return x.alive()
	}
	if x.byHop() {
		return x.transaction()
	}
	token, dpop, err := x.rules.Verifier.Take(x.r)
	if err != nil {
		return x.denyToken(err)
	}
	x.token, x.dpop = token, dpop
	return x.alive()
}

// strayToken asks bearer, whose reading counts, whether there is an access_token in the query or in these cookies: beside
// a header it refuses one there.
func (x *exchange) strayToken(cookies []string) bool {
	if x.target.RawQuery == "" && len(cookies) == 0 {
		return false
	}
	_, err := bearer.FromRequest(&http.Request{URL: x.r.URL, Header: http.Header{"Authorization": {"Bearer none"}, "Cookie": cookies}})
	return err != nil
}

// verify turns the token into a caller. What an authorization server has said before of an opaque token counts on routes alone
// that are privileged: false.
func (x *exchange) verify() bool {
	if x.selection.Route.Public != nil {
		return true
	}
	if x.byHop() {
		return x.verifyHop()
	}
	caller, err := x.rules.Verifier.VerifyFrom(x.r.Context(), x.token, x.request.Source, !x.selection.Route.Unprivileged)
	if err != nil {
		return x.denyToken(err)
	}
	if x.rules.Assert != nil && !x.assertable(&caller) {
		return false
	}
	caller.Transaction = x.id // which begins here
	x.caller = &caller
	return x.alive()
}

// assertable denies a caller of whom no assertion can be made: that is the caller's matter, and no fault of ours.
func (x *exchange) assertable(c *identity.Caller) bool {
	switch {
	case c.Subject == "" && c.Client == "":
		return x.refuse(policy.Deny(codeNobodyNamed, "the token has no sub, client_id and azp: an assertion would name nobody"), http.StatusUnauthorized)
	case !x.g.now().Before(c.Expires.Add(assertionLeeway)):
		return x.refuse(policy.Deny(codeExpired, "the token ended at "+c.Expires.UTC().Format(time.RFC3339)+
			": its issuer's leeway would let it pass, but no assertion outlives it"), http.StatusUnauthorized)
	}
	return true
}

// denyToken denies for bearer's reason. Its Detail is for the operator and never holds the token.
func (x *exchange) denyToken(err error) bool {
	var refused *bearer.Error
	if !errors.As(err, &refused) {
		return x.refuse(policy.Deny(codeTokenRefused, err.Error()), http.StatusUnauthorized)
	}
	return x.refuse(policy.Deny(policy.Code(refused.Code), refused.Error()), refused.Status())
}
