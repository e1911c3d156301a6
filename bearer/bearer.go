// Package bearer takes a bearer token from a request and turns it into a caller or an error.
//
// A service that wants verified callers on its routes writes:
//
//	verifier, err := bearer.NewVerifier([]bearer.Issuer{{
//		Issuer:   "https://auth.example.com",
//		Audience: []string{"https://api.example.com"},
//		Keys:     bearer.Keys{Discovery: true},
//	}}, bearer.Options{Logger: logger})
//	if err != nil {
//		return err
//	}
//	defer verifier.Close()
//	mux.Handle("GET /orders/{id}", bearer.Require(verifier, "orders:read")(orders))
//
// and reads the caller with identity.FromContext.
//
// # What is established
//
// A token is read by one strict reader (compact JWS, RFC 7515, of at most 8 KiB;
// one spelling, no duplicate members, no header beyond alg, typ and kid). Its
// issuer is compared byte for byte and selects the keys; a key of one issuer never
// verifies a token of another. The algorithm must be in the issuer's list, fit the
// key's type and agree with the key's own alg. Then type, audience, time, lifetime
// and the required and permitted claims are judged. Whatever was not shown is a
// refusal, an *Error whose code is stable.
//
// # Keys
//
// Keys are fetched in the background through safedial: over at most 5 s, 1 MiB
// and 100 keys, without redirects. They are fetched again every 5 minutes or as
// Cache-Control says within 1 to 60 minutes, and when a token names a key that is
// not there; the latter at most twice at once and once in 10 s, whatever arrives.
// No request waits for a fetch: it is refused, and its repetition finds the key.
// A key that a new set lacks is out of use in that moment. While fetching fails,
// the last keys serve for an hour more; with Options.Keep also those of the process
// before this one, for what is left of that hour.
//
// # Attaching a token
//
// A program that calls another service with a token hands it on only where the token is for that service: a Transport
// verifies it as the recipient would, or asks the recipient's authorization server, before each request.
//
//	billing, err := bearer.NewVerifier([]bearer.Issuer{{ // as billing itself has it
//		Issuer:   "https://auth.example.com",
//		Audience: []string{"https://billing.example.com"},
//		Keys:     bearer.Keys{Discovery: true},
//	}}, bearer.Options{})
//	if err != nil {
//		return err
//	}
//	client := &http.Client{Transport: &bearer.Transport{
//		Token:      func(ctx context.Context) (bearer.Token, error) { return tokenOf(ctx) },
//		Recipients: map[string]bearer.Recipient{"https://billing.example.com": {Verifier: billing, Scopes: []string{"invoice:write"}}},
//	}}
//
// # Limits
//
// Only signed access tokens (RFC 9068) are verified: no encrypted and no opaque
// ones, and no ID tokens. A token bound to a key or certificate by cnf is refused,
// because its proof is not checked here, unless the caller of Verify says that it
// checks it (Options.Bound), and never attached. Revocation before expiry is not
// asked for here. A refresh that the Cache-Control of a key set puts off delays the end of a
// withdrawn key as long. Whether the caller may do what it asks, beyond a scope,
// is not judged here. Require leaves the Authorization header in the request.
package bearer

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"time"

	"github.com/sallyport/sallyport/safedial"
)

// Token is a bearer token as it arrived. It prints as "[redacted]" everywhere.
type Token struct {
	// behind a pointer, because package fmt prints an unexported string inside
	// somebody's struct without asking its methods
	raw *string
}

// NewToken wraps a token that did not come from a request (a command line, a test).
func NewToken(raw string) Token { return Token{&raw} }

// Reveal returns the token itself, for who must send it or know it again. It must not reach a log, an error or a metric.
func (t Token) Reveal() string {
	if t.raw == nil {
		return ""
	}
	return *t.raw
}

const redacted = "[redacted]"

// Format implements fmt.Formatter, for every verb.
func (Token) Format(f fmt.State, _ rune) { f.Write([]byte(redacted)) }

// String returns "[redacted]".
func (Token) String() string { return redacted }

// MarshalText implements encoding.TextMarshaler, and so does encoding/json.
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Hash is the SHA-256 of the token, by which a proof of possession names it (RFC 9449, section 4.2).
func (t Token) Hash() [sha256.Size]byte {
	if t.raw == nil {
		return sha256.Sum256(nil)
	}
	return sha256.Sum256([]byte(*t.raw))
}

// LogValue implements slog.LogValuer.
func (Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// Issuer is what is accepted from one authorization server. Unset means closed.
type Issuer struct {
	Issuer      string        // compared byte for byte; required
	Audience    []string      // the token must name at least one; required
	Keys        Keys          // where its keys are; required
	Algorithms  []string      // subset of ES256, ES384, EdDSA, RS256, PS256; empty means ES256, EdDSA, RS256, PS256
	TokenTypes  []string      // accepted typ, "application/" prefix and case folded; empty means at+jwt
	MaxLifetime time.Duration // exp-iat at most, exp-now if there is no iat; zero means 1 h
	Leeway      time.Duration // clock skew, at most 30 s; zero means 5 s; negative is an error
	Required    []string      // claims that must be present and not null
	Only        []string      // the closed list of claims, when not empty; iss, aud, exp, nbf, iat and Required need not be in it
	ScopeClaim  string        // "scope" (RFC 9068, space-separated string) when empty; an array of strings is read too
}

// Keys is where an issuer's keys come from: exactly one field is set.
type Keys struct {
	Discovery bool   // issuer's metadata, RFC 8414 then OpenID Connect discovery
	URI       string // a JWKS URI
	File      string // a JWKS file, read again on every refresh
}

// Options are what a Verifier needs besides its issuers; every field may be empty.
type Options struct {
	Guard    *safedial.Guard  // dials for discovery and JWKS; nil allows just the hosts named in the issuers
	Refresh  time.Duration    // between two key fetches, at most; zero means 5 min or what Cache-Control says in 1-60 min
	MaxStale time.Duration    // how long keys serve while fetching fails, from when a refresh was due; zero means 1 h
	Now      func() time.Time // the clock; nil means time.Now
	Logger   *slog.Logger     // fetch failures and set changes; nil means none
	Bound    bool             // the caller of Verify checks the proof that the claim cnf asks for; false refuses tokens with cnf. Require refuses them always
	Keep     string           // a folder for the last good key sets, used after a restart if fetching fails; empty means none is kept
}
