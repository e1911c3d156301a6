package bearer

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

func TestVerifyReturnsTheCaller(t *testing.T) {
	v := mustVerifier(t, Options{Now: clock}, allAlgorithms(t))
	for _, alg := range supported() {
		claims := goodClaims(testNow)
		claims["roles"] = []any{"a", object{"b": 1.5}}
		token := signers()[alg].token(claims)
		got, err := v.Verify(t.Context(), NewToken(token))
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		digest := sha256.Sum256([]byte(token[:strings.LastIndexByte(token, '.')]))
		want := identity.Caller{
			Issuer: testIssuer, Subject: "alice", Client: "shop", Scopes: []string{"orders:read", "orders:write"},
			TokenID: "8b2c1f", Digest: base64.RawURLEncoding.EncodeToString(digest[:]), KeyID: "kid-" + alg, IssuedAt: testNow.Add(-10 * time.Second).Local(), Expires: testNow.Add(300 * time.Second).Local(),
			Claims: object{
				"iss": testIssuer, "aud": testAudience, "sub": "alice", "client_id": "shop", "jti": "8b2c1f",
				"scope": "orders:read orders:write", "iat": testNow.Unix() - 10, "exp": testNow.Unix() + 300,
				"roles": []any{"a", object{"b": 1.5}},
			},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got  %+v\nwant %+v", alg, got, want)
		}
	}
}

