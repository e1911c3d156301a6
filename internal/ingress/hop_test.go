package ingress

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/sallytest"
)

const (
	firstIssuer = "https://auth.example.com" // of the tokens that the gate of cart verified
	domain      = "shop.example"
)

// neighbour is the gate of the service cart, which calls orders: its signer, and the file of its published keys.
type neighbour struct {
	*identity.Signer
	jwks string
}

func newNeighbour(t testing.TB) neighbour {
	n := neighbour{jwks: filepath.Join(t.TempDir(), "jwks.json")}
	n.Signer = &identity.Signer{Issuer: "https://cart-gate.example", Audience: "cart", TrustDomain: domain, Claims: []string{"tenant"}, Key: n.publish(t)}
	return n
}

// publish makes a key and publishes it alone.
func (n neighbour) publish(t testing.TB) func() identity.Key {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := identity.Key{ID: identity.Thumbprint(public), Private: private}
	n.write(t, fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"%s","kid":"%s"}]}`, base64.RawURLEncoding.EncodeToString(public), key.ID))
	return func() identity.Key { return key }
}

func (n neighbour) write(t testing.TB, set string) {
	if err := os.WriteFile(n.jwks+".new", []byte(set), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(n.jwks+".new", n.jwks); err != nil {
		t.Fatal(err)
	}
}

// caller is who called cart.
func (n neighbour) caller(scopes ...string) identity.Caller {
	return identity.Caller{
		Issuer: firstIssuer, Subject: "alice", Client: "shop", Scopes: scopes, TokenID: "at-1", IssuedAt: time.Now().Add(-time.Minute).Truncate(time.Second),
		Expires: time.Now().Add(time.Hour), Claims: map[string]any{"tenant": "acme", "sid": "s-1"}, Transaction: "txn-1",
	}
}

// next is what cart's gate signs for orders: whatever the caller has passes, so that it is this gate that narrows.
func (n neighbour) next(t testing.TB, c identity.Caller) string {
	t.Helper()
	signed, err := n.Next(c, "orders", c.Scopes, "checkout", "req-1")
	if err != nil {
		t.Fatal(err)
	}
	return "Txn-Token: " + signed
}

// hopStage is a gate that believes cart's of orders:read and callers of firstIssuer.
func hopStage(t *testing.T, change func(*stage)) (*stage, neighbour) {
	n := newNeighbour(t)
	s := open(t, func(s *stage) {
		keys, err := bearer.NewKeySet(n.Issuer, bearer.Keys{File: n.jwks}, bearer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(keys.Close)
		s.config.Rules.Assert.TrustDomain = domain
		s.config.Rules.Assert.Claims = []string{"tenant"}
		s.config.Rules.Hops = []Hop{{Issuer: n.Issuer, Keys: keys, Scopes: []string{"orders:read", "orders:list"}, Callers: []string{firstIssuer}}}
		if change != nil {
			change(s)
		}
	})
	return s, n
}

// told is the caller that the service was told of in the last request, and its header.
func (s *stage) told() (identity.Caller, http.Header) {
	s.t.Helper()
	seen, err := http.ReadRequest(newReader(string(s.service.Raw())))
	if err != nil {
		s.t.Fatal(err)
	}
	v := identity.Verifier{Issuer: "sallyport", Audience: "orders", TrustDomain: domain, Keys: func(kid string) (ed25519.PublicKey, bool) { k, ok := s.keys[kid]; return k, ok }}
	c, err := v.Verify(seen.Header.Get("Txn-Token"))
	if err != nil {
		s.t.Fatalf("%v in %v", err, seen.Header)
	}
	return c, seen.Header
}

// A caller that came by a hop is the one whom the first gate verified, with the scopes that both gates let pass.
func TestHop(t *testing.T) {
	s, n := hopStage(t, nil)
	c := n.caller("orders:read", "orders:write")
	sent := n.next(t, c)
	a, _ := s.ask(get("/orders/1", sent))
	if a.StatusCode != 200 {
		t.Fatalf("answered %d %s", a.StatusCode, a.code)
	}
	if vary := strings.Join(a.Header.Values("Vary"), ","); !strings.Contains(vary, "Txn-Token") {
		t.Errorf("Vary: %q", vary)
	}
	got, header := s.told()
	want := identity.Caller{
		Issuer: firstIssuer, Subject: "alice", Client: "shop", Scopes: []string{"orders:read"}, TokenID: "at-1", IssuedAt: c.IssuedAt,
		Claims: map[string]any{"tenant": "acme", "sid": "s-1"}, Route: "read-order", RequestID: a.Header.Get("X-Request-Id"),
		Transaction: "txn-1", Workloads: []string{"cart", "orders"}, KeyID: got.KeyID, Expires: got.Expires,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the service was told %+v\nwant                 %+v", got, want)
	}
	if strings.Contains(fmt.Sprint(header), strings.TrimPrefix(sent, "Txn-Token: ")) || header.Get("Authorization") != "" {
		t.Errorf("the service saw the other gate's token: %v", header)
	}
	d, _ := s.settled(1)
	if d[0].Subject != "alice" || d[0].Transaction != "txn-1" || !slices.Equal(d[0].Workloads, []string{"cart"}) {
		t.Errorf("recorded %+v", d[0])
	}
	// A bearer token still does, and begins a transaction of its own.
	if a, _ := s.ask(get("/orders/1", bearerHeader(s.token("orders:read")))); a.StatusCode != 200 {
		t.Errorf("a bearer token is answered %d %s", a.StatusCode, a.code)
	}
	d, _ = s.settled(2)
	if d[1].Transaction != "" || d[1].Workloads != nil {
		t.Errorf("recorded %+v", d[1])
	}
}

// What the hop may not say, this gate does not believe, whoever signed it.
func TestHopNarrows(t *testing.T) {
	s, n := hopStage(t, nil)
	// The deputy: cart's gate would pass the scope on, orders' gate does not take it from there.
	reply, _ := s.denied("POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"+n.next(t, n.caller("orders:read", "orders:write"))+"\r\n\r\n", 403, "insufficient_scope")
	if !strings.Contains(reply.Header.Get("WWW-Authenticate"), `scope="orders:write"`) {
		t.Errorf("challenge %q", reply.Header.Get("WWW-Authenticate"))
	}
	// A caller of fewer scopes than the hop may pass on gets no more by it.
	s.denied(get("/orders/1", n.next(t, n.caller("orders:list"))), 403, "insufficient_scope")
	s.denied(get("/orders/1", n.next(t, n.caller())), 403, "insufficient_scope")
	// Conditions see the claims that were passed on.
	s.denied(get("/mine/alice", n.next(t, n.caller("orders:read"))), 403, "policy_error")
}

func TestHopRefusals(t *testing.T) {
	s, n := hopStage(t, nil)
	good := n.caller("orders:read")
	via := func(names ...string) identity.Caller { c := n.caller("orders:read"); c.Workloads = names; return c }
	other := good
	other.Issuer = "https://partner.example.com"
	past := &identity.Signer{Issuer: n.Issuer, Audience: "cart", TrustDomain: domain, Key: n.Key, Now: func() time.Time { return time.Now().Add(-66 * time.Second) }}
	stranger, elsewhere := newNeighbour(t), newNeighbour(t)
	stranger.Signer.Issuer = "https://other-gate.example"
	elsewhere.Signer = &identity.Signer{Issuer: n.Issuer, Audience: "cart", TrustDomain: "other.example", Key: n.Key}
	ours, err := s.config.Rules.Assert.Sign(good, "read-order", "1")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := n.Sign(good, "checkout", "req-1")
	if err != nil {
		t.Fatal(err)
	}
	expired, err := past.Next(good, "orders", good.Scopes, "checkout", "req-1")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := elsewhere.Next(good, "orders", nil, "checkout", "req-1")
	if err != nil {
		t.Fatal(err)
	}
	forBilling, err := n.Next(good, "billing", nil, "checkout", "req-1")
	if err != nil {
		t.Fatal(err)
	}
	sent := n.next(t, good)
	for _, test := range []struct {
		name    string
		headers []string
		status  int
		code    string
	}{
		{"beside a bearer token", []string{sent, bearerHeader(s.token("orders:read"))}, 400, "multiple_credentials"},
		{"beside any Authorization", []string{sent, "Authorization: Basic eDp5"}, 400, "multiple_credentials"},
		{"twice", []string{sent, sent}, 400, "multiple_credentials"},
		{"beside an access_token in a cookie", []string{sent, "Cookie: access_token=x"}, 400, "multiple_credentials"},
		{"what our service was told", []string{"Txn-Token: " + ours}, 401, "unknown_issuer"},
		{"what cart was told, stolen there", []string{"Txn-Token: " + theirs}, 401, "service_mismatch"},
		{"for another service", []string{"Txn-Token: " + forBilling}, 401, "service_mismatch"},
		{"of another trust domain", []string{"Txn-Token: " + foreign}, 401, "audience_mismatch"},
		{"of a gate that is no hop", []string{stranger.next(t, good)}, 401, "unknown_issuer"},
		{"a minute later", []string{"Txn-Token: " + expired}, 401, "expired"},
		{"a bearer token in Txn-Token", []string{"Txn-Token: " + s.token("orders:read")}, 401, "unknown_issuer"},
		{"with a scheme", []string{strings.Replace(sent, ": ", ": Bearer ", 1)}, 401, "token_base64"},
		{"in Authorization", []string{strings.Replace(sent, "Txn-Token:", "Authorization: Bearer", 1)}, 401, "unknown_issuer"},
		{"nothing", []string{"Txn-Token: "}, 401, "token_not_compact"},
		{"of a caller that the hop may not speak for", []string{n.next(t, other)}, 403, "caller_not_allowed"},
		{"in a loop", []string{n.next(t, via("orders", "cart", "orders"))}, 403, "transaction_loop"},
		{"through eight services", []string{n.next(t, via("a", "b", "c", "d", "e", "f", "g"))}, 403, "transaction_too_long"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.t = t
			s.denied(get("/orders/1", test.headers...), test.status, test.code)
		})
	}
	s.t = t
	s.denied(get("/orders/1?access_token=x", sent), 400, "multiple_credentials")
	for name, headers := range map[string][]string{
		"called back":            {n.next(t, via("orders"))},
		"through seven services": {n.next(t, via("a", "b", "c", "d", "e", "f"))},
	} {
		if a, _ := s.ask(get("/orders/1", headers...)); a.StatusCode != 200 {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.code)
		}
	}
}

// No word of another gate reaches the service, nor counts, where no hop is configured or nobody need be proved.
func TestTransactionTokenOfAClient(t *testing.T) {
	n := newNeighbour(t)
	sent := n.next(t, n.caller("orders:read"))
	s := open(t, func(s *stage) { s.config.Rules.Assert.TrustDomain = domain })
	s.denied(get("/orders/1", sent), 401, "missing_token")
	if a, _ := s.ask(get("/orders/1", sent, bearerHeader(s.token("orders:read")))); a.StatusCode != 200 {
		t.Fatalf("answered %d %s", a.StatusCode, a.code)
	}
	if c, h := s.told(); !slices.Equal(c.Workloads, []string{"orders"}) || len(h.Values("Txn-Token")) != 1 {
		t.Errorf("the service was told %+v: %v", c, h)
	}
	for _, hops := range []bool{false, true} {
		if hops {
			s, n = hopStage(t, nil)
			sent = n.next(t, n.caller("orders:read"))
		}
		if a, _ := s.ask(get("/public/x", sent)); a.StatusCode != 200 {
			t.Fatalf("answered %d %s", a.StatusCode, a.code)
		}
		if raw := string(s.service.Raw()); strings.Contains(raw[strings.LastIndex(raw, "GET /public"):], "Txn-Token") {
			t.Errorf("hops %v: the service of a public route saw %s", hops, raw)
		}
	}
}

// What we tell our service ends no later than what we were told.
func TestHopEndsWithWhatItRestsOn(t *testing.T) {
	s, n := hopStage(t, nil)
	c := n.caller("orders:read")
	c.Expires = time.Now().Add(7 * time.Second)
	if a, _ := s.ask(get("/orders/1", n.next(t, c))); a.StatusCode != 200 {
		t.Fatalf("answered %d %s", a.StatusCode, a.code)
	}
	if told, _ := s.told(); told.Expires.After(c.Expires) {
		t.Errorf("ends at %v, after %v", told.Expires, c.Expires)
	}
}

// A key that the other gate withdraws ends what it signed, and with the last one everything.
func TestHopKeyWithdrawn(t *testing.T) {
	s, n := hopStage(t, nil)
	sent := n.next(t, n.caller("orders:read"))
	if a, _ := s.ask(get("/orders/1", sent)); a.StatusCode != 200 {
		t.Fatalf("answered %d %s", a.StatusCode, a.code)
	}
	refused := func() bool {
		a, _ := s.ask(get("/orders/1", sent))
		return a.StatusCode == 401 && a.code == "kid_unknown"
	}
	await := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	n.Signer = &identity.Signer{Issuer: n.Issuer, Audience: "cart", TrustDomain: domain, Key: n.publish(t)}
	await("a withdrawn key still counts", refused)
	sent = n.next(t, n.caller("orders:read"))
	if a, _ := s.ask(get("/orders/1", sent)); a.StatusCode != 200 {
		t.Fatalf("the new key: answered %d %s", a.StatusCode, a.code)
	}
	n.write(t, `{"keys":[]}`)
	await("the last key still counts", refused)
}

// While the hop's keys cannot be had, that is what is said.
func TestHopKeysUnavailable(t *testing.T) {
	var keys *bearer.KeySet
	s, n := hopStage(t, func(s *stage) {
		var err error
		if keys, err = bearer.NewKeySet("x", bearer.Keys{URI: "http://127.0.0.1:1/jwks"}, bearer.Options{}); err != nil {
			t.Fatal(err)
		}
		s.config.Rules.Hops[0].Keys = keys
	})
	defer keys.Close()
	s.denied(get("/orders/1", n.next(t, n.caller("orders:read"))), 503, "keys_unavailable")
}

// Both headers carry the assertion where a guard looks in Authorization.
func TestAssertionInBothHeaders(t *testing.T) {
	s := open(t, func(s *stage) {
		s.config.Rules.AssertHeader, s.config.Rules.Assert.TrustDomain = "authorization", domain
	})
	if a, _ := s.ask(get("/orders/1", bearerHeader(s.token("orders:read")), "Txn-Token: root")); a.StatusCode != 200 {
		t.Fatalf("answered %d %s", a.StatusCode, a.code)
	}
	_, h := s.told()
	if txn := h.Values("Txn-Token"); len(txn) != 1 || h.Get("Authorization") != "Bearer "+txn[0] {
		t.Errorf("the service saw %v", h)
	}
}

func TestHopsThatAreRefused(t *testing.T) {
	s, n := hopStage(t, nil)
	good := s.config.Rules.Hops[0]
	for says, change := range map[string]func(*Rules){
		"trust domain": func(r *Rules) { r.Assert = &identity.Signer{Issuer: "sallyport", Audience: "orders", Key: n.Key} },
		"assertion":    func(r *Rules) { r.Assert = nil },
		"no issuer":    func(r *Rules) { r.Hops[0].Issuer = "" },
		"our own name": func(r *Rules) { r.Hops[0].Issuer = "sallyport" },
		"twice":        func(r *Rules) { r.Hops = append(r.Hops, good) },
		"no keys":      func(r *Rules) { r.Hops[0].Keys = nil },
		"for nobody":   func(r *Rules) { r.Hops[0].Callers = nil },
	} {
		rules := s.config.Rules
		rules.Hops = []Hop{good}
		change(&rules)
		if err := s.gateway.Swap(rules); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	// A condition that reads the token would read what the service never sees.
	if Reaches("txn-token") {
		t.Error("a client's Txn-Token reaches the service")
	}
}

// Nothing outlives its token: one that only the issuer's leeway lets pass, and one that names nobody, end here.
func TestWhatNoAssertionIsMadeOf(t *testing.T) {
	s := open(t, nil)
	s.denied(get("/orders/1", bearerHeader(s.issuer.Token(map[string]any{"scope": "orders:read", "sub": nil, "client_id": nil}))), 401, "missing_claim")
	ended := s.issuer.Token(map[string]any{"scope": "orders:read", "exp": time.Now().Add(-4 * time.Second).Unix(), "iat": time.Now().Add(-time.Minute).Unix()})
	if a, _ := s.ask(get("/orders/1", bearerHeader(ended))); a.StatusCode != 200 {
		t.Errorf("within the leeway: %d %s", a.StatusCode, a.code)
	}
}

// A generous issuer's leeway lets a token pass whose assertion no service would take: that is said at the gate.
func TestTokenThatEndedBeforeTheLeewayOfAssertions(t *testing.T) {
	s := open(t, func(s *stage) {
		jwks := filepath.Join(t.TempDir(), "jwks.json")
		if err := os.WriteFile(jwks, s.issuer.JWKS(), 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := bearer.NewVerifier([]bearer.Issuer{{
			Issuer: s.issuer.URL, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{File: jwks}, Leeway: 30 * time.Second,
		}}, bearer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Close)
		s.config.Rules.Verifier = v
	})
	ended := s.issuer.Token(map[string]any{"scope": "orders:read", "exp": time.Now().Add(-10 * time.Second).Unix(), "iat": time.Now().Add(-time.Minute).Unix()})
	s.denied(get("/orders/1", bearerHeader(ended)), 401, "expired")
}

// What leaves the service while it answers is of the caller's transaction: the first gate gives it the request's id.
func TestTransactionBegins(t *testing.T) {
	flight := cause.NewFlight()
	var seen []string
	service := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		flight.Sweep(func(r *cause.Request) *cause.Lost {
			if !slices.Contains(seen, r.Caller.Transaction) { // the first is in its tail when the second comes
				seen = append(seen, r.Caller.Transaction)
			}
			return nil
		})
	}))
	defer service.Close()
	s, n := hopStage(t, func(s *stage) { s.config.Flight, s.config.Upstream = flight, mustURL(t, service.URL) })
	a, _ := s.ask(get("/orders/1", bearerHeader(s.token("orders:read"))))
	if b, _ := s.ask(get("/orders/1", n.next(t, n.caller("orders:read")))); a.StatusCode != 200 || b.StatusCode != 200 {
		t.Fatalf("answered %d and %d", a.StatusCode, b.StatusCode)
	}
	// the first counts in its tail too
	if want := []string{a.Header.Get("X-Request-Id"), "txn-1"}; !slices.Equal(slices.Compact(seen), want) {
		t.Errorf("transactions %q, want %q", seen, want)
	}
}
