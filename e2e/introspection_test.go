package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// private writes a file that nobody may read but the user that the program becomes.
func private(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, 65532, 65532); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// clientKey is a key, PEM, and its public half as a JWK.
func clientKey(t testing.TB) (pemKey []byte, jwk map[string]string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		map[string]string{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:]), "alg": "ES256", "use": "sig"}
}

const opaqueAPI = "https://opaque.example"

// TestIntrospection runs the program with an authorization server that issues tokens which say nothing, asked in each of the
// ways in which a gate can prove that it may.
func TestIntrospection(t *testing.T) {
	t.Parallel()
	key, jwk := clientKey(t)
	cert, certKey := selfSigned(t)
	now := time.Now().Unix()
	as := startAuthServer(t, []resource{{opaqueAPI, "opaque", []string{"use", "pay"}}},
		client{ID: "alice", Claims: map[string]any{"acr": "urn:x:pwd", "auth_time": now, "tenant": "acme"}},
		client{ID: "bob", Claims: map[string]any{"acr": "urn:x:mfa", "auth_time": now}},
		client{ID: "holder", DPoP: true},
		client{ID: "gate-secret"},
		client{ID: "gate-key", JWK: jwk, Signed: "ES256"},
		client{ID: "gate-certificate", DN: "CN=test", ca: cert},
	)
	dir := openDir(t)
	ca := filepath.Join(dir, "ca.pem")
	certFile := filepath.Join(dir, "cert.pem")
	for path, data := range map[string][]byte{ca: as.cert, certFile: cert} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	endpoint := as.Issuer + "/token/introspection"
	secure := strings.Replace(as.Secure, "127.0.0.1", "localhost", 1) + "/token/introspection" // as its certificate has it
	for name, issuer := range map[string]setting{
		"secret": {"introspection": setting{
			"endpoint": endpoint, "client_id": "gate-secret", "client_secret_file": private(t, dir, "secret", []byte("gate-secret\n")),
		}},
		"key, signed answers": {"keys": "discovery", "introspection": setting{
			"endpoint": endpoint, "client_id": "gate-key", "private_key_file": private(t, dir, "key.pem", key), "signed_response": true,
		}},
		"certificate": {"introspection": setting{
			"endpoint": secure, "client_id": "gate-certificate", "ca_file": ca,
			"client_certificate": setting{"cert": certFile, "key": private(t, dir, "cert-key.pem", certKey)},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			issuer["issuer"], issuer["audience"] = as.Issuer, []string{opaqueAPI}
			const public = "https://opaque.example.com"
			p := startProduct(t, misfit(t, as, "honest", setting{"ingress": setting{
				"issuers":    []setting{issuer},
				"public_url": public,
				"routes": []setting{
					{"name": "read", "match": "GET /{rest...}", "scopes": []string{"use"}},
					{"name": "cached", "match": "GET /echo", "scopes": []string{"use"}, "privileged": false},
					{"name": "pay", "match": "POST /pay", "scopes": []string{"pay"}, "step_up": setting{"acr": []string{"urn:x:mfa"}, "max_age": "10m"}},
				},
			}}))
			token := as.token(t, "alice", opaqueAPI, "use", "pay")
			if strings.Contains(token, ".") {
				t.Fatalf("the token is not opaque: %s", token)
			}
			for _, path := range []string{"/echo", "/escape"} {
				if a := p.fetch(t, http.MethodGet, path, token, nil); a.status != 200 {
					t.Fatalf("%s: %d %s", path, a.status, a.code())
				}
			}
			a := p.fetch(t, http.MethodPost, "/pay", token, nil)
			if c := a.header.Get("WWW-Authenticate"); a.status != 401 || a.code() != "insufficient_user_authentication" || !strings.Contains(c, `acr_values="urn:x:mfa", max_age="600"`) {
				t.Errorf("step-up: %d %s %s", a.status, a.code(), c)
			}
			if a := p.fetch(t, http.MethodPost, "/pay", as.token(t, "bob", opaqueAPI, "pay"), nil); a.status != 404 { // the service's
				t.Errorf("step-up, with the login: %d %s", a.status, a.code())
			}
			if a := p.fetch(t, http.MethodGet, "/echo", as.token(t, "alice", opaqueAPI, "pay"), nil); a.status != 403 {
				t.Errorf("without the scope: %d %s", a.status, a.code())
			}
			if a := p.fetch(t, http.MethodGet, "/echo", "invented", nil); a.status != 401 || a.code() != "token_inactive" {
				t.Errorf("invented: %d %s", a.status, a.code())
			}

			// bound to a key, which only the answer says
			h := sallytest.NewHolder(t, "ES256")
			proof := h.Proof("POST", as.Issuer+"/token", "", map[string]any{"ath": nil})
			bound := as.tokenAt(t, http.DefaultClient, as.Issuer, "holder", opaqueAPI, http.Header{"Dpop": {proof}}, "use")
			if a := p.fetch(t, http.MethodGet, "/echo", bound, nil); a.status != 401 || a.code() != "sender_constrained" {
				t.Errorf("bound, and sent as Bearer: %d %s", a.status, a.code())
			}
			if a := p.fetch(t, http.MethodGet, "/echo", "", nil, "Authorization", "DPoP "+bound, "DPoP", h.Proof("GET", public+"/echo", bound, nil)); a.status != 200 {
				t.Errorf("bound, with its proof: %d %s", a.status, a.code())
			}

			as.revoke(t, "alice", token)
			if a := p.fetch(t, http.MethodGet, "/escape", token, nil); a.status != 401 || a.code() != "token_inactive" {
				t.Errorf("revoked at its server: %d %s", a.status, a.code())
			}
			_, metrics := p.admin(t, http.MethodGet, "/metrics")
			for _, want := range []string{
				fmt.Sprintf(`sallyport_introspection_questions_total{issuer="%s",result="active"}`, as.Issuer),
				fmt.Sprintf(`sallyport_introspection_questions_total{issuer="%s",result="inactive"}`, as.Issuer),
				fmt.Sprintf(`sallyport_introspection_resting{issuer="%s"} 0`, as.Issuer),
			} {
				if !strings.Contains(metrics, want) {
					t.Errorf("no metric %s", want)
				}
			}
			book := p.book(t)
			if !strings.Contains(book, `"token_digest":"`) || !strings.Contains(book, `"client":"alice"`) {
				t.Error("the records name no token and no client")
			}
			for _, secret := range []string{token, bound} {
				if strings.Contains(book+p.output.String()+metrics, secret) {
					t.Error("a token is in the log")
				}
			}
			p.complete(t)
		})
	}
}