func TestVerifyClaims(t *testing.T) {
	now := testNow.Unix()
	for _, test := range []struct {
		name    string
		issuer  Issuer // settings beside the usual ones
		changes object
		code    string
	}{
		{name: "good"},
		{name: "aud in an array", changes: object{"aud": []any{"other", testAudience}}},
		{name: "aud of another", changes: object{"aud": "other"}, code: codeAudience},
		{name: "aud with a slash more", changes: object{"aud": testAudience + "/"}, code: codeAudience},
		{name: "aud absent", changes: object{"aud": nil}, code: codeAbsent},
		{name: "aud null", changes: object{"aud": null}, code: codeClaim},
		{name: "aud empty", changes: object{"aud": ""}, code: codeClaim},
		{name: "aud an empty array", changes: object{"aud": []any{}}, code: codeClaim},
		{name: "aud with a number", changes: object{"aud": []any{testAudience, 1}}, code: codeClaim},
		{name: "aud with an empty string", changes: object{"aud": []any{testAudience, ""}}, code: codeClaim},
		{name: "aud an object", changes: object{"aud": object{testAudience: true}}, code: codeClaim},
		{name: "aud nested arrays", changes: object{"aud": []any{[]any{testAudience}}}, code: codeClaim},

		{name: "exp absent", changes: object{"exp": nil}, code: codeAbsent},
		{name: "exp null", changes: object{"exp": null}, code: codeClaim},
		{name: "exp a string", changes: object{"exp": fmt.Sprint(now + 300)}, code: codeClaim},
		{name: "exp 1e300", changes: object{"exp": 1e300}, code: codeClaim},
		{name: "exp negative", changes: object{"exp": -now}, code: codeClaim},
		{name: "exp zero", changes: object{"exp": 0}, code: codeClaim},
		{name: "exp fractional", changes: object{"exp": float64(now) + 100.5}, code: codeClaim},
		{name: "exp 10^18", changes: object{"exp": int64(1e18)}, code: codeClaim},
		{name: "exp beyond int64", changes: object{"exp": json.RawMessage("18446744073709551616")}, code: codeClaim},
		{name: "exp only in capitals", changes: object{"exp": nil, "EXP": now + 300}, code: codeAbsent},
		{name: "expired within the leeway", changes: object{"exp": now - 4}},
		{name: "expired by the leeway", changes: object{"exp": now - 5}, code: codeExpired},
		{name: "expired long ago", changes: object{"exp": now - 86400, "iat": now - 90000}, code: codeExpired},
		{name: "expired within a longer leeway", issuer: Issuer{Leeway: 30 * time.Second}, changes: object{"exp": now - 1, "iat": now - 60}},

		{name: "nbf passed", changes: object{"nbf": now}},
		{name: "nbf within the leeway", changes: object{"nbf": now + 5}},
		{name: "nbf to come", changes: object{"nbf": now + 6}, code: codeNotYet},
		{name: "nbf a string", changes: object{"nbf": "0"}, code: codeClaim},
		{name: "nbf null", changes: object{"nbf": null}, code: codeClaim},

		{name: "iat within the leeway", changes: object{"iat": now + 5}},
		{name: "iat to come", changes: object{"iat": now + 6}, code: codeFuture},
		{name: "iat fractional", changes: object{"iat": float64(now) - 0.5}, code: codeClaim},
		{name: "iat absent", changes: object{"iat": nil}},
		{name: "iat after exp", changes: object{"iat": now + 3, "exp": now + 2}, code: codeClaim},
		{name: "lifetime of exactly an hour", changes: object{"iat": now - 1800, "exp": now + 1800}},
		{name: "lifetime over an hour", changes: object{"iat": now - 1800, "exp": now + 1801}, code: codeLifetime},
		{name: "lifetime of a year", changes: object{"iat": now, "exp": now + 365*86400}, code: codeLifetime},
		{name: "lifetime over an hour, without iat", changes: object{"iat": nil, "exp": now + 3601}, code: codeLifetime},
		{name: "lifetime over a shorter limit", issuer: Issuer{MaxLifetime: time.Minute}, code: codeLifetime},
		{name: "lifetime under a longer limit", issuer: Issuer{MaxLifetime: 24 * time.Hour}, changes: object{"exp": now + 80000}},

		{name: "bound to a DPoP key", changes: object{"cnf": object{"jkt": "x"}}, code: codeBound},
		{name: "bound to a certificate", changes: object{"cnf": object{"x5t#S256": "x"}}, code: codeBound},
		{name: "cnf empty", changes: object{"cnf": object{}}, code: codeBound},
		{name: "cnf null", changes: object{"cnf": null}, code: codeBound},

		{name: "required claims there", issuer: Issuer{Required: []string{"sub", "jti"}}},
		{name: "required claim absent", issuer: Issuer{Required: []string{"sub", "tenant"}}, code: codeAbsent},
		{name: "required claim null", issuer: Issuer{Required: []string{"tenant"}}, changes: object{"tenant": null}, code: codeAbsent},
		{name: "required claim in other case", issuer: Issuer{Required: []string{"tenant"}}, changes: object{"Tenant": "x"}, code: codeAbsent},
		{name: "closed list", issuer: Issuer{Only: []string{"sub", "client_id", "scope"}, Required: []string{"jti"}}},
		{name: "closed list, one more", issuer: Issuer{Only: []string{"sub", "client_id", "scope", "jti"}}, changes: object{"role": "admin"}, code: codeUnexpected},
		{name: "closed list, one in other case", issuer: Issuer{Only: []string{"sub", "client_id", "scope", "jti"}}, changes: object{"Sub": "root"}, code: codeUnexpected},

		{name: "sub a number", changes: object{"sub": 1}, code: codeClaim},
		{name: "sub empty", changes: object{"sub": ""}, code: codeClaim},
		{name: "sub with a line end", changes: object{"sub": "alice\nbob"}, code: codeClaim},
		{name: "sub absent", changes: object{"sub": nil}},
		{name: "client_id an object", changes: object{"client_id": object{}}, code: codeClaim},
		{name: "jti an array", changes: object{"jti": []any{"a"}}, code: codeClaim},
		{name: "azp a number", changes: object{"azp": 1}, code: codeClaim},

		{name: "scope with two spaces", changes: object{"scope": "read  write"}, code: codeScopeForm},
		{name: "scope with a space before", changes: object{"scope": " read"}, code: codeScopeForm},
		{name: "scope with a space after", changes: object{"scope": "read "}, code: codeScopeForm},
		{name: "scope with a tab", changes: object{"scope": "read\twrite"}, code: codeScopeForm},
		{name: "scope with NUL", changes: object{"scope": "admin\x00"}, code: "token_encoding"},
		{name: "scope with a quote", changes: object{"scope": `a"b`}, code: codeScopeForm},
		{name: "scope not ASCII", changes: object{"scope": "аdmin"}, code: codeScopeForm},
		{name: "scope with a no-break space", changes: object{"scope": "read\u00a0write"}, code: codeScopeForm},
		{name: "scope a number", changes: object{"scope": 1}, code: codeScopeForm},
		{name: "scope null", changes: object{"scope": null}, code: codeScopeForm},
		{name: "scope an object", changes: object{"scope": object{"admin": true}}, code: codeScopeForm},
		{name: "scope an array", changes: object{"scope": []any{"read", "write"}}},
		{name: "scope an array with numbers and objects", changes: object{"scope": []any{1, object{"a": 1}}}, code: codeScopeForm},
		{name: "scope an array with two in one", changes: object{"scope": []any{"read write"}}, code: codeScopeForm},
		{name: "scope an array with an empty string", changes: object{"scope": []any{""}}, code: codeScopeForm},
		{name: "scope empty", changes: object{"scope": ""}},
		{name: "scope absent", changes: object{"scope": nil}},
		{name: "roles of any shape are only a claim", changes: object{"roles": []any{1, object{"a": 1}}}},

		{name: "iss absent", changes: object{"iss": nil}, code: codeIssuer},
		{name: "iss a number", changes: object{"iss": 1}, code: codeIssuer},
		{name: "iss in an array", changes: object{"iss": []any{testIssuer}}, code: codeIssuer},
		{name: "iss with a slash more", changes: object{"iss": testIssuer + "/"}, code: codeIssuer},
		{name: "iss in capitals", changes: object{"iss": "https://AUTH.example.com"}, code: codeIssuer},
		{name: "iss with its port", changes: object{"iss": testIssuer + ":443"}, code: codeIssuer},
		{name: "iss with user information", changes: object{"iss": "https://auth.example.com@evil.example"}, code: codeIssuer},
		{name: "iss with a letter of another script", changes: object{"iss": "https://аuth.example.com"}, code: codeIssuer},
		{name: "iss only in capitals", changes: object{"iss": nil, "ISS": testIssuer}, code: codeIssuer},
	} {
		t.Run(test.name, func(t *testing.T) {
			issuer := test.issuer
			usual := allAlgorithms(t)
			issuer.Issuer, issuer.Audience, issuer.Keys = usual.Issuer, usual.Audience, usual.Keys
			v := mustVerifier(t, Options{Now: clock}, issuer)
			if code := codeOf(t, v, signers()["ES256"].token(with(goodClaims(testNow), test.changes))); code != test.code {
				t.Errorf("got %q, want %q", code, test.code)
			}
		})
	}
}

