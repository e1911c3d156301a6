// Package jwk reads one public key out of a JSON Web Key (RFC 7517) strictly, and verifies signatures by it.
//
// A key comes from an authorization server's set, or with a proof that names it. In both cases what it must not be is the
// same: private, symmetric, weak, or meant for something else. What a certificate beside the key says of it is not asked.
package jwk

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

const (
	minRSABits = 2048
	maxRSABits = 8192 // a verification's time grows with the square
)

// Algorithms are those that a Key may have: asymmetric ones, so that what verifies a signature cannot make one.
func Algorithms() []string { return []string{"ES256", "ES384", "EdDSA", "RS256", "PS256"} }

// Key is a public key that may verify signatures.
type Key struct {
	Public     crypto.PublicKey
	Thumbprint string   // RFC 7638, SHA-256, base64url without padding
	Algorithms []string // what the key's type can do ∩ the key's own alg; not empty
}

// Read reads a JWK, as package jws reads JSON. Its error quotes nothing of the key.
func Read(jwk map[string]any) (Key, error) {
	if jwk == nil {
		return Key{}, errors.New("not an object")
	}
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "priv", "k"} {
		if _, ok := jwk[private]; ok {
			return Key{}, errors.New("a private key, or a symmetric one: everybody who reads it knows it")
		}
	}
	if err := checkUse(jwk); err != nil {
		return Key{}, err
	}
	public, err := readPublic(jwk)
	if err != nil {
		return Key{}, err
	}
	k := Key{Public: public.Key}
	if k.Algorithms, err = algorithmsOf(public.Key); err != nil {
		return Key{}, err
	}
	if own, ok := jwk["alg"]; ok {
		k.Algorithms = slices.DeleteFunc(k.Algorithms, func(a string) bool { return a != own })
	}
	if len(k.Algorithms) == 0 {
		return Key{}, errors.New("no algorithm that its type and its alg have in common")
	}
	thumbprint, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return Key{}, fmt.Errorf("thumbprint: %w", err)
	}
	k.Thumbprint = base64.RawURLEncoding.EncodeToString(thumbprint)
	return k, nil
}

// Verify verifies the signature of a token that package jws has read, by an algorithm that the caller has found in
// Algorithms. The library's own errors are not handed on: they may quote what they read.
func (k Key) Verify(raw, algorithm string) error {
	signed, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(algorithm)})
	if err != nil {
		return errors.New("not readable as JWS")
	}
	if _, err := signed.Verify(k.Public); err != nil {
		return errors.New("signature does not verify")
	}
	return nil
}

// checkUse refuses a key that its owner means for something else (RFC 7517, sections 4.2 and 4.3).
func checkUse(jwk map[string]any) error {
	if use, ok := jwk["use"]; ok && use != "sig" {
		return errors.New("use is not sig")
	}
	operations, ok := jwk["key_ops"]
	if !ok {
		return nil
	}
	if list, ok := operations.([]any); !ok || !slices.Contains(list, any("verify")) {
		return errors.New("key_ops has no verify")
	}
	return nil
}

// readPublic takes the members that make up a public key, and no other.
func readPublic(jwk map[string]any) (jose.JSONWebKey, error) {
	members := map[string]any{}
	for _, name := range []string{"kty", "crv", "x", "y", "n", "e"} {
		if value, ok := jwk[name]; ok {
			members[name] = value
		}
	}
	data, err := json.Marshal(members)
	if err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("write key anew: %w", err)
	}
	var public jose.JSONWebKey
	if err := public.UnmarshalJSON(data); err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("parse key: %w", err)
	}
	return public, nil
}

// algorithmsOf returns what a key can verify, or why it must not verify anything.
func algorithmsOf(public crypto.PublicKey) ([]string, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return []string{"ES256"}, nil
		case elliptic.P384():
			return []string{"ES384"}, nil
		}
		return nil, fmt.Errorf("curve %s is not used", k.Params().Name)
	case ed25519.PublicKey:
		return []string{"EdDSA"}, nil // the library has refused points of small order, for which anybody can sign
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("an RSA key of %d bits, not %d to %d", bits, minRSABits, maxRSABits)
		}
		if k.E < 3 || k.E > 1<<31-1 || k.E%2 == 0 {
			return nil, fmt.Errorf("RSA exponent %d", k.E)
		}
		return []string{"RS256", "PS256"}, nil
	}
	return nil, errors.New("a type of key that is not used")
}
