package bearer

import (
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"
)

var update = flag.Bool("update", false, "write the vectors anew")

const (
	vectorsPath = "../testdata/vectors/tokens.json"
	kindsPath   = "../testdata/vectors/kinds.json"
)

// vectors is the file that every verifier of tokens is tested with, in whatever language.
type vectors struct {
	Readme  []string       `json:"readme"`
	Now     time.Time      `json:"now"`
	Issuers []vectorIssuer `json:"issuers"`
	Cases   []vector       `json:"cases"`
}

// vectorIssuer is an Issuer with everything said, and its keys.
type vectorIssuer struct {
	Issuer      string          `json:"issuer"`
	Audience    []string        `json:"audience"`
	Algorithms  []string        `json:"algorithms"`
	TokenTypes  []string        `json:"token_types"`
	MaxLifetime int             `json:"max_lifetime_seconds"`
	Leeway      int             `json:"leeway_seconds"`
	Required    []string        `json:"required"`
	Only        []string        `json:"only"`
	ScopeClaim  string          `json:"scope_claim"`
	Kind        string          `json:"kind,omitempty"`
	BoundTo     string          `json:"bound_to,omitempty"`
	TrustDomain string          `json:"trust_domain,omitempty"`
	JWKS        json.RawMessage `json:"jwks"`
}

type vector struct {
	Name      string `json:"name"`
	Token     string `json:"token"`
	Valid     bool   `json:"valid"`
	Code      string `json:"code,omitempty"`
	Authentic bool   `json:"authentic,omitempty"`
}

var vectorsReadme = []string{
	"Access tokens that must be accepted or refused. bearer/vectors_test.go writes this file (go test ./bearer -run TestVectors -update)",
	"and reads it; verifiers in other languages read it too. Verify each token at the instant \"now\" as one verifier that knows all of",
	"\"issuers\": the token's iss selects one, byte for byte, and only its \"jwks\" count. There, \"audience\" is what aud must name one of;",
	"\"token_types\" what typ may be, \"application/\" and case folded; \"max_lifetime_seconds\" bounds exp-iat; \"required\" claims must be there;",
	"\"only\", when not empty, is the closed list of claims beside iss, aud, exp, nbf, iat and the required ones. A case with \"valid\": true is",
	"accepted, any other refused. \"code\" is the reason that Go's bearer.Error gives; another verifier need not use the same words.",
	"\"authentic\": true marks a refused token whose signature verifies: a general JOSE library may accept it, so the checks around it must not.",
	"The private keys were thrown away.",
}

func TestVectors(t *testing.T) { testVectors(t, vectorsPath, makeVectors, 10, 100) }

