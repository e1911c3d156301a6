package identity_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// testNow is the instant of every test here, and of the vectors.
var testNow = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// testKey derives a key from a name, so that what is signed is the same in each run.
func testKey(name string) identity.Key {
	seed := sha256.Sum256([]byte("sallyport test key " + name))
	private := ed25519.NewKeyFromSeed(seed[:])
	return identity.Key{ID: identity.Thumbprint(private.Public().(ed25519.PublicKey)), Private: private}
}

func lookup(keys ...identity.Key) func(string) (ed25519.PublicKey, bool) {
	return func(kid string) (ed25519.PublicKey, bool) {
		for _, k := range keys {
			if k.ID == kid {
				return k.Private.Public().(ed25519.PublicKey), true
			}
		}
		return nil, false
	}
}

func newPair(keys ...identity.Key) (*identity.Signer, *identity.Verifier) {
	now := func() time.Time { return testNow }
	return &identity.Signer{Issuer: "sallyport", Audience: "orders", TrustDomain: "shop.example", Now: now, Key: func() identity.Key { return keys[0] }},
		&identity.Verifier{Issuer: "sallyport", Audience: "orders", TrustDomain: "shop.example", Now: now, Keys: lookup(keys...)}
}

func alice() identity.Caller {
	return identity.Caller{
		Issuer: "https://auth.example.com", Subject: "alice", Client: "shop", Scopes: []string{"orders:read", "orders:write"},
		TokenID: "t-1", KeyID: "issuer-key", IssuedAt: time.Unix(testNow.Unix()-60, 0), Expires: testNow.Add(time.Hour),
		Claims: map[string]any{
			"tenant": "acme", "roles": []any{"admin", "ops"}, "level": int64(3), "weight": 1.5, "vip": true, "none": nil,
			"org":    map[string]any{"id": int64(math.MaxInt64)},
			"sid":    "s-1",
			"hidden": "not passed on",
		},
	}
}

