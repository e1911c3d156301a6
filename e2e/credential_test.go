package e2e

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/credential"
)

const (
	ordersAPI  = "https://orders.example"
	billingAPI = "https://billing.example"
	ledgerAPI  = "https://ledger.example" // its tokens are opaque
)

func credentialServer(t *testing.T) *authServer {
	t.Helper()
	return startAuthServer(t, []resource{
		{ordersAPI, "ES256", []string{"orders:read", "orders:write"}},
		{billingAPI, "RS256", []string{"invoice:read", "invoice:write", "invoice:delete"}},
		{ledgerAPI, "opaque", []string{"entry:read", "entry:write"}},
	}, client{ID: "alice", Lifetime: 60}, client{ID: "orders-gate", Exchange: &exchanges{
		From: ordersAPI, To: map[string]map[string][]string{billingAPI: {"orders:read": {"invoice:read"}, "orders:write": {"invoice:write"}}},
	}})
}

// verifierOf is what a recipient verifies with.
func verifierOf(t *testing.T, s *authServer, audience string) *bearer.Verifier {
	t.Helper()
	v, err := bearer.NewVerifier([]bearer.Issuer{{Issuer: s.Issuer, Audience: []string{audience}, Keys: bearer.Keys{Discovery: true}}},
		bearer.Options{Refresh: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	for deadline := time.Now().Add(20 * time.Second); v.Ready() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(v.Ready())
		}
	}
	return v
}

