package bearer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/identity"
)

// Require is middleware: next runs only with a verified token that has every scope; the caller is in the
// request's context (identity.FromContext). Any other request is answered here, with a challenge (RFC 6750,
// section 3) and a problem document (RFC 9457) whose code is that of the Error.
func Require(v *Verifier, scopes ...string) func(next http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			caller, err := admit(v, r, scopes)
			if err != nil {
				answer(w, err, scopes)
				return
			}
			if v.cache != nil {
				caller = unshared(caller)
			}
			next.ServeHTTP(w, r.WithContext(identity.NewContext(r.Context(), caller)))
		})
	}
}

// admit is the straight line: take, verify, scopes.
func admit(v *Verifier, r *http.Request, scopes []string) (identity.Caller, error) {
	token, err := FromRequest(r)
	if err != nil {
		return identity.Caller{}, err
	}
	peer, _ := netip.ParseAddrPort(r.RemoteAddr) // no address is nobody in particular
	caller, err := v.VerifyFrom(r.Context(), token, peer.Addr(), false)
	if err != nil {
		return identity.Caller{}, err
	}
	if _, ok := caller.Claims["cnf"]; ok { // of a Verifier whose other users check proofs
		return identity.Caller{}, refuse(codeBound, "cnf is there, and no proof is checked")
	}
	for _, scope := range scopes {
		if !slices.Contains(caller.Scopes, scope) {
			return identity.Caller{}, refuse(codeScope, "no scope %s", brief(scope))
		}
	}
	return caller, nil
}

// unshared is a caller that next may change: what is remembered of a token is that of its other requests too.
func unshared(c identity.Caller) identity.Caller {
	c.Scopes = slices.Clone(c.Scopes)
	c.Claims, _ = copyOf(c.Claims).(map[string]any)
	return c
}

// copyOf copies a value of JSON, as package jws makes it.
func copyOf(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, e := range v {
			out[name] = copyOf(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = copyOf(e)
		}
		return out
	}
	return v
}

// answer tells the client the code, and nothing of the detail.
func answer(w http.ResponseWriter, err error, scopes []string) {
	var refusal *Error
	if !errors.As(err, &refusal) {
		refusal = &Error{Code: codeCanceled, Err: err}
	}
	status := refusal.Status()
	if status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusBadRequest {
		w.Header().Set("WWW-Authenticate", challengeHeader(refusal, scopes))
	}
	switch refusal.Code {
	case codeUnavailable, codeIntrospection:
		w.Header().Set("Retry-After", "5")
	case codeTooMany:
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	// an error means that the client has gone
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type": "about:blank", "title": http.StatusText(status), "status": status, "code": refusal.Code,
	})
}

func challengeHeader(refusal *Error, scopes []string) string {
	challenge := `Bearer realm="sallyport"`
	if code := refusal.challenge(); code != "" {
		challenge += fmt.Sprintf(`, error=%q`, code)
	}
	// what is no scope token would end the quoted string
	if refusal.Code == codeScope && !slices.ContainsFunc(scopes, func(s string) bool { return !isScope(s) }) {
		challenge += fmt.Sprintf(`, scope="%s"`, strings.Join(scopes, " "))
	}
	return challenge
}
