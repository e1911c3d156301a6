package bearer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testIssuer   = "https://auth.example.com"
	testAudience = "https://api.example.com"
)

// testNow is the instant of the tests that do not look at a real clock.
var testNow = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func clock() time.Time { return testNow }

type object = map[string]any

// with returns a copy of o with the changes; a nil value removes its member.
func with(o, changes object) object {
	o = maps.Clone(o)
	maps.Copy(o, changes)
	maps.DeleteFunc(o, func(_ string, v any) bool { return v == nil })
	return o
}

// null stands for JSON's null where nil means removal.
var null = json.RawMessage("null")

func mustJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// signer is an issuer's private key.
type signer struct {
	kid, alg string
	private  crypto.Signer
}

// newSigner makes a key: alg says which, and rsa bits for RSA.
func newSigner(kid, alg string) signer {
	var private crypto.Signer
	var err error
	switch alg {
	case "ES256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ES512":
		private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "EdDSA":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case "RS256", "PS256":
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		panic(err)
	}
	return signer{kid, alg, private}
}

// signers are one key for each algorithm, made once.
var signers = sync.OnceValue(func() map[string]signer {
	all := map[string]signer{}
	for _, alg := range supported() {
		all[alg] = newSigner("kid-"+alg, alg)
	}
	return all
})

// jwk is the public key as an issuer publishes it.
func (s signer) jwk(changes ...object) object {
	o := object{"kid": s.kid, "use": "sig", "alg": s.alg}
	switch k := s.private.Public().(type) {
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			panic(err)
		}
		size := (len(point) - 1) / 2
		o["kty"], o["crv"], o["x"], o["y"] = "EC", k.Params().Name, b64(point[1:1+size]), b64(point[1+size:])
	case ed25519.PublicKey:
		o["kty"], o["crv"], o["x"] = "OKP", "Ed25519", b64(k)
	case *rsa.PublicKey:
		o["kty"], o["n"], o["e"] = "RSA", b64(k.N.Bytes()), b64(big.NewInt(int64(k.E)).Bytes())
	}
	for _, change := range changes {
		o = with(o, change)
	}
	return o
}

func jwks(keys ...object) string {
	if keys == nil {
		keys = []object{}
	}
	return mustJSON(object{"keys": keys})
}

// sign makes the third segment for the first two.
func (s signer) sign(input string) []byte { return s.signAs(s.alg, input) }

func (s signer) signAs(alg, input string) []byte {
	var signature []byte
	var err error
	switch k := s.private.(type) {
	case ed25519.PrivateKey:
		signature = ed25519.Sign(k, []byte(input))
	case *rsa.PrivateKey:
		hash, options := crypto.SHA256, crypto.SignerOpts(crypto.SHA256)
		digest := sha256.Sum256([]byte(input))
		sum := digest[:]
		if strings.HasSuffix(alg, "512") {
			long := sha512.Sum512([]byte(input))
			sum, hash, options = long[:], crypto.SHA512, crypto.SHA512
		}
		if strings.HasPrefix(alg, "PS") {
			options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
		}
		signature, err = k.Sign(rand.Reader, sum, options)
	case *ecdsa.PrivateKey:
		var sum []byte
		switch alg {
		case "ES384":
			digest := sha512.Sum384([]byte(input))
			sum = digest[:]
		case "ES512":
			digest := sha512.Sum512([]byte(input))
			sum = digest[:]
		default:
			digest := sha256.Sum256([]byte(input))
			sum = digest[:]
		}
		r, t, e := ecdsa.Sign(rand.Reader, k, sum)
		size := (k.Params().BitSize + 7) / 8
		signature, err = append(r.FillBytes(make([]byte, size)), t.FillBytes(make([]byte, size))...), e
	}
	if err != nil {
		panic(err)
	}
	return signature
}

// raw signs a header and a payload as they are written.
func (s signer) raw(header, payload string) string {
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return input + "." + b64(s.sign(input))
}

func (s signer) header() object { return object{"alg": s.alg, "typ": "at+jwt", "kid": s.kid} }

// token signs claims under the signer's usual header.
func (s signer) token(claims object) string { return s.raw(mustJSON(s.header()), mustJSON(claims)) }

// goodClaims are those of a token that is accepted at now.
func goodClaims(now time.Time) object {
	return object{
		"iss": testIssuer, "aud": testAudience, "sub": "alice", "client_id": "shop", "jti": "8b2c1f",
		"scope": "orders:read orders:write", "iat": now.Unix() - 10, "exp": now.Unix() + 300,
	}
}

// writeFile writes a key set into a file of the test.
func writeFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// allAlgorithms is an issuer that accepts each algorithm, with its keys in a file.
func allAlgorithms(t testing.TB) Issuer {
	var keys []object
	for _, alg := range supported() {
		keys = append(keys, signers()[alg].jwk())
	}
	return Issuer{
		Issuer: testIssuer, Audience: []string{testAudience}, Algorithms: supported(),
		Keys: Keys{File: writeFile(t, jwks(keys...))},
	}
}

func mustVerifier(t testing.TB, o Options, issuers ...Issuer) *Verifier {
	t.Helper()
	v, err := NewVerifier(issuers, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// codeOf verifies a token and returns the code of the refusal, or "".
func codeOf(t testing.TB, v *Verifier, token string) string {
	t.Helper()
	caller, err := v.Verify(context.Background(), NewToken(token))
	if err == nil {
		if caller.Expires.IsZero() || caller.Issuer == "" {
			t.Errorf("a caller without issuer or end: %+v", caller)
		}
		return ""
	}
	if caller.Issuer != "" || caller.Claims != nil {
		t.Errorf("a refusal comes with a caller: %+v", caller)
	}
	return refusalOf(t, err, token).Code
}

// refusalOf checks what holds for every refusal.
func refusalOf(t testing.TB, err error, token string) *Error {
	t.Helper()
	var refusal *Error
	if !errors.As(err, &refusal) {
		t.Fatalf("not an *Error: %v", err)
	}
	known := false
	for _, r := range reasons {
		known = known || r.code == refusal.Code
	}
	if !known {
		t.Errorf("code %q is not in the table", refusal.Code)
	}
	text := fmt.Sprintf("%v %+v %#v %s", err, *refusal, refusal.Err, refusal.Detail)
	for segment := range strings.SplitSeq(token, ".") {
		if len(segment) > 20 && strings.Contains(text, segment) {
			t.Errorf("the error holds a part of the token: %s", text)
		}
	}
	return refusal
}

// eventually waits for a condition that a background fetch brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s still not: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// readBuildSetting returns a setting that the test was built with.
func readBuildSetting(key string) (string, bool) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", false
	}
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value, true
		}
	}
	return "", false
}
