package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// trustDomain is of the two services that call one another here.
const trustDomain = "shop.example"

// neighbour is a service with a real gate in front of it, and with the hand that signs what its gate behind would attach.
type neighbour struct {
	*product
	name     string
	signer   *identity.Signer
	verifier *identity.Verifier // of the service: what its gate tells it
	jwks     string             // where the other gate looks for this one's keys
	served   atomic.Int64       // requests that the service answered
	handle   func(w http.ResponseWriter, r *http.Request, c identity.Caller)
}

// town is two services that may call one another: orders and billing, each behind its gate, and an authorization server.
type town struct {
	issuer          *sallytest.Issuer
	orders, billing *neighbour
}

// newTown starts both gates. Of what orders' gate says, billing's believes invoice:read and invoice:write; of what billing's
// says, orders' believes nothing but who calls.
func newTown(t *testing.T) *town {
	town := &town{issuer: sallytest.NewIssuer(t), orders: &neighbour{name: "orders"}, billing: &neighbour{name: "billing"}}
	dir := openDir(t)
	issuer := filepath.Join(dir, "issuer.json")
	replace(t, issuer, town.issuer.JWKS())
	rings := map[*neighbour]keys.Config{}
	for _, n := range []*neighbour{town.orders, town.billing} {
		c := keys.Config{Path: filepath.Join(dir, n.name, "keys"), Publish: filepath.Join(dir, n.name, "jwks", "jwks.json")}
		for _, folder := range []string{c.Path, filepath.Dir(c.Publish)} {
			if err := os.MkdirAll(folder, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(c.Path, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := keys.Generate(c, time.Now()); err != nil {
			t.Fatal(err)
		}
		ring, err := keys.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		lookup, err := identity.KeysFile(c.Publish)
		if err != nil {
			t.Fatal(err)
		}
		// the other gate reads a copy, which the test can take keys out of
		n.jwks = filepath.Join(dir, n.name+".json")
		replace(t, n.jwks, ring.JWKS())
		rings[n] = c
		n.signer = &identity.Signer{Issuer: n.name + "-gate", Audience: n.name, TrustDomain: trustDomain, Key: ring.Signing}
		n.verifier = &identity.Verifier{Issuer: n.name + "-gate", Audience: n.name, TrustDomain: trustDomain, Keys: lookup}
	}
	start := func(n, other *neighbour, scopes []string, routes ...setting) {
		service := httptest.NewServer(identity.Require(n.verifier, "Txn-Token")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n.served.Add(1)
			c, _ := identity.FromContext(r.Context())
			n.handle(w, r, c)
		})))
		t.Cleanup(service.Close)
		n.product = startProduct(t, launch{over: setting{
			"ingress": setting{
				"upstream":  service.URL,
				"issuers":   []setting{{"issuer": town.issuer.URL, "audience": []string{sallytest.Audience}, "keys": setting{"jwks_file": issuer}}},
				"routes":    append(routes, setting{"name": "ping", "match": "GET /ping", "scopes": []string{}}),
				"assertion": setting{"issuer": n.signer.Issuer, "audience": n.name, "trust_domain": trustDomain},
				"hops":      []setting{{"issuer": other.signer.Issuer, "keys": setting{"jwks_file": other.jwks}, "scopes": scopes, "callers": []string{town.issuer.URL}}},
			},
			"keys": setting{"path": rings[n].Path, "publish": rings[n].Publish},
		}})
	}
	start(town.orders, town.billing, []string{},
		setting{"name": "checkout", "match": "POST /checkout", "scopes": []string{"orders:read"}})
	start(town.billing, town.orders, []string{"invoice:read", "invoice:write"},
		setting{"name": "read-invoice", "match": "GET /invoices/{id}", "scopes": []string{"invoice:read"}},
		setting{"name": "write-invoice", "match": "POST /invoices", "scopes": []string{"invoice:write"}},
		setting{"name": "erase", "match": "DELETE /invoices", "scopes": []string{"invoice:admin"}})
	return town
}

func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	// as sallyport does: whoever reads meanwhile reads one or the other
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// told says whom the gate in front of n let in, from what it told its service: the same caller, our own service not yet among
// those that it came through.
func (n *neighbour) told(c identity.Caller) identity.Caller {
	c.Workloads = c.Workloads[:len(c.Workloads)-1]
	return c
}

