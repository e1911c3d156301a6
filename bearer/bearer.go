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
// # Kinds of issuers
//
// An Issuer is an authorization server unless its Kind says otherwise. Of an authorization server no ID token is taken: where
// TokenTypes admits other types than at+jwt, one is known by what it holds. KindKubernetes takes service account tokens as an
// API server binds them to a pod, whose sub and kubernetes.io agree. KindSPIFFE takes JWT-SVIDs of a trust domain, which a token
// without iss finds by its sub.
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
// # Tokens that come again
//
// With Options.Remember, what a token's signature has shown is remembered: its claims, its issuer and the key, under a keyed
// hash of all its bytes. Everything that lets somebody in is judged on each use: type, audience, time, binding, presence, and
// that the issuer's keys are fresh and hold that very key. A change of an issuer's keys counts from the moment in which they
// are replaced. An entry ends with the token's exp (without Leeway), after MaxLifetime and after 5 minutes; no refusal is
// remembered, and no token that was used once. Another Verifier knows nothing of it.
// The callers that Verify returns of one token then share Claims and Scopes, which must not be changed; Require
// gives each request its own.
//
// # Opaque tokens
//
// An issuer with Introspection is asked about tokens that are no JWT (RFC 7662), and about its JWTs where it has no Keys. What
// it answers is kept for at most 30 s, never the verdict: audience, times, scopes and claims are judged on each request. A
// server that cannot be asked is a refusal with status 503.
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
// By keys only signed tokens are verified: no encrypted ones. That a Kubernetes
// pod has been deleted is not asked. A token bound to a key or certificate by cnf is refused,
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
	Keys        Keys          // where its keys are; required, unless there is Introspection
	Algorithms  []string      // subset of ES256, ES384, EdDSA, RS256, PS256; empty means ES256, EdDSA, RS256, PS256
	TokenTypes  []string      // accepted typ, "application/" prefix and case folded; empty means at+jwt
	MaxLifetime time.Duration // exp-iat at most, exp-now if there is no iat; zero means 1 h
	Leeway      time.Duration // clock skew, at most 30 s; zero means 5 s; negative is an error
	Required    []string      // claims that must be present and not null
	Only        []string      // the closed list of claims, when not empty; iss, aud, exp, nbf, iat and Required need not be in it
	ScopeClaim  string        // "scope" (RFC 9068, space-separated string) when empty; an array of strings is read too
	Kind        string        // KindOAuth when empty; of the others TokenTypes are given by the kind
	BoundTo     string        // of KindKubernetes, what a token must be bound to: "pod" (when empty), "node" (a pod will do), "any" (nothing will do)
	TrustDomain string        // of KindSPIFFE: whose SPIFFE IDs it signs; may be empty when Issuer is "spiffe://DOMAIN"

	Introspection *Introspection // nil: opaque tokens are refused
}

// Keys is where an issuer's keys come from: exactly one of the first three fields is set.
type Keys struct {
	Discovery bool   // issuer's metadata, RFC 8414 then OpenID Connect discovery
	URI       string // a JWKS URI
	File      string // a JWKS file, read again on every refresh

	CAFile    string // roots (PEM) by which the server of an https URI proves its name; empty means the system's
	TokenFile string // a token that is sent to the server of an https URI; empty means none
}

// Options are what a Verifier needs besides its issuers; every field may be empty.
type Options struct {
	Guard    *safedial.Guard  // dials for discovery and JWKS; nil allows just the hosts named in the issuers
	Refresh  time.Duration    // between two key fetches, at most; zero means 5 min or what Cache-Control says in 1-60 min
	MaxStale time.Duration    // how long keys serve while fetching fails, from when a refresh was due; zero means 1 h
	Now      func() time.Time // the clock; nil means time.Now
	Logger   *slog.Logger     // fetch failures and set changes; nil means none
	Bound    bool             // the caller of Verify checks the proof that the claim cnf asks for; false refuses tokens with cnf. Require refuses them always
	Remember int64            // bytes for what is known of tokens that were verified before (see "Tokens that come again"); zero remembers none
	Keep     string           // a folder for the last good key sets, used after a restart if fetching fails; empty means none is kept

	// Introspected hears how tokens fared with an issuer that is asked about them: "asked_active", "asked_inactive", "asked_refused"
	// (the server refuses to say), "asked_in_vain" (it cannot be asked), "kept_active", "kept_inactive" (it need not be), "too_many"
	// (of this source's were not active). It must not wait; nil means nobody hears.
	Introspected func(issuer, result string)
}
