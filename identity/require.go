package identity

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
)

// Require is middleware: next runs only with a verified assertion in the
// header, and finds the caller in the request's context (FromContext). An
// empty header means Txn-Token. In Authorization the value is "Bearer
// <assertion>", in any other header the assertion alone.
//
// A request without one verified assertion is answered 401 with
// WWW-Authenticate (RFC 6750, section 3) and a problem body (RFC 9457) whose
// member code is an Error's. With a verifier that lacks its issuer, audience or
// keys every request is answered 500.
func Require(v *Verifier, header string) func(next http.Handler) http.Handler {
	if header == "" {
		header = "Txn-Token"
	}
	header = http.CanonicalHeaderKey(header)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			assertion, err := fromHeader(r.Header[header], header)
			if err != nil {
				answer(w, err)
				return
			}
			c, err := v.Verify(assertion)
			if err != nil {
				answer(w, err)
				return
			}
			next.ServeHTTP(w, r.WithContext(NewContext(r.Context(), c)))
		})
	}
}

// fromHeader takes the one assertion out of a header's values.
func fromHeader(values []string, header string) (string, error) {
	switch {
	case len(values) == 0:
		return "", refuse("missing_assertion", "no "+header+" header")
	case len(values) > 1:
		return "", refuse("multiple_assertions", "more than one "+header+" header")
	case header != "Authorization":
		return values[0], nil
	}
	assertion, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok {
		return "", refuse("malformed_header", `Authorization is not "Bearer <assertion>"`)
	}
	return assertion, nil
}

// answer refuses a request. The client is told the code, not the detail.
func answer(w http.ResponseWriter, err error) {
	status, code := http.StatusUnauthorized, "token_json"
	var e *Error
	if errors.As(err, &e) {
		code = e.Code
	}
	switch code {
	case "not_configured":
		status = http.StatusInternalServerError
	case "missing_assertion":
		// no error attribute, because no credential was there to be wrong
		w.Header().Set("WWW-Authenticate", "Bearer")
	default:
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token", error_description="`+code+`"`)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	body := struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Code   string `json:"code"`
	}{http.StatusText(status), status, code}
	_ = json.NewEncoder(w).Encode(body) // the status is sent; a client that has gone needs no body
}
