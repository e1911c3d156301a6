package bearer_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// asking is an issuer that is asked about its tokens.
func asking(t testing.TB, as *sallytest.Issuer, change func(*bearer.Issuer)) bearer.Issuer {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cr3t\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	i := bearer.Issuer{Issuer: as.URL, Audience: []string{sallytest.Audience}, Introspection: &bearer.Introspection{
		Endpoint: as.URL + sallytest.PathIntrospection, ClientID: "gate", SecretFile: secret, Cache: 30 * time.Second,
	}}
	if change != nil {
		change(&i)
	}
	return i
}

func verifierFor(t testing.TB, issuers ...bearer.Issuer) *bearer.Verifier {
	t.Helper()
	v, err := bearer.NewVerifier(issuers, bearer.Options{Bound: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	for deadline := time.Now().Add(20 * time.Second); v.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(v.Ready())
		}
	}
	return v
}

func codeOf(err error) string {
	if refused, ok := errors.AsType[*bearer.Error](err); ok {
		return refused.Code
	}
	return fmt.Sprint(err)
}

func TestOpaqueCaller(t *testing.T) {
	as := sallytest.NewIssuer(t)
	v := verifierFor(t, asking(t, as, nil))
	token := as.Opaque(map[string]any{"scope": "orders:read orders:write", "username": "Alice", "tenant": "acme", "token_type": "Bearer"})
	caller, err := v.Verify(t.Context(), bearer.NewToken(token))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(token))
	if caller.Issuer != as.URL || caller.Subject != "alice" || caller.Client != "shop" || caller.TokenID == "" || caller.KeyID != "" ||
		!slices.Equal(caller.Scopes, []string{"orders:read", "orders:write"}) || caller.Claims["tenant"] != "acme" ||
		caller.Digest != base64.RawURLEncoding.EncodeToString(sum[:]) || time.Until(caller.Expires) < 4*time.Minute || caller.IssuedAt.IsZero() {
		t.Errorf("%+v", caller)
	}
	for _, member := range []string{"active", "token_type"} {
		if _, there := caller.Claims[member]; there {
			t.Errorf("%s is a claim", member)
		}
	}
	if !v.Introspects(caller) || !v.Usable(caller.Issuer, caller.KeyID) {
		t.Error("what is asked about is not known for it")
	}
	if err := v.Ready(); err != nil {
		t.Errorf("without keys it is never ready: %v", err)
	}
}

