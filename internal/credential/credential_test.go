package credential

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// attach wants the value of the header, or the code of the error.
func attach(t *testing.T, s *Source, c Cause) string {
	t.Helper()
	h, err := s.Attach(t.Context(), c)
	if err == nil {
		if h.Name == "" || h.Reveal() == "" {
			t.Errorf("neither a header nor an error: %v", h)
		}
		return h.Reveal()
	}
	if h.Name != "" || h.Reveal() != "" {
		t.Errorf("an error comes with a header: %v", h)
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("not an *Error: %v", err)
	}
	said := fmt.Sprintf("%v %+v %#v %q", err, err, *e, e.Detail)
	for _, secret := range []string{clientSecret, "issued-token", "inbound-token", "c3VwZXItc2VjcmV0"} {
		if strings.Contains(said, secret) {
			t.Errorf("the error holds a secret: %s", said)
		}
	}
	return e.Code
}

func TestForward(t *testing.T) {
	clock := newClock()
	s := start(t, Config{Kind: Forward, Audience: "https://billing.example.com", Scopes: []string{"invoice:read"}}, Options{Now: clock.Now})
	with := func(change func(*Cause)) Cause {
		c := causeOf(clock, "alice")
		change(&c)
		return c
	}
	for name, tt := range map[string]struct {
		cause Cause
		want  string
	}{
		"covered":               {with(func(*Cause) {}), "Bearer inbound-token-of-alice"},
		"aud is a string":       {with(func(c *Cause) { c.Caller.Claims["aud"] = "https://billing.example.com" }), "Bearer inbound-token-of-alice"},
		"another aud":           {with(func(c *Cause) { c.Caller.Claims["aud"] = "https://orders.example.com" }), CodeNotCovered},
		"aud is longer":         {with(func(c *Cause) { c.Caller.Claims["aud"] = "https://billing.example.com/" }), CodeNotCovered},
		"aud is a part":         {with(func(c *Cause) { c.Caller.Claims["aud"] = []any{"https://billing.example.com.evil.example"} }), CodeNotCovered},
		"no aud":                {with(func(c *Cause) { delete(c.Caller.Claims, "aud") }), CodeNotCovered},
		"aud of another type":   {with(func(c *Cause) { c.Caller.Claims["aud"] = map[string]any{"https://billing.example.com": true} }), CodeNotCovered},
		"scope missing":         {with(func(c *Cause) { c.Caller.Scopes = []string{"invoice:read-all"} }), CodeNotCovered},
		"bound":                 {with(func(c *Cause) { c.Caller.Claims["cnf"] = map[string]any{"jkt": "x"} }), CodeBound},
		"bound to nothing":      {with(func(c *Cause) { c.Caller.Claims["cnf"] = nil }), CodeBound},
		"ended":                 {with(func(c *Cause) { c.Caller.Expires = clock.Now() }), CodeRefused},
		"no token":              {with(func(c *Cause) { c.Token = bearer.Token{} }), CodeNoCaller},
		"came by another gate":  {with(func(c *Cause) { c.Caller.Workloads = []string{"shop"} }), CodeNoCaller},
		"nobody":                {Cause{}, CodeNoCaller},
		"a token and no caller": {Cause{Token: bearer.NewToken("x")}, CodeNoCaller},
	} {
		if got := attach(t, s, tt.cause); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestExchange(t *testing.T) {
	clock, server := newClock(), newServer(t)
	config := exchangeOf(t, server)
	config.Resource = "https://billing.example.com/api"
	s := start(t, config, Options{Now: clock.Now})
	alice, bob := causeOf(clock, "alice"), causeOf(clock, "bob")
	if got := attach(t, s, alice); got != "Bearer issued-token-a" {
		t.Fatal(got)
	}
	form := server.form(t, 0)
	for name, want := range map[string]string{
		"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": "inbound-token-of-alice",
		"subject_token_type":   "urn:ietf:params:oauth:token-type:access_token",
		"requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
		"audience":             "https://billing.example.com", "resource": "https://billing.example.com/api", "scope": "invoice:read invoice:write",
	} {
		if form.Get(name) != want || len(form[name]) != 1 {
			t.Errorf("%s is %q, want %q", name, form[name], want)
		}
	}
	if got := attach(t, s, alice); got != "Bearer issued-token-a" || server.requests() != 1 {
		t.Errorf("again: %s after %d requests", got, server.requests())
	}
	if got := attach(t, s, bob); got != "Bearer issued-token-b" {
		t.Errorf("another caller: %s", got)
	}
	again := alice
	again.Token = bearer.NewToken("inbound-token-of-alice-2")
	if got := attach(t, s, again); got != "Bearer issued-token-c" {
		t.Errorf("another token of the caller: %s", got)
	}
	clock.Advance(284 * time.Second)
	if got := attach(t, s, alice); got != "Bearer issued-token-a" {
		t.Errorf("16 s before its end: %s", got)
	}
	clock.Advance(time.Second)
	if got := attach(t, s, alice); got != "Bearer issued-token-d" {
		t.Errorf("15 s before its end: %s", got)
	}
	if got := attach(t, s, Cause{}); got != CodeNoCaller {
		t.Errorf("nobody: %s", got)
	}
}

// TestExchangedEndsWithInbound holds that what came from a token does not outlive it.
func TestExchangedEndsWithInbound(t *testing.T) {
	clock, server := newClock(), newServer(t)
	server.set(good(map[string]any{"expires_in": 36000}))
	s := start(t, exchangeOf(t, server), Options{Now: clock.Now})
	alice := causeOf(clock, "alice")
	attach(t, s, alice)
	clock.Advance(10*time.Minute - time.Second)
	if got := attach(t, s, alice); got != "Bearer issued-token-a" {
		t.Errorf("before the end: %s", got)
	}
	clock.Advance(time.Second)
	if got := attach(t, s, alice); got != CodeRefused || server.requests() != 1 {
		t.Errorf("at the end: %s, %d requests", got, server.requests())
	}
}

func TestForget(t *testing.T) {
	clock, server := newClock(), newServer(t)
	s := start(t, exchangeOf(t, server), Options{Now: clock.Now})
	alice, bob := causeOf(clock, "alice"), causeOf(clock, "bob")
	attach(t, s, alice)
	attach(t, s, bob)
	isAlice := func(c identity.Caller) bool { return c.Subject == "alice" }
	if n := s.Forget(isAlice); n != 1 {
		t.Errorf("%d forgotten", n)
	}
	if got := attach(t, s, bob); got != "Bearer issued-token-b" {
		t.Errorf("bob's: %s", got)
	}
	if got := attach(t, s, alice); got != "Bearer issued-token-c" {
		t.Errorf("alice's: %s", got)
	}
	s.Forget(isAlice)

	// one that is on its way is forgotten, too
	asked, go_ := make(chan struct{}), make(chan struct{})
	server.set(func(w http.ResponseWriter, r *http.Request, n int) {
		close(asked)
		<-go_
		good(nil)(w, r, n)
	})
	done := make(chan string)
	go func() { done <- attach(t, s, alice) }()
	<-asked
	if n := s.Forget(isAlice); n != 1 {
		t.Errorf("%d forgotten while one is on its way", n)
	}
	close(go_)
	if got := <-done; got != CodeRefused {
		t.Errorf("one that was forgotten on its way: %s", got)
	}
	server.set(nil)
	if got := attach(t, s, alice); got != "Bearer issued-token-e" {
		t.Errorf("after that: %s", got)
	}
}

func TestFile(t *testing.T) {
	path := secretIn(t, "static-secret-1\n")
	s := start(t, Config{Kind: File, Path: path}, Options{})
	want := func(step, want string) {
		t.Helper()
		if got := attach(t, s, Cause{}); got != want {
			t.Errorf("%s: %s, want %s", step, got, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want("first", "Bearer static-secret-1")
	must(os.WriteFile(path, []byte("static-secret-2"), 0o600))
	want("written again", "Bearer static-secret-2")
	must(os.WriteFile(path+".new", []byte("static-secret-3\r\n"), 0o640))
	must(os.Rename(path+".new", path))
	want("replaced", "Bearer static-secret-3")
	for _, mode := range []os.FileMode{0o604, 0o601, 0o602, 0o620, 0o644} {
		must(os.Chmod(path, mode))
		want(fmt.Sprintf("%o", mode), CodeUnavailable)
	}
	must(os.Chmod(path, 0o440))
	want("0440", "Bearer static-secret-3")
	must(os.Remove(path))
	want("gone", CodeUnavailable)
	for _, bad := range []string{"", "\n", "a", "two\nlines-of-it", " space-before", "control\x01character", "snowman-☃-secret", strings.Repeat("x", 9000)} {
		must(os.WriteFile(path, []byte(bad), 0o600))
		want(fmt.Sprintf("%.20q", bad), CodeUnavailable)
		must(os.Remove(path))
	}
	must(os.Mkdir(path, 0o700))
	want("a folder", CodeUnavailable)

	key := start(t, Config{Kind: File, Path: secretIn(t, "static-secret-4"), Header: "x-api-key"}, Options{})
	h, err := key.Attach(t.Context(), Cause{})
	if err != nil || h.Name != "X-Api-Key" || h.Reveal() != "static-secret-4" {
		t.Errorf("%v, %v", h, err)
	}
	if got := h.Scrubber().Value("you sent static-secret-4"); got != "you sent ***************" {
		t.Errorf("an echo became %q", got)
	}
}

func TestAssertion(t *testing.T) {
	clock := newClock()
	fails := false
	s := start(t, Config{Kind: Assertion, Audience: "billing", Scopes: []string{"invoice:read"}}, Options{
		Now: clock.Now,
		Sign: func(c Cause, audience string, scopes []string) (string, error) {
			if fails {
				return "", errors.New("no key")
			}
			return fmt.Sprint(c.Caller.Subject, " ", audience, " ", scopes, " ", c.Route, " ", c.RequestID), nil
		},
	})
	c := causeOf(clock, "alice")
	c.Route, c.RequestID = "create-order", "req-1"
	h, err := s.Attach(t.Context(), c)
	if err != nil || h.Name != "Txn-Token" || h.Reveal() != "alice billing [invoice:read] create-order req-1" {
		t.Errorf("%s %s, %v", h.Name, h.Reveal(), err)
	}
	if got := attach(t, s, Cause{}); got != CodeNoCaller {
		t.Errorf("nobody: %s", got)
	}
	fails = true
	if got := attach(t, s, c); got != CodeUnavailable {
		t.Errorf("cannot sign: %s", got)
	}
	clock.Advance(time.Hour)
	if got := attach(t, s, c); got != CodeRefused {
		t.Errorf("ended: %s", got)
	}
}

// TestAssertionIsBelieved signs for the next hop with the real signer, and has the gate there read it.
func TestAssertionIsBelieved(t *testing.T) {
	clock := newClock()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := identity.Key{ID: identity.Thumbprint(public), Private: private}
	signer := &identity.Signer{Issuer: "orders-gate", Audience: "orders", TrustDomain: "shop.example", Key: func() identity.Key { return key }, Now: clock.Now}
	s := start(t, Config{Kind: Assertion, Audience: "billing", Scopes: []string{"invoice:read", "invoice:write"}}, Options{
		Now: clock.Now,
		Sign: func(c Cause, audience string, scopes []string) (string, error) {
			return signer.Next(*c.Caller, audience, scopes, c.Route, c.RequestID)
		},
	})
	c := causeOf(clock, "alice")
	c.Caller.TokenID, c.Caller.Expires, c.Route, c.RequestID = "jti-1", clock.Now().Add(20*time.Second), "create-order", "req-1"
	h, err := s.Attach(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	next := &identity.Verifier{
		Issuer: "orders-gate", Audience: "billing", TrustDomain: "shop.example", Now: clock.Now,
		Keys: func(kid string) (ed25519.PublicKey, bool) { return public, kid == key.ID },
	}
	caller, err := next.Verify(h.Reveal())
	if err != nil {
		t.Fatalf("the next gate does not believe it: %v", err)
	}
	if caller.Subject != "alice" || !slices.Equal(caller.Scopes, []string{"invoice:read"}) || caller.Transaction != "req-1" || caller.Expires.After(c.Caller.Expires) {
		t.Errorf("the next gate reads %+v", caller)
	}
	if strings.Contains(h.Reveal(), c.Token.Reveal()) {
		t.Error("it holds the caller's token")
	}
	other := *next
	other.Audience = "ledger"
	if _, err := other.Verify(h.Reveal()); err == nil {
		t.Error("another service believes it")
	}
	c.Caller.TokenID = "" // nothing identifies the token: the signer refuses
	if got := attach(t, s, c); got != CodeUnavailable {
		t.Errorf("a caller that nothing identifies: %s", got)
	}
}

func TestNewRefuses(t *testing.T) {
	secret := secretIn(t, "a-client-secret")
	open := secretIn(t, "a-client-secret")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	good := Config{Kind: Exchange, TokenEndpoint: "https://auth.example.com/token", ClientID: "c", ClientSecretFile: secret, Audience: "a", Scopes: []string{"s"}}
	with := func(change func(*Config)) Config {
		c := good
		change(&c)
		return c
	}
	for want, c := range map[string]Config{
		"the kind is none of":         {},
		"no audience: any token":      {Kind: Forward, Scopes: []string{"s"}},
		"is for exchange and service": {Kind: Forward, Audience: "a", ClientID: "c"},
		"is for file":                 with(func(c *Config) { c.Path = "p" }),
		"neither audience nor":        with(func(c *Config) { c.Audience = "" }),
		"no scopes":                   with(func(c *Config) { c.Scopes = nil }),
		"is not a scope token":        with(func(c *Config) { c.Scopes = []string{"a b"} }),
		"no client id":                with(func(c *Config) { c.ClientID = "" }),
		"no client secret file":       with(func(c *Config) { c.ClientSecretFile = "" }),
		"no such file":                with(func(c *Config) { c.ClientSecretFile = secret + "x" }),
		"others may use it":           with(func(c *Config) { c.ClientSecretFile = open }),
		"no endpoint":                 with(func(c *Config) { c.TokenEndpoint = "" }),
		"not on this machine":         with(func(c *Config) { c.TokenEndpoint = "http://auth.example.com/token" }),
		"user information":            with(func(c *Config) { c.TokenEndpoint = "https://a:b@auth.example.com/token" }),
		"not an https URL":            with(func(c *Config) { c.TokenEndpoint = "ftp://auth.example.com/token" }),
		"no path":                     {Kind: File},
		"cannot be attached":          {Kind: File, Path: secret, Header: "Host"},
		"has no audience":             {Kind: File, Path: secret, Audience: "a"},
		"nothing to sign with":        {Kind: Assertion, Audience: "a"},
	} {
		s, err := New(c, Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
		if s != nil {
			t.Errorf("%q: an error comes with a source", want)
		}
	}
	s := start(t, good, Options{})
	if _, err := s.Attach(t.Context(), Cause{}); err == nil {
		t.Error("attached for nobody")
	}
	if _, err := (&Source{}).Attach(t.Context(), Cause{}); err == nil {
		t.Error("the zero Source attaches something")
	}
}

func TestHeaderIsRedacted(t *testing.T) {
	h := header("X-Api-Key", "", "super-secret")
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "h", h, "in", struct{ H Header }{h})
	data, err := json.Marshal(map[string]any{"h": h})
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []string{
		fmt.Sprint(h), fmt.Sprintf("%v %+v %#v %s %q %x %d", h, h, h, h, h, h, h), fmt.Sprintf("%+v", struct{ h Header }{h}), string(data), log.String(),
	} {
		if strings.Contains(said, "super") || strings.Contains(said, "73757065") {
			t.Errorf("it prints as %s", said)
		}
	}
	if h.Reveal() != "super-secret" || (Header{}).Reveal() != "" {
		t.Error("it does not reveal itself")
	}
}
