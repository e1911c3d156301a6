package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// resource is a protected resource that the authorization server knows (RFC 8707).
type resource struct {
	Resource  string   `json:"resource"`
	Algorithm string   `json:"algorithm"` // of its tokens; "opaque" for those that are introspected
	Scopes    []string `json:"scopes"`
}

// client is a client of the authorization server; its secret is its name.
type client struct {
	ID       string         `json:"id"`
	Secret   string         `json:"secret,omitempty"`
	Lifetime int            `json:"lifetime,omitempty"` // of its tokens, in seconds; 600 when zero
	Claims   map[string]any `json:"claims,omitempty"`
	Exchange *exchanges     `json:"exchange,omitempty"`
	DPoP     bool           `json:"dpop,omitempty"` // its tokens are bound to a key
	MTLS     bool           `json:"mtls,omitempty"` // its tokens are bound to the certificate of its connection

	// How it proves itself, unless by its secret: by a key, or by a certificate of this subject that authorities below trust.
	JWK map[string]string `json:"jwk,omitempty"`
	DN  string            `json:"dn,omitempty"`
	// Signed is the algorithm by which answers about tokens are signed for it, where it asks for that.
	Signed string `json:"signed,omitempty"`
	ca     []byte // that trusts its certificate, PEM
}

// exchanges are the tokens that a client may exchange: those for one resource, and which scopes of others each of their
// scopes is good for.
type exchanges struct {
	From string                         `json:"from"`
	To   map[string]map[string][]string `json:"to"`
}

// authServer is a running authorization server.
type authServer struct {
	Issuer  string `json:"issuer"`
	Control string `json:"control"`
	Secure  string `json:"secure"` // with TLS, where it asks for a certificate
	cert    []byte // of that, PEM
}

func startAuthServer(t testing.TB, resources []resource, clients ...client) *authServer {
	t.Helper()
	var ca []byte
	for i := range clients {
		if clients[i].JWK == nil && clients[i].DN == "" {
			clients[i].Secret = clients[i].ID
		}
		ca = append(ca, clients[i].ca...)
	}
	cert, key := selfSigned(t)
	over := map[string]string{"cert": string(cert), "key": string(key)}
	if ca != nil {
		over["ca"] = string(ca)
	}
	config, err := json.Marshal(map[string]any{"resources": resources, "clients": clients, "tls": over})
	if err != nil {
		t.Fatal(err)
	}
	s := &authServer{cert: cert}
	startNode(t, s, "authserver", string(config))
	return s
}

// token asks for an access token with the client credentials grant.
func (s *authServer) token(t testing.TB, client, resource string, scopes ...string) string {
	t.Helper()
	return s.tokenAt(t, &http.Client{Timeout: 20 * time.Second}, s.Issuer, client, resource, nil, scopes...)
}

// tokenAt is token by an HTTP client of one's own, at one of the server's two listeners, with further header fields.
func (s *authServer) tokenAt(t testing.TB, c *http.Client, at, client, resource string, header http.Header, scopes ...string) string {
	t.Helper()
	form := url.Values{
		"grant_type": {"client_credentials"}, "resource": {resource}, "scope": {strings.Join(scopes, " ")},
	}
	req, err := http.NewRequest(http.MethodPost, at+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(client, client)
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	s.askBy(t, c, req, &answer)
	if answer.AccessToken == "" {
		t.Fatalf("the authorization server issued no token for %s", resource)
	}
	return answer.AccessToken
}

// keySet is what a control request leaves.
type keySet struct{ Signing, Published []string }

// publish makes new keys and publishes them; the old ones go on signing.
func (s *authServer) publish(t testing.TB) keySet { return s.control(t, "/publish") }

// rotate lets the new keys sign; the old ones stay published.
func (s *authServer) rotate(t testing.TB) keySet { return s.control(t, "/rotate") }

// retire withdraws the old keys.
func (s *authServer) retire(t testing.TB) keySet { return s.control(t, "/retire") }

func (s *authServer) control(t testing.TB, path string) (keys keySet) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.Control+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.ask(t, req, &keys)
	return keys
}

func (s *authServer) ask(t testing.TB, req *http.Request, answer any) {
	t.Helper()
	s.askBy(t, &http.Client{Timeout: 20 * time.Second}, req, answer)
}

func (s *authServer) askBy(t testing.TB, c *http.Client, req *http.Request, answer any) {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("ask the authorization server: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("ask the authorization server: %v", err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s: %s", req.Method, req.URL, resp.Status, body)
	}
	if err := json.Unmarshal(body, answer); err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
}

// TestAuthServer holds the authorization server itself to what the other tests take from it: the header and claims of
// RFC 9068, one algorithm per resource, and the three steps of a rotation.
func TestAuthServer(t *testing.T) {
	t.Parallel()
	s := startAuthServer(t, []resource{
		{"https://es.example", "ES256", []string{"read", "write"}},
		{"https://rs.example", "RS256", []string{"read"}},
	}, client{ID: "reader", Claims: map[string]any{"tenant": "acme"}}, client{ID: "hasty", Lifetime: 2})

	for _, tt := range []struct{ client, resource, algorithm string }{
		{"reader", "https://es.example", "ES256"},
		{"reader", "https://rs.example", "RS256"},
		{"hasty", "https://es.example", "ES256"},
	} {
		header, claims := parts(t, s.token(t, tt.client, tt.resource, "read"))
		if header["alg"] != tt.algorithm || header["typ"] != "at+jwt" {
			t.Errorf("header of a token for %s: %v", tt.resource, header)
		}
		for name, want := range map[string]any{
			"iss": s.Issuer, "aud": tt.resource, "sub": tt.client, "client_id": tt.client, "scope": "read",
		} {
			if claims[name] != want {
				t.Errorf("claim %s of a token for %s is %v, want %v", name, tt.resource, claims[name], want)
			}
		}
		lifetime := claims["exp"].(float64) - claims["iat"].(float64)
		if want := map[string]float64{"reader": 600, "hasty": 2}[tt.client]; lifetime != want {
			t.Errorf("token of %s lives %v s, want %v", tt.client, lifetime, want)
		}
	}

	kid := func() any {
		header, _ := parts(t, s.token(t, "reader", "https://es.example", "read"))
		return header["kid"]
	}
	first := kid()
	if keys := s.publish(t); len(keys.Published) != 4 || kid() != first {
		t.Errorf("after publish: %v, signed by %v, before it by %v", keys, kid(), first)
	}
	if keys := s.rotate(t); len(keys.Published) != 4 || kid() == first || kid() != keys.Signing[0] {
		t.Errorf("after rotate: %v, signed by %v, before it by %v", keys, kid(), first)
	}
	if keys := s.retire(t); len(keys.Published) != 2 || kid() != keys.Signing[0] {
		t.Errorf("after retire: %v, signed by %v", keys, kid())
	}
}