func gateSecret(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "client-secret")
	if err := os.WriteFile(path, []byte("orders-gate\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func sourceOf(t *testing.T, c credential.Config) *credential.Source {
	t.Helper()
	s, err := credential.New(c, credential.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestExchangeAtAuthServer exchanges a caller's token at a real authorization server, and has the destination verify what the
// service never held.
func TestExchangeAtAuthServer(t *testing.T) {
	t.Parallel()
	server := credentialServer(t)
	orders, billing := verifierOf(t, server, ordersAPI), verifierOf(t, server, billingAPI)
	config := credential.Config{
		Kind: credential.Exchange, TokenEndpoint: server.Issuer + "/token", ClientID: "orders-gate", ClientSecretFile: gateSecret(t),
		Audience: billingAPI, Scopes: []string{"invoice:read", "invoice:write"},
	}
	source := sourceOf(t, config)
	causeOf := func(scopes ...string) credential.Cause {
		token := bearer.NewToken(server.token(t, "alice", ordersAPI, scopes...))
		caller, err := orders.Verify(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		return credential.Cause{Caller: &caller, Token: token}
	}

	reader := causeOf("orders:read")
	header, err := source.Attach(t.Context(), reader)
	if err != nil {
		t.Fatal(err)
	}
	raw := strings.TrimPrefix(header.Reveal(), "Bearer ")
	caller, err := billing.Verify(t.Context(), bearer.NewToken(raw))
	if err != nil {
		t.Fatalf("billing does not accept what was exchanged: %v", err)
	}
	act, _ := caller.Claims["act"].(map[string]any)
	if caller.Subject != "alice" || caller.Client != "orders-gate" || act["sub"] != "orders-gate" || !slices.Equal(caller.Scopes, []string{"invoice:read"}) {
		t.Errorf("exchanged for %s by %s (%v) with %v", caller.Subject, caller.Client, act, caller.Scopes)
	}
	if caller.Expires.After(reader.Caller.Expires) {
		t.Error("the exchanged token outlives the inbound one")
	}
	if _, err := orders.Verify(t.Context(), bearer.NewToken(raw)); err == nil {
		t.Error("orders accepts the token for billing")
	}
	if again, err := source.Attach(t.Context(), reader); err != nil || again.Reveal() != header.Reveal() {
		t.Errorf("it was exchanged again: %v", err)
	}
	if n := source.Forget(func(c identity.Caller) bool { return c.TokenID == reader.Caller.TokenID }); n != 1 {
		t.Errorf("%d forgotten", n)
	}
	if again, err := source.Attach(t.Context(), reader); err != nil || again.Reveal() == header.Reveal() {
		t.Errorf("after it was forgotten it is still there: %v", err)
	}

	refused := func(what string, s *credential.Source, c credential.Cause, code string) {
		t.Helper()
		_, err := s.Attach(t.Context(), c)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != code {
			t.Errorf("%s: %v, want %s", what, err, code)
		}
	}
	// a token of billing is not orders' gate's to exchange, nor one with another signature
	stranger := reader
	stranger.Token = bearer.NewToken(server.token(t, "alice", billingAPI, "invoice:read"))
	refused("a token for somebody else", source, stranger, credential.CodeRefused)
	forged := []byte(reader.Token.Reveal())
	forged[len(forged)-10] ^= 1
	stranger.Token = bearer.NewToken(string(forged))
	refused("a forged token", source, stranger, credential.CodeRefused)
	narrow := config
	narrow.Scopes = []string{"invoice:delete"}
	refused("scopes that it is not good for", sourceOf(t, narrow), reader, credential.CodeRefused)
	other := config
	other.Audience = ledgerAPI
	refused("a place that the gate may not reach", sourceOf(t, other), reader, credential.CodeRefused)
	wrong := config
	wrong.ClientID = "alice"
	refused("a client with another's secret", sourceOf(t, wrong), reader, credential.CodeUnavailable)
}

func TestServiceTokenOfAuthServer(t *testing.T) {
	t.Parallel()
	server := credentialServer(t)
	billing := verifierOf(t, server, billingAPI)
	source := sourceOf(t, credential.Config{
		Kind: credential.Service, TokenEndpoint: server.Issuer + "/token", ClientID: "orders-gate", ClientSecretFile: gateSecret(t),
		Resource: billingAPI, Scopes: []string{"invoice:read"},
	})
	header, err := source.Attach(t.Context(), credential.Cause{})
	if err != nil {
		t.Fatal(err)
	}
	caller, err := billing.Verify(t.Context(), bearer.NewToken(strings.TrimPrefix(header.Reveal(), "Bearer ")))
	if err != nil || caller.Client != "orders-gate" || !slices.Equal(caller.Scopes, []string{"invoice:read"}) {
		t.Errorf("%+v, %v", caller, err)
	}
}

// TestTransportWithAuthServer: a Go program attaches opaque tokens that the real authorization server vouches for, and signed
// ones by the recipient's keys, across their rotation.
func TestTransportWithAuthServer(t *testing.T) {
	t.Parallel()
	server := credentialServer(t)
	var seen atomic.Value
	recipient := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen.Store(r.Header.Get("Authorization")) }))
	t.Cleanup(recipient.Close)
	send := func(token string, to bearer.Recipient) (saw, code string) {
		seen.Store("")
		transport := &bearer.Transport{
			Token:      func(context.Context) (bearer.Token, error) { return bearer.NewToken(token), nil },
			Recipients: map[string]bearer.Recipient{recipient.URL: to},
		}
		defer transport.CloseIdleConnections()
		response, err := (&http.Client{Transport: transport}).Get(recipient.URL)
		if refusal, ok := errors.AsType[*bearer.Error](err); ok {
			return seen.Load().(string), refusal.Code
		} else if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return seen.Load().(string), ""
	}
	ledger := bearer.Recipient{
		Introspection: server.Issuer + "/token/introspection", ClientID: "orders-gate", Secret: func() (string, error) { return "orders-gate", nil },
		Audience: []string{ledgerAPI}, Issuer: server.Issuer, Scopes: []string{"entry:read"},
	}
	opaque := server.token(t, "alice", ledgerAPI, "entry:read")
	if strings.Count(opaque, ".") == 2 {
		t.Fatal("the ledger's tokens are not opaque")
	}
	want := func(what, token string, to bearer.Recipient, code string) {
		t.Helper()
		saw, got := send(token, to)
		if got != code || (saw == "Bearer "+token) != (code == "") {
			t.Errorf("%s: %q, want %q; the recipient saw %d bytes", what, got, code, len(saw))
		}
	}
	want("an opaque token", opaque, ledger, "")
	want("without the scope", server.token(t, "alice", ledgerAPI, "entry:write"), ledger, "insufficient_scope")
	want("of nobody", "opaque-token-of-nobody-0123456789-0123456789", ledger, "token_inactive")
	elsewhere := ledger
	elsewhere.Audience = []string{billingAPI}
	want("for somebody else", opaque, elsewhere, "wrong_audience")
	stranger := ledger
	stranger.Secret = func() (string, error) { return "guessed", nil }
	want("by a client with a wrong secret", opaque, stranger, "introspection_unavailable")
	server.revoke(t, "alice", opaque)
	want("revoked", opaque, ledger, "token_inactive")

	billing := bearer.Recipient{Verifier: verifierOf(t, server, billingAPI), Scopes: []string{"invoice:read"}}
	old := server.token(t, "alice", billingAPI, "invoice:read")
	want("a signed token", old, billing, "")
	want("a signed token for another", server.token(t, "alice", ordersAPI, "orders:read"), billing, "wrong_audience")
	server.rotate(t)
	server.retire(t)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, code := send(old, billing); code == "unknown_key" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the withdrawn key still confirms: %q", code)
		}
	}
	want("signed by the new key", server.token(t, "alice", billingAPI, "invoice:read"), billing, "")
}

// revoke ends an opaque token of a client's (RFC 7009).
func (s *authServer) revoke(t testing.TB, client, token string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.Issuer+"/token/revocation", strings.NewReader(url.Values{"token": {token}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(client, client)
	response, err := (&http.Client{Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("revoke: %s", response.Status)
	}
}
