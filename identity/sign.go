package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/jws"
)

// Signer makes assertions: EdDSA, typ "txntoken+jwt". It is safe for
// concurrent use and must not be copied after the first use.
type Signer struct {
	Issuer      string           // our configured name; required
	Audience    string           // the service that we stand in front of, and its name in req_wl; printable ASCII without space, comma, quote and backslash; required
	TrustDomain string           // aud; empty means Audience
	Lifetime    time.Duration    // whole seconds, at most 60 s; zero means 60 s
	Claims      []string         // names of the token's claims that are passed on, in tctx
	Key         func() Key       // the key that signs now; asked for each assertion; required
	Now         func() time.Time // nil means time.Now

	last atomic.Pointer[keyHeader]
}

// keyHeader is a key that was checked, and the first segment of all that it signs.
type keyHeader struct {
	key     Key
	encoded []byte // base64url of the header, and the dot
}

// Sign states to our service that c calls the named route with the request id.
//
// The statement never outlives what it rests on: its exp is the earlier of
// iat+Lifetime and c.Expires. If that has passed, by less than the 5 s that a
// Verifier allows the clocks, iat is put back so that it lies before exp.
//
// A caller that came by a hop keeps its transaction, and our service is added
// to its workloads; otherwise the request begins the transaction and gives it
// its id.
//
// It fails for a caller that nothing proved (no issuer, no expiry), that
// nothing names (no subject and no client) or whose token nothing identifies
// (no id and no digest); for one whose token has ended; for a chain of more
// than 8 workloads; for a scope that would read as two; and for whatever else a
// Verifier would refuse.
func (s *Signer) Sign(c Caller, route, requestID string) (string, error) {
	return s.sign(c, destination{service: s.Audience, scopes: c.Scopes, claims: s.Claims}, route, requestID)
}

// Next states the same to another service, which our service calls for c: it
// is what a gate sends on with a request that c's caused, and what the gate in
// front of that service believes if it lists our issuer among its hops. c is
// the caller as the gate in front of our service has it, route and requestID
// are those that it was let in with.
//
// Transaction, subject and requester stay, our own service is the last of the
// workloads, and nothing becomes wider: of the scopes pass those that c has and
// that are listed, so none without a list; of the claims those that our own
// service receives, but for scope and scp, which would say what did not pass; exp is never after c.Expires. The two gates must be of one
// trust domain, so it fails without TrustDomain, and for our own service.
func (s *Signer) Next(c Caller, service string, scopes []string, route, requestID string) (string, error) {
	if s.TrustDomain == "" {
		return "", errors.New("sign for the next hop: the signer has no trust domain")
	}
	if service == s.Audience {
		return "", errors.New("sign for the next hop: it is our own service")
	}
	return s.sign(c, destination{service: service, scopes: narrow(c.Scopes, scopes), claims: unscoped(s.Claims)}, route, requestID)
}

// narrow returns those of scopes that are listed, in their order.
func narrow(scopes, listed []string) []string {
	var kept []string
	for _, s := range scopes {
		if slices.Contains(listed, s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// unscoped returns the names of claims but for those by which issuers say scopes.
func unscoped(claims []string) []string {
	var kept []string
	for _, name := range claims {
		if name != "scope" && name != "scp" {
			kept = append(kept, name)
		}
	}
	return kept
}

// destination is whom a statement is for, the scopes that it states, and the names of the claims that it passes on.
type destination struct {
	service        string
	scopes, claims []string
}

func (s *Signer) sign(c Caller, to destination, route, requestID string) (string, error) {
	h, err := s.header()
	if err != nil {
		return "", err
	}
	payload, err := s.appendPayload(make([]byte, 0, 1024), c, to, route, requestID)
	if err != nil {
		return "", fmt.Errorf("sign an assertion: %w", err)
	}
	b64 := base64.RawURLEncoding
	size := len(h.encoded) + b64.EncodedLen(len(payload)) + 1 + b64.EncodedLen(ed25519.SignatureSize)
	if size > jws.MaxLength {
		return "", fmt.Errorf("sign an assertion: it would be %d bytes long, over %d: pass fewer claims on", size, jws.MaxLength)
	}
	out := append(make([]byte, 0, size), h.encoded...)
	out = b64.AppendEncode(out, payload)
	signature := ed25519.Sign(h.key.Private, out)
	out = append(out, '.')
	return string(b64.AppendEncode(out, signature)), nil
}

// header returns the key that signs now. A key is checked when it is first
// seen, not for each assertion.
func (s *Signer) header() (*keyHeader, error) {
	if s.Issuer == "" || s.Audience == "" || s.Key == nil {
		return nil, errors.New("sign an assertion: the signer has no issuer, audience or key")
	}
	key := s.Key()
	if h := s.last.Load(); h != nil && h.key.ID == key.ID && bytes.Equal(h.key.Private, key.Private) {
		return h, nil
	}
	if len(key.Private) != ed25519.PrivateKeySize {
		return nil, errors.New("sign an assertion: there is no signing key")
	}
	if key.ID != Thumbprint(key.Private.Public().(ed25519.PublicKey)) {
		return nil, fmt.Errorf("sign an assertion: the key's id %q is not its thumbprint", key.ID)
	}
	head := `{"alg":"` + algorithm + `","kid":"` + key.ID + `","typ":"` + assertionType + `"}`
	h := &keyHeader{key: key, encoded: append(base64.RawURLEncoding.AppendEncode(nil, []byte(head)), '.')}
	s.last.Store(h)
	return h, nil
}

func (s *Signer) appendPayload(b []byte, c Caller, to destination, route, requestID string) ([]byte, error) {
	issued, expires, err := s.times(c)
	switch {
	case err != nil:
		return nil, err
	case c.Issuer == "":
		return nil, errors.New("nothing proved who calls: the caller has no issuer")
	case c.Subject == "" && c.Client == "":
		return nil, errors.New("nothing names who calls: the caller has no subject and no client")
	case c.TokenID == "" && c.Digest == "":
		return nil, errors.New("nothing identifies the caller's token: it has no id and no digest")
	case route == "" || requestID == "":
		return nil, errors.New("the route's name or the request's id is missing")
	}
	e := encoder{b: append(b, '{')}
	e.text("iss", s.Issuer)
	e.text("aud", first(s.TrustDomain, s.Audience))
	e.text("sub", first(c.Subject, c.Client))
	e.text("txn", first(c.Transaction, requestID))
	e.text("jti", requestID)
	e.scope(to.scopes)
	e.workloads(c.Workloads, s.Audience)
	e.requester(c)
	e.name("tctx")
	e.b = append(e.b, '{')
	e.workload("service", to.service)
	e.text("route", route)
	e.claims(to.claims, c.Claims)
	e.b = append(e.b, '}')
	e.number("iat", issued)
	e.number("exp", expires)
	return append(e.b, '}'), e.err
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// times returns iat and exp.
func (s *Signer) times(c Caller) (issued, expires int64, err error) {
	lifetime := s.Lifetime
	if lifetime == 0 {
		lifetime = maxLifetime
	}
	if lifetime < time.Second || lifetime > maxLifetime {
		return 0, 0, fmt.Errorf("a lifetime of %v is not between 1s and %v", lifetime, maxLifetime)
	}
	if c.Expires.IsZero() {
		return 0, 0, errors.New("nothing proved who calls: the caller has no expiry")
	}
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	issued = now().Unix()
	expires = min(issued+int64(lifetime/time.Second), c.Expires.Unix())
	if expires <= issued-int64(leeway/time.Second) {
		return 0, 0, errors.New("the caller's token has ended")
	}
	return min(issued, expires-1), expires, nil
}
