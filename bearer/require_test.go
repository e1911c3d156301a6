package bearer

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/identity"
)

func TestRequire(t *testing.T) {
	v := mustVerifier(t, Options{Now: clock}, allAlgorithms(t))
	reached := 0
	handler := Require(v, "orders:read", "orders:write")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached++
		caller, ok := identity.FromContext(r.Context())
		if !ok || caller.Subject != "alice" {
			t.Errorf("no caller in the context: %v, %v", caller, ok)
		}
		io.WriteString(w, "hello")
	}))
	server := httptest.NewServer(handler)
	defer server.Close()
	s := signers()["ES256"]
	good := s.token(goodClaims(testNow))
	for _, test := range []struct {
		name      string
		header    []string
		query     string
		status    int
		code      string
		challenge string
	}{
		{name: "good", header: []string{"Bearer " + good}, status: 200},
		{name: "none", status: 401, code: codeMissing, challenge: `Bearer realm="sallyport"`},
		{name: "Basic", header: []string{"Basic YTpi"}, status: 401, code: codeScheme, challenge: `Bearer realm="sallyport"`},
		{name: "malformed", header: []string{"Bearer  " + good}, status: 400, code: codeMalformed, challenge: `Bearer realm="sallyport", error="invalid_request"`},
		{name: "two", header: []string{"Bearer " + good, "Bearer " + good}, status: 400, code: codeMultiple, challenge: `Bearer realm="sallyport", error="invalid_request"`},
		{name: "query too", header: []string{"Bearer " + good}, query: "?access_token=x", status: 400, code: codeMultiple, challenge: `Bearer realm="sallyport", error="invalid_request"`},
		{name: "in the query only", query: "?access_token=" + good, status: 401, code: codeMissing, challenge: `Bearer realm="sallyport"`},
		{name: "expired", header: []string{"Bearer " + s.token(with(goodClaims(testNow), object{"exp": 1}))}, status: 401, code: codeExpired,
			challenge: `Bearer realm="sallyport", error="invalid_token"`},
		{name: "one scope of two", header: []string{"Bearer " + s.token(with(goodClaims(testNow), object{"scope": "orders:read"}))}, status: 403, code: codeScope,
			challenge: `Bearer realm="sallyport", error="insufficient_scope", scope="orders:read orders:write"`},
		{name: "scopes that only begin alike", header: []string{"Bearer " + s.token(with(goodClaims(testNow), object{"scope": "orders:read orders:writer"}))}, status: 403, code: codeScope,
			challenge: `Bearer realm="sallyport", error="insufficient_scope", scope="orders:read orders:write"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			reached = 0
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/"+test.query, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header["Authorization"] = test.header
			response, err := server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			if response.StatusCode != test.status || (reached == 1) != (test.status == 200) {
				t.Fatalf("status %d, handler reached %d times: %s", response.StatusCode, reached, body)
			}
			if got := response.Header.Get("WWW-Authenticate"); got != test.challenge {
				t.Errorf("challenge %s, want %s", got, test.challenge)
			}
			if test.status == 200 {
				return
			}
			var problem map[string]any
			if err := json.Unmarshal(body, &problem); err != nil {
				t.Fatal(err)
			}
			if problem["code"] != test.code || problem["status"] != float64(test.status) || problem["title"] != http.StatusText(test.status) || problem["type"] != "about:blank" || len(problem) != 4 {
				t.Errorf("problem %s", body)
			}
			if got := response.Header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("Content-Type %s", got)
			}
			if response.Header.Get("Cache-Control") != "no-store" {
				t.Error("the answer may be cached")
			}
			if strings.Contains(string(body), good) {
				t.Error("the token is in the answer")
			}
		})
	}
}

func TestRequireWithoutVerifierRefuses(t *testing.T) {
	for _, v := range []*Verifier{nil, {}} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", "Bearer "+signers()["ES256"].token(goodClaims(testNow)))
		Require(v, "a\" b")(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("reached") })).ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized {
			t.Errorf("status %d", w.Code)
		}
	}
}
