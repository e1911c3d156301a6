package bearer

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
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sallyport/sallyport/internal/jws"
)

const (
	maxKeys    = 100
	minRSABits = 2048
	maxRSABits = 8192 // a verification's time grows with the square
)

// key is a public key that may verify tokens of the one issuer it was read for.
type key struct {
	id         string // kid; empty when the key has none
	thumbprint string // RFC 7638, SHA-256
	public     crypto.PublicKey
	algorithms []string // the issuer's list ∩ what the key's type can do ∩ the key's own alg; not empty
}

// keySet is the keys of one issuer at one time. It is never changed, only replaced.
type keySet struct {
	keys    []key
	staleAt time.Time // from when on these keys serve no more
}

// find returns the only key that can be meant by a token's kid and alg.
func (s *keySet) find(id string, hasID bool, algorithm string) (key, *Error) {
	named := false
	var found []key
	for _, k := range s.keys {
		if hasID && k.id != id {
			continue
		}
		named = true
		if slices.Contains(k.algorithms, algorithm) {
			found = append(found, k)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return key{}, refuse(codeAmbiguous, "%d keys could be meant", len(found))
	case !named:
		return key{}, refuse(codeKey, "no key with kid %s", brief(id))
	case hasID:
		return key{}, refuse(codeAlgorithm, "the key with kid %s is not used with alg %s", brief(id), brief(algorithm))
	}
	return key{}, refuse(codeAlgorithm, "no kid, and no key that is used with alg %s", brief(algorithm))
}

// readKeys reads a JWK set (RFC 7517, section 5). A key that must not verify
// anything is left out and named in rejected. The set is refused whole when it
// holds no usable key, since an issuer that signs has one, and when it holds a
// symmetric one, since that secret has been published: whoever handles keys so may
// have published others, and a verifier that is led to use it would take the
// public for the secret.
func readKeys(document []byte, algorithms []string) (keys []key, rejected []error, err error) {
	object, err := jws.Object(document)
	if err != nil {
		return nil, nil, fmt.Errorf("read key set: %w", err)
	}
	list, ok := object["keys"].([]any)
	if !ok {
		return nil, nil, errors.New("read key set: no array named keys")
	}
	if len(list) > maxKeys {
		return nil, nil, fmt.Errorf("read key set: %d keys, more than %d", len(list), maxKeys)
	}
	for i, member := range list {
		jwk, _ := member.(map[string]any)
		if jwk["kty"] == "oct" || jwk["k"] != nil {
			return nil, nil, fmt.Errorf("read key set: key %d is a symmetric key, which is no secret here", i)
		}
		k, err := readKey(jwk, algorithms)
		if err != nil {
			id, _ := jwk["kid"].(string)
			rejected = append(rejected, fmt.Errorf("key %d, kid %s: %w", i, brief(id), err))
			continue
		}
		if !slices.ContainsFunc(keys, func(other key) bool { return other.id == k.id && other.thumbprint == k.thumbprint }) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, rejected, errors.Join(append(rejected, errors.New("read key set: no usable key"))...)
	}
	return keys, rejected, nil
}

// readKey reads one JWK that may verify signatures with one of algorithms.
func readKey(jwk map[string]any, algorithms []string) (key, error) {
	if jwk == nil {
		return key{}, errors.New("not an object")
	}
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "priv"} {
		if _, ok := jwk[private]; ok {
			return key{}, errors.New("a private key: it is known to everybody who reads the set")
		}
	}
	var k key
	if id, ok := jwk["kid"]; ok {
		if k.id, ok = id.(string); !ok || k.id == "" || len(k.id) > 256 {
			return key{}, errors.New("kid is not a string of 1 to 256 bytes")
		}
	}
	if err := checkUse(jwk); err != nil {
		return key{}, err
	}
	public, err := readPublic(jwk)
	if err != nil {
		return key{}, err
	}
	able, err := algorithmsOf(public.Key)
	if err != nil {
		return key{}, err
	}
	if own, ok := jwk["alg"]; ok {
		able = slices.DeleteFunc(able, func(a string) bool { return a != own })
	}
	k.algorithms = slices.DeleteFunc(able, func(a string) bool { return !slices.Contains(algorithms, a) })
	if len(k.algorithms) == 0 {
		return key{}, errors.New("no algorithm that the issuer's list, the key's type and its alg have in common")
	}
	thumbprint, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return key{}, fmt.Errorf("thumbprint: %w", err)
	}
	k.thumbprint = base64.RawURLEncoding.EncodeToString(thumbprint)
	k.public = public.Key
	return k, nil
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

// readPublic takes the members that make up a public key, and no other: what a
// certificate in x5c says of the key is not asked.
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
func algorithmsOf(public any) ([]string, error) {
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
