package ingress

import (
	"errors"
	"net/http"

	"github.com/sallyport/sallyport/bearer"
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
		if x.queryHasToken() {
			return x.deny(codeTokenInQuery, "the query of a public route has an access_token, which must not reach the service")
		}
		return x.alive()
	}
	token, err := bearer.FromRequest(x.r)
	if err != nil {
		return x.denyToken(err)
	}
	x.token = token
	return x.alive()
}

// queryHasToken asks bearer, whose reading of a query is the one that counts: beside a header it refuses a token there.
func (x *exchange) queryHasToken() bool {
	if x.target.RawQuery == "" {
		return false
	}
	_, err := bearer.FromRequest(&http.Request{URL: x.r.URL, Header: http.Header{"Authorization": {"Bearer none"}}})
	return err != nil
}

// verify turns the token into a caller.
func (x *exchange) verify() bool {
	if x.selection.Route.Public != nil {
		return true
	}
	caller, err := x.rules.Verifier.Verify(x.r.Context(), x.token)
	if err != nil {
		return x.denyToken(err)
	}
	x.caller = &caller
	return x.alive()
}

// denyToken denies for bearer's reason. Its Detail is for the operator and never holds the token.
func (x *exchange) denyToken(err error) bool {
	var refused *bearer.Error
	if !errors.As(err, &refused) {
		return x.refuse(policy.Deny(codeTokenRefused, err.Error()), http.StatusUnauthorized)
	}
	return x.refuse(policy.Deny(policy.Code(refused.Code), refused.Error()), refused.Status())
}
