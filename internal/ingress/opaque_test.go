package ingress

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
	"github.com/sallyport/sallyport/internal/state"
)

// askingVerifier asks the stage's issuer about tokens.
func (s *stage) askingVerifier(change func(*bearer.Issuer)) *bearer.Verifier {
	s.t.Helper()
	secret := filepath.Join(s.t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cr3t"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	i := bearer.Issuer{Issuer: s.issuer.URL, Audience: []string{sallytest.Audience}, Introspection: &bearer.Introspection{
		Endpoint: s.issuer.URL + sallytest.PathIntrospection, ClientID: "gate", SecretFile: secret, Cache: 30 * time.Second,
	}}
	if change != nil {
		change(&i)
	}
	v, err := bearer.NewVerifier([]bearer.Issuer{i}, bearer.Options{Bound: true})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(v.Close)
	return v
}

// askingStage is a gate whose issuer is asked about tokens.
func askingStage(t *testing.T, change func(*stage)) *stage {
	return proving(t, func(s *stage) {
		p, err := policy.New([]policy.Route{
			{Name: "a", Match: "GET /a", Scopes: []string{"foo"}, Unprivileged: true},
			{Name: "b", Match: "GET /b", Scopes: []string{"bar"}, Unprivileged: true},
			{Name: "tenant", Match: "GET /t/{tenant}", When: "claims.tenant == path.tenant", Unprivileged: true},
			{Name: "privileged", Match: "GET /privileged", AnyCaller: true},
			{Name: "events", Match: "GET /events", AnyCaller: true, Unprivileged: true},
			{Name: "bound", Match: "GET /bound", AnyCaller: true, Bound: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.config.Rules.Policy = p
		s.config.Rules.Verifier = s.askingVerifier(nil)
		if change != nil {
			change(s)
		}
	})
}

func (s *stage) questions() int { return s.issuer.Fetches(sallytest.PathIntrospection) }

// TestOpaqueVerdictIsNotKept is row I03: what is kept of a token is what was said of it, and every route judges that.
func TestOpaqueVerdictIsNotKept(t *testing.T) {
	s := askingStage(t, nil)
	token := bearerHeader(s.issuer.Opaque(map[string]any{"scope": "foo", "tenant": "acme"}))
	if a, _ := s.ask(get("/a", token)); a.StatusCode != 200 {
		t.Fatalf("%d %s", a.StatusCode, a.code)
	}
	s.refused(get("/b", token), 403, "insufficient_scope")
	s.refused(get("/t/other", token), 403, "condition_false")
	if a, _ := s.ask(get("/t/acme", token)); a.StatusCode != 200 {
		t.Errorf("%d %s", a.StatusCode, a.code)
	}
	s.refused(get("/bound", token), 401, "binding_required") // privileged: asked again
	if n := s.questions(); n != 2 {
		t.Errorf("asked %d times", n)
	}
	if strings.Contains(s.audit.String()+s.log.String(), strings.TrimPrefix(token, "Authorization: Bearer ")) {
		t.Error("the token is in the log")
	}
}

// TestOpaqueOnPrivilegedRoutes holds that what was said of a token a moment ago lets nobody in there.
func TestOpaqueOnPrivilegedRoutes(t *testing.T) {
	s := askingStage(t, nil)
	token := s.issuer.Opaque(map[string]any{"scope": "foo"})
	for n := range 3 {
		if a, _ := s.ask(get("/privileged", bearerHeader(token))); a.StatusCode != 200 || s.questions() != n+1 {
			t.Fatalf("%d %s, asked %d times", a.StatusCode, a.code, s.questions())
		}
	}
	s.ask(get("/a", bearerHeader(token)))
	s.issuer.End(token)
	if a, _ := s.ask(get("/a", bearerHeader(token))); a.StatusCode != 200 || s.questions() != 3 {
		t.Errorf("where it may be used it is not: %d %s, asked %d times", a.StatusCode, a.code, s.questions())
	}
	a := s.refused(get("/privileged", bearerHeader(token)), 401, "token_inactive")
	if !strings.Contains(strings.Join(a.Header["Www-Authenticate"], ","), `error="invalid_token"`) {
		t.Errorf("challenge %q", a.Header["Www-Authenticate"])
	}
	s.refused(get("/a", bearerHeader(token)), 401, "token_inactive") // and that is known from then on
}

// TestOpaqueServerDown is row I02: a gate that cannot ask answers 503, and not 401 nor what the service says.
func TestOpaqueServerDown(t *testing.T) {
	for _, status := range []int{401, 403, 404, 429, 500, 302} {
		s := askingStage(t, nil)
		token := bearerHeader(s.issuer.Opaque(map[string]any{"scope": "foo"}))
		s.issuer.Fail(status)
		for range 2 {
			a := s.refused(get("/a", token), 503, "introspection_unavailable")
			if a.Header.Get("Retry-After") == "" || len(a.Header["Www-Authenticate"]) > 0 {
				t.Errorf("%v", a.Header)
			}
		}
	}
}

// TestOpaqueBinding is row I07: a binding that only the answer tells of is enforced as if the token told it.
func TestOpaqueBinding(t *testing.T) {
	s := askingStage(t, nil)
	h := sallytest.NewHolder(t, "ES256")
	token := s.issuer.Opaque(map[string]any{"scope": "foo", "cnf": map[string]any{"jkt": h.Thumbprint()}, "token_type": "DPoP"})
	s.refused(get("/a", bearerHeader(token)), 401, "sender_constrained")
	s.refused(get("/a", dpop(token)), 401, "invalid_dpop_proof")
	for _, path := range []string{"/a", "/bound"} {
		if a, _ := s.ask(get(path, dpop(token), "DPoP: "+h.Proof("GET", publicURL+path, token, nil))); a.StatusCode != 200 {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.code)
		}
	}
	other := sallytest.NewHolder(t, "ES256")
	s.refused(get("/a", dpop(token), "DPoP: "+other.Proof("GET", publicURL+"/a", token, nil)), 401, "invalid_dpop_proof")
	odd := s.issuer.Opaque(map[string]any{"scope": "foo", "cnf": map[string]any{"kid": "x"}})
	s.refused(get("/a", bearerHeader(odd)), 401, "sender_constrained")
}

// TestOpaqueRevoked holds that a token is ended here by its jti, its subject, or where it has no jti by its digest, though it is
// known to be active.
func TestOpaqueRevoked(t *testing.T) {
	s := askingStage(t, nil)
	named := s.issuer.Opaque(map[string]any{"scope": "foo", "jti": "t1"})
	unnamed := s.issuer.Opaque(map[string]any{"scope": "foo", "jti": nil, "sub": "bob"})
	for _, token := range []string{named, unnamed} {
		if a, _ := s.ask(get("/a", bearerHeader(token))); a.StatusCode != 200 {
			t.Fatalf("%d %s", a.StatusCode, a.code)
		}
	}
	sum := sha256.Sum256([]byte(unnamed))
	digest := base64.RawURLEncoding.EncodeToString(sum[:])
	if !strings.Contains(s.audit.String(), digest) || !strings.Contains(s.audit.String(), `"t1"`) {
		t.Error("the records name no token that could be revoked")
	}
	s.revoke(state.Revocation{TokenID: "t1"})
	s.refused(get("/a", bearerHeader(named)), 401, "revoked")
	s.revoke(state.Revocation{Digest: digest})
	s.refused(get("/a", bearerHeader(unnamed)), 401, "revoked")
	later := s.issuer.Opaque(map[string]any{"scope": "foo", "sub": "bob"})
	s.revoke(state.Revocation{Subject: "bob"})
	s.refused(get("/a", bearerHeader(later)), 401, "revoked")
}

// TestOpaqueFlood is row I08 at the gate: who sends many tokens that nobody has issued is told to wait, and nobody else is.
func TestOpaqueFlood(t *testing.T) {
	s := askingStage(t, func(s *stage) { s.config.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} })
	const from, other = "X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2"
	good := bearerHeader(s.issuer.Opaque(map[string]any{"scope": "foo"}))
	s.ask(get("/a", good, from))
	p, seen := s.dial(), map[int]int{}
	var last reply
	for n := 0; seen[429] < 20 && n < 5000; n++ { // a slow machine has some of the budget come back meanwhile
		p.send(get("/a", bearerHeader(fmt.Sprint("invented-", n)), from))
		last = p.read("GET")
		seen[last.StatusCode]++
	}
	if seen[401] < 90 || seen[429] != 20 || len(seen) != 2 || last.code != "too_many_unknown_tokens" || last.Header.Get("Retry-After") == "" {
		t.Errorf("%v, the last %s", seen, last.code)
	}
	if n := s.questions(); n != 1+seen[401] {
		t.Errorf("the server was asked %d times", n)
	}
	if a, _ := s.ask(get("/a", good, from)); a.StatusCode != 200 {
		t.Errorf("a token that is known: %d %s", a.StatusCode, a.code)
	}
	if a, _ := s.ask(get("/a", bearerHeader(s.issuer.Opaque(map[string]any{"scope": "foo"})), other)); a.StatusCode != 200 {
		t.Errorf("a token of somebody else: %d %s", a.StatusCode, a.code)
	}
}

// TestOpaqueStream holds that a stream of a token that has ended at its issuer ends, that it goes on while the issuer cannot be
// asked, and that a reload asks nobody.
func TestOpaqueStream(t *testing.T) {
	service, _ := lively(t)
	s := askingStage(t, func(s *stage) {
		s.config.Upstream = mustURL(t, service.URL)
		s.config.Rules.Verifier = s.askingVerifier(func(i *bearer.Issuer) { i.Introspection.Cache = 0 })
	})
	open := func(token string) *peer {
		p := s.dial()
		p.SetDeadline(time.Now().Add(2 * time.Minute))
		p.send(get("/events", bearerHeader(token)))
		res, err := http.ReadResponse(p.r, &http.Request{Method: "GET"})
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v %v", res, err)
		}
		if _, err := res.Body.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	ending, other := s.issuer.Opaque(nil), s.issuer.Opaque(map[string]any{"sub": "bob"})
	first, second := open(ending), open(other)
	s.gateway.askAgain(t.Context())

	s.issuer.Fail(500)
	before := s.questions()
	rules := s.config.Rules
	rules.Verifier = s.askingVerifier(nil)
	if err := s.gateway.Swap(rules); err != nil {
		t.Fatal(err)
	}
	if n := s.questions() - before; n != 0 {
		t.Errorf("a reload has asked %d times", n)
	}
	s.gateway.askAgain(t.Context())
	for _, p := range []*peer{first, second} {
		if _, err := p.r.ReadString('\n'); err != nil {
			t.Fatalf("a stream has ended with nobody to ask: %v", err)
		}
	}
	s.issuer.Fail(0)
	s.issuer.End(ending)
	eventually(t, "the stream of a token that is not active has ended", func() bool {
		s.gateway.askAgain(t.Context())
		_, outcomes := s.audit.entries(t)
		for _, o := range outcomes {
			if o.Error == "token_inactive" {
				return true
			}
		}
		return false
	})
	if !first.endsNow() {
		t.Error("the connection is open")
	}
	if _, err := second.r.ReadString('\n'); err != nil {
		t.Errorf("the stream of another token has ended: %v", err)
	}
	// new rules judge what was said
	rules.Verifier = s.askingVerifier(func(i *bearer.Issuer) { i.Required = []string{"tenant"} })
	if err := s.gateway.Swap(rules); err != nil {
		t.Fatal(err)
	}
	if !second.endsNow() {
		t.Error("a stream goes on that the new rules would not let in")
	}
}

// endsNow reads what is left of a stream to the end of the connection.
func (p *peer) endsNow() bool {
	for {
		if _, err := p.r.ReadByte(); err != nil {
			return !os.IsTimeout(err)
		}
	}
}

// TestOpaqueExplained holds that --explain says of an opaque token what the line does.
func TestOpaqueExplained(t *testing.T) {
	s := askingStage(t, nil)
	e := s.gateway.Explain(t.Context(), "GET", "/a", "localhost", bearer.NewToken(s.issuer.Opaque(map[string]any{"scope": "foo"})))
	if !e.Decision.Allowed() {
		t.Errorf("%+v", e)
	}
	if e := s.gateway.Explain(t.Context(), "GET", "/a", "localhost", bearer.NewToken("invented")); e.Decision.Code != "token_inactive" || e.Status != 401 {
		t.Errorf("%+v", e)
	}
}
