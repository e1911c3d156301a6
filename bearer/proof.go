package bearer

import (
	"crypto/sha256"
	"encoding/base64"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/jws"
)

// proof is what has been shown of a token, whoever sends it and whenever: that this key of this issuer signed these claims.
// It lets nobody in; judge does, at each request. Requests share it, so nothing in it changes but its epoch.
type proof struct {
	name      name // in the cache; of no meaning without one
	authority *authority
	algorithm string
	keyID     string // that the token names
	hasKeyID  bool
	typ       string // folded
	key       key    // that signed
	epoch     atomic.Uint64
	claims    map[string]any
	form      *Error          // why it is no token of the issuer's kind; nil: it is one
	caller    identity.Caller // without its times, which judge reads
	unnamed   *Error          // why the claims make no caller; nil: they do
}

// establish shows that a token is authentic: form, issuer, algorithm, key, signature.
func (v *Verifier) establish(raw string) (*proof, *Error) {
	token, err := jws.Parse(raw)
	if err != nil {
		return nil, malformed(err)
	}
	a, refusal := v.authorityOf(token.Payload)
	if refusal != nil {
		return nil, refusal
	}
	k, refusal := prove(raw, token, a.Algorithms, a.keys.lookup)
	if refusal != nil {
		return nil, refusal
	}
	return a.proofOf(token, k), nil
}

// proofOf reads a token that k has signed.
func (a *authority) proofOf(token jws.Compact, k key) *proof {
	p := &proof{
		authority: a, algorithm: token.Algorithm, keyID: token.KeyID, hasKeyID: token.HasKeyID, typ: foldType(token.Type),
		key: k, claims: token.Payload,
	}
	p.epoch.Store(k.epoch)
	p.form = a.judgeKind(p)
	if p.caller, p.unnamed = a.readCaller(token.Payload); p.unnamed == nil {
		digest := sha256.Sum256(token.SigningInput) // which has one spelling, unlike a signature
		p.caller.KeyID, p.caller.Digest = k.id, base64.RawURLEncoding.EncodeToString(digest[:])
	}
	return p
}

// stands reports whether the issuer's keys show now what they showed when p was made. A key is known again by its thumbprint:
// under its kid there may be another by now. The refusal is the one that the token would meet if nothing were remembered.
func (p *proof) stands() (bool, *Error) {
	keys := p.authority.keys
	if set, err := keys.usable(); err == nil && set.epoch == p.epoch.Load() {
		return true, nil
	}
	k, refusal := keys.lookup(p.keyID, p.hasKeyID, p.algorithm)
	if refusal != nil {
		return false, refusal
	}
	// and by its kid, which is in what is said of the caller
	if k.Thumbprint != p.key.Thumbprint || k.id != p.key.id {
		return false, nil
	}
	p.epoch.Store(k.epoch)
	return true, nil
}

// judge holds an authentic token against what is accepted from its issuer: type, kind, audience, time, binding,
// presence, then what the caller is made of.
func (p *proof) judge(now time.Time) (identity.Caller, *Error) {
	a := p.authority
	if refusal := a.judgeType(p.typ); refusal != nil {
		return identity.Caller{}, refusal
	}
	if p.form != nil {
		return identity.Caller{}, p.form.copy()
	}
	if refusal := a.judgeAudience(p.claims); refusal != nil {
		return identity.Caller{}, refusal
	}
	issued, expires, refusal := a.judgeTime(p.claims, now)
	if refusal != nil {
		return identity.Caller{}, refusal
	}
	if _, ok := p.claims["cnf"]; ok && !a.bound {
		// accepting it as a plain bearer token would undo the binding (RFC 9449, section 7.2; RFC 8705, section 3)
		return identity.Caller{}, refuse(codeBound, "cnf is there, and no proof is checked")
	}
	if refusal := a.judgePresence(p.claims); refusal != nil {
		return identity.Caller{}, refusal
	}
	if p.unnamed != nil {
		return identity.Caller{}, p.unnamed.copy()
	}
	caller := p.caller
	caller.IssuedAt, caller.Expires = issued, expires
	return caller, nil
}
