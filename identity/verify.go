package identity

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/jws"
)

// Verifier checks assertions on the service's side. Its zero value refuses
// every assertion. It is safe for concurrent use if Keys is.
type Verifier struct {
	Issuer   string                                            // the name of the sallyport in front; required
	Audience string                                            // this service; required
	Keys     func(kid string) (key ed25519.PublicKey, ok bool) // see KeysFile; required
	Now      func() time.Time                                  // nil means time.Now
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

func (v *Verifier) readClaims(payload map[string]any) (Caller, error) {
	p := &claimReader{payload: payload}
	issuer, audience := p.required("iss"), p.required("aud")
	issued, expires := p.seconds("iat"), p.seconds("exp")
	c := Caller{
		Issuer:    p.required("caller_iss"),
		Subject:   p.optional("sub"),
		Client:    p.optional("client_id"),
		Scopes:    p.scopes(),
		Route:     p.required("route"),
		RequestID: p.required("jti"),
		IssuedAt:  time.Unix(issued, 0),
		Expires:   time.Unix(expires, 0),
		Claims:    p.claims(),
	}
	p.nothingElse()
	if p.err != nil {
		return Caller{}, p.err
	}
	if issuer != v.Issuer {
		return Caller{}, refuse("issuer_mismatch", "iss is not the configured issuer")
	}
	if audience != v.Audience {
		return Caller{}, refuse("audience_mismatch", "aud is not this service")
	}
	if err := v.checkTime(issued, expires); err != nil {
		return Caller{}, err
	}
	return c, nil
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

// claimReader takes the claims of a payload. The first error stays.
type claimReader struct {
	payload map[string]any
	err     error
}

func (p *claimReader) fail(code, detail string) {
	if p.err == nil {
		p.err = refuse(code, detail)
	}
}

func (p *claimReader) required(name string) string {
	if _, ok := p.payload[name]; !ok {
		p.fail("claim_missing", name+" is missing")
		return ""
	}
	return p.optional(name)
}

// optional returns a string, empty if there is none. One that is there is not empty.
func (p *claimReader) optional(name string) string {
	value, ok := p.payload[name]
	if !ok {
		return ""
	}
	s, _ := value.(string)
	if s == "" {
		p.fail("claim_invalid", name+" is not a string, or empty")
	}
	return s
}

// seconds returns a time as a positive number of seconds since 1970.
func (p *claimReader) seconds(name string) int64 {
	value, ok := p.payload[name]
	if !ok {
		p.fail("claim_missing", name+" is missing")
		return 0
	}
	n, _ := value.(int64)
	if n <= 0 {
		p.fail("claim_invalid", name+" is not a positive integer")
	}
	return n
}

func (p *claimReader) scopes() []string {
	joined := p.optional("scope")
	if joined == "" {
		return nil
	}
	scopes := strings.Split(joined, " ")
	for _, s := range scopes {
		if !isScope(s) {
			p.fail("claim_invalid", "scope is not a list of scopes with one space between two")
		}
	}
	return scopes
}

func (p *claimReader) claims() map[string]any {
	value, ok := p.payload["claims"]
	if !ok {
		return nil
	}
	claims, _ := value.(map[string]any)
	if len(claims) == 0 {
		p.fail("claim_invalid", "claims is not an object, or empty")
	}
	return claims
}

// nothingElse refuses a payload with a claim that no assertion has.
func (p *claimReader) nothingElse() {
	for name := range p.payload {
		switch name {
		case "iss", "aud", "sub", "client_id", "scope", "route", "jti", "iat", "exp", "caller_iss", "claims":
		default:
			p.fail("claim_unexpected", "there is a claim that no assertion has")
		}
	}
}
