package sallytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Audience is what a token is for unless the test says otherwise.
const Audience = "https://api.example.test"

// Issuer is an authorization server: it publishes metadata (RFC 8414, and
// OpenID Connect discovery) and keys, and makes access tokens (RFC 9068). Safe
// for concurrent use.
type Issuer struct {
	URL string           // the issuer, "http://127.0.0.1:port"
	Now func() time.Time // the clock of its tokens; set it before the first; nil means time.Now

	t      testing.TB
	server *httptest.Server

	mu        sync.Mutex
	signing   map[string]jose.JSONWebKey // by algorithm
	published []jose.JSONWebKey          // public parts, in the order in which they were made
	extra     []json.RawMessage          // keys that we did not make
	made      int
	fetches   map[string]int
	opaque    opaque
	status    int // answered in place of everything, when not zero
}

// The paths that an Issuer answers.
const (
	PathOAuth  = "/.well-known/oauth-authorization-server"
	PathOpenID = "/.well-known/openid-configuration"
	PathJWKS   = "/jwks"
)

// NewIssuer starts an authorization server with an ES256 and an EdDSA key. Keys
// of other algorithms are made and published when first asked for.
func NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{t: t, signing: map[string]jose.JSONWebKey{}, fetches: map[string]int{}}
	i.server = httptest.NewServer(http.HandlerFunc(i.serve))
	t.Cleanup(i.server.Close)
	i.URL = i.server.URL
	i.KeyID("ES256")
	i.KeyID("EdDSA")
	return i
}

func (i *Issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.fetches[r.URL.Path]++
	status := i.status
	i.mu.Unlock()
	if status != 0 {
		http.Error(w, "the test asked for this", status)
		return
	}
	switch r.URL.Path {
	case PathOAuth, PathOpenID:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + PathJWKS, "token_endpoint": i.URL + "/token",
			"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{"ES256"},
		})
	case PathJWKS:
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(i.JWKS())
	case PathIntrospection:
		i.introspect(w, r)
	default:
		http.NotFound(w, r)
	}
}

// Fail makes every answer the status, until Fail(0).
func (i *Issuer) Fail(status int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.status = status
}

// Fetches counts the requests for a path (PathJWKS, ...), refused ones included.
func (i *Issuer) Fetches(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches[path]
}

// JWKS is the published key set.
func (i *Issuer) JWKS() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	keys := slices.Clone(i.extra)
	for _, k := range i.published {
		data, err := k.MarshalJSON()
		if err != nil {
			panic(err) // keys of our own making
		}
		keys = append(keys, data)
	}
	data, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		panic(err)
	}
	return data
}

// Publish adds a JWK, given as JSON, to the set: one that the issuer cannot sign with, or that no issuer should publish.
func (i *Issuer) Publish(jwk string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.extra = append(i.extra, json.RawMessage(jwk))
}

// KeyID names the key that signs with an algorithm (ES256, ES384, EdDSA, RS256, PS256, ...), made if there is none.
func (i *Issuer) KeyID(algorithm string) string { return i.key(algorithm).KeyID }

// PublicKey is the public part of the key that signs with an algorithm.
func (i *Issuer) PublicKey(algorithm string) crypto.PublicKey {
	k := i.key(algorithm)
	return k.Public().Key
}

func (i *Issuer) key(algorithm string) jose.JSONWebKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	k, ok := i.signing[algorithm]
	if !ok {
		k = i.makeKey(algorithm)
	}
	return k
}

// makeKey makes and publishes a key; i.mu is held.
func (i *Issuer) makeKey(algorithm string) jose.JSONWebKey {
	private, err := newPrivate(algorithm)
	if err != nil {
		panic(fmt.Sprintf("sallytest: make a key: %v", err)) // panic, because this may not be the test's goroutine
	}
	i.made++
	k := jose.JSONWebKey{Key: private, KeyID: fmt.Sprintf("%s-%d", algorithm, i.made), Algorithm: algorithm, Use: "sig"}
	i.signing[algorithm] = k
	i.published = append(i.published, k.Public())
	return k
}

