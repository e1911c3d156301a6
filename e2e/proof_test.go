package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// selfSigned makes a certificate that no authority has signed, and its key, PEM.
func selfSigned(t testing.TB) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// TestProofOfPossession holds the program to tokens that a real authorization server has bound to their senders: to a key
// (RFC 9449), and to a certificate (RFC 8705).
func TestProofOfPossession(t *testing.T) {
	t.Parallel()
	as := startAuthServer(t, []resource{{misfitAudience, "ES256", []string{"use"}}},
		client{ID: "holder", DPoP: true}, client{ID: "certified", MTLS: true}, client{ID: "tester"})
	routes := func(more ...setting) []setting {
		return append(more, setting{"name": "read", "match": "GET /{rest...}", "scopes": []string{"use"}})
	}

	t.Run("a key", func(t *testing.T) {
		const public = "https://orders.example.com"
		p := startProduct(t, misfit(t, as, "honest", setting{"ingress": setting{
			"public_url": public,
			"routes": routes(
				setting{"name": "bound", "match": "GET /bound", "scopes": []string{"use"}, "sender_constrained": "required"},
				setting{"name": "fresh", "match": "GET /fresh", "scopes": []string{"use"}, "sender_constrained": "required", "dpop_nonce": "required"},
			),
		}}))
		h := sallytest.NewHolder(t, "ES256")
		proof := h.Proof("POST", as.Issuer+"/token", "", map[string]any{"ath": nil})
		token := as.tokenAt(t, http.DefaultClient, as.Issuer, "holder", misfitAudience, http.Header{"Dpop": {proof}}, "use")
		if _, claims := parts(t, token); claims["cnf"].(map[string]any)["jkt"] != h.Thumbprint() {
			t.Fatalf("the token is not bound: %v", claims)
		}
		ask := func(path, scheme, proof string) answer {
			header := []string{"Authorization", scheme + " " + token}
			if proof != "" {
				header = append(header, "DPoP", proof)
			}
			return p.fetch(t, http.MethodGet, path, "", nil, header...)
		}
		for _, path := range []string{"/", "/bound"} {
			good := h.Proof("GET", public+path, token, nil)
			if a := ask(path, "DPoP", good); a.code() == "invalid_dpop_proof" || a.status >= 400 && a.status != 404 {
				t.Errorf("%s with a proof: %d %s", path, a.status, a.code())
			}
			for what, a := range map[string]answer{
				"the same proof again": ask(path, "DPoP", good),
				"no proof":             ask(path, "DPoP", ""),
				"for another path":     ask(path, "DPoP", h.Proof("GET", public+"/other", token, nil)),
				"as Bearer":            ask(path, "Bearer", h.Proof("GET", public+path, token, nil)),
			} {
				if a.status != 401 || !strings.Contains(strings.Join(a.header["Www-Authenticate"], ","), "DPoP ") {
					t.Errorf("%s, %s: %d %s", path, what, a.status, a.code())
				}
			}
		}
		if a := p.fetch(t, http.MethodGet, "/bound", as.token(t, "tester", misfitAudience, "use"), nil); a.status != 401 || a.code() != "binding_required" {
			t.Errorf("a token that is not bound: %d %s", a.status, a.code())
		}
		a := ask("/fresh", "DPoP", h.Proof("GET", public+"/fresh", token, nil))
		nonce := a.header.Get("DPoP-Nonce")
		if a.status != 401 || a.code() != "use_dpop_nonce" || nonce == "" {
			t.Fatalf("without a nonce: %d %s", a.status, a.code())
		}
		if a := ask("/fresh", "DPoP", h.Proof("GET", public+"/fresh", token, map[string]any{"nonce": nonce})); a.status == 401 {
			t.Errorf("with the nonce: %d %s", a.status, a.code())
		}
		p.complete(t)
	})

	t.Run("a certificate", func(t *testing.T) {
		dir := openDir(t)
		cert, key := selfSigned(t)
		for name, data := range map[string][]byte{"cert.pem": cert, "key.pem": key} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p := startProduct(t, misfit(t, as, "honest", setting{"ingress": setting{
			"tls":    setting{"cert": filepath.Join(dir, "cert.pem"), "key": filepath.Join(dir, "key.pem"), "client_certificates": "requested"},
			"routes": routes(setting{"name": "bound", "match": "GET /bound", "scopes": []string{"use"}, "sender_constrained": "required"}),
		}}))
		by := func(cert, key []byte) *http.Client {
			config := &tls.Config{InsecureSkipVerify: true}
			if cert != nil {
				pair, err := tls.X509KeyPair(cert, key)
				if err != nil {
					t.Fatal(err)
				}
				config.Certificates = []tls.Certificate{pair}
			}
			c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: config}}
			t.Cleanup(c.CloseIdleConnections)
			return c
		}
		mine, other, nobody := by(selfSigned(t)), by(selfSigned(t)), by(nil, nil)
		token := as.tokenAt(t, mine, as.Secure, "certified", misfitAudience, nil, "use")
		if _, claims := parts(t, token); claims["cnf"].(map[string]any)["x5t#S256"] == nil {
			t.Fatalf("the token is not bound: %v", claims)
		}
		for _, path := range []string{"/", "/bound"} {
			for _, c := range []struct {
				name string
				by   *http.Client
				ok   bool
			}{{"the certificate", mine, true}, {"another", other, false}, {"none", nobody, false}, {"the certificate, again", mine, true}} {
				req, err := http.NewRequest(http.MethodGet, strings.Replace(p.url, "http:", "https:", 1)+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+token)
				resp, err := c.by.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if refused := strings.Contains(string(body), "certificate_mismatch"); refused == c.ok || (resp.StatusCode == 401) == c.ok {
					t.Errorf("%s with %s: %d %.100s", path, c.name, resp.StatusCode, body)
				}
			}
		}
	})
}