func TestVerifyScopes(t *testing.T) {
	issuer := allAlgorithms(t)
	issuer.ScopeClaim = "scp"
	v := mustVerifier(t, Options{Now: clock}, issuer)
	caller, err := v.Verify(t.Context(), NewToken(signers()["ES256"].token(with(goodClaims(testNow), object{
		"scp": []any{"administrator"}, "scope": "admin", "scopes": []any{"admin"},
	}))))
	if err != nil || !reflect.DeepEqual(caller.Scopes, []string{"administrator"}) {
		t.Errorf("got %q, %v: scopes are in the one claim that is configured", caller.Scopes, err)
	}
	caller, err = v.Verify(t.Context(), NewToken(signers()["ES256"].token(with(goodClaims(testNow), object{"client_id": nil, "azp": "web"}))))
	if err != nil || caller.Client != "web" || caller.Scopes != nil {
		t.Errorf("got client %q and scopes %q, %v", caller.Client, caller.Scopes, err)
	}
}

func TestVerifyType(t *testing.T) {
	for _, test := range []struct {
		types []string
		typ   any
		code  string
	}{
		{nil, "at+jwt", ""},
		{nil, "AT+JWT", ""},
		{nil, "application/at+jwt", ""},
		{nil, "Application/At+Jwt", ""},
		{nil, "JWT", codeType},
		{nil, nil, codeType},
		{nil, "dpop+jwt", codeType},
		{nil, "logout+jwt", codeType},
		{nil, "secevent+jwt", codeType},
		{nil, "at+jwt ", codeType},
		{nil, "application/application/at+jwt", codeType},
		{nil, "text/at+jwt", codeType},
		{[]string{"JWT"}, "jwt", ""},
		{[]string{"JWT"}, "at+jwt", codeType},
		{[]string{"application/AT+JWT", "jwt"}, "at+jwt", ""},
	} {
		issuer := allAlgorithms(t)
		issuer.TokenTypes = test.types
		v := mustVerifier(t, Options{Now: clock}, issuer)
		s := signers()["ES256"]
		token := s.raw(mustJSON(with(s.header(), object{"typ": test.typ})), mustJSON(goodClaims(testNow)))
		if code := codeOf(t, v, token); code != test.code {
			t.Errorf("%v, typ %v: got %q, want %q", test.types, test.typ, code, test.code)
		}
	}
}