// newPrivate makes a key for an algorithm of RFC 7518 or RFC 8037.
func newPrivate(algorithm string) (private crypto.PrivateKey, err error) {
	switch algorithm {
	case "ES256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ES512":
		private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "EdDSA":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case "RS256", "RS384", "RS512", "PS256", "PS384", "PS512":
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		err = fmt.Errorf("algorithm %q is none that this issuer has", algorithm)
	}
	return private, err
}

// Rotate makes and publishes a new key for the algorithm, signs with it from now
// on, and returns its kid. The old one stays published until Withdraw.
func (i *Issuer) Rotate(algorithm string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.makeKey(algorithm).KeyID
}

// Withdraw takes a key out of the published set. The issuer signs with it still, if it did.
func (i *Issuer) Withdraw(kid string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.published = slices.DeleteFunc(i.published, func(k jose.JSONWebKey) bool { return k.KeyID == kid })
}

// Claims are those of a good access token (RFC 9068), valid for five minutes,
// changed by the overrides: a nil value takes a claim away.
func (i *Issuer) Claims(overrides map[string]any) map[string]any {
	now := time.Now
	if i.Now != nil {
		now = i.Now
	}
	issued := now().Unix()
	claims := map[string]any{
		"iss": i.URL, "aud": Audience, "sub": "alice", "client_id": "shop", "scope": "orders:read",
		"jti": rand.Text(), "iat": issued, "exp": issued + 300,
	}
	maps.Copy(claims, overrides)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// Token makes an ES256 access token with Claims(overrides).
func (i *Issuer) Token(overrides map[string]any) string {
	return i.TokenWith("ES256", overrides)
}

// TokenWith is Token with another algorithm.
func (i *Issuer) TokenWith(algorithm string, overrides map[string]any) string {
	payload, err := json.Marshal(i.Claims(overrides))
	if err != nil {
		panic(fmt.Sprintf("sallytest: make a token: %v", err))
	}
	header, err := json.Marshal(map[string]string{"alg": algorithm, "kid": i.KeyID(algorithm), "typ": "at+jwt"})
	if err != nil {
		panic(err)
	}
	return i.Sign(algorithm, string(header), string(payload))
}

// Sign makes a compact JWS of any header and payload, byte for byte, signed with
// the key of an algorithm, whatever the header says.
func (i *Issuer) Sign(algorithm, header, payload string) string {
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	signature, err := sign(i.key(algorithm), []byte(input))
	if err != nil {
		panic(fmt.Sprintf("sallytest: sign: %v", err))
	}
	return input + "." + b64(signature)
}

// sign is the signature of RFC 7518, section 3, or RFC 8037, over any bytes.
func sign(k jose.JSONWebKey, input []byte) ([]byte, error) {
	var hash crypto.Hash
	switch k.Algorithm[2:] {
	case "256":
		hash = crypto.SHA256
	case "384":
		hash = crypto.SHA384
	case "512":
		hash = crypto.SHA512
	}
	digest := func() []byte {
		h := hash.New()
		h.Write(input)
		return h.Sum(nil)
	}
	switch private := k.Key.(type) {
	case ed25519.PrivateKey:
		return ed25519.Sign(private, input), nil
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, private, digest())
		if err != nil {
			return nil, err
		}
		size := (private.Params().BitSize + 7) / 8
		out := make([]byte, 2*size)
		r.FillBytes(out[:size])
		s.FillBytes(out[size:])
		return out, nil
	case *rsa.PrivateKey:
		if k.Algorithm[0] == 'P' {
			return rsa.SignPSS(rand.Reader, private, hash, digest(), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		return rsa.SignPKCS1v15(rand.Reader, private, hash, digest())
	}
	return nil, fmt.Errorf("a key of type %T signs nothing", k.Key)
}
