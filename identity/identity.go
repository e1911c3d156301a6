// Package identity says who is calling, and carries that statement one hop on.
//
// A service behind sallyport receives, in place of the caller's token, an
// assertion: a short-lived JWT that sallyport signed. This is all that it
// needs to know who calls:
//
//	keys, err := identity.KeysFile("/run/sallyport/jwks.json")
//	if err != nil {
//		log.Fatal(err)
//	}
//	verifier := &identity.Verifier{Issuer: "sallyport", Audience: "orders", Keys: keys}
//	http.ListenAndServe("127.0.0.1:3000", identity.Require(verifier, "Authorization")(orders))
//
// and in a handler:
//
//	caller, ok := identity.FromContext(r.Context())
//
// # The assertion
//
// It is a JWS in compact form. Its header is exactly
//
//	{"alg":"EdDSA","kid":"<RFC 7638 thumbprint of the key>","typ":"sallyport-assertion+jwt"}
//
// and its claims are these and no others:
//
//	iss         string   the name of the sallyport that signed
//	aud         string   the one service it is for
//	sub         string   the token's subject; absent if it has none
//	client_id   string   the token's client; absent if it has none
//	scope       string   the token's scopes, one space between two; absent if there are none
//	route       string   the name of the route that the request was allowed on
//	jti         string   the id of the request, as in the audit log
//	iat, exp    integer  seconds since 1970; exp is at most 60 s after iat
//	caller_iss  string   the issuer of the token
//	claims      object   those claims of the token that sallyport was told to pass on; absent if there are none
//
// # Limits
//
// An assertion is a bearer credential for its lifetime: within 60 s, whoever
// reads it can present it to the same service again. Keep the service on
// loopback, and do not pass an assertion on. It says who calls and on which
// route, not what the request held: method, path and body are not signed. What
// a caller may do is for the service to judge from Scopes and Claims.
package identity

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"time"
)

// The form of an assertion.
const (
	assertionType = "sallyport-assertion+jwt"
	algorithm     = "EdDSA" // RFC 8037, with Ed25519
	maxLifetime   = 60 * time.Second
	leeway        = 5 * time.Second // how far the clocks of the two ends may differ
)

// Caller is who a verified token proved: the answer to "who calls", never to
// "may they". The zero value is nobody.
type Caller struct {
	Issuer   string         // the token's iss, byte for byte
	Subject  string         // sub; may be empty for a client acting for itself
	Client   string         // client_id, else azp
	Scopes   []string       // elements of the scope claim, in its order
	TokenID  string         // jti; empty when the token has none, and when the caller came from an assertion
	Digest   string         // base64url of the SHA-256 of the token's signing input, which names it where it has no jti; empty when the caller came from an assertion
	KeyID    string         // kid of the key that verified it: the issuer's, or sallyport's for an assertion
	IssuedAt time.Time      // zero when the token has no iat
	Expires  time.Time      // never zero for a verified caller
	Claims   map[string]any // every claim: string, bool, int64, float64, nil, []any, map[string]any; from an assertion those passed on

	Route     string // the route that sallyport allowed the request on; empty when the caller came from a token
	RequestID string // the request's id in sallyport's audit log; empty when the caller came from a token
}

type contextKey struct{}

// NewContext returns a context that carries c.
func NewContext(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, contextKey{}, c)
}

// FromContext returns the caller that Require (or bearer.Require) put into ctx.
func FromContext(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(contextKey{}).(Caller)
	return c, ok
}

// Key is an Ed25519 signing key and the name (RFC 7638 thumbprint) by which it is published.
type Key struct {
	ID      string
	Private ed25519.PrivateKey
}

// Thumbprint is the name of an Ed25519 key: the SHA-256 JWK thumbprint, 43
// characters of base64url (RFC 7638, section 3, with the members of RFC 8037).
func Thumbprint(public ed25519.PublicKey) string {
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(public) + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Error is a refusal of an assertion. Code is stable and may be told to the
// client; Detail is for the operator and never holds the assertion.
//
// Besides the codes of its strict form (token_not_compact, token_base64,
// token_json, token_encoding, token_too_long, duplicate_member,
// nesting_too_deep, number_out_of_range, crit_unsupported, header_unexpected,
// alg_invalid, typ_invalid, kid_invalid) Code is one of
//
//	alg_not_allowed      alg is not EdDSA
//	typ_not_allowed      typ is not sallyport-assertion+jwt
//	kid_missing          no kid
//	kid_unknown          no such published key
//	signature_invalid
//	claim_missing        a claim that every assertion has
//	claim_invalid        a claim of the wrong type or form
//	claim_unexpected     a claim that no assertion has
//	issuer_mismatch      another sallyport's
//	audience_mismatch    for another service
//	expired
//	not_yet_valid        issued in the future
//	lifetime_too_long    over 60 s
//	missing_assertion    the header is not there (Require)
//	malformed_header     its value is not "Bearer <assertion>" (Require)
//	multiple_assertions  the header is there more than once (Require)
//	not_configured       the verifier has no issuer, audience or keys
type Error struct {
	Code   string
	Detail string
}

func (e *Error) Error() string { return "assertion refused: " + e.Code + ": " + e.Detail }

func refuse(code, detail string) *Error { return &Error{Code: code, Detail: detail} }