// TestOpaqueAnswers judges answers as tokens are judged: rows I01, I05, I06 and I07 where an answer says it.
func TestOpaqueAnswers(t *testing.T) {
	as := sallytest.NewIssuer(t)
	now := time.Now().Unix()
	thumbprint := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	for name, tt := range map[string]struct {
		said   map[string]any
		change func(*bearer.Issuer)
		code   string // empty: accepted
	}{
		"as it is":               {},
		"no iss":                 {said: map[string]any{"iss": nil}},
		"no iss, required":       {said: map[string]any{"iss": nil}, change: func(i *bearer.Issuer) { i.Required = []string{"iss"} }, code: "missing_claim"},
		"another iss":            {said: map[string]any{"iss": "https://other.example"}, code: "unknown_issuer"},
		"iss with a slash":       {said: map[string]any{"iss": as.URL + "/"}, code: "unknown_issuer"},
		"iss a list":             {said: map[string]any{"iss": []string{as.URL}}, code: "unknown_issuer"},
		"no aud":                 {said: map[string]any{"aud": nil}, code: "missing_claim"},
		"another aud":            {said: map[string]any{"aud": "https://billing.example"}, code: "wrong_audience"},
		"aud a list":             {said: map[string]any{"aud": []string{"x", sallytest.Audience}}},
		"aud with a number":      {said: map[string]any{"aud": []any{sallytest.Audience, 1}}, code: "invalid_claim"},
		"active text":            {said: map[string]any{"active": "true"}, code: "token_inactive"},
		"active 1":               {said: map[string]any{"active": 1}, code: "token_inactive"},
		"active false":           {said: map[string]any{"active": false}, code: "token_inactive"},
		"exp past":               {said: map[string]any{"exp": now - 60, "iat": now - 120}, code: "token_inactive"},
		"exp as text":            {said: map[string]any{"exp": fmt.Sprint(now + 60)}, code: "token_inactive"},
		"exp a fraction":         {said: map[string]any{"exp": float64(now) + 60.5}, code: "token_inactive"},
		"no exp":                 {said: map[string]any{"exp": nil}},
		"no exp, no iat":         {said: map[string]any{"exp": nil, "iat": nil}},
		"no exp, required":       {said: map[string]any{"exp": nil}, change: func(i *bearer.Issuer) { i.Required = []string{"exp"} }, code: "missing_claim"},
		"exp in 10 years":        {said: map[string]any{"exp": now + 10*365*86400}, code: "lifetime_too_long"},
		"the same, allowed":      {said: map[string]any{"exp": now + 10*365*86400}, change: func(i *bearer.Issuer) { i.MaxLifetime = 11 * 365 * 24 * time.Hour }},
		"iat ahead":              {said: map[string]any{"iat": now + 60}, code: "issued_in_future"},
		"iat ahead, no exp":      {said: map[string]any{"iat": now + 60, "exp": nil}, code: "issued_in_future"},
		"nbf ahead":              {said: map[string]any{"nbf": now + 60}, code: "not_yet_valid"},
		"a refresh token":        {said: map[string]any{"token_use": "refresh_token"}, code: "wrong_type"},
		"Cognito's":              {said: map[string]any{"token_use": "refresh"}, code: "wrong_type"},
		"an ID token":            {said: map[string]any{"token_use": "id"}, code: "wrong_type"},
		"token_use access":       {said: map[string]any{"token_use": "access"}},
		"token_use a list":       {said: map[string]any{"token_use": []string{"access"}}, code: "wrong_type"},
		"token_type refresh":     {said: map[string]any{"token_type": "refresh_token"}, code: "wrong_type"},
		"token_type mac":         {said: map[string]any{"token_type": "mac"}, code: "wrong_type"},
		"token_type null":        {said: map[string]any{"token_type": new(*int)}, code: "wrong_type"},
		"Keycloak's":             {said: map[string]any{"typ": "Bearer", "token_type": "Bearer"}},
		"Keycloak's refresh":     {said: map[string]any{"typ": "Refresh"}, code: "wrong_type"},
		"Keycloak's offline":     {said: map[string]any{"typ": "Offline"}, code: "wrong_type"},
		"bound":                  {said: map[string]any{"cnf": map[string]any{"jkt": thumbprint}, "token_type": "DPoP"}},
		"bound to nothing":       {said: map[string]any{"token_type": "DPoP"}, code: "sender_constrained"},
		"username alone":         {said: map[string]any{"sub": nil, "username": "root"}, code: "missing_claim"},
		"client alone":           {said: map[string]any{"sub": nil}},
		"sub a number":           {said: map[string]any{"sub": 1}, code: "invalid_claim"},
		"scope with two spaces":  {said: map[string]any{"scope": "a  b"}, code: "invalid_scope_claim"},
		"closed list":            {change: func(i *bearer.Issuer) { i.Only = []string{"sub", "client_id", "scope", "jti"} }},
		"closed list, one more":  {said: map[string]any{"role": "root"}, change: func(i *bearer.Issuer) { i.Only = []string{"sub", "client_id", "scope", "jti"} }, code: "unexpected_claims"},
		"required":               {change: func(i *bearer.Issuer) { i.Required = []string{"tenant"} }, code: "missing_claim"},
		"active does not count":  {said: map[string]any{"token_type": "Bearer"}, change: func(i *bearer.Issuer) { i.Required = []string{"token_type"} }, code: "missing_claim"},
		"scopes in another name": {said: map[string]any{"scope": nil, "scp": []string{"orders:read"}}, change: func(i *bearer.Issuer) { i.ScopeClaim = "scp" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := verifierFor(t, asking(t, as, tt.change))
			token := bearer.NewToken(as.Opaque(tt.said))
			for _, fresh := range []bool{false, false, true} { // what is kept is judged alike
				caller, err := v.VerifyFrom(t.Context(), token, netip.Addr{}, fresh)
				if err != nil && codeOf(err) != tt.code || err == nil && tt.code != "" {
					t.Fatalf("%v, want %q", err, tt.code)
				}
				if err != nil && caller.Issuer != "" {
					t.Error("a caller beside an error")
				}
				if err == nil && time.Until(caller.Expires) <= 0 {
					t.Errorf("the caller ends at %s", caller.Expires)
				}
				if err == nil && strings.HasPrefix(name, "no exp") && time.Until(caller.Expires) > 31*time.Second {
					t.Errorf("a token without an end counts until %s", caller.Expires)
				}
				if _, there := caller.Claims["exp"]; err == nil && there && strings.HasPrefix(name, "no exp") {
					t.Error("an end was put into the claims")
				}
				if err == nil {
					if err := v.Still(token, caller); err != nil {
						t.Errorf("judged again: %v", err)
					}
				}
			}
		})
	}
}

