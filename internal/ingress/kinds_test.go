package ingress

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
	"github.com/sallyport/sallyport/internal/state"
)

// A condition reads who a cluster's token is of, down to the pod; also when the token is remembered, and until it is revoked.
func TestAConditionReadsAClustersToken(t *testing.T) {
	const issuer = "https://kubernetes.default.svc.cluster.local"
	s := open(t, func(s *stage) {
		p, err := policy.New([]policy.Route{
			{Name: "pod", Match: "GET /pods/{uid}", When: `claims["kubernetes.io"].pod.uid == path.uid && claims["kubernetes.io"].namespace == "shop"`},
			{Name: "account", Match: "GET /accounts/{name}", When: `claims["kubernetes.io"].serviceaccount.name == path.name`},
		})
		if err != nil {
			t.Fatal(err)
		}
		keys := filepath.Join(t.TempDir(), "jwks.json")
		if err := os.WriteFile(keys, s.issuer.JWKS(), 0o600); err != nil {
			t.Fatal(err)
		}
		verifier, err := bearer.NewVerifier([]bearer.Issuer{{
			Kind: bearer.KindKubernetes, Issuer: issuer, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{File: keys},
		}}, bearer.Options{Bound: true, Remember: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(verifier.Close)
		s.config.Rules.Policy, s.config.Rules.Verifier, s.config.State = p, verifier, localState(t)
	})
	token := func(namespace, account, uid string) string {
		claims, err := json.Marshal(s.issuer.Claims(map[string]any{
			"iss": issuer, "sub": fmt.Sprintf("system:serviceaccount:%s:%s", namespace, account), "client_id": nil, "scope": nil, "jti": uid,
			"kubernetes.io": map[string]any{
				"namespace": namespace, "serviceaccount": map[string]any{"name": account, "uid": "1"}, "pod": map[string]any{"name": account + "-x", "uid": uid},
			},
		}))
		if err != nil {
			t.Fatal(err)
		}
		return s.issuer.Sign("ES256", fmt.Sprintf(`{"alg":"ES256","kid":%q}`, s.issuer.KeyID("ES256")), string(claims))
	}
	orders, elsewhere := token("shop", "orders", "u-1"), token("billing", "orders", "u-2")
	ask := func(path, token string) string {
		a, _ := s.ask(get(path, bearerHeader(token)))
		return fmt.Sprintf("%d %s", a.StatusCode, a.code)
	}
	for range 4 { // from the third time on they are remembered
		for _, c := range []struct{ path, token, want string }{
			{"/pods/u-1", orders, "200 "},
			{"/pods/u-2", orders, "403 condition_false"},
			{"/pods/u-2", elsewhere, "403 condition_false"},
			{"/accounts/orders", orders, "200 "},
			{"/accounts/orders", elsewhere, "200 "},
			{"/accounts/admin", orders, "403 condition_false"},
		} {
			if got := ask(c.path, c.token); got != c.want {
				t.Errorf("%s: %s, want %s", c.path, got, c.want)
			}
		}
	}
	if hits, _, _, _ := s.config.Rules.Verifier.Remembered(); hits == 0 {
		t.Error("nothing was remembered")
	}
	s.revoke(state.Revocation{Issuer: issuer, TokenID: "u-1"})
	if got := ask("/pods/u-1", orders); got != "401 revoked" {
		t.Errorf("revoked, and remembered: %s", got)
	}
}