// call is a request of n's service to another gate for c, with what n's gate behind attaches.
func (n *neighbour) call(t testing.TB, to *neighbour, method, path string, c identity.Caller, scopes ...string) answer {
	t.Helper()
	signed, err := n.signer.Next(n.told(c), to.name, scopes, c.Route, c.RequestID)
	if err != nil {
		t.Errorf("%s signs for %s: %v", n.name, to.name, err)
		return answer{header: http.Header{}}
	}
	return to.fetch(t, method, path, "", nil, "Txn-Token", signed)
}

// TestHop has a real service call another behind a real gate, for its own caller: who that is arrives whole, what it may do
// only becomes less.
func TestHop(t *testing.T) {
	t.Parallel()
	town := newTown(t)
	var seen identity.Caller // by billing
	town.billing.handle = func(w http.ResponseWriter, _ *http.Request, c identity.Caller) {
		seen = c
		w.WriteHeader(http.StatusNoContent)
	}
	var came identity.Caller // to orders
	var inner answer
	// What orders does for a caller at billing is what the configuration of its destination would list: both scopes of
	// invoices, and invoice:admin, which billing's gate does not take from it.
	path, method := "/invoices", http.MethodPost
	town.orders.handle = func(w http.ResponseWriter, _ *http.Request, c identity.Caller) {
		came = c
		inner = town.orders.call(t, town.billing, method, path, c, "invoice:read", "invoice:write", "invoice:admin")
		w.WriteHeader(inner.status)
	}
	checkout := func(scope string) answer {
		return town.orders.fetch(t, http.MethodPost, "/checkout", town.issuer.Token(map[string]any{"scope": scope, "sid": "session-1"}), nil)
	}

	first := checkout("orders:read invoice:write")
	if first.status != http.StatusNoContent {
		t.Fatalf("answered %d %s", first.status, inner.code())
	}
	if seen.Subject != came.Subject || seen.Client != came.Client || seen.Issuer != town.issuer.URL || seen.TokenID != came.TokenID || !seen.IssuedAt.Equal(came.IssuedAt) ||
		seen.Claims["sid"] != "session-1" || seen.Transaction != first.id() || seen.RequestID != inner.id() || seen.Route != "write-invoice" {
		t.Errorf("billing was told %+v, orders %+v", seen, came)
	}
	if !slices.Equal(seen.Scopes, []string{"invoice:write"}) || !slices.Equal(seen.Workloads, []string{"orders", "billing"}) || seen.Expires.After(came.Expires) {
		t.Errorf("billing was told %+v", seen)
	}
	if book := town.billing.book(t); !strings.Contains(book, `"transaction":"`+first.id()+`","workloads":["orders"]`) {
		t.Errorf("billing's book does not name transaction %s: %s", first.id(), book)
	}

	// The confused deputy: orders may write invoices, for those who may. Its caller may not, and billing's gate knows that.
	served := town.billing.served.Load()
	if a := checkout("orders:read invoice:read"); a.status != http.StatusForbidden || inner.code() != "insufficient_scope" {
		t.Errorf("for a caller without invoice:write: %d %s", a.status, inner.code())
	}
	// A scope that the caller has, that orders' gate passes on, and that billing's gate does not take from it.
	method = http.MethodDelete
	if a := checkout("orders:read invoice:admin"); a.status != http.StatusForbidden || inner.code() != "insufficient_scope" {
		t.Errorf("for a caller with invoice:admin: %d %s", a.status, inner.code())
	}
	if n := town.billing.served.Load(); n != served {
		t.Errorf("billing's service was reached %d times", n-served)
	}
}