// TestOpaqueUnavailable is row I02: a server that cannot be asked is a 503, and never a 401 nor a caller; and then it is left alone.
func TestOpaqueUnavailable(t *testing.T) {
	as := sallytest.NewIssuer(t)
	for _, status := range []int{401, 403, 404, 429, 500, 302} {
		v := verifierFor(t, asking(t, as, nil))
		token := bearer.NewToken(as.Opaque(nil))
		as.Answer(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", as.URL+sallytest.PathIntrospection)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprint(w, `{"active":true}`)
		})
		before := as.Fetches(sallytest.PathIntrospection)
		for range 3 {
			_, err := v.Verify(t.Context(), token)
			if refused, ok := errors.AsType[*bearer.Error](err); !ok || refused.Code != "introspection_unavailable" || refused.Status() != 503 {
				t.Errorf("status %d: %v", status, err)
			}
		}
		if n := as.Fetches(sallytest.PathIntrospection) - before; n < 1 || n > 3 { // a slow machine outlasts the first pause
			t.Errorf("status %d: asked %d times", status, n)
		}
		if got := v.Resting(); !slices.Equal(got, []string{as.URL}) {
			t.Errorf("resting: %v", got)
		}
		as.Answer(nil)
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := v.Verify(t.Context(), token); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("the server is back, and %v", err)
			}
		}
	}
}

// TestOpaqueCanceled holds that whoever goes while the server is asked is not let in (H28), at whatever moment.
func TestOpaqueCanceled(t *testing.T) {
	as := sallytest.NewIssuer(t)
	v := verifierFor(t, asking(t, as, nil))
	token := bearer.NewToken(as.Opaque(nil))
	for n := range 50 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n*n)*time.Microsecond)
		_, err := v.VerifyFrom(ctx, token, netip.Addr{}, true)
		if ended := ctx.Err(); err == nil && ended != nil && n == 0 || err != nil && codeOf(err) != "verification_canceled" {
			t.Errorf("%d: %v, and the context: %v", n, err, ended)
		}
		cancel()
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Verify(ended, token); codeOf(err) != "verification_canceled" {
		t.Errorf("who has gone is let in by what is kept: %v", err)
	}
}

// TestOpaqueJudgedAgain is row I03 where a verifier sees it: another verifier's rules, and a caller that is judged again.
func TestOpaqueJudgedAgain(t *testing.T) {
	as := sallytest.NewIssuer(t)
	token := bearer.NewToken(as.Opaque(nil))
	caller, err := verifierFor(t, asking(t, as, nil)).Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	as.Fail(500) // nobody is asked
	for name, tt := range map[string]struct {
		issuer bearer.Issuer
		code   string
	}{
		"the same":         {asking(t, as, nil), ""},
		"another audience": {asking(t, as, func(i *bearer.Issuer) { i.Audience = []string{"https://other.example"} }), "wrong_audience"},
		"a claim more":     {asking(t, as, func(i *bearer.Issuer) { i.Required = []string{"tenant"} }), "missing_claim"},
		"another issuer":   {asking(t, as, func(i *bearer.Issuer) { i.Issuer = "https://other.example" }), "unknown_issuer"},
		"another prefix":   {asking(t, as, func(i *bearer.Issuer) { i.Introspection.Prefix = "x_" }), "token_not_compact"},
	} {
		v := verifierFor(t, tt.issuer)
		if err := v.Still(token, caller); err == nil != (tt.code == "") || err != nil && codeOf(err) != tt.code {
			t.Errorf("%s: %v, want %q", name, err, tt.code)
		}
	}
	keyed := caller
	keyed.KeyID = "a-key"
	if verifierFor(t, asking(t, as, nil)).Still(token, keyed) == nil {
		t.Error("a caller of a key that is gone stands")
	}
}

