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
//	http.ListenAndServe("127.0.0.1:3000", identity.Require(verifier, "Txn-Token")(orders))
//
// and in a handler:
//
//	caller, ok := identity.FromContext(r.Context())
//
// # The assertion
//
// It is a transaction token (draft-ietf-oauth-transaction-tokens-10) of a
// closed form: a JWS in compact form whose header is exactly
//
//	{"alg":"EdDSA","kid":"<RFC 7638 thumbprint of the key>","typ":"txntoken+jwt"}
//
// and whose claims are these and no others:
//
//	iss       string   the name of the sallyport that signed
//	aud       string   the trust domain
//	sub       string   the token's subject; where it has none, its client
//	txn       string   the transaction: the id that the first sallyport gave the request; the same on every hop
//	jti       string   the id that this sallyport gave the request, as in its audit log
//	scope     string   scopes, one space between two; absent if there are none
//	req_wl    string   the services that the transaction came through, one comma between two, the signer's own last; 1 to 8
//	rctx      object   what the first sallyport learnt from the token; the same on every hop:
//	  iss        string   the token's issuer
//	  jti        string   the token's id, or if it has none
//	  digest     string   base64url of the SHA-256 of its signing input, or of all of an opaque one
//	  client_id  string   the token's client; absent if it has none
//	  sid        string   the token's session; absent if it has none
//	  iat        integer  when it was issued; absent if it does not say
//	tctx      object   what is asked for:
//	  service    string   the one service that this is for
//	  route      string   the name of the route that the request was allowed on
//	  claims     object   those claims of the token that sallyport was told to pass on; absent if there are none
//	iat, exp  integer  seconds since 1970; exp is at most 60 s after iat, and never after the end of what it rests on
//
// Where the draft leaves room, this leaves none, and it differs from it in
// this: a claim that is not known is refused, not ignored; an assertion is for
// the one service that tctx names and not for all of a trust domain; no
// service passes one on as it was, but the gate behind it signs the next one,
// for the next service and of no more scopes (Signer.Next); each gate is its
// own token service; req_wl is the whole chain; scope may be absent; sub means
// the same principal only together with rctx.iss; and it can be had in
// Authorization too, for guards that look there.
//
// # Limits
//
// An assertion is a bearer credential for its lifetime: within 60 s, whoever
// reads it can present it to the same service again. Keep the service on
// loopback, and do not pass an assertion on. It says who calls and on which
// route, not what the request held: method, path and body are not signed. What
// a caller may do is for the service to judge from Scopes and Claims. A gate
// that signs for the next hop is believed for every caller that the next gate
// lets it speak for.
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
	assertionType = "txntoken+jwt"
	algorithm     = "EdDSA" // RFC 8037, with Ed25519
	maxLifetime   = 60 * time.Second
	leeway        = 5 * time.Second // how far the clocks of the two ends may differ
	maxWorkloads  = 8               // in req_wl, so that a loop of services ends
	maxWorkload   = 256             // bytes of one of them
)

// Caller is who a verified token proved: the answer to "who calls", never to
// "may they". The zero value is nobody. Callers of one token may share Scopes and Claims: whoever changes them copies them first.
type Caller struct {
	Issuer   string         // the token's iss, byte for byte
	Subject  string         // sub; may be empty for a client acting for itself, and is the client then in an assertion
	Client   string         // client_id, else azp
	Scopes   []string       // elements of the scope claim, in its order
	TokenID  string         // jti; empty when the token has none
	Digest   string         // base64url of the SHA-256 of the token's signing input, or of all of an opaque one, which names it where it has no jti; from an assertion only there
	KeyID    string         // kid of the key that verified it: the issuer's, or sallyport's for an assertion; empty when the issuer was asked about it
	IssuedAt time.Time      // when the token was issued; zero when it has no iat
	Expires  time.Time      // never zero for a verified caller; of an assertion, when that ends
	Claims   map[string]any // every claim: string, bool, int64, float64, nil, []any, map[string]any; from an assertion those passed on, and sid

	Route       string   // the route that sallyport allowed the request on; empty when the caller came from a token
	RequestID   string   // the request's id in sallyport's audit log; empty when the caller came from a token
	Transaction string   // the id of the first request of the transaction; empty when the caller came from a token
	Workloads   []string // the services that the transaction came through, the one whose gate signed last; none when the caller came from a token
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
//	typ_not_allowed      typ is not txntoken+jwt
//	kid_missing          no kid
//	kid_unknown          no such published key
//	signature_invalid
//	claim_missing        a claim that every assertion has
//	claim_invalid        a claim of the wrong type or form
//	claim_unexpected     a claim that no assertion has
//	issuer_mismatch      another sallyport's
//	audience_mismatch    of another trust domain
//	service_mismatch     for another service
//	expired
//	not_yet_valid        issued in the future
//	lifetime_too_long    over 60 s
//	missing_assertion    the header is not there (Require)
//	malformed_header     Authorization is not "Bearer <assertion>" (Require)
//	multiple_assertions  the header is there more than once (Require)
//	not_configured       the verifier has no issuer, audience or keys
type Error struct {
	Code   string
	Detail string
}

func (e *Error) Error() string { return "assertion refused: " + e.Code + ": " + e.Detail }

func refuse(code, detail string) *Error { return &Error{Code: code, Detail: detail} }