func TestSignedCallerIsTheVerifiedCaller(t *testing.T) {
	s, v := newPair(testKey("one"))
	s.Claims = []string{"tenant", "roles", "level", "weight", "vip", "none", "org", "absent"}
	assertion, err := s.Sign(alice(), "read-order", "req-1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Verify(assertion)
	if err != nil {
		t.Fatal(err)
	}
	want := alice()
	delete(want.Claims, "hidden")
	want.KeyID = testKey("one").ID
	want.Expires = time.Unix(testNow.Unix()+60, 0)
	want.Route, want.RequestID, want.Transaction, want.Workloads = "read-order", "req-1", "req-1", []string{"orders"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// The bytes are a contract with services that verify with another library.
func TestAssertionBytes(t *testing.T) {
	s, _ := newPair(testKey("one"))
	s.Claims = []string{"tenant"}
	c := alice()
	c.Subject = "a\"<é\u2028"
	assertion, err := s.Sign(c, "read-order", "req-1")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(assertion, ".")
	header, _ := base64.RawURLEncoding.DecodeString(parts[0])
	payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
	if want := `{"alg":"EdDSA","kid":"` + testKey("one").ID + `","typ":"txntoken+jwt"}`; string(header) != want {
		t.Errorf("header %s, want %s", header, want)
	}
	want := `{"iss":"sallyport","aud":"shop.example","sub":"a\"\u003cé\u2028","txn":"req-1","jti":"req-1","scope":"orders:read orders:write","req_wl":"orders",` +
		`"rctx":{"iss":"https://auth.example.com","jti":"t-1","client_id":"shop","sid":"s-1","iat":1803902340},` +
		`"tctx":{"service":"orders","route":"read-order","claims":{"tenant":"acme"}},"iat":1803902400,"exp":1803902460}`
	if string(payload) != want {
		t.Errorf("payload %s\nwant    %s", payload, want)
	}
}

// RFC 8037, appendix A.3.
func TestThumbprint(t *testing.T) {
	x, err := base64.RawURLEncoding.DecodeString("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := identity.Thumbprint(x), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestAssertionEndsWithTheToken(t *testing.T) {
	for _, test := range []struct {
		name            string
		lifetime, token time.Duration
		want            int64 // seconds from now to its end
	}{
		{"default", 0, time.Hour, 60},
		{"configured", 20 * time.Second, time.Hour, 20},
		{"token ends first", 0, 7 * time.Second, 7},
		{"token ends now", 0, 0, 0},
		{"token within the leeway", 0, -3 * time.Second, -3},
		{"token at the end of the leeway", 0, -4 * time.Second, -4},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, v := newPair(testKey("one"))
			s.Lifetime = test.lifetime
			c := alice()
			c.Expires = testNow.Add(test.token)
			assertion, err := s.Sign(c, "r", "1")
			if err != nil {
				t.Fatal(err)
			}
			got, err := v.Verify(assertion)
			if err != nil {
				t.Fatal(err)
			}
			if d := got.Expires.Unix() - testNow.Unix(); d != test.want {
				t.Errorf("ends in %d s, want %d", d, test.want)
			}
		})
	}
}

func TestSignRefuses(t *testing.T) {
	deep := func(n int) any {
		var v any = "leaf"
		for range n {
			v = []any{v}
		}
		return v
	}
	for _, test := range []struct {
		name   string
		change func(*identity.Signer, *identity.Caller)
		want   string
	}{
		{"nobody", func(_ *identity.Signer, c *identity.Caller) { *c = identity.Caller{} }, "no expiry"},
		{"no issuer", func(_ *identity.Signer, c *identity.Caller) { c.Issuer = "" }, "no issuer"},
		{"no name", func(_ *identity.Signer, c *identity.Caller) { c.Subject, c.Client = "", "" }, "no subject and no client"},
		{"no id of the token", func(_ *identity.Signer, c *identity.Caller) { c.TokenID = "" }, "no id and no digest"},
		{"token ended", func(_ *identity.Signer, c *identity.Caller) { c.Expires = testNow.Add(-5 * time.Second) }, "has ended"},
		{"issued before 1970", func(_ *identity.Signer, c *identity.Caller) { c.IssuedAt = time.Unix(-1, 0) }, "before 1970"},
		{"service that reads as two", func(s *identity.Signer, _ *identity.Caller) { s.Audience = "orders,admin" }, "our own service"},
		{"workload that reads as two", func(_ *identity.Signer, c *identity.Caller) { c.Workloads = []string{"a,b"} }, "came through"},
		{"workload without a name", func(_ *identity.Signer, c *identity.Caller) { c.Workloads = []string{""} }, "came through"},
		{"eight workloads before", func(_ *identity.Signer, c *identity.Caller) { c.Workloads = strings.Split("a,b,c,d,e,f,g,h", ",") }, "8 services"},
		{"control character in the subject", func(_ *identity.Signer, c *identity.Caller) { c.Subject = "a\nb" }, "control"},
		{"zero signer", func(s *identity.Signer, _ *identity.Caller) { s.Issuer, s.Audience, s.Key = "", "", nil }, "no issuer, audience or key"},
		{"zero key", func(s *identity.Signer, _ *identity.Caller) { s.Key = func() identity.Key { return identity.Key{} } }, "no signing key"},
		{"misnamed key", func(s *identity.Signer, _ *identity.Caller) {
			s.Key = func() identity.Key { return identity.Key{ID: "x", Private: testKey("one").Private} }
		}, "not its thumbprint"},
		{"long lifetime", func(s *identity.Signer, _ *identity.Caller) { s.Lifetime = 61 * time.Second }, "lifetime"},
		{"negative lifetime", func(s *identity.Signer, _ *identity.Caller) { s.Lifetime = -time.Second }, "lifetime"},
		{"scope that reads as two", func(_ *identity.Signer, c *identity.Caller) { c.Scopes = []string{"read admin"} }, "scope"},
		{"empty scope", func(_ *identity.Signer, c *identity.Caller) { c.Scopes = []string{""} }, "scope"},
		{"subject not UTF-8", func(_ *identity.Signer, c *identity.Caller) { c.Subject = "a\xff" }, "UTF-8"},
		{"claim nested too deeply", func(s *identity.Signer, c *identity.Caller) {
			s.Claims, c.Claims = []string{"deep"}, map[string]any{"deep": deep(6)}
		}, "nested"},
		{"too long", func(s *identity.Signer, c *identity.Caller) {
			s.Claims, c.Claims = []string{"long"}, map[string]any{"long": strings.Repeat("x", 7000)}
		}, "bytes long"},
		{"not JSON", func(s *identity.Signer, c *identity.Caller) {
			s.Claims, c.Claims = []string{"nan"}, map[string]any{"nan": math.NaN()}
		}, "NaN"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, v := newPair(testKey("one"))
			c := alice()
			test.change(s, &c)
			assertion, err := s.Sign(c, "r", "1")
			if err == nil || !strings.Contains(err.Error(), test.want) {
				_, verr := v.Verify(assertion)
				t.Errorf("error %v, want one with %q (verified: %v)", err, test.want, verr)
			}
		})
	}
	t.Run("deepest that is passed on", func(t *testing.T) {
		s, v := newPair(testKey("one"))
		c := alice()
		s.Claims, c.Claims = []string{"deep"}, map[string]any{"deep": deep(5)}
		assertion, err := s.Sign(c, "r", "1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(assertion); err != nil {
			t.Error(err)
		}
	})
	t.Run("no route, no request", func(t *testing.T) {
		s, _ := newPair(testKey("one"))
		for _, args := range [][2]string{{"", "1"}, {"r", ""}} {
			if _, err := s.Sign(alice(), args[0], args[1]); err == nil {
				t.Errorf("signed for route %q, request %q", args[0], args[1])
			}
		}
	})
}

func TestZeroVerifierRefuses(t *testing.T) {
	s, v := newPair(testKey("one"))
	assertion, err := s.Sign(alice(), "r", "1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(assertion); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]*identity.Verifier{
		"zero":        {},
		"no issuer":   {Audience: v.Audience, Keys: v.Keys, Now: v.Now},
		"no audience": {Issuer: v.Issuer, Keys: v.Keys, Now: v.Now},
		"no keys":     {Issuer: v.Issuer, Audience: v.Audience, Now: v.Now},
	} {
		if c, err := v.Verify(assertion); codeOf(err) != "not_configured" || !reflect.DeepEqual(c, identity.Caller{}) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	v.Keys = func(string) (ed25519.PublicKey, bool) { return nil, true }
	if _, err := v.Verify(assertion); codeOf(err) != "kid_unknown" {
		t.Errorf("a key of no bytes: %v", err)
	}
}

func codeOf(err error) string {
	var e *identity.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

// A key that replaces another under way signs from the next assertion on, whichever goroutine asks.
func TestSignerFollowsTheKey(t *testing.T) {
	one, two := testKey("one"), testKey("two")
	_, v := newPair(one, two)
	var n int
	var mu sync.Mutex
	s := &identity.Signer{Issuer: "sallyport", Audience: "orders", TrustDomain: "shop.example", Now: v.Now, Key: func() identity.Key {
		mu.Lock()
		defer mu.Unlock()
		if n++; n%2 == 0 {
			return one
		}
		return two
	}}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				assertion, err := s.Sign(alice(), "r", "1")
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := v.Verify(assertion); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestRequire(t *testing.T) {
	s, v := newPair(testKey("one"))
	good, err := s.Sign(alice(), "read-order", "req-1")
	if err != nil {
		t.Fatal(err)
	}
	const own = "X-Sallyport-Assertion"
	for _, test := range []struct {
		name, header string
		send         map[string][]string
		status       int
		code, auth   string
	}{
		{name: "good", send: map[string][]string{"Txn-Token": {good}}, status: 200},
		{name: "good in Authorization", header: "authorization", send: map[string][]string{"Authorization": {"Bearer " + good}}, status: 200},
		{name: "good in Authorization, beside the same in Txn-Token", header: "Authorization", send: map[string][]string{"Authorization": {"Bearer " + good}, "Txn-Token": {good}}, status: 200},
		{name: "Authorization when Txn-Token is asked for", send: map[string][]string{"Authorization": {"Bearer " + good}}, status: 401, code: "missing_assertion", auth: "Bearer"},
		{name: "good in a header of its own", header: "x-sallyport-assertion", send: map[string][]string{own: {good}}, status: 200},
		{name: "own header beside another Authorization", header: own, send: map[string][]string{own: {good}, "Authorization": {"Basic eDp5"}}, status: 200},
		{name: "none", status: 401, code: "missing_assertion", auth: "Bearer"},
		{name: "in the wrong header", header: own, send: map[string][]string{"Authorization": {"Bearer " + good}}, status: 401, code: "missing_assertion", auth: "Bearer"},
		{name: "doubled", header: "Authorization", send: map[string][]string{"Authorization": {"Bearer " + good, "Bearer " + good}}, status: 401, code: "multiple_assertions"},
		{name: "doubled own", header: own, send: map[string][]string{own: {good, good}}, status: 401, code: "multiple_assertions"},
		{name: "joined by a comma", header: own, send: map[string][]string{own: {good + ", " + good}}, status: 401, code: "token_not_compact"},
		{name: "no scheme", header: "Authorization", send: map[string][]string{"Authorization": {good}}, status: 401, code: "malformed_header"},
		{name: "another scheme", header: "Authorization", send: map[string][]string{"Authorization": {"DPoP " + good}}, status: 401, code: "malformed_header"},
		{name: "two spaces", header: "Authorization", send: map[string][]string{"Authorization": {"Bearer  " + good}}, status: 401, code: "token_base64"},
		{name: "empty", header: "Authorization", send: map[string][]string{"Authorization": {"Bearer "}}, status: 401, code: "malformed_header"},
		{name: "scheme in a header of its own", header: own, send: map[string][]string{own: {"Bearer " + good}}, status: 401, code: "token_base64"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got identity.Caller
			called := false
			server := httptest.NewServer(identity.Require(v, test.header)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				called = true
				got, _ = identity.FromContext(r.Context())
			})))
			defer server.Close()
			r, _ := http.NewRequest("GET", server.URL, nil)
			for name, values := range test.send {
				r.Header[name] = values
			}
			response, err := server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if response.StatusCode != test.status {
				t.Errorf("status %d, want %d", response.StatusCode, test.status)
			}
			if test.status == 200 {
				if got.Subject != "alice" || got.Route != "read-order" || got.RequestID != "req-1" {
					t.Errorf("caller %+v", got)
				}
				return
			}
			if called {
				t.Error("next ran")
			}
			var body struct {
				Status int
				Code   string
			}
			if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
				t.Fatal(err)
			}
			if body.Code != test.code || body.Status != test.status || response.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("body %+v, %s; want code %s", body, response.Header.Get("Content-Type"), test.code)
			}
			if test.auth == "" {
				test.auth = `Bearer error="invalid_token", error_description="` + test.code + `"`
			}
			if got := response.Header.Get("WWW-Authenticate"); got != test.auth {
				t.Errorf("WWW-Authenticate %q, want %q", got, test.auth)
			}
		})
	}
	t.Run("zero verifier", func(t *testing.T) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Txn-Token", good)
		identity.Require(&identity.Verifier{}, "")(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("next ran") })).ServeHTTP(w, r)
		if w.Code != 500 {
			t.Errorf("status %d, want 500", w.Code)
		}
	})
}

