package bearer

import (
	"context"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

func TestKindsThatDoNotBuild(t *testing.T) {
	good := func(kind, name string) Issuer {
		return Issuer{Kind: kind, Issuer: name, Audience: []string{testAudience}, Keys: Keys{File: writeFile(t, jwks(signers()["ES256"].jwk()))}}
	}
	cluster, domain := good(KindKubernetes, "https://cluster.example.com"), good(KindSPIFFE, "spiffe://example.org")
	change := func(i Issuer, by func(*Issuer)) Issuer { by(&i); return i }
	for _, test := range []struct {
		name   string
		issuer Issuer
		says   string // empty: it builds
	}{
		{"oauth by name", good(KindOAuth, testIssuer), ""},
		{"kubernetes", cluster, ""},
		{"spiffe", domain, ""},
		{"spiffe with an iss", change(domain, func(i *Issuer) { i.Issuer, i.TrustDomain = "https://oidc.example.org", "example.org" }), ""},
		{"unknown", good("saml", testIssuer), "kind"},
		{"capitals", good("Kubernetes", testIssuer), "kind"},
		{"oauth bound", change(good("", testIssuer), func(i *Issuer) { i.BoundTo = "pod" }), "only a kubernetes"},
		{"oauth with a trust domain", change(good("", testIssuer), func(i *Issuer) { i.TrustDomain = "example.org" }), "only a spiffe"},
		{"oauth named as spiffe", good("", "spiffe://example.org"), "SPIFFE"},
		{"kubernetes with types", change(cluster, func(i *Issuer) { i.TokenTypes = []string{"JWT"} }), "token types"},
		{"kubernetes bound to a star", change(cluster, func(i *Issuer) { i.BoundTo = "star" }), "pod, node or any"},
		{"spiffe with types", change(domain, func(i *Issuer) { i.TokenTypes = []string{"JWT"} }), "token types"},
		{"spiffe with EdDSA", change(domain, func(i *Issuer) { i.Algorithms = []string{"EdDSA"} }), "EdDSA"},
		{"spiffe without domain", good(KindSPIFFE, "https://oidc.example.org"), "without trust domain"},
		{"spiffe with two domains", change(domain, func(i *Issuer) { i.TrustDomain = "example.net" }), "not that of its name"},
		{"spiffe by discovery", change(domain, func(i *Issuer) { i.Keys = Keys{Discovery: true} }), "discovery"},
		{"spiffe with a port", good(KindSPIFFE, "spiffe://example.org:443"), "trust domain"},
		{"spiffe with a path", good(KindSPIFFE, "spiffe://example.org/orders"), "trust domain"},
		{"spiffe in capitals", good(KindSPIFFE, "spiffe://Example.org"), "trust domain"},
		{"roots for a file", change(cluster, func(i *Issuer) { i.Keys.CAFile = "ca.pem" }), "https URI"},
		{"a token over http", change(cluster, func(i *Issuer) { i.Keys = Keys{URI: "http://127.0.0.1:1/jwks", TokenFile: "token"} }), "https URI"},
		{"a token with discovery", change(cluster, func(i *Issuer) { i.Keys = Keys{Discovery: true, TokenFile: "token"} }), "https URI"},
	} {
		v, err := NewVerifier([]Issuer{test.issuer}, Options{})
		v.Close()
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want %q", test.name, err, test.says)
		}
	}
	other := change(domain, func(i *Issuer) { i.Issuer, i.TrustDomain = "https://oidc.example.org", "example.org" })
	if v, err := NewVerifier([]Issuer{domain, other}, Options{}); err == nil || !strings.Contains(err.Error(), "another issuer's too") {
		v.Close()
		t.Errorf("one trust domain of two issuers: %v", err)
	}
}

// A token without iss finds a trust domain when it is to let somebody in, and at no other time.
func TestAuthenticWantsAnIssuer(t *testing.T) {
	s := signers()["ES256"]
	v := mustVerifier(t, Options{Now: clock}, Issuer{
		Kind: KindSPIFFE, Issuer: "spiffe://example.org", Audience: []string{testAudience}, Keys: Keys{File: writeFile(t, jwks(s.jwk()))},
	})
	token := s.raw(`{"alg":"ES256","typ":"JWT"}`, mustJSON(with(goodClaims(testNow), object{"iss": nil, "sub": "spiffe://example.org/orders"})))
	if code := codeOf(t, v, token); code != "" {
		t.Errorf("refused: %s", code)
	}
	if _, _, _, _, err := v.Authentic(NewToken(token)); err == nil || refusalOf(t, err, token).Code != codeIssuer {
		t.Errorf("%v", err)
	}
	caller, err := v.Verify(context.Background(), NewToken(token))
	if err != nil || caller.Issuer != "spiffe://example.org" || caller.Subject != "spiffe://example.org/orders" {
		t.Errorf("%+v, %v", caller, err)
	}
	if !v.Usable(caller.Issuer, caller.KeyID) {
		t.Error("what keeps streams open does not find the issuer")
	}
}

