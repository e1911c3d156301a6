package identity

import (
	"crypto/ed25519"
	"errors"
	"time"

	"github.com/sallyport/sallyport/internal/jws"
)

// Verifier checks assertions on the service's side. Its zero value refuses
// every assertion. It is safe for concurrent use if Keys is.
type Verifier struct {
	Issuer      string                                            // the name of the sallyport in front; required
	Audience    string                                            // this service; required
	TrustDomain string                                            // aud; empty means Audience
	Keys        func(kid string) (key ed25519.PublicKey, ok bool) // see KeysFile; required
	Now         func() time.Time                                  // nil means time.Now
}

// Verify returns the caller that the assertion states. Its error is an *Error.
//
// It establishes that sallyport signed these bytes for this service within the
// last 60 s (5 s of difference between the clocks allowed). Everything is
// exact: what an assertion of ours would not hold is refused.
func (v *Verifier) Verify(assertion string) (Caller, error) {
	if v.Issuer == "" || v.Audience == "" || v.Keys == nil {
		return Caller{}, refuse("not_configured", "the verifier has no issuer, audience or keys")
	}
	t, err := jws.Parse(assertion)
	if err != nil {
		return Caller{}, formError(err)
	}
	if err := v.checkSignature(t); err != nil {
		return Caller{}, err
	}
	// only now, because before the signature holds a claim is anybody's word
	c, err := v.readClaims(t.Payload)
	if err != nil {
		return Caller{}, err
	}
	c.KeyID = t.KeyID
	return c, nil
}

func formError(err error) error {
	var form *jws.Error
	if errors.As(err, &form) {
		return refuse(form.Code, form.Detail)
	}
	return refuse("token_json", "not readable")
}

func (v *Verifier) checkSignature(t jws.Compact) error {
	if t.Algorithm != algorithm {
		return refuse("alg_not_allowed", "alg is not "+algorithm)
	}
	if t.Type != assertionType {
		return refuse("typ_not_allowed", "typ is not "+assertionType)
	}
	if !t.HasKeyID {
		return refuse("kid_missing", "the header has no kid")
	}
	key, ok := v.Keys(t.KeyID)
	// a key of another length makes ed25519.Verify panic
	if !ok || len(key) != ed25519.PublicKeySize {
		return refuse("kid_unknown", "no published key has this kid")
	}
	if !ed25519.Verify(key, t.SigningInput, t.Signature) {
		return refuse("signature_invalid", "the signature is not of the key that kid names")
	}
	return nil
}

// readClaims reads an authentic payload whole before it judges any of it.
func (v *Verifier) readClaims(payload map[string]any) (Caller, error) {
	p, err := readPayload(payload)
	if err != nil {
		return Caller{}, err
	}
	if p.issuer != v.Issuer {
		return Caller{}, refuse("issuer_mismatch", "iss is not the configured issuer")
	}
	if p.domain != first(v.TrustDomain, v.Audience) {
		return Caller{}, refuse("audience_mismatch", "aud is not this trust domain")
	}
	if p.service != v.Audience {
		return Caller{}, refuse("service_mismatch", "tctx.service is not this service")
	}
	if err := v.checkTime(p.issued, p.caller.Expires.Unix()); err != nil {
		return Caller{}, err
	}
	return p.caller, nil
}

// checkTime judges iat and exp, both positive seconds since 1970.
func (v *Verifier) checkTime(issued, expires int64) error {
	now := time.Now
	if v.Now != nil {
		now = v.Now
	}
	at, skew := now().Unix(), int64(leeway/time.Second)
	switch {
	case expires <= issued:
		return refuse("claim_invalid", "exp is not after iat")
	case expires-issued > int64(maxLifetime/time.Second):
		return refuse("lifetime_too_long", "exp is more than 60 s after iat")
	case issued > at+skew:
		return refuse("not_yet_valid", "iat is in the future")
	case expires <= at-skew:
		return refuse("expired", "exp has passed")
	}
	return nil
}
