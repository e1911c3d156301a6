package bearer

import (
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// A token with cnf passes only for a caller that says that it checks the proof, and never through Require.
func TestBoundTokens(t *testing.T) {
	issuer := allAlgorithms(t)
	for _, cnf := range []any{object{"jkt": "x"}, object{"x5t#S256": "x"}, object{}, null, "x"} {
		token := signers()["ES256"].token(with(goodClaims(time.Now()), object{"cnf": cnf}))
		strict := mustVerifier(t, Options{}, issuer)
		if _, err := strict.Verify(t.Context(), NewToken(token)); err == nil || refusalOf(t, err, token).Code != codeBound {
			t.Errorf("cnf %v without Bound: %v", cnf, err)
		}
		v := mustVerifier(t, Options{Bound: true}, issuer)
		caller, err := v.Verify(t.Context(), NewToken(token))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := caller.Claims["cnf"]; !ok {
			t.Errorf("cnf %v is not handed on, so nobody can check it", cnf)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		if _, err := admit(v, r, nil); err == nil || refusalOf(t, err, token).Code != codeBound {
			t.Errorf("Require lets a token with cnf %v through: %v", cnf, err)
		}
	}
}

// The scheme DPoP is taken by Take of a verifier whose user checks proofs, and by nobody else.
func TestTake(t *testing.T) {
	issuer := allAlgorithms(t)
	strict, v := mustVerifier(t, Options{}, issuer), mustVerifier(t, Options{Bound: true}, issuer)
	for _, test := range []struct {
		header, code string
		dpop         bool
	}{
		{"DPoP abc", "", true},
		{"dpop abc", "", true},
		{"Bearer abc", "", false},
		{"DPoP", codeMalformed, false},
		{"DPoP  abc", codeMalformed, false},
		{"DPoP a, DPoP b", codeMultiple, false},
		{"DPoP a, Bearer b", codeMultiple, false},
		{"Bearer a,DPoP b", codeMultiple, false},
		{"Basic a, DPoP b", codeMultiple, false},
		{"DPoPx abc", codeScheme, false},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", test.header)
		token, dpop, err := v.Take(r)
		if dpop != test.dpop {
			t.Errorf("%q: dpop %t", test.header, dpop)
		}
		if test.code == "" && (err != nil || *token.raw != "abc") || test.code != "" && (err == nil || refusalOf(t, err, "").Code != test.code) {
			t.Errorf("%q: %v", test.header, err)
		}
		if !test.dpop {
			continue
		}
		if _, _, err := strict.Take(r); err == nil || refusalOf(t, err, "").Code != codeScheme {
			t.Errorf("%q is taken by a verifier that refuses bound tokens: %v", test.header, err)
		}
		if _, err := FromRequest(r); err == nil || refusalOf(t, err, "").Code != codeScheme {
			t.Errorf("%q is taken by FromRequest: %v", test.header, err)
		}
	}
}

// Whoever keeps a stream open hears of a key that has gone, and of one that was replaced under its kid; then it verifies nothing.
func TestWithdrawnKeysAreTold(t *testing.T) {
	one, two, again := newSigner("one", "ES256"), newSigner("two", "ES256"), newSigner("one", "ES256")
	a := newAuthServer(t, one.jwk(), two.jwk())
	v := mustVerifierAt(t, quick, Options{}, a.issuer())
	ready(t, v)
	var mu sync.Mutex
	var told []string
	cancel := v.Withdrawn(func(issuer, keyID string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, keyID)
		if issuer != a.URL || keyID == "two" && v.Usable(issuer, "two") {
			t.Errorf("told of %s %s too early", issuer, keyID)
		}
	})
	heard := func(n int) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return len(told) == n }
	}
	if !v.Usable(a.URL, "one") || !v.Usable(a.URL, "two") || v.Usable(a.URL, "three") || v.Usable("https://other", "one") {
		t.Error("the set is one and two")
	}
	a.publish(one.jwk())
	eventually(t, "two has gone", heard(1))
	a.publish(again.jwk())
	eventually(t, "one is another key", heard(2))
	mu.Lock()
	if told[0] != "two" || told[1] != "one" || !v.Usable(a.URL, "one") {
		t.Errorf("told of %q", told)
	}
	mu.Unlock()
	cancel()
	a.publish(two.jwk())
	eventually(t, "one has gone", func() bool { return !v.Usable(a.URL, "one") })
	if !heard(2)() {
		t.Error("told after cancel")
	}
}

// Leeway is the issuer's, in whole; keys that are too old are no keys.
func TestUsableEnds(t *testing.T) {
	a := newAuthServer(t, newSigner("one", "ES256").jwk())
	issuer := a.issuer()
	issuer.Leeway = 2 * time.Second
	p := quick
	p.maxStale = 200 * time.Millisecond
	v := mustVerifierAt(t, p, Options{}, issuer)
	ready(t, v)
	if v.Leeway(a.URL) != 2*time.Second || v.Leeway("https://other") != 0 || (*Verifier)(nil).Leeway("") != 0 || (*Verifier)(nil).Usable("", "") {
		t.Error("leeway")
	}
	a.change(func() { a.status = 500 })
	eventually(t, "the keys are too old", func() bool { return !v.Usable(a.URL, "one") })
}