// TestOpaqueWhose holds which issuer is asked about which token.
func TestOpaqueWhose(t *testing.T) {
	one, two, jwts := sallytest.NewIssuer(t), sallytest.NewIssuer(t), sallytest.NewIssuer(t)
	v := verifierFor(t,
		asking(t, one, nil),
		asking(t, two, func(i *bearer.Issuer) { i.Introspection.Prefix, i.Keys = "two_", bearer.Keys{Discovery: true} }),
		bearer.Issuer{Issuer: jwts.URL, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{Discovery: true}})
	counts := func() [3]int {
		return [3]int{one.Fetches(sallytest.PathIntrospection), two.Fetches(sallytest.PathIntrospection), jwts.Fetches(sallytest.PathIntrospection)}
	}
	// what an issuer without keys is asked about is any token of its, also one that it has signed
	signed := one.Token(nil)
	input := signed[:strings.LastIndexByte(signed, '.')]
	one.Answer(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.PostFormValue("token") != signed {
			fmt.Fprint(w, `{"active":false}`)
			return
		}
		fmt.Fprintf(w, `{"active":true,"aud":%q,"sub":"bob"}`, sallytest.Audience)
	})
	for name, tt := range map[string]struct {
		token string
		asked [3]int
		code  string
	}{
		"opaque":               {"abc", [3]int{1, 0, 0}, "token_inactive"},
		"opaque, prefixed":     {"two_abc", [3]int{0, 1, 0}, "token_inactive"},
		"one dot":              {"a.b", [3]int{1, 0, 0}, "token_inactive"},
		"two dots":             {"v4.local.abc", [3]int{1, 0, 0}, "token_inactive"},
		"encrypted":            {"eyJhbGciOiJkaXIifQ..a.b.c", [3]int{1, 0, 0}, "token_inactive"},
		"a JWT":                {jwts.Token(nil), [3]int{}, ""},
		"a JWT of one asked":   {signed, [3]int{1, 0, 0}, ""},
		"a JWT of both ways":   {two.Token(nil), [3]int{}, ""},
		"a forged one of both": {two.Token(nil) + "x", [3]int{}, "token_base64"},
		"a JWT of nobody":      {sallytest.NewIssuer(t).Token(nil), [3]int{}, "unknown_issuer"},
		"a malformed JWT":      {"eyJhbGciOiJFUzI1NiJ9.e30x.e30", [3]int{}, "token_json"},
		"too long":             {strings.Repeat("a", 4097), [3]int{}, "token_not_compact"},
		"no token's character": {"a b", [3]int{}, "token_not_compact"},
		"nothing":              {"", [3]int{}, "token_not_compact"},
	} {
		before := counts()
		caller, err := v.Verify(t.Context(), bearer.NewToken(tt.token))
		after := counts()
		asked := [3]int{after[0] - before[0], after[1] - before[1], after[2] - before[2]}
		if asked != tt.asked || err == nil != (tt.code == "") || err != nil && codeOf(err) != tt.code {
			t.Errorf("%s: asked %v, %v; want %v, %q", name, asked, err, tt.asked, tt.code)
		}
		if tt.token == signed {
			sum := sha256.Sum256([]byte(input))
			if caller.Subject != "bob" || caller.Digest != base64.RawURLEncoding.EncodeToString(sum[:]) || v.Still(bearer.NewToken(signed), caller) != nil {
				t.Errorf("%s: %+v", name, caller)
			}
		}
	}
}