// A cluster's keys are behind its own roots, and told to whoever shows a token of the cluster; both are replaced while we run.
func TestKeysOfACluster(t *testing.T) {
	s := signers()["ES256"]
	var asked atomic.Pointer[string]
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		by := r.Header.Get("Authorization")
		asked.Store(&by)
		if by != "Bearer second-token" {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		w.Write([]byte(jwks(s.jwk())))
	}))
	defer server.Close()
	folder := t.TempDir()
	ca, token := filepath.Join(folder, "ca.crt"), filepath.Join(folder, "token")
	write := func(path, content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v := mustVerifier(t, Options{}, Issuer{
		Kind: KindKubernetes, Issuer: "https://cluster.example.com", Audience: []string{testAudience},
		Keys: Keys{URI: server.URL + "/openid/v1/jwks", CAFile: ca, TokenFile: token},
	})
	keys := v.authorities["https://cluster.example.com"].keys
	fails := func(says string) {
		t.Helper()
		_, err := keys.fetch(context.Background())
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "-token\"") {
			t.Errorf("%v, want %q", err, says)
		}
	}
	fails("ca.crt")
	write(ca, "no certificate")
	fails("no certificate in")
	write(ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	fails("token")
	write(token, "two tokens")
	fails("holds none")
	if asked.Load() != nil {
		t.Error("the server was asked without a token")
	}
	write(token, "first-token\n")
	fails("status 401")
	write(token, "second-token\n")
	if got, err := keys.fetch(context.Background()); err != nil || !strings.Contains(string(got.data), s.kid) {
		t.Errorf("%s, %v", got.data, err)
	}
	elsewhere := fetchFrom("x", Keys{URI: server.URL, CAFile: ca, TokenFile: token}, guardOf(nil, nil))
	if _, err := elsewhere(context.Background()); err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("an address that no issuer named: %v", err)
	}
}

// FuzzSPIFFE: what is read as a SPIFFE ID has one spelling, of which package net/url makes the same.
func FuzzSPIFFE(f *testing.F) {
	for _, seed := range []string{"spiffe://example.org/ns/shop/sa/orders", "spiffe://a/b", "spiffe://a", "spiffe://a/../b", "spiffe://a:1/b", "spiffe://a/%41", "spiffe://A/b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		domain, ok := readSPIFFE(id)
		if !ok {
			if domain != "" {
				t.Fatalf("%q: refused, with domain %q", id, domain)
			}
			return
		}
		u, err := url.Parse(id)
		if err != nil || u.Scheme != "spiffe" || u.Host != domain || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.RawPath != "" || u.Port() != "" {
			t.Fatalf("%q: read as of %q, by net/url as %#v, %v", id, domain, u, err)
		}
		if path.Clean(u.Path) != u.Path || u.Path == "/" || u.String() != id || strings.ToLower(domain) != domain {
			t.Fatalf("%q has another spelling", id)
		}
	})
}

// FuzzKubernetes: whatever a cluster signs, who is let in is the service account that both sub and kubernetes.io name, of one
// namespace and one name, and bound as is asked.
func FuzzKubernetes(f *testing.F) {
	f.Add("system:serviceaccount:shop:orders", "shop", "orders", "p", "")
	f.Add("system:serviceaccount:a:b:c", "a:b", "c", "p", "n")
	f.Add("system:serviceaccount::", "", "", "", "")
	f.Fuzz(func(t *testing.T, sub, namespace, account, pod, node string) {
		inside := object{"namespace": namespace, "serviceaccount": object{"name": account, "uid": "1"}}
		for member, name := range map[string]string{"pod": pod, "node": node} {
			if name != "" {
				inside[member] = object{"name": name, "uid": "1"}
			}
		}
		for _, bound := range []string{boundToPod, boundToNode, boundToAny} {
			a := &authority{Issuer: Issuer{Kind: KindKubernetes, BoundTo: bound}}
			if a.judgeKubernetes(object{"iat": int64(1), "sub": sub, "kubernetes.io": inside}) != nil {
				continue
			}
			parts := strings.Split(sub, ":")
			if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" || parts[2] != namespace || parts[3] != account || namespace == "" || account == "" {
				t.Fatalf("%q is accepted for %q in %q", sub, account, namespace)
			}
			if bound == boundToPod && pod == "" || bound == boundToNode && pod+node == "" {
				t.Fatalf("bound to %q and %q is accepted for %s", pod, node, bound)
			}
		}
	})
}

// TestOneNameSaysIDToken holds that a claim which says access does not outvote one which says that the token is an ID token: which of the two
// the authorization server wrote, and which a user could add to his tokens, is not known.
func TestOneNameSaysIDToken(t *testing.T) {
	for _, claims := range []map[string]any{
		{"token_use": "access", "typ": "ID"}, {"token_use": "id", "typ": "Bearer"}, {"token_use": "ACCESS", "typ": "id", "scope": "openid"},
	} {
		if refusal := judgeAccess(&proof{typ: "jwt", claims: claims}); refusal == nil || refusal.Code != codeIDToken {
			t.Errorf("%v: %v", claims, refusal)
		}
	}
	for _, claims := range []map[string]any{
		{"token_use": "access", "nonce": "n"}, {"typ": "Bearer", "nonce": "n"}, {"token_use": "access", "typ": "dpop"}, {"token_use": []any{"id"}},
	} {
		if refusal := judgeAccess(&proof{typ: "jwt", claims: claims}); refusal != nil {
			t.Errorf("%v: %v", claims, refusal)
		}
	}
}