// TestDiscoveryFromChallenge is a client that knows the URL of an API and nothing else: the challenge leads it to the metadata
// (RFC 9728), these to the authorization server (RFC 8414), and that to a token which opens the API.
func TestDiscoveryFromChallenge(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	api := "http://127.0.0.1:" + port
	as := startAuthServer(t, []resource{{api, "ES256", []string{"use"}}}, client{ID: "alice"})
	p := startProduct(t, func() launch {
		l := misfit(t, as, "honest", setting{"ingress": setting{
			"issuers":           []setting{{"issuer": as.Issuer, "audience": []string{api}, "keys": "discovery"}},
			"public_url":        api,
			"resource_metadata": setting{"scopes": true, "name": "The misfit"},
		}})
		l.over = merge(l.over, setting{"ingress": setting{"listen": "127.0.0.1:" + port}})
		return l
	}())
	document := func(at string) (m map[string]any) {
		t.Helper()
		resp, err := http.Get(at)
		if err != nil {
			t.Fatal(err)
		}
		a := readAnswer(resp)
		if err := json.Unmarshal(a.body, &m); a.status != 200 || err != nil {
			t.Fatalf("%s: %d %s: %v", at, a.status, a.body, err)
		}
		return m
	}

	a := p.fetch(t, http.MethodGet, "/echo", "", nil)
	_, at, _ := strings.Cut(strings.Join(a.header["Www-Authenticate"], ","), `resource_metadata="`)
	at, _, _ = strings.Cut(at, `"`)
	if a.status != 401 || at != api+"/.well-known/oauth-protected-resource" {
		t.Fatalf("%d %v", a.status, a.header)
	}
	resource := document(at)
	if resource["resource"] != api { // RFC 9728, section 3.3
		t.Fatalf("the metadata are of %v", resource["resource"])
	}
	issuer := resource["authorization_servers"].([]any)[0].(string)
	u, err := url.Parse(issuer)
	if err != nil {
		t.Fatal(err)
	}
	server := document(u.Scheme + "://" + u.Host + "/.well-known/oauth-authorization-server" + strings.TrimSuffix(u.Path, "/"))
	if server["issuer"] != issuer {
		t.Fatalf("the metadata are of %v", server["issuer"])
	}
	endpoint := strings.TrimSuffix(server["token_endpoint"].(string), "/token")
	scope := resource["scopes_supported"].([]any)[0].(string)
	token := as.tokenAt(t, http.DefaultClient, endpoint, "alice", resource["resource"].(string), nil, scope)
	if a := p.fetch(t, http.MethodGet, "/echo", token, nil); a.status != 200 {
		t.Errorf("with the token that was found: %d %s", a.status, a.code())
	}
	if !strings.Contains(p.book(t), `"route":"resource-metadata"`) {
		t.Error("the answer is not on record")
	}
	p.complete(t)
}
