package ingress

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
	"github.com/sallyport/sallyport/internal/state"
)

const publicURL = "https://api.example.com"

// localState is the real store of one node.
func localState(t testing.TB) state.Store {
	t.Helper()
	s, err := state.Open(state.Config{Path: filepath.Join(t.TempDir(), "state.db")}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// proving is a stage on which proofs are asked for, and their routes.
func proving(t testing.TB, change func(*stage)) *stage {
	t.Helper()
	return open(t, func(s *stage) {
		s.config.PublicURL, s.config.State = publicURL, localState(t)
		p, err := policy.New(append(testRoutes(),
			policy.Route{Name: "bound", Match: "GET /bound", AnyCaller: true, Bound: true},
			policy.Route{Name: "fresh", Match: "GET /fresh", AnyCaller: true, Bound: true, Nonce: true},
			policy.Route{Name: "named", Match: "GET /named", AnyCaller: true, TokenID: true},
			policy.Route{Name: "plain", Match: "GET /plain", AnyCaller: true, Unprivileged: true},
		))
		if err != nil {
			t.Fatal(err)
		}
		s.config.Rules.Policy = p
		if change != nil {
			change(s)
		}
	})
}

// bind makes a token that is bound to a key.
func (s *stage) bind(h *sallytest.Holder) string {
	return s.issuer.Token(map[string]any{"cnf": map[string]any{"jkt": h.Thumbprint()}})
}

func dpop(token string) string { return "Authorization: DPoP " + token }

// P01, P02 and C06, through the whole gate: what is no proof of this request reaches no service.
func TestProofOfAKey(t *testing.T) {
	s := proving(t, nil)
	h, other := sallytest.NewHolder(t, "ES256"), sallytest.NewHolder(t, "ES256")
	token := s.bind(h)
	url := publicURL + "/orders/1"
	proof := func(changes map[string]any) string { return "DPoP: " + h.Proof("GET", url, token, changes) }
	for _, c := range []struct {
		name string
		raw  string
		code string
	}{
		{"P01 no proof", get("/orders/1", dpop(token)), "invalid_dpop_proof"},
		{"P01 two proofs", get("/orders/1", dpop(token), proof(nil), proof(nil)), "invalid_dpop_proof"},
		{"P01 expired iat", get("/orders/1", dpop(token), proof(map[string]any{"iat": time.Now().Unix() - 70})), "invalid_dpop_proof"},
		{"P01 future iat", get("/orders/1", dpop(token), proof(map[string]any{"iat": time.Now().Unix() + 20})), "invalid_dpop_proof"},
		{"P01 another method", request("HEAD", "/orders/1", "", dpop(token), proof(nil)), "invalid_dpop_proof"},
		{"P01 another path", get("/orders/2", dpop(token), proof(nil)), "invalid_dpop_proof"},
		{"P01 another encoding", get("/orders/%31", dpop(token), proof(nil)), "invalid_dpop_proof"},
		{"P01 another host", get("/orders/1", dpop(token), proof(map[string]any{"htu": "https://evil.example.com/orders/1"})), "invalid_dpop_proof"},
		{"P01 another port", get("/orders/1", dpop(token), proof(map[string]any{"htu": "https://api.example.com:8443/orders/1"})), "invalid_dpop_proof"},
		{"P01 another scheme", get("/orders/1", dpop(token), proof(map[string]any{"htu": "http://api.example.com/orders/1"})), "invalid_dpop_proof"},
		{"P01 missing ath", get("/orders/1", dpop(token), proof(map[string]any{"ath": nil})), "invalid_dpop_proof"},
		{"P01 proof for another token", get("/orders/1", dpop(s.bind(h)), proof(nil)), "invalid_dpop_proof"},
		{"P02 another key", get("/orders/1", dpop(token), "DPoP: "+other.Proof("GET", url, token, nil)), "invalid_dpop_proof"},
		{"P02 an access token in its place", get("/orders/1", dpop(token), "DPoP: "+token), "invalid_dpop_proof"},
		{"C06 downgrade to Bearer", get("/orders/1", bearerHeader(token)), "sender_constrained"},
		{"C06 downgrade, with the proof", get("/orders/1", bearerHeader(token), proof(nil)), "sender_constrained"},
		{"the scheme DPoP for a token that is not bound", get("/orders/1", dpop(s.token("orders:read")), proof(nil)), "invalid_dpop_proof"},
		{"cnf that nobody can enforce", get("/orders/1", bearerHeader(s.issuer.Token(map[string]any{"cnf": map[string]any{"kid": "k"}}))), "sender_constrained"},
		{"cnf empty", get("/orders/1", bearerHeader(s.issuer.Token(map[string]any{"cnf": map[string]any{}}))), "sender_constrained"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			a, _ := s.denied(c.raw, 401, c.code)
			challenge := strings.Join(a.Header["Www-Authenticate"], ", ")
			want := c.code
			if c.code == "sender_constrained" {
				want = "invalid_token"
			}
			if !strings.Contains(challenge, "DPoP ") || !strings.Contains(challenge, `error="`+want+`"`) || !strings.Contains(challenge, `algs="ES256 `) {
				t.Errorf("challenge %q", challenge)
			}
		})
	}
	for _, h := range []*sallytest.Holder{h, sallytest.NewHolder(t, "EdDSA"), sallytest.NewHolder(t, "PS256"), sallytest.NewHolder(t, "ES384")} {
		token := s.bind(h)
		a, _ := s.ask(get("/orders/1?a=b", dpop(token), "DPoP: "+h.Proof("GET", url, token, nil)))
		if a.StatusCode != 200 {
			t.Errorf("%s: %d %s", h.Algorithm, a.StatusCode, a.code)
		}
	}
	if got := string(s.service.Raw()); strings.Contains(strings.ToLower(got), "dpop") || strings.Contains(got, token) {
		t.Errorf("the proof or the token has reached the service: %q", got)
	}
	if log := s.audit.String(); !strings.Contains(log, `"proof":"dpop"`) || strings.Contains(log, token) {
		t.Errorf("the record: %s", log)
	}
	// a proof is of the path as it was sent, which the gate respells before it forwards
	token = s.bind(h)
	if a, _ := s.ask(get("/orders/%31", dpop(token), "DPoP: "+h.Proof("GET", publicURL+"/orders/%31", token, nil))); a.StatusCode != 200 {
		t.Errorf("as sent: %d %s", a.StatusCode, a.code)
	}
}

// Without public_url nobody can tell which gate a proof is of.
func TestProofNeedsAPublicURL(t *testing.T) {
	s := proving(t, func(s *stage) { s.config.PublicURL = "" })
	h := sallytest.NewHolder(t, "ES256")
	token := s.bind(h)
	a, _ := s.denied(get("/orders/1", dpop(token), "DPoP: "+h.Proof("GET", "http://api.example.com/orders/1", token, nil)), 401, "sender_constrained")
	if c := a.Header["Www-Authenticate"]; len(c) != 1 || strings.Contains(c[0], "DPoP") {
		t.Errorf("challenge %q offers what is not taken", c)
	}
	for _, bad := range []string{"api.example.com", "https://API.example.com", "https://a.example.com:443", "https://u@a.example.com", "https://a.example.com/?q", "https://a.example.com/#f", "ftp://a.example.com", "https://"} {
		if _, err := CheckPublicURL(bad); err == nil {
			t.Errorf("public_url %q passes", bad)
		}
	}
	for in, want := range map[string]string{"https://a.example.com/": "https://a.example.com", "http://127.0.0.1:8080": "http://127.0.0.1:8080", "https://a.example.com/api/": "https://a.example.com/api"} {
		if got, err := CheckPublicURL(in); got != want || err != nil {
			t.Errorf("public_url %q is %q, %v", in, got, err)
		}
	}
}

// P08: a route may take bound tokens only.
func TestSenderConstrainedRoute(t *testing.T) {
	s := proving(t, nil)
	a, _ := s.denied(get("/bound", bearerHeader(s.token("orders:read"))), 401, "binding_required")
	if c := a.Header["Www-Authenticate"]; len(c) != 1 || !strings.HasPrefix(c[0], `DPoP realm="sallyport", error="invalid_token", algs="`) {
		t.Errorf("challenge %q", c)
	}
	a, _ = s.denied(get("/bound"), 401, "missing_token")
	if c := a.Header["Www-Authenticate"]; len(c) != 1 || !strings.HasPrefix(c[0], `DPoP realm="sallyport", algs="`) {
		t.Errorf("challenge %q", c)
	}
	a, _ = s.denied(get("/orders/1"), 401, "missing_token")
	if c := a.Header["Www-Authenticate"]; len(c) != 2 || !strings.HasPrefix(c[0], `Bearer realm="sallyport"`) || !strings.HasPrefix(c[1], `DPoP realm="sallyport"`) {
		t.Errorf("challenges %q", c)
	}
	h := sallytest.NewHolder(t, "ES256")
	token := s.bind(h)
	if a, _ := s.ask(get("/bound", dpop(token), "DPoP: "+h.Proof("GET", publicURL+"/bound", token, nil))); a.StatusCode != 200 {
		t.Errorf("with a proof: %d %s", a.StatusCode, a.code)
	}
}

// P03: of all who send one proof, one after another or at once, to two gates on one store, exactly one is let in.
func TestProofIsUsedOnce(t *testing.T) {
	s := proving(t, nil)
	second := proving(t, func(two *stage) {
		two.config.State, two.issuer, two.service = s.config.State, s.issuer, s.service
		two.config.Rules.Verifier = s.config.Rules.Verifier
	})
	h := sallytest.NewHolder(t, "ES256")
	for range 10 {
		token := s.bind(h)
		raw := get("/orders/1", dpop(token), "DPoP: "+h.Proof("GET", publicURL+"/orders/1", token, nil))
		const each = 8
		var all sync.WaitGroup
		answers := make(chan int, 2*each)
		for _, gate := range []*stage{s, second} {
			for range each {
				p := gate.dial()
				all.Go(func() {
					io.WriteString(p, raw)
					res, err := http.ReadResponse(p.r, nil)
					if err != nil {
						answers <- 0
						return
					}
					answers <- res.StatusCode
				})
			}
		}
		all.Wait()
		counts := map[int]int{}
		for range 2 * each {
			counts[<-answers]++
		}
		if counts[200] != 1 || counts[401] != 2*each-1 {
			t.Fatalf("one proof, %d times: %v", 2*each, counts)
		}
	}
	if n := s.service.Requests(); n != 10 {
		t.Errorf("%d requests reached the service, want 10", n)
	}
	// the same jti of another key is another proof
	for _, h := range []*sallytest.Holder{h, sallytest.NewHolder(t, "ES256")} {
		token := s.bind(h)
		if a, _ := s.ask(get("/orders/1", dpop(token), "DPoP: "+h.Proof("GET", publicURL+"/orders/1", token, map[string]any{"jti": "one"}))); a.StatusCode != 200 {
			t.Errorf("%d %s", a.StatusCode, a.code)
		}
	}
}

// brokenState is a real store that is changed.
type brokenState struct {
	state.Store
	mu      sync.Mutex
	once    error
	ready   error
	age     time.Duration
	revoked func(state.Token) (state.Revocation, bool) // nil: as the store says
}

func (b *brokenState) set(change func()) { b.mu.Lock(); defer b.mu.Unlock(); change() }

func (b *brokenState) Once(ctx context.Context, kind, id string, until time.Time) (bool, error) {
	b.mu.Lock()
	err := b.once
	b.mu.Unlock()
	if err != nil {
		return false, err
	}
	return b.Store.Once(ctx, kind, id, until)
}

func (b *brokenState) Age() time.Duration { b.mu.Lock(); defer b.mu.Unlock(); return b.age }
func (b *brokenState) Ready() error       { b.mu.Lock(); defer b.mu.Unlock(); return b.ready }

func (b *brokenState) Revoked(t state.Token) (state.Revocation, bool) {
	b.mu.Lock()
	f := b.revoked
	b.mu.Unlock()
	if f != nil {
		return f(t)
	}
	return b.Store.Revoked(t)
}

// P04: where nobody can say whether a proof was used, it counts as used; said, counted and recorded.
func TestReplayStoreDown(t *testing.T) {
	broken := &brokenState{}
	s := proving(t, func(s *stage) {
		broken.Store = s.config.State
		s.config.State = broken
	})
	h := sallytest.NewHolder(t, "ES256")
	token := s.bind(h)
	raw := get("/orders/1", dpop(token), "DPoP: "+h.Proof("GET", publicURL+"/orders/1", token, nil))
	broken.set(func() { broken.once = errors.New("no quorum") })
	s.denied(raw, 503, "replay_unknown")
	if log := s.log.String(); !strings.Contains(log, "no quorum") {
		t.Errorf("the log does not say it: %s", log)
	}
	broken.set(func() { broken.once = nil })
	if a, _ := s.ask(raw); a.StatusCode != 200 {
		t.Errorf("afterwards: %d %s", a.StatusCode, a.code)
	}
	none := proving(t, func(s *stage) { s.config.State = nil })
	token = none.bind(h)
	none.denied(get("/orders/1", dpop(token), "DPoP: "+h.Proof("GET", publicURL+"/orders/1", token, nil)), 503, "replay_unknown")
}

// P05: a route may want a nonce of ours in the proof; whoever lacks one is told one that does.
func TestNonce(t *testing.T) {
	secret := func() ([]byte, error) { return []byte("shared"), nil }
	s := proving(t, func(s *stage) { s.config.NonceSecret = secret })
	replica := proving(t, func(r *stage) {
		r.config.NonceSecret, r.config.State, r.issuer = secret, s.config.State, s.issuer
		r.config.Rules.Verifier = s.config.Rules.Verifier
	})
	stranger := proving(t, func(r *stage) {
		r.config.State, r.issuer = s.config.State, s.issuer
		r.config.Rules.Verifier = s.config.Rules.Verifier
	})
	h := sallytest.NewHolder(t, "ES256")
	token, other := s.bind(h), s.bind(h)
	fresh := func(token string, nonce any) string {
		return get("/fresh", dpop(token), "DPoP: "+h.Proof("GET", publicURL+"/fresh", token, map[string]any{"nonce": nonce}))
	}
	a, _ := s.denied(fresh(token, nil), 401, "use_dpop_nonce")
	nonce := a.Header.Get("DPoP-Nonce")
	if c := a.Header.Get("WWW-Authenticate"); !strings.HasPrefix(c, `DPoP realm="sallyport", error="use_dpop_nonce", algs="`) || nonce == "" {
		t.Fatalf("challenge %q, nonce %q", c, nonce)
	}
	stale, err := s.gateway.nonces.New(sha256.Sum256([]byte(token)), time.Now().Add(-6*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	old, err := s.gateway.nonces.New(sha256.Sum256([]byte(token)), time.Now().Add(-4*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		gate  *stage
		raw   string
		ok    bool
		fresh bool
	}{
		{"stale", s, fresh(token, stale), false, true},
		{"for another token", s, fresh(other, nonce), false, true},
		{"of the client's making", s, fresh(token, "nonce"), false, true},
		{"of a replica without the secret", stranger, fresh(token, nonce), false, true},
		{"good", s, fresh(token, nonce), true, false},
		{"good again, in another proof", s, fresh(token, nonce), true, false},
		{"good at a replica", replica, fresh(token, nonce), true, false},
		{"old, so that a successor is told", s, fresh(token, old), true, true},
	} {
		a, _ := c.gate.ask(c.raw)
		if (a.StatusCode == 200) != c.ok || !c.ok && (a.StatusCode != 401 || a.code != "use_dpop_nonce") {
			t.Errorf("%s: %d %s", c.name, a.StatusCode, a.code)
		}
		if got := a.Header.Get("DPoP-Nonce"); (got != "") != c.fresh || got == nonce {
			t.Errorf("%s: told the nonce %q", c.name, got)
		}
	}
}

// a holder of a certificate that no authority has signed
func clientCertificate(t testing.TB) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "client"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, base64.RawURLEncoding.EncodeToString(sum[:])
}

// P07: a token that is bound to a certificate is taken on a connection whose handshake has shown that certificate.
func TestProofOfACertificate(t *testing.T) {
	server, _ := clientCertificate(t)
	mine, thumbprint := clientCertificate(t)
	other, _ := clientCertificate(t)
	s := setStage(t, func(s *stage) {
		s.config.State, s.config.PublicURL = localState(t), publicURL
		s.config.TLS = &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert}
		p, err := policy.New(append(testRoutes(), policy.Route{Name: "bound", Match: "GET /bound", AnyCaller: true, Bound: true}))
		if err != nil {
			t.Fatal(err)
		}
		s.config.Rules.Policy = p
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.serve(l)
	token := s.issuer.Token(map[string]any{"cnf": map[string]any{"x5t#S256": thumbprint}})
	cache := tls.NewLRUClientSessionCache(8)
	ask := func(c *tls.Certificate, raw string) (reply, bool) {
		t.Helper()
		config := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", ClientSessionCache: cache}
		if c != nil {
			config.Certificates = []tls.Certificate{*c}
		}
		conn, err := tls.Dial("tcp", s.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		p := &peer{Conn: conn, t: t, r: newReader("")}
		p.r.Reset(conn)
		p.send(raw)
		return p.read("GET"), conn.ConnectionState().DidResume
	}
	pem := "X-Forwarded-Client-Cert: Hash=" + thumbprint
	for _, c := range []struct {
		name string
		cert *tls.Certificate
		raw  string
		code string // empty: let in
	}{
		{"no certificate", nil, get("/orders/1", bearerHeader(token)), "certificate_mismatch"},
		{"another", &other, get("/orders/1", bearerHeader(token)), "certificate_mismatch"},
		{"in a header", nil, get("/orders/1", bearerHeader(token), pem, "Client-Cert: "+thumbprint), "certificate_mismatch"},
		{"as DPoP", &mine, get("/orders/1", dpop(token)), "invalid_dpop_proof"},
		{"the one", &mine, get("/orders/1", bearerHeader(token)), ""},
		{"the one, where it is required", &mine, get("/bound", bearerHeader(token)), ""},
		{"a session of the one, resumed with another", &other, get("/orders/1", bearerHeader(token)), "certificate_mismatch"},
		{"unbound where it is required", &mine, get("/bound", bearerHeader(s.token(""))), "binding_required"},
		{"a token that is not bound", nil, get("/orders/1", bearerHeader(s.token("orders:read"))), ""},
	} {
		a, resumed := ask(c.cert, c.raw)
		if c.code == "" && a.StatusCode != 200 || c.code != "" && (a.StatusCode != 401 || a.code != c.code) {
			t.Errorf("P07 %s: %d %s", c.name, a.StatusCode, a.code)
		}
		if resumed {
			t.Errorf("P07 %s: the session was resumed, so no certificate was shown", c.name)
		}
	}
}

// P07: behind a server of somebody else that does resume sessions, what was shown in an earlier handshake proves nothing.
func TestResumedSessionShowsNoCertificate(t *testing.T) {
	mine, _ := clientCertificate(t)
	leaf, err := x509.ParseCertificate(mine.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, resumed := range []bool{false, true} {
		x := &exchange{r: &http.Request{TLS: &tls.ConnectionState{DidResume: resumed, PeerCertificates: []*x509.Certificate{leaf}}}}
		if (x.certificate() == nil) != resumed {
			t.Errorf("resumed: %t, and a certificate is taken: %t", resumed, !resumed)
		}
	}
}
