// Package proof verifies that who sends a token holds the key or the certificate that the token is bound to.
//
//	bound, err := proof.Read(caller.Claims)                 // cnf (RFC 7800)
//	shown, err := proof.Verify(r.Header["Dpop"], proof.Request{...}) // bound.Key (RFC 9449)
//	ok := bound.Held(certificate)                           // bound.Certificate (RFC 8705)
//
// # What is established
//
// A DPoP proof is read as strictly as a token (package jws), and must be the only one of its request. Its header names its
// type, its algorithm and its key, which is public and fit for that algorithm, and nothing else; the key is the one that the
// token is bound to, and has signed the proof. What was signed names this method, this URL byte for byte, this token, an
// instant of the last minute, and an identifier.
//
// That a proof is used once is not established here: nobody knows that alone. Shown says what to ask of whoever all
// replicas share, and for how long they must remember it. Nor is anything kept here: a proof is verified each time.
//
// # Limits
//
// A binding to anything else than a key's thumbprint or a certificate's is an error: it cannot be enforced.
package proof

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/jwk"
	"github.com/sallyport/sallyport/internal/jws"
)

const (
	// MaxAge is how long after its iat a proof is accepted, and Ahead how far our clock may be behind the client's.
	MaxAge = time.Minute
	Ahead  = 5 * time.Second

	// skew is how far the clocks of two replicas may be apart: one must not accept what the other has forgotten.
	skew = 30 * time.Second

	maxID = 256 // bytes of a jti
)

// The codes of an Error.
const (
	CodeInvalid     = "invalid_dpop_proof"   // RFC 9449, section 7.1
	CodeNonce       = "use_dpop_nonce"       // RFC 9449, section 9
	CodeBinding     = "sender_constrained"   // the token is bound, and not sent as its binding asks
	CodeCertificate = "certificate_mismatch" // the connection has not the certificate that the token is bound to
)

// Error is a refusal. Code is stable and may be told to the client; Detail is for the operator, and quotes neither token
// nor proof.
type Error struct{ Code, Detail string }

func (e *Error) Error() string { return e.Code + ": " + e.Detail }

func refuse(format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Detail: fmt.Sprintf(format, args...)}
}

// Algorithms are those that a proof may be signed with, as a challenge names them.
func Algorithms() []string { return jwk.Algorithms() }

// Binding is what a token is bound to: a key, a certificate, or both. The zero value is nothing.
type Binding struct {
	Key         string // thumbprint of a public key, base64url (RFC 9449, section 6.1: jkt)
	Certificate string // thumbprint of a certificate, base64url (RFC 8705, section 3.1: x5t#S256)
}

// Read reads the binding from a token's claims. A cnf that holds anything that is not enforced here is an *Error.
func Read(claims map[string]any) (Binding, error) {
	value, ok := claims["cnf"]
	if !ok {
		return Binding{}, nil
	}
	cannot := func(why string) (Binding, error) {
		return Binding{}, &Error{CodeBinding, "cnf cannot be enforced: " + why}
	}
	cnf, ok := value.(map[string]any)
	if !ok || len(cnf) == 0 {
		return cannot("it is not an object, or empty")
	}
	var b Binding
	for name, value := range cnf {
		s, _ := value.(string)
		if sum, err := base64.RawURLEncoding.Strict().DecodeString(s); err != nil || len(sum) != sha256.Size || strings.ContainsAny(s, "\r\n") {
			return cannot("a member is not a SHA-256 thumbprint in base64url")
		}
		switch name {
		case "jkt":
			b.Key = s
		case "x5t#S256":
			b.Certificate = s
		default:
			return cannot("it has a member other than jkt and x5t#S256")
		}
	}
	return b, nil
}

// Held reports whether a certificate is the one that the token is bound to, and within its time. The caller has it from the
// handshake of the connection by which the token came (RFC 8705, section 3); nil is none.
func (b Binding) Held(certificate *x509.Certificate, now time.Time) bool {
	if certificate == nil || b.Certificate == "" || now.Before(certificate.NotBefore) || now.After(certificate.NotAfter) {
		return false
	}
	sum := sha256.Sum256(certificate.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:]) == b.Certificate
}