// Whatever a token may hold, the service reads what the signer was given, or the signer refuses.
func FuzzSignVerify(f *testing.F) {
	f.Add("https://auth.example.com", "alice", "shop", "a b", "read-order", "req-1", "tenant", "acme", "t-1", "", "")
	f.Add("\u2028<&>", "\x7f\"\\", "\x00", "", "é", "\U0001f512", "", "\xff", "", "x", "gateway,orders")
	f.Add("i", "", "batch", "a", "r", "1", "sid", "s-1", "", "digest", "a,b,c,d,e,f,g")
	f.Fuzz(func(t *testing.T, issuer, subject, client, scope, route, id, name, value, tokenID, digest, workloads string) {
		s, v := newPair(testKey("one"))
		c := identity.Caller{
			Issuer: issuer, Subject: subject, Client: client, Expires: testNow.Add(time.Hour), Claims: map[string]any{name: value},
			TokenID: tokenID, Digest: digest,
		}
		if scope != "" {
			c.Scopes = strings.Split(scope, " ")
		}
		if workloads != "" {
			c.Workloads, c.Transaction = strings.Split(workloads, ","), digest
		}
		s.Claims = []string{name}
		assertion, err := s.Sign(c, route, id)
		if err != nil {
			return
		}
		got, err := v.Verify(assertion)
		if err != nil {
			if codeOf(err) == "token_encoding" {
				return // NUL, which no verified token holds
			}
			t.Fatal(err)
		}
		want := c
		if want.Subject == "" {
			want.Subject = client
		}
		if want.TokenID != "" {
			want.Digest = ""
		}
		if want.Transaction == "" {
			want.Transaction = id
		}
		want.Workloads = append(slices.Clone(c.Workloads), "orders")
		want.Expires, want.KeyID, want.Route, want.RequestID = time.Unix(testNow.Unix()+60, 0), testKey("one").ID, route, id
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, signed %+v", got, want)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	s, _ := newPair(testKey("one"))
	s.Claims = []string{"tenant"}
	c := alice()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Sign(c, "read-order", "01J9ZK3V7Q8W"); err != nil {
			b.Fatal(err)
		}
	}
}

// What a signature costs alone: the floor of BenchmarkSign.
func BenchmarkEd25519Sign(b *testing.B) {
	key, message := testKey("one").Private, make([]byte, 500)
	b.ReportAllocs()
	for b.Loop() {
		ed25519.Sign(key, message)
	}
}

func BenchmarkVerify(b *testing.B) {
	s, v := newPair(testKey("one"))
	s.Claims = []string{"tenant"}
	assertion, err := s.Sign(alice(), "read-order", "01J9ZK3V7Q8W")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(assertion); err != nil {
			b.Fatal(err)
		}
	}
}