// A client without an authentic token learns nothing of what is asked of claims.
func TestForgeriesLearnNothingOfTheConfiguration(t *testing.T) {
	issuer := allAlgorithms(t)
	issuer.Required, issuer.Only = []string{"tenant"}, []string{"sub"}
	v := mustVerifier(t, Options{Now: clock}, issuer)
	forger := newSigner("kid-ES256", "ES256")
	for _, changes := range []object{{}, {"aud": "x"}, {"exp": 1}, {"cnf": object{}}, {"scope": 1}, {"sub": 1}, {"role": 1}, {"iat": nil}} {
		if code := codeOf(t, v, forger.token(with(goodClaims(testNow), changes))); code != codeSignature {
			t.Errorf("%v: got %q", changes, code)
		}
	}
	token := forger.raw(mustJSON(with(forger.header(), object{"typ": "dpop+jwt"})), mustJSON(goodClaims(testNow)))
	if code := codeOf(t, v, token); code != codeSignature {
		t.Errorf("typ: got %q", code)
	}
}

func TestKeysNeverCrossIssuers(t *testing.T) {
	one, two := newSigner("same", "ES256"), newSigner("same", "ES256")
	issuer := func(name string, s signer) Issuer {
		return Issuer{Issuer: name, Audience: []string{testAudience}, Keys: Keys{File: writeFile(t, jwks(s.jwk()))}}
	}
	v := mustVerifier(t, Options{Now: clock}, issuer("https://one", one), issuer("https://two", two))
	for _, test := range []struct {
		s    signer
		iss  string
		code string
	}{{one, "https://one", ""}, {two, "https://two", ""}, {one, "https://two", codeSignature}, {two, "https://one", codeSignature}, {one, "https://three", codeIssuer}} {
		if code := codeOf(t, v, test.s.token(with(goodClaims(testNow), object{"iss": test.iss}))); code != test.code {
			t.Errorf("%s: got %q, want %q", test.iss, code, test.code)
		}
	}
}