// Request is what a proof must be of.
type Request struct {
	Method string
	URL    string            // as the client sees it: scheme, host, path as sent; no query (RFC 9449, section 4.2)
	Token  [sha256.Size]byte // hash of the token that came with it
	Key    string            // Binding.Key of that token
	Now    time.Time
}

// Shown is a proof that was verified.
type Shown struct {
	ID    string    // of this proof among all, in 43 bytes; whoever asks for it first may use the proof
	Until time.Time // from when on the proof is too old for everybody
	Nonce string    // that it holds, which is not verified; empty: none
}

// Verify verifies the DPoP proof of a request (RFC 9449, section 4.3), given the values of its DPoP header field. Its error
// is an *Error.
func Verify(header []string, r Request) (Shown, error) {
	if len(header) != 1 {
		return Shown{}, refuse("%d DPoP header fields", len(header))
	}
	c, err := jws.ParseWithKey(header[0])
	if err != nil {
		return Shown{}, refuse("%v", err)
	}
	if c.Type != "dpop+jwt" {
		return Shown{}, refuse("typ is not dpop+jwt")
	}
	if err := verifyKey(c, header[0], r.Key); err != nil {
		return Shown{}, err
	}
	return judge(c.Payload, r)
}

// verifyKey shows that the key which the token is bound to has signed the proof.
func verifyKey(c jws.Compact, raw, bound string) error {
	known := []string{"kty", "crv", "x", "y", "n", "e", "kid", "alg", "use", "key_ops", "ext"}
	for name := range c.Key {
		if !slices.Contains(known, name) {
			return refuse("jwk has a member that no public key needs")
		}
	}
	k, err := jwk.Read(c.Key)
	if err != nil {
		return refuse("jwk: %v", err)
	}
	if bound == "" || k.Thumbprint != bound {
		return refuse("jwk is not the key that the token is bound to")
	}
	if !slices.Contains(k.Algorithms, c.Algorithm) {
		return refuse("alg is none that the key is used with")
	}
	if err := k.Verify(raw, c.Algorithm); err != nil {
		return refuse("%v", err)
	}
	return nil
}

// judge holds what was signed against the request.
func judge(claims map[string]any, r Request) (Shown, error) {
	hash := base64.RawURLEncoding.EncodeToString(r.Token[:])
	id, _ := claims["jti"].(string)
	issued, ok := claims["iat"].(int64)
	at := time.Unix(issued, 0)
	switch {
	case id == "" || len(id) > maxID:
		return Shown{}, refuse("jti is not a string of 1 to %d bytes", maxID)
	case claims["htm"] != r.Method:
		return Shown{}, refuse("htm is not the method of the request")
	case claims["htu"] != r.URL:
		return Shown{}, refuse("htu is not the URL of the request, which is %s", r.URL)
	case claims["ath"] != hash:
		return Shown{}, refuse("ath is not the hash of the token")
	case !ok:
		return Shown{}, refuse("iat is not a whole number of seconds since 1970")
	case r.Now.Sub(at) > MaxAge:
		return Shown{}, refuse("iat is %s ago", r.Now.Sub(at).Round(time.Second))
	case at.Sub(r.Now) > Ahead:
		return Shown{}, refuse("iat is %s ahead", at.Sub(r.Now).Round(time.Second))
	}
	// Members that say of themselves until when they hold, where a client puts them in (RFC 9449, section 4.2).
	if v, there := claims["exp"]; there {
		if exp, ok := v.(int64); !ok || !r.Now.Before(time.Unix(exp, 0).Add(Ahead)) {
			return Shown{}, refuse("exp has passed, or is no time")
		}
	}
	if v, there := claims["nbf"]; there {
		if nbf, ok := v.(int64); !ok || r.Now.Add(Ahead).Before(time.Unix(nbf, 0)) {
			return Shown{}, refuse("nbf has not come, or is no time")
		}
	}
	s := Shown{Until: at.Add(MaxAge + skew)}
	if v, there := claims["nonce"]; there {
		if s.Nonce, ok = v.(string); !ok {
			return Shown{}, refuse("nonce is not a string")
		}
	}
	sum := sha256.Sum256([]byte(r.Key + id)) // the thumbprint has one length, so the pair has one spelling
	s.ID = base64.RawURLEncoding.EncodeToString(sum[:])
	return s, nil
}
