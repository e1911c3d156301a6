package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport/internal/jws"
)

// Signer makes assertions: EdDSA, typ "sallyport-assertion+jwt". It is safe for
// concurrent use and must not be copied after the first use.
type Signer struct {
	Issuer   string           // our configured name; required
	Audience string           // the service; required
	Lifetime time.Duration    // whole seconds, at most 60 s; zero means 60 s
	Claims   []string         // names of the token's claims that are passed on, under "claims"
	Key      func() Key       // the key that signs now; asked for each assertion; required
	Now      func() time.Time // nil means time.Now

	last atomic.Pointer[keyHeader]
}

// keyHeader is a key that was checked, and the first segment of all that it signs.
type keyHeader struct {
	key     Key
	encoded []byte // base64url of the header, and the dot
}

// Sign states that c calls the named route with the request id. The assertion
// ends with the token it rests on: its exp is the earlier of iat+Lifetime and
// c.Expires, but at least a second after iat, since a token within its leeway
// has been accepted.
//
// It fails for a caller that nothing proved (no issuer, no expiry), for a scope
// that would read as two, and for claims that a Verifier would refuse.
func (s *Signer) Sign(c Caller, route, requestID string) (string, error) {
	h, err := s.header()
	if err != nil {
		return "", err
	}
	payload, err := s.appendPayload(make([]byte, 0, 768), c, route, requestID)
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

func (s *Signer) appendPayload(b []byte, c Caller, route, requestID string) ([]byte, error) {
	issued, expires, err := s.times(c)
	switch {
	case err != nil:
		return nil, err
	case c.Issuer == "":
		return nil, errors.New("nothing proved who calls: the caller has no issuer")
	case route == "" || requestID == "":
		return nil, errors.New("the route's name or the request's id is missing")
	}
	e := encoder{b: append(b, '{')}
	e.text("iss", s.Issuer)
	e.text("aud", s.Audience)
	e.text("sub", c.Subject)
	e.text("client_id", c.Client)
	e.scope(c.Scopes)
	e.text("route", route)
	e.text("jti", requestID)
	e.name("iat")
	e.b = strconv.AppendInt(e.b, issued, 10)
	e.name("exp")
	e.b = strconv.AppendInt(e.b, expires, 10)
	e.text("caller_iss", c.Issuer)
	e.claims(s.Claims, c.Claims)
	return append(e.b, '}'), e.err
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
	expires = issued + int64(lifetime/time.Second)
	return issued, max(issued+1, min(expires, c.Expires.Unix())), nil
}

// encoder appends the members of one JSON object. The first error stays.
type encoder struct {
	b   []byte
	err error
}

func (e *encoder) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

// name appends the comma, where one is needed, and a name that needs no escape.
func (e *encoder) name(name string) {
	if e.b[len(e.b)-1] != '{' {
		e.b = append(e.b, ',')
	}
	e.b = append(e.b, '"')
	e.b = append(e.b, name...)
	e.b = append(e.b, `":`...)
}

// text appends a member unless its value is empty.
func (e *encoder) text(name, value string) {
	if value != "" {
		e.name(name)
		e.quote(value)
	}
}

// quote appends a string. Two strings that differ stay different: what
// encoding/json would replace is refused.
func (e *encoder) quote(s string) {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			if !utf8.ValidString(s) {
				e.fail(errors.New("a string is not UTF-8"))
				return
			}
			e.value(s)
			return
		}
	}
	e.b = append(e.b, '"')
	e.b = append(e.b, s...)
	e.b = append(e.b, '"')
}

func (e *encoder) value(v any) {
	data, err := json.Marshal(v)
	if err != nil {
		e.fail(err)
		return
	}
	e.b = append(e.b, data...)
}

func (e *encoder) scope(scopes []string) {
	if len(scopes) == 0 {
		return
	}
	e.name("scope")
	e.b = append(e.b, '"')
	for i, s := range scopes {
		// before it is joined, because a scope with a space in it (from an
		// array in the token) would become two that nobody granted
		if !isScope(s) {
			e.fail(errors.New("a scope is empty or has a character that no scope has (RFC 6749, section 3.3)"))
		}
		if i > 0 {
			e.b = append(e.b, ' ')
		}
		e.b = append(e.b, s...)
	}
	e.b = append(e.b, '"')
}

// isScope says whether s is a scope-token (RFC 6749, section 3.3). None of its
// characters needs an escape in JSON.
func isScope(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return s != ""
}

// claims appends those of the listed claims that the token has.
func (e *encoder) claims(listed []string, claims map[string]any) {
	open := false
	for _, name := range listed {
		value, ok := claims[name]
		if !ok {
			continue
		}
		if !open {
			e.name("claims")
			e.b = append(e.b, '{')
			open = true
		} else {
			e.b = append(e.b, ',')
		}
		e.quote(name)
		e.b = append(e.b, ':')
		switch v := value.(type) {
		case string:
			e.quote(v)
		case int64:
			e.b = strconv.AppendInt(e.b, v, 10)
		default:
			// claims lies inside the payload, so what nests to the limit in a token is one level too deep here
			if depth(v) > jws.MaxDepth-2 {
				e.fail(fmt.Errorf("the claim %q is nested too deeply to be passed on", name))
				return
			}
			e.value(v)
		}
	}
	if open {
		e.b = append(e.b, '}')
	}
}

// depth is how many objects and arrays lie inside one another.
func depth(v any) int {
	deepest := 0
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			deepest = max(deepest, depth(e))
		}
	case []any:
		for _, e := range v {
			deepest = max(deepest, depth(e))
		}
	default:
		return 0
	}
	return deepest + 1
}
