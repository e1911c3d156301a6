package sallytest

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Holder is a client that holds a key and proves it (RFC 9449).
type Holder struct {
	Key       jose.JSONWebKey // private
	Algorithm string
	t         testing.TB
}

// NewHolder makes a key for one of ES256, ES384, EdDSA, RS256 and PS256.
func NewHolder(t testing.TB, algorithm string) *Holder {
	t.Helper()
	private, err := newPrivate(algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return &Holder{jose.JSONWebKey{Key: private}, algorithm, t}
}

// Thumbprint is the jkt that binds a token to the key.
func (h *Holder) Thumbprint() string {
	sum, err := h.Key.Thumbprint(crypto.SHA256)
	if err != nil {
		h.t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// Public is the public key as a proof's header has it.
func (h *Holder) Public() map[string]any {
	public := h.Key.Public()
	data, err := public.MarshalJSON()
	if err != nil {
		h.t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(data, &object); err != nil {
		h.t.Fatal(err)
	}
	return object
}

// Claims are those of a good proof of now, changed: a nil value takes a claim away.
func (h *Holder) Claims(method, url, token string, changes map[string]any) map[string]any {
	sum := sha256.Sum256([]byte(token))
	claims := map[string]any{
		"jti": rand.Text(), "htm": method, "htu": url, "iat": time.Now().Unix(),
		"ath": base64.RawURLEncoding.EncodeToString(sum[:]),
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// Proof is a good proof with changed claims.
func (h *Holder) Proof(method, url, token string, changes map[string]any) string {
	return h.ProofWith(nil, h.Claims(method, url, token, changes))
}

// ProofWith is a proof of any claims, its header changed in the same way.
func (h *Holder) ProofWith(header, claims map[string]any) string {
	made := map[string]any{"typ": "dpop+jwt", "alg": h.Algorithm, "jwk": h.Public()}
	maps.Copy(made, header)
	maps.DeleteFunc(made, func(_ string, v any) bool { return v == nil })
	head, err := json.Marshal(made)
	if err != nil {
		h.t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		h.t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64(head) + "." + b64(payload)
	signature, err := sign(jose.JSONWebKey{Key: h.Key.Key, Algorithm: h.Algorithm}, []byte(input))
	if err != nil {
		h.t.Fatal(err)
	}
	return input + "." + b64(signature)
}