func TestZeroValuesRefuse(t *testing.T) {
	token := signers()["ES256"].token(goodClaims(testNow))
	var none *Verifier
	for _, v := range []*Verifier{none, {}} {
		if code := codeOf(t, v, token); code != codeIssuer {
			t.Errorf("got %q", code)
		}
		if v.Ready() == nil {
			t.Error("ready")
		}
		v.Close()
	}
	v := mustVerifier(t, Options{Now: clock}, allAlgorithms(t))
	if _, err := v.Verify(t.Context(), Token{}); refusalOf(t, err, "").Code != codeMissing {
		t.Errorf("the zero token: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Verify(ctx, NewToken(token)); refusalOf(t, err, token).Status() != http.StatusServiceUnavailable {
		t.Errorf("a request that has ended: %v", err)
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	file := writeFile(t, jwks(signers()["ES256"].jwk()))
	usual := func(change func(*Issuer)) []Issuer {
		i := Issuer{Issuer: testIssuer, Audience: []string{testAudience}, Keys: Keys{File: file}}
		change(&i)
		return []Issuer{i}
	}
	dir := t.TempDir()
	for _, test := range []struct {
		name    string
		issuers []Issuer
		options Options
		says    string
	}{
		{"no issuer", nil, Options{}, "no issuer"},
		{"no name", usual(func(i *Issuer) { i.Issuer = "" }), Options{}, "no name"},
		{"no audience", usual(func(i *Issuer) { i.Audience = nil }), Options{}, "no audience"},
		{"empty audience", usual(func(i *Issuer) { i.Audience = []string{""} }), Options{}, "empty audience"},
		{"no keys", usual(func(i *Issuer) { i.Keys = Keys{} }), Options{}, "0 sources"},
		{"two sources of keys", usual(func(i *Issuer) { i.Keys.Discovery = true }), Options{}, "2 sources"},
		{"alg none", usual(func(i *Issuer) { i.Algorithms = []string{"none"} }), Options{}, `"none" is not one of`},
		{"alg HS256", usual(func(i *Issuer) { i.Algorithms = []string{"ES256", "HS256"} }), Options{}, `"HS256" is not one of`},
		{"alg in lower case", usual(func(i *Issuer) { i.Algorithms = []string{"es256"} }), Options{}, `"es256" is not one of`},
		{"leeway too long", usual(func(i *Issuer) { i.Leeway = time.Minute }), Options{}, "leeway"},
		{"leeway negative", usual(func(i *Issuer) { i.Leeway = -1 }), Options{}, "leeway"},
		{"lifetime negative", usual(func(i *Issuer) { i.MaxLifetime = -1 }), Options{}, "negative lifetime"},
		{"empty claim", usual(func(i *Issuer) { i.Required = []string{""} }), Options{}, "name of a claim"},
		{"empty type", usual(func(i *Issuer) { i.TokenTypes = []string{""} }), Options{}, "token type"},
		{"the same twice", append(usual(func(*Issuer) {}), usual(func(*Issuer) {})...), Options{}, "twice"},
		{"no such file", usual(func(i *Issuer) { i.Keys.File = dir + "/none" }), Options{}, "no such file"},
		{"a folder", usual(func(i *Issuer) { i.Keys.File = dir }), Options{}, "not a regular file"},
		{"a device", usual(func(i *Issuer) { i.Keys.File = "/dev/zero" }), Options{}, "not a regular file"},
		{"an empty set", usual(func(i *Issuer) { i.Keys.File = writeFile(t, jwks()) }), Options{}, "no usable key"},
		{"not JSON", usual(func(i *Issuer) { i.Keys.File = writeFile(t, "keys") }), Options{}, "token_json"},
		{"no key fits the list", usual(func(i *Issuer) { i.Algorithms = []string{"EdDSA"} }), Options{}, "in common"},
		{"URI relative", usual(func(i *Issuer) { i.Keys = Keys{URI: "/jwks"} }), Options{}, "not an http"},
		{"URI of a file", usual(func(i *Issuer) { i.Keys = Keys{URI: "file:///etc/passwd"} }), Options{}, "not an http"},
		{"URI with a password", usual(func(i *Issuer) { i.Keys = Keys{URI: "https://a:b@c/"} }), Options{}, "user information"},
		{"URI with a fragment", usual(func(i *Issuer) { i.Keys = Keys{URI: "https://c/#"} }), Options{}, "fragment"},
		{"discovery of what is no URL", usual(func(i *Issuer) { i.Issuer, i.Keys = "auth", Keys{Discovery: true} }), Options{}, "not an http"},
		{"discovery with a query", usual(func(i *Issuer) { i.Issuer, i.Keys = testIssuer+"?a=b", Keys{Discovery: true} }), Options{}, "query"},
		{"refresh negative", usual(func(*Issuer) {}), Options{Refresh: -1}, "negative duration"},
		{"stale negative", usual(func(*Issuer) {}), Options{MaxStale: -1}, "negative duration"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v, err := NewVerifier(test.issuers, test.options)
			if err == nil {
				v.Close()
				t.Fatal("built")
			}
			if v != nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, %v: does not say %q", v, err, test.says)
			}
		})
	}
	_, err := NewVerifier([]Issuer{{Issuer: "a", Leeway: -1}, {Issuer: "b"}}, Options{})
	for _, says := range []string{`"a"`, `"b"`, "leeway", "audience", "sources"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%v: does not say %q, though everything wrong is to be named", err, says)
		}
	}
}