// TestOpaqueBudget is row I08 where a verifier sees it.
func TestOpaqueBudget(t *testing.T) {
	as := sallytest.NewIssuer(t)
	heard := map[string]int{}
	v, err := bearer.NewVerifier([]bearer.Issuer{asking(t, as, nil)}, bearer.Options{Introspected: func(issuer, result string) {
		if issuer == as.URL {
			heard[result]++
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	source := netip.MustParseAddr("192.0.2.7")
	sent := 0
	for ; heard["too_many"] == 0 && sent < 5000; sent++ { // a slow machine has some of the budget come back meanwhile
		_, err := v.VerifyFrom(t.Context(), bearer.NewToken(fmt.Sprint("invented-", sent)), source, true)
		refused, ok := errors.AsType[*bearer.Error](err)
		if !ok || refused.Code != "token_inactive" && (refused.Code != "too_many_unknown_tokens" || refused.Status() != 429) {
			t.Fatal(err)
		}
	}
	if n := as.Fetches(sallytest.PathIntrospection); n < 90 || n != sent-1 {
		t.Errorf("asked %d times about %d tokens", n, sent)
	}
	if _, err := v.VerifyFrom(t.Context(), bearer.NewToken(as.Opaque(nil)), netip.MustParseAddr("192.0.2.8"), true); err != nil {
		t.Error(err)
	}
	if heard["asked_active"] != 1 || heard["asked_inactive"] != as.Fetches(sallytest.PathIntrospection)-1 || heard["too_many"] == 0 {
		t.Errorf("heard %v", heard)
	}
}

// TestOpaqueRequire holds that the middleware answers as the verifier says.
func TestOpaqueRequire(t *testing.T) {
	as := sallytest.NewIssuer(t)
	v := verifierFor(t, asking(t, as, nil))
	handler := bearer.Require(v, "orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := identity.FromContext(r.Context())
		fmt.Fprint(w, c.Subject)
	}))
	ask := func(token string) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		handler.ServeHTTP(w, r)
		return w
	}
	if w := ask(as.Opaque(nil)); w.Code != 200 || w.Body.String() != "alice" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := ask(as.Opaque(map[string]any{"scope": "other"})); w.Code != 403 {
		t.Errorf("without the scope: %d %s", w.Code, w.Body)
	}
	if w := ask("invented"); w.Code != 401 || !strings.Contains(w.Header().Get("WWW-Authenticate"), `error="invalid_token"`) {
		t.Errorf("invented: %d %v", w.Code, w.Header())
	}
	if w := ask(as.Opaque(map[string]any{"cnf": map[string]any{"jkt": "x"}})); w.Code != 401 {
		t.Errorf("bound: %d %s", w.Code, w.Body)
	}
	w := ask("invented-too")
	for n := 0; n < 5000 && w.Code != 429; n++ {
		w = ask(as.Opaque(map[string]any{"active": false}))
	}
	if w.Code != 429 || w.Header().Get("Retry-After") != "1" || w.Header().Get("WWW-Authenticate") != "" {
		t.Errorf("too many: %d %v", w.Code, w.Header())
	}
	as.Fail(500)
	if w := ask(as.Opaque(nil)); w.Code != 429 && w.Code != 503 {
		t.Errorf("down: %d", w.Code)
	}
}

// TestIntrospectionConfig holds what does not build.
func TestIntrospectionConfig(t *testing.T) {
	as, other := sallytest.NewIssuer(t), sallytest.NewIssuer(t)
	change := func(f func(*bearer.Introspection)) bearer.Issuer {
		return asking(t, as, func(i *bearer.Issuer) { f(i.Introspection) })
	}
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, issuers := range map[string][]bearer.Issuer{
		"no endpoint":           {change(func(i *bearer.Introspection) { i.Endpoint = "" })},
		"no client":             {change(func(i *bearer.Introspection) { i.ClientID = "" })},
		"no proof":              {change(func(i *bearer.Introspection) { i.SecretFile = "" })},
		"two proofs":            {change(func(i *bearer.Introspection) { i.KeyFile = i.SecretFile })},
		"no such file":          {change(func(i *bearer.Introspection) { i.SecretFile += ".none" })},
		"a file that is open":   {change(func(i *bearer.Introspection) { i.SecretFile = open })},
		"half a certificate":    {change(func(i *bearer.Introspection) { i.SecretFile, i.CertFile = "", open })},
		"no roots":              {change(func(i *bearer.Introspection) { i.CAFile = open })},
		"kept for too long":     {change(func(i *bearer.Introspection) { i.Cache = 31 * time.Second })},
		"kept for less than no": {change(func(i *bearer.Introspection) { i.Cache = -1 })},
		"http elsewhere":        {change(func(i *bearer.Introspection) { i.Endpoint = "http://auth.example.com/introspect" })},
		"signed without keys":   {change(func(i *bearer.Introspection) { i.Signed = true })},
		"an odd prefix":         {change(func(i *bearer.Introspection) { i.Prefix = "a b" })},
		"no audience":           {asking(t, as, func(i *bearer.Issuer) { i.Audience = nil })},
		"two without prefix":    {asking(t, as, nil), asking(t, other, nil)},
		"one prefix twice":      {change(func(i *bearer.Introspection) { i.Prefix = "a" }), asking(t, other, func(i *bearer.Issuer) { i.Introspection.Prefix = "a" })},
		"one in another":        {change(func(i *bearer.Introspection) { i.Prefix = "a" }), asking(t, other, func(i *bearer.Issuer) { i.Introspection.Prefix = "ab" })},
	} {
		if v, err := bearer.NewVerifier(issuers, bearer.Options{}); err == nil {
			v.Close()
			t.Errorf("%s: it builds", name)
		} else if strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: the error holds the secret", name)
		}
	}
	v, err := bearer.NewVerifier([]bearer.Issuer{change(func(i *bearer.Introspection) { i.Prefix = "a_" }), asking(t, other, nil)}, bearer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	v.Close()
}
