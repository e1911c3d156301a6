package oauth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sallyport/sallyport/internal/jws"
)

func pemOf(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAssertion holds each kind of key to what RFC 7523, section 3, and its successor ask of an assertion, and to a signature that
// a library verifies.
func TestAssertion(t *testing.T) {
	small, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	big, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	jwkOf := func(key any, algorithm, id string) []byte {
		data, err := json.Marshal(jose.JSONWebKey{Key: key, Algorithm: algorithm, KeyID: id})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	sec1, err := x509.MarshalECPrivateKey(small)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	seen := map[any]bool{}
	for _, tt := range []struct {
		name      string
		data      []byte
		public    any
		algorithm jose.SignatureAlgorithm
		id        string
	}{
		{"P-256", pemOf(t, small), small.Public(), jose.ES256, ""},
		{"P-256, SEC 1", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), small.Public(), jose.ES256, ""},
		{"P-384", pemOf(t, large), large.Public(), jose.ES384, ""},
		{"Ed25519", pemOf(t, edwards), edwards.Public(), jose.EdDSA, ""},
		{"RSA", pemOf(t, big), big.Public(), jose.RS256, ""},
		{"RSA, PKCS #1", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(big)}), big.Public(), jose.RS256, ""},
		{"a JWK", jwkOf(small, "", "k1"), small.Public(), jose.ES256, "k1"},
		{"a JWK of RSA", jwkOf(big, "PS256", "k2"), big.Public(), jose.PS256, "k2"},
	} {
		key, err := ReadKey(tt.data)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		raw, err := key.assert("the-client", "https://auth.example.com", now)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{tt.algorithm})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if _, err := signed.Verify(tt.public); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		token, err := jws.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		p := token.Payload
		if token.Type != "client-authentication+jwt" || token.KeyID != tt.id || p["iss"] != "the-client" || p["sub"] != "the-client" ||
			p["aud"] != "https://auth.example.com" || p["iat"] != now.Unix() || p["exp"] != now.Add(assertionLife).Unix() || seen[p["jti"]] || len(p["jti"].(string)) < 20 {
			t.Errorf("%s: %v %v", tt.name, token, p)
		}
		seen[p["jti"]] = true
	}

	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err == nil {
		if _, err := ReadKey(pemOf(t, weak)); err == nil {
			t.Error("an RSA key of 1024 bits is taken")
		}
	}
	for name, data := range map[string][]byte{
		"nothing":           nil,
		"a secret":          []byte("hunter2"),
		"a public JWK":      jwkOf(small.Public(), "", ""),
		"a symmetric JWK":   []byte(`{"kty":"oct","k":"aGVsbG8"}`),
		"a certificate":     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
		"another alg":       jwkOf(small, "ES384", ""),
		"HMAC by its alg":   jwkOf(big, "HS256", ""),
		"a PEM with no key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}),
	} {
		if _, err := ReadKey(data); err == nil {
			t.Errorf("%s is taken for a key", name)
		}
	}
}

func TestExactlyOneWay(t *testing.T) {
	secret := func() (string, error) { return "s", nil }
	key := func() (Key, error) { return Key{}, nil }
	certificate := func() (*tls.Certificate, error) { return nil, nil }
	for name, c := range map[string]Config{
		"none":                  {},
		"secret and key":        {Secret: secret, Key: key},
		"key and certificate":   {Key: key, Certificate: certificate},
		"all":                   {Secret: secret, Key: key, Certificate: certificate},
		"certificate over http": {Endpoint: "http://127.0.0.1:1/", Certificate: certificate},
	} {
		if c.Endpoint == "" {
			c.Endpoint = "https://auth.example.com/introspect"
		}
		c.ClientID = "c"
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestPostByKey holds that each request has an assertion of its own, for the issuer, and no secret.
func TestPostByKey(t *testing.T) {
	var seen []url.Values
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		if r.Header.Get("Authorization") != "" {
			t.Error("a secret is sent beside an assertion")
		}
		seen = append(seen, r.PostForm)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{}`))
	}))
	t.Cleanup(server.Close)
	_, private, _ := ed25519.GenerateKey(nil)
	path := filepath.Join(t.TempDir(), "key.pem")
	writeFile(t, path, pemOf(t, private))
	c := mustNew(t, Config{Endpoint: server.URL, ClientID: "c", Key: Kept(path, ReadKey), Audience: "https://auth.example.com"})
	form := url.Values{"token": {"t"}}
	for range 2 {
		if _, err := c.Post(t.Context(), form); err != nil {
			t.Fatal(err)
		}
	}
	if len(form) != 1 {
		t.Errorf("the caller's form has become %v", form)
	}
	if len(seen) != 2 || seen[0].Get("client_assertion_type") != assertionType || seen[0].Get("client_assertion") == seen[1].Get("client_assertion") || seen[0].Get("token") != "t" {
		t.Errorf("sent %v", seen)
	}
	// the file is read again, and judged
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Post(t.Context(), form); err == nil || !strings.Contains(err.Error(), "0644") || len(seen) != 2 {
		t.Errorf("with a key that others can read: %v", err)
	}
	if c.Resting() != nil {
		t.Error("our own file counts as a failure of the server")
	}
}

// certificateOf makes a client certificate of one's own.
func certificateOf(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pemOf(t, private)
}

// TestPostByCertificate holds that the connection shows the certificate, and that a new one in the files is shown by the next
// request, though the connection was kept.
func TestPostByCertificate(t *testing.T) {
	var shown, client string
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown, client = "", r.PostFormValue("client_id")
		if len(r.TLS.PeerCertificates) > 0 {
			shown = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{}`))
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	t.Cleanup(server.Close)
	folder := t.TempDir()
	certFile, keyFile := filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	cert, key := certificateOf(t, "first")
	writeFile(t, certFile, cert)
	writeFile(t, keyFile, key)
	c := Config{Endpoint: server.URL, ClientID: "c", Certificate: CertificateFiles(certFile, keyFile), Roots: x509.NewCertPool()}
	c.Roots.AddCert(server.Certificate())
	made := mustNew(t, c)
	post := func(want string) {
		t.Helper()
		if _, err := made.Post(t.Context(), nil); err != nil || shown != want || client != "c" {
			t.Errorf("%v; shown %q by %q, want %q", err, shown, client, want)
		}
	}
	post("first")
	cert, key = certificateOf(t, "second")
	writeFile(t, certFile, cert)
	post("first") // the two do not fit together yet
	writeFile(t, keyFile, key)
	post("second")
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	if _, err := made.Post(t.Context(), nil); err == nil {
		t.Error("without the key's file it goes on")
	}
}