func TestTokenPrintsNothing(t *testing.T) {
	const secret = "s3cr3t"
	token := NewToken(secret)
	inside := struct {
		Public  Token
		private Token
	}{token, token}
	var out strings.Builder
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10s"} {
		fmt.Fprintf(&out, format+" "+format+" "+format+"\n", token, &token, inside)
	}
	data, err := json.Marshal(inside)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(data)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", token, "inside", inside)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "token", token, "inside", inside)
	fmt.Fprint(&out, token, token.String())
	for _, spelling := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret)} {
		if strings.Contains(out.String(), spelling) {
			t.Errorf("the token is printed: %s", out.String())
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Error("nothing says that something was left out")
	}
}

func TestVerifySignature(t *testing.T) {
	s := signers()["ES256"]
	set := []byte(jwks(s.jwk()))
	claims, err := VerifySignature(NewToken(s.token(object{"exp": testNow.Unix() + 1e8, "iss": 1})), set, nil, testNow)
	if err != nil || claims["exp"] != testNow.Unix()+1e8 {
		t.Errorf("got %v, %v", claims, err)
	}
	for _, test := range []struct{ token, code string }{
		{s.token(object{}), codeAbsent},
		{s.token(object{"exp": 1}), codeExpired},
		{newSigner(s.kid, s.alg).token(goodClaims(testNow)), codeSignature},
		{newSigner("other", s.alg).token(goodClaims(testNow)), codeKey},
		{signers()["EdDSA"].token(goodClaims(testNow)), codeKey},
		{signers()["ES384"].token(goodClaims(testNow)), codeAlgorithm},
		{"x", "token_not_compact"},
	} {
		_, err := VerifySignature(NewToken(test.token), set, nil, testNow)
		if code := refusalOf(t, err, test.token).Code; code != test.code {
			t.Errorf("got %s, want %s", code, test.code)
		}
	}
	if _, err := VerifySignature(Token{}, set, nil, testNow); refusalOf(t, err, "").Code != codeMissing {
		t.Error(err)
	}
	if _, err := VerifySignature(NewToken("x"), []byte(jwks()), nil, testNow); err == nil {
		t.Error("an empty set is taken")
	}
	if _, err := VerifySignature(NewToken("x"), set, []string{"HS256"}, testNow); err == nil {
		t.Error("HS256 is taken")
	}
}

func TestReasonsAreEachThereOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range reasons {
		if seen[r.code] || r.code == "" || r.text == "" {
			t.Errorf("code %q: twice, or without text", r.code)
		}
		seen[r.code] = true
		if status := (&Error{Code: r.code}).Status(); status != r.status || http.StatusText(status) == "" {
			t.Errorf("code %q: status %d", r.code, status)
		}
	}
	if status := (&Error{Code: "no such code"}).Status(); status != http.StatusUnauthorized {
		t.Errorf("an unknown code has status %d", status)
	}
	// every constant of the source is in the table
	for _, file := range []string{"error.go", "../internal/jws/jws.go"} {
		for _, code := range codesIn(t, file) {
			if !seen[code] {
				t.Errorf("%s: code %q is not in the table", file, code)
			}
		}
	}
}

func codesIn(t *testing.T, path string) []string {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) >= 3 && strings.HasPrefix(strings.ToLower(fields[0]), "code") && fields[1] == "=" {
			codes = append(codes, strings.Trim(fields[2], `"`))
		}
	}
	if len(codes) < 10 {
		t.Fatalf("%s: found %q", path, codes)
	}
	return codes
}
