package e2e

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/identity"
)

// TestServiceReceives holds what arrives at the service in place of the token: an assertion that the published keys verify,
// and nothing by which a caller could say who they are or what was decided.
func TestServiceReceives(t *testing.T) {
	t.Parallel()
	as := misfitServer(t)
	p := startProduct(t, misfit(t, as, "honest", nil))
	token := as.token(t, "tester", misfitAudience, "use")
	a := p.fetch(t, http.MethodGet, "/echo?q=1", token, nil,
		"X-Request-Id", "chosen by the caller",
		"X-Sallyport-Identity", "root",
		"Txn-Token", "root",
		"X-Forwarded-For", "203.0.113.7",
		"X-Forwarded-User", "root",
		"X-Original-Url", "/admin",
		"X-Http-Method-Override", "DELETE",
		"X-Harmless", "kept",
	)
	var echo struct {
		Method, URL string
		Headers     []string // name, value, name, value
	}
	if err := json.Unmarshal(a.body, &echo); err != nil {
		t.Fatalf("status %d, %v: %s", a.status, err, a.body)
	}
	if echo.Method != http.MethodGet || echo.URL != "/echo?q=1" {
		t.Errorf("the service was asked %s %s", echo.Method, echo.URL)
	}
	received := make(http.Header)
	for i := 0; i < len(echo.Headers); i += 2 {
		received.Add(echo.Headers[i], echo.Headers[i+1])
	}
	for name, values := range received {
		for _, value := range values {
			for _, bad := range []string{token, "root", "chosen by", "203.0.113.7", "/admin", "DELETE"} {
				if strings.Contains(value, bad) {
					t.Errorf("the service received %s: %s", name, value)
				}
			}
		}
	}
	if received.Get("X-Harmless") != "kept" || received.Get("X-Request-Id") != a.id() {
		t.Errorf("the service received %v", received)
	}

	keys, err := identity.KeysFile(filepath.Join(p.dir, "var", "jwks", "jwks.json"))
	if err != nil {
		t.Fatal(err)
	}
	assertion := received.Get("Txn-Token")
	v := identity.Verifier{Issuer: "sallyport", Audience: "misfit", Keys: keys}
	caller, err := v.Verify(assertion)
	if err != nil || received.Get("Authorization") != "" {
		t.Fatalf("the assertion does not verify: %v", err)
	}
	if caller.Subject != "tester" || caller.Client != "tester" || strings.Join(caller.Scopes, " ") != "use" {
		t.Errorf("the assertion says %+v", caller)
	}
	_, claims := parts(t, assertion)
	if tctx, _ := claims["tctx"].(map[string]any); claims["jti"] != a.id() || claims["txn"] != a.id() || tctx["route"] != "read" {
		t.Errorf("the assertion says %v", claims)
	}
	// The token itself is no assertion, and the assertion opens no gate.
	if _, err := v.Verify(token); err == nil {
		t.Error("the caller's token passes for an assertion")
	}
	if again := p.fetch(t, http.MethodGet, "/echo", assertion, nil); again.status != http.StatusUnauthorized {
		t.Errorf("the assertion passes for a token: %d", again.status)
	}
	if again := p.fetch(t, http.MethodGet, "/echo", "", nil, "Txn-Token", assertion); again.status != http.StatusUnauthorized {
		t.Errorf("the assertion passes for a hop: %d", again.status)
	}

	status, body := p.admin(t, http.MethodGet, "/.well-known/jwks.json")
	if kid := kid(t, assertion); status != 200 || !strings.Contains(body, kid.(string)) {
		t.Errorf("the admin listener does not publish %v: %d %s", kid, status, body)
	}
}
