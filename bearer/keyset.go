package bearer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/jwk"
	"github.com/sallyport/sallyport/internal/jws"
)

const maxKeys = 100

// errNoKey is of a set that was read and leaves nothing to verify with.
var errNoKey = errors.New("read key set: no usable key")

// key is a public key that may verify tokens of the one issuer it was read for.
type key struct {
	jwk.Key        // its Algorithms are those of the issuer's list only; not empty
	id      string // kid; empty when the key has none
	epoch   uint64 // of the set that it was found in
}

// keySet is the keys of one issuer at one time. It is never changed, only replaced.
type keySet struct {
	keys    []key
	staleAt time.Time // from when on these keys serve no more
	epoch   uint64    // counts the sets that differed: what was shown in one epoch holds for every set of it
}

// follow makes s the set after last, in the same epoch if nothing of its keys has changed.
func (s *keySet) follow(last *keySet) {
	if last == nil {
		return
	}
	s.epoch = last.epoch
	if !slices.EqualFunc(s.keys, last.keys, same) {
		s.epoch++
	}
}

// same reports whether two keys verify the same tokens.
func same(a, b key) bool {
	return a.id == b.id && a.Thumbprint == b.Thumbprint && slices.Equal(a.Algorithms, b.Algorithms)
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
		if slices.Contains(k.Algorithms, algorithm) {
			found = append(found, k)
		}
	}
	switch {
	case len(found) == 1:
		found[0].epoch = s.epoch
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
	return readKeysOf(KindOAuth, document, algorithms)
}

// readKeysOf is readKeys for a kind of issuer.
func readKeysOf(kind string, document []byte, algorithms []string) (keys []key, rejected []error, err error) {
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
		object, _ := member.(map[string]any)
		if object["kty"] == "oct" || object["k"] != nil {
			return nil, nil, fmt.Errorf("read key set: key %d is a symmetric key, which is no secret here", i)
		}
		if kind == KindSPIFFE {
			object = svidKey(object)
		}
		k, err := readKey(object, algorithms)
		if err != nil {
			id, _ := object["kid"].(string)
			rejected = append(rejected, fmt.Errorf("key %d, kid %s: %w", i, brief(id), err))
			continue
		}
		if !slices.ContainsFunc(keys, func(other key) bool { return other.id == k.id && other.Thumbprint == k.Thumbprint }) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, rejected, errors.Join(append(rejected, errNoKey)...)
	}
	return keys, rejected, nil
}

// readKey reads one JWK that may verify signatures with one of algorithms.
func readKey(member map[string]any, algorithms []string) (key, error) {
	read, err := jwk.Read(member)
	if err != nil {
		return key{}, err
	}
	k := key{Key: read}
	if id, ok := member["kid"]; ok {
		if k.id, ok = id.(string); !ok || k.id == "" || len(k.id) > 256 {
			return key{}, errors.New("kid is not a string of 1 to 256 bytes")
		}
	}
	k.Algorithms = slices.DeleteFunc(k.Algorithms, func(a string) bool { return !slices.Contains(algorithms, a) })
	if len(k.Algorithms) == 0 {
		return key{}, errors.New("no algorithm that the issuer's list, the key's type and its alg have in common")
	}
	return k, nil
}
