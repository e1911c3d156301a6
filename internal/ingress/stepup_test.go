package ingress

import (
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/policy"
)

// TestStepUp is row T49: a login that is not good enough, or too long ago, is told what would be (RFC 9470).
func TestStepUp(t *testing.T) {
	s := open(t, func(s *stage) {
		p, err := policy.New([]policy.Route{
			{Name: "pay", Match: "POST /pay", Scopes: []string{"pay"}, ACR: []string{"urn:x:mfa", "urn:x:2fa"}, MaxAge: 10 * time.Minute},
			{Name: "acr", Match: "GET /acr", AnyCaller: true, ACR: []string{"urn:x:mfa"}},
			{Name: "age", Match: "GET /age", AnyCaller: true, MaxAge: time.Minute},
			{Name: "plain", Match: "GET /plain", AnyCaller: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.config.Rules.Policy = p
		s.config.ResourceMetadata = "https://api.example.com/.well-known/oauth-protected-resource"
	})
	now := time.Now().Unix()
	const code = "insufficient_user_authentication"
	const pay = `Bearer realm="sallyport", error="insufficient_user_authentication", acr_values="urn:x:mfa urn:x:2fa", max_age="600", ` +
		`resource_metadata="https://api.example.com/.well-known/oauth-protected-resource"`
	for _, tt := range []struct {
		name, request string
		claims        map[string]any
		challenge     string // empty: let in
	}{
		{"as asked", "POST /pay", map[string]any{"acr": "urn:x:mfa", "auth_time": now - 60}, ""},
		{"the other acr", "POST /pay", map[string]any{"acr": "urn:x:2fa", "auth_time": now}, ""},
		{"a clock that is ahead", "GET /age", map[string]any{"auth_time": now + 2}, ""},
		{"nothing", "POST /pay", nil, pay},
		{"no acr", "POST /pay", map[string]any{"auth_time": now}, pay},
		{"another acr", "POST /pay", map[string]any{"acr": "urn:x:pwd", "auth_time": now}, pay},
		{"a part of one", "POST /pay", map[string]any{"acr": "urn:x:mf", "auth_time": now}, pay},
		{"in capitals", "POST /pay", map[string]any{"acr": "URN:X:MFA", "auth_time": now}, pay},
		{"two in one", "POST /pay", map[string]any{"acr": "urn:x:mfa urn:x:2fa", "auth_time": now}, pay},
		{"a list", "POST /pay", map[string]any{"acr": []string{"urn:x:mfa"}, "auth_time": now}, pay},
		{"null", "POST /pay", map[string]any{"acr": new(*int), "auth_time": now}, pay},
		{"no auth_time", "POST /pay", map[string]any{"acr": "urn:x:mfa"}, pay},
		{"too long ago", "POST /pay", map[string]any{"acr": "urn:x:mfa", "auth_time": now - 660}, pay},
		{"ahead", "POST /pay", map[string]any{"acr": "urn:x:mfa", "auth_time": now + 60}, pay},
		{"as text", "POST /pay", map[string]any{"acr": "urn:x:mfa", "auth_time": "1800000000"}, pay},
		{"a fraction", "POST /pay", map[string]any{"acr": "urn:x:mfa", "auth_time": float64(now) + .5}, pay},
		{"zero", "POST /pay", map[string]any{"acr": "urn:x:mfa", "auth_time": 0}, pay},
		{"negative", "POST /pay", map[string]any{"acr": "urn:x:mfa", "auth_time": -1}, pay},
		{"at the end of time", "POST /pay", map[string]any{"acr": "urn:x:mfa", "auth_time": int64(1<<63 - 1)}, pay},
		{"acr alone", "GET /acr", map[string]any{"acr": "urn:x:mfa"}, ""},
		{"age alone", "GET /age", map[string]any{"auth_time": now - 10}, ""},
		{"age alone, too long", "GET /age", map[string]any{"auth_time": now - 90}, strings.NewReplacer(`acr_values="urn:x:mfa urn:x:2fa", `, "", "600", "60").Replace(pay)},
		{"acr alone, none", "GET /acr", nil, strings.NewReplacer(` urn:x:2fa`, "", `max_age="600", `, "").Replace(pay)},
		{"asked for nothing", "GET /plain", map[string]any{"auth_time": "x", "acr": 1}, ""},
	} {
		claims := map[string]any{"scope": "pay"}
		for name, value := range tt.claims {
			claims[name] = value
		}
		method, path, _ := strings.Cut(tt.request, " ")
		raw := request(method, path, "", bearerHeader(s.issuer.Token(claims)))
		if tt.challenge == "" {
			if a, _ := s.ask(raw); a.StatusCode != 200 {
				t.Errorf("%s: %d %s", tt.name, a.StatusCode, a.code)
			}
			continue
		}
		if a := s.refused(raw, 401, code); a.Header.Get("WWW-Authenticate") != tt.challenge {
			t.Errorf("%s: challenge\n%s, want\n%s", tt.name, a.Header.Get("WWW-Authenticate"), tt.challenge)
		}
	}
	// who has not the scope is told of that alone
	s.refused(request("POST", "/pay", "", bearerHeader(s.issuer.Token(nil))), 403, "insufficient_scope")

	e := s.gateway.Explain(t.Context(), "POST", "/pay", "localhost", bearer.NewToken(s.issuer.Token(map[string]any{"scope": "pay", "acr": "urn:x:mfa", "auth_time": now - 3600})))
	if e.Decision.Code != code || e.Status != 401 || !strings.Contains(e.Decision.Reason, "10m0s") ||
		!strings.Contains(e.Steps[1].Detail, "by a login of acr urn:x:mfa or urn:x:2fa, by a login of the last 10m0s") {
		t.Errorf("%+v", e)
	}
}

// TestStepUpIsARequirement holds that two routes which differ in it alone are not taken for one another.
func TestStepUpIsARequirement(t *testing.T) {
	s := open(t, func(s *stage) {
		p, err := policy.New([]policy.Route{
			{Name: "any", Match: "GET /accounts/{rest...}", AnyCaller: true},
			{Name: "one", Match: "GET /accounts/Admin", AnyCaller: true, MaxAge: time.Minute},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.config.Rules.Policy = p
	})
	s.denied(get("/accounts/admin", bearerHeader(s.token(""))), 400, "path_ambiguous")
}