// testVectors holds a verifier against a file of vectors, of which at least so many are accepted, and so many there.
func testVectors(t *testing.T, path string, make func() vectors, accepted, all int) {
	if *update {
		cryptotest.SetGlobalRandom(t, 1) // the same keys and signatures each time
		data, err := json.MarshalIndent(make(), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file vectors
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	var issuers []Issuer
	for _, i := range file.Issuers {
		issuers = append(issuers, Issuer{
			Issuer: i.Issuer, Audience: i.Audience, Algorithms: i.Algorithms, TokenTypes: i.TokenTypes,
			MaxLifetime: time.Duration(i.MaxLifetime) * time.Second, Leeway: time.Duration(i.Leeway) * time.Second,
			Required: i.Required, Only: i.Only, ScopeClaim: i.ScopeClaim, Keys: Keys{File: writeFile(t, string(i.JWKS))},
			Kind: i.Kind, BoundTo: i.BoundTo, TrustDomain: i.TrustDomain,
		})
	}
	v := mustVerifier(t, Options{Now: func() time.Time { return file.Now }}, issuers...)
	names, good := map[string]bool{}, 0
	for _, c := range file.Cases {
		if names[c.Name] {
			t.Errorf("%s: twice", c.Name)
		}
		names[c.Name] = true
		if code := codeOf(t, v, c.Token); code != c.Code || c.Valid != (c.Code == "") {
			t.Errorf("%s: got %q, want %q", c.Name, code, c.Code)
		}
		if c.Valid {
			good++
		}
	}
	if good < accepted || len(file.Cases) < all {
		t.Errorf("%d cases, %d of them accepted: is the file whole?", len(file.Cases), good)
	}
}

// vectorKeys are the private keys behind the vectors.
type vectorKeys struct {
	es256, es384, eddsa, rs256, ps256, anyRSA signer // of the first issuer
	strict                                    signer // of the second
	single                                    signer // of the third
	stranger                                  signer // of nobody, under the kid of es256
}

func makeVectors() vectors {
	k := vectorKeys{
		es256: newSigner("es256", "ES256"), es384: newSigner("es384", "ES384"), eddsa: newSigner("eddsa", "EdDSA"),
		rs256: newSigner("rs256", "RS256"), ps256: newSigner("ps256", "PS256"), anyRSA: newSigner("rsa", "RS256"),
		strict: newSigner("es256", "ES256"), single: newSigner("single", "EdDSA"), stranger: newSigner("es256", "ES256"),
	}
	set := func(keys ...object) json.RawMessage { return json.RawMessage(jwks(keys...)) }
	return vectors{
		Readme: vectorsReadme, Now: testNow,
		Issuers: []vectorIssuer{
			{
				Issuer: testIssuer, Audience: []string{testAudience, "orders"}, Algorithms: supported(), TokenTypes: []string{"at+jwt"},
				MaxLifetime: 3600, Leeway: 5, Required: []string{}, Only: []string{}, ScopeClaim: "scope",
				JWKS: set(k.es256.jwk(), k.es384.jwk(), k.eddsa.jwk(), k.rs256.jwk(), k.ps256.jwk(), k.anyRSA.jwk(object{"alg": nil})),
			},
			{
				Issuer: "https://strict.example.com", Audience: []string{testAudience}, Algorithms: []string{"ES256"}, TokenTypes: []string{"JWT"},
				MaxLifetime: 300, Leeway: 1, Required: []string{"sub", "jti"}, Only: []string{"sub", "jti", "scp"}, ScopeClaim: "scp",
				JWKS: set(k.strict.jwk()),
			},
			{
				Issuer: "https://single.example.com", Audience: []string{testAudience}, Algorithms: []string{"EdDSA"}, TokenTypes: []string{"at+jwt"},
				MaxLifetime: 3600, Leeway: 5, Required: []string{}, Only: []string{}, ScopeClaim: "scope",
				JWKS: set(k.single.jwk(object{"kid": nil})),
			},
		},
		Cases: slices.Concat(k.goodVectors(), k.formVectors(), k.jsonVectors(), k.headerVectors(), k.keyVectors(), k.claimVectors(), k.issuerVectors()),
	}
}

// change returns the usual token of s with other claims.
func change(s signer, changes object) string { return s.token(with(goodClaims(testNow), changes)) }

// head returns the usual token of s with another header.
func head(s signer, changes object) string {
	return s.raw(mustJSON(with(s.header(), changes)), mustJSON(goodClaims(testNow)))
}

// text returns the usual token of s with a part of its payload written otherwise.
func text(s signer, old, new string) string {
	payload := mustJSON(goodClaims(testNow))
	if strings.Count(payload, old) != 1 {
		panic("text: " + old + " is not once in " + payload)
	}
	return s.raw(mustJSON(s.header()), strings.Replace(payload, old, new, 1))
}

func accepted(name, token string) vector { return vector{Name: name, Token: token, Valid: true} }

// refusedAs is a token that nobody signed as it stands, or that is no token.
func refusedAs(code, name, token string) vector { return vector{Name: name, Token: token, Code: code} }

// authentic is a token that the issuer's key signed, as a lenient reader sees it.
func authentic(code, name, token string) vector {
	return vector{Name: name, Token: token, Code: code, Authentic: true}
}
