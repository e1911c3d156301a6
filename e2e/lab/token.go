package main

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"time"
)

// issuer is the authorization server, as far as the lab needs one: a key and the tokens that it signs.
type issuer struct{ key *rsa.PrivateKey }

const (
	issuerURL = "https://issuer.lab"
	audience  = "https://orders.lab"
	keyID     = "lab"
)

func newIssuer() (*issuer, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("make the issuer's key: %w", err)
	}
	return &issuer{key}, nil
}

func (i *issuer) jwks() ([]byte, error) {
	return json.Marshal(map[string]any{"keys": []any{map[string]any{
		"kty": "RSA", "alg": "RS256", "use": "sig", "kid": keyID,
		"n": encode(i.key.N.Bytes()), "e": encode(big.NewInt(int64(i.key.E)).Bytes()),
	}}})
}

// bearerOf makes the token that an attack is sent with.
type bearerOf func(*issuer) string

// reader is a good token of the least privilege: what any customer has.
func reader(i *issuer) string { return i.rs256(claims(nil)) }

// unsigned says that it needs no signature (RFC 7519, section 6).
func unsigned(*issuer) string {
	return input(map[string]any{"alg": "none", "typ": "at+jwt"}, claims(nil)) + "."
}

// confused is an HMAC whose key is the text of the issuer's public key, which everybody has.
func confused(i *issuer) string {
	der, err := x509.MarshalPKIXPublicKey(&i.key.PublicKey)
	if err != nil {
		panic(err) // a key of our own making
	}
	in := input(map[string]any{"alg": "HS256", "kid": keyID, "typ": "at+jwt"}, claims(nil))
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	mac.Write([]byte(in))
	return in + "." + encode(mac.Sum(nil))
}

// promoted has claims of its bearer's own making under the signature of a good token.
func promoted(i *issuer) string {
	good := i.rs256(claims(nil))
	forged := claims(map[string]any{"roles": []string{"admin"}, "namespace": "acme"})
	return input(header(), forged) + good[strings.LastIndexByte(good, '.'):]
}

func forAnother(i *issuer) string {
	return i.rs256(claims(map[string]any{"aud": "https://billing.lab"}))
}

// fromAnother is a token of the staging server, which signs with the same key.
func fromAnother(i *issuer) string {
	return i.rs256(claims(map[string]any{"iss": "https://staging.issuer.lab"}))
}

func expired(i *issuer) string {
	old := time.Now().Add(-time.Hour).Unix()
	return i.rs256(claims(map[string]any{"iat": old, "exp": old + 300}))
}

func header() map[string]any { return map[string]any{"alg": "RS256", "kid": keyID, "typ": "at+jwt"} }

// claims are those of a good token, changed by the overrides.
func claims(overrides map[string]any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{
		"iss": issuerURL, "aud": audience, "sub": "mallory", "client_id": "shop", "scope": "orders:read",
		"jti": rand.Text(), "iat": now, "exp": now + 300,
	}
	maps.Copy(c, overrides)
	return c
}

func (i *issuer) rs256(c map[string]any) string {
	in := input(header(), c)
	digest := sha256.Sum256([]byte(in))
	signature, err := rsa.SignPKCS1v15(nil, i.key, crypto.SHA256, digest[:])
	if err != nil {
		panic(err) // a key of our own making
	}
	return in + "." + encode(signature)
}

func input(header, claims map[string]any) string {
	h, err := json.Marshal(header)
	if err != nil {
		panic(err) // strings, lists and numbers
	}
	c, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return encode(h) + "." + encode(c)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