// TestStolenTransactionToken has an attacker who read what services are told, and what they send, use it elsewhere.
func TestStolenTransactionToken(t *testing.T) {
	t.Parallel()
	town := newTown(t)
	var stolen string
	var c identity.Caller
	town.orders.handle = func(_ http.ResponseWriter, r *http.Request, caller identity.Caller) {
		stolen, c = r.Header.Get("Txn-Token"), caller
	}
	town.billing.handle = func(http.ResponseWriter, *http.Request, identity.Caller) {}
	token := town.issuer.Token(map[string]any{"scope": "orders:read invoice:read"})
	if a := town.orders.fetch(t, http.MethodPost, "/checkout", token, nil); a.status != http.StatusOK {
		t.Fatalf("answered %d %s", a.status, a.code())
	}
	next := func(s *identity.Signer) string {
		signed, err := s.Next(town.orders.told(c), "billing", []string{"invoice:read"}, c.Route, c.RequestID)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	good := next(town.orders.signer)
	late := &identity.Signer{Issuer: "orders-gate", Audience: "orders", TrustDomain: trustDomain, Key: town.orders.signer.Key, Now: func() time.Time { return time.Now().Add(-66 * time.Second) }}
	for _, test := range []struct {
		name    string
		to      *neighbour
		headers []string
		status  int
		code    string
	}{
		{"what orders was told, at billing", town.billing, []string{"Txn-Token", stolen}, 401, "service_mismatch"},
		{"what orders was told, at orders", town.orders, []string{"Txn-Token", stolen}, 401, "unknown_issuer"},
		{"what orders was told, as a bearer token", town.orders, []string{"Authorization", "Bearer " + stolen}, 401, "unknown_issuer"},
		{"what orders sent, at orders", town.orders, []string{"Txn-Token", good}, 401, "unknown_issuer"},
		{"what orders sent, as a bearer token", town.billing, []string{"Authorization", "Bearer " + good}, 401, "unknown_issuer"},
		{"what orders sent, beside the caller's token", town.billing, []string{"Txn-Token", good, "Authorization", "Bearer " + token}, 400, "multiple_credentials"},
		{"what orders sent, a minute later", town.billing, []string{"Txn-Token", next(late)}, 401, "expired"},
		{"with another scope", town.billing, []string{"Txn-Token", altered(t, good, "scope", "invoice:write")}, 401, "signature_invalid"},
		{"without a signature", town.billing, []string{"Txn-Token", unsigned(t, good)}, 401, "token_not_compact"},
		{"the caller's token, as a hop", town.billing, []string{"Txn-Token", token}, 401, "unknown_issuer"},
	} {
		if a := test.to.fetch(t, http.MethodGet, "/invoices/1", "", nil, test.headers...); test.to == town.billing && (a.status != test.status || a.code() != test.code) {
			t.Errorf("%s: %d %s, want %d %s", test.name, a.status, a.code(), test.status, test.code)
		}
		if a := test.to.fetch(t, http.MethodGet, "/ping", "", nil, test.headers...); a.status != test.status || a.code() != test.code {
			t.Errorf("%s: %d %s, want %d %s", test.name, a.status, a.code(), test.status, test.code)
		}
	}
	if n := town.billing.served.Load(); n != 0 {
		t.Errorf("billing's service was reached %d times", n)
	}
	if a := town.billing.fetch(t, http.MethodGet, "/invoices/1", "", nil, "Txn-Token", good); a.status != http.StatusOK {
		t.Errorf("the one thing that it is good for: %d %s", a.status, a.code())
	}

	// The key that signed it is withdrawn, and with it all that it signed.
	replace(t, town.orders.jwks, []byte(`{"keys":[]}`))
	eventually(t, 10*time.Second, "the withdrawn key is refused", func() bool {
		a := town.billing.fetch(t, http.MethodGet, "/invoices/1", "", nil, "Txn-Token", good)
		return a.status == http.StatusUnauthorized && a.code() == "kid_unknown"
	})
}

// TestLoopOfServices has two services call one another without end: the gates end it.
func TestLoopOfServices(t *testing.T) {
	t.Parallel()
	town := newTown(t)
	pass := func(n, to *neighbour) func(http.ResponseWriter, *http.Request, identity.Caller) {
		return func(w http.ResponseWriter, _ *http.Request, c identity.Caller) {
			a := n.call(t, to, http.MethodGet, "/ping", c)
			w.WriteHeader(a.status)
			_, _ = io.WriteString(w, fmt.Sprint(strings.Join(c.Workloads, ","), " ", a.code(), "; ", string(a.body)))
		}
	}
	town.orders.handle, town.billing.handle = pass(town.orders, town.billing), pass(town.billing, town.orders)
	a := town.orders.fetch(t, http.MethodGet, "/ping", town.issuer.Token(nil), nil)
	if a.status != http.StatusForbidden || !strings.Contains(string(a.body), "transaction_loop") {
		t.Errorf("answered %d %s", a.status, a.body)
	}
	if o, b := town.orders.served.Load(), town.billing.served.Load(); o != 2 || b != 2 {
		t.Errorf("orders served %d times, billing %d", o, b)
	}
	if book := town.orders.book(t); !strings.Contains(book, "the transaction came through orders 2 times already: orders, billing, orders, billing") {
		t.Errorf("the book does not tell the operator: %s", book)
	}
}
