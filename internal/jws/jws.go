// Package jws reads the JWS compact serialization (RFC 7515, section 3.1)
// strictly: one reading or a refusal.
//
// A token passes through several parsers on its way: ours, a library's, the
// service's. Wherever two of them could read different things (a member given
// twice, bytes after the end, a lenient base64), an attacker chooses which
// reading is judged and which is used. This package accepts only what leaves
// no such choice and repairs nothing.
//
// It establishes the form of a token and nothing else: no key is looked up, no
// signature checked, no claim judged. What it returns is what somebody wrote.
package jws

import (
	"slices"
	"strings"
)

// MaxLength is the longest token that is looked at, in bytes.
const MaxLength = 8 << 10

// maxName is the longest alg, typ or kid, in bytes: they are names, and they are logged.
const maxName = 256

// Compact is a token taken apart. Nothing in it has been verified.
type Compact struct {
	Algorithm    string // header alg
	Type         string // header typ as written; empty when absent
	KeyID        string // header kid; HasKeyID says whether it was there
	HasKeyID     bool
	Key          map[string]any // header jwk, read by ParseWithKey only: a key that the sender chose
	Payload      map[string]any // string, bool, int64, float64, nil, []any, map[string]any
	SigningInput []byte         // the first two segments and their dot
	Signature    []byte
}

// Error is a refusal. Code is stable: it is what a client may be told.
type Error struct {
	Code   string
	Detail string
}

func (e *Error) Error() string { return e.Code + ": " + e.Detail }

// The reason codes.
const (
	CodeTooLong     = "token_too_long"      // over MaxLength
	CodeNotCompact  = "token_not_compact"   // not three segments, none of them empty: also JWE and unsigned tokens
	CodeBase64      = "token_base64"        // a segment is not canonical base64url without padding (RFC 7515, section 2)
	CodeJSON        = "token_json"          // header or payload is not one JSON object
	CodeEncoding    = "token_encoding"      // invalid UTF-8, a lone surrogate, or NUL in a string
	CodeDuplicate   = "duplicate_member"    // a member name twice in one object, at any depth
	CodeDepth       = "nesting_too_deep"    // over MaxDepth
	CodeNumber      = "number_out_of_range" // a number that neither int64 nor a finite float64 holds
	CodeCritical    = "crit_unsupported"    // a crit header member: no extension is understood (RFC 7515, section 4.1.11)
	CodeHeader      = "header_unexpected"   // a header member other than those of the kind of token
	CodeAlgorithm   = "alg_invalid"         // alg absent, not a name, or some spelling of none
	CodeType        = "typ_invalid"         // typ is not a name
	CodeKeyIDFormat = "kid_invalid"         // kid is not a printable string of 1 to 256 bytes
)

// Parse reads one token: exactly three segments of canonical base64url without
// padding, header and payload one JSON object each without duplicate members.
// The header holds alg, typ and kid only. Its error is an *Error.
func Parse(token string) (Compact, error) { return parse(token, "alg", "typ", "kid") }

// ParseWithKey is Parse for a proof by which somebody shows a key (RFC 9449,
// section 4.2): the header holds alg, typ and jwk, and nothing else. It is
// nobody's word but that of whoever holds the key.
func ParseWithKey(token string) (Compact, error) {
	c, err := parse(token, "alg", "typ", "jwk")
	if err == nil && c.Key == nil {
		return Compact{}, refuse(CodeHeader, "header has no jwk that is an object")
	}
	return c, err
}

func parse(token string, members ...string) (Compact, error) {
	if len(token) > MaxLength {
		return Compact{}, refuse(CodeTooLong, "longer than 8 KiB")
	}
	header, payload, signature, err := split(token)
	if err != nil {
		return Compact{}, err
	}
	var c Compact
	if err := c.readHeader(header, members); err != nil {
		return Compact{}, err
	}
	claims, err := decode("payload", payload)
	if err != nil {
		return Compact{}, err
	}
	if c.Payload, err = Object(claims); err != nil {
		return Compact{}, in("payload", err)
	}
	if c.Signature, err = decode("signature", signature); err != nil {
		return Compact{}, err
	}
	c.SigningInput = []byte(token[:len(header)+1+len(payload)])
	return c, nil
}

// split cuts a token at its two dots. A JWE has four, an unsigned token an
// empty end, and a JSON serialization none.
func split(token string) (header, payload, signature string, err error) {
	if strings.Count(token, ".") != 2 {
		return "", "", "", refuse(CodeNotCompact, "not exactly three segments")
	}
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, _ = strings.Cut(rest, ".")
	if header == "" || payload == "" || signature == "" {
		return "", "", "", refuse(CodeNotCompact, "an empty segment")
	}
	return header, payload, signature, nil
}

// readHeader takes the members of a header, which has no other: in a token jwk,
// jku, x5c and x5u would let it bring its own key, and a crit that is ignored
// lets it change what the signature covers.
func (c *Compact) readHeader(segment string, members []string) error {
	data, err := decode("header", segment)
	if err != nil {
		return err
	}
	header, err := Object(data)
	if err != nil {
		return in("header", err)
	}
	if _, ok := header["crit"]; ok {
		return refuse(CodeCritical, "header has crit")
	}
	for name := range header {
		if !slices.Contains(members, name) {
			return refuse(CodeHeader, "header has a member other than "+strings.Join(members, ", "))
		}
	}
	var ok bool
	if c.Algorithm, ok = nameOf(header["alg"]); !ok || strings.EqualFold(c.Algorithm, "none") {
		return refuse(CodeAlgorithm, "alg is absent, none or not a name")
	}
	if typ, has := header["typ"]; has {
		if c.Type, ok = nameOf(typ); !ok {
			return refuse(CodeType, "typ is not a name")
		}
	}
	if kid, has := header["kid"]; has {
		if c.KeyID, ok = nameOf(kid); !ok {
			return refuse(CodeKeyIDFormat, "kid is not a printable string of 1 to 256 bytes")
		}
		c.HasKeyID = true
	}
	c.Key, _ = header["jwk"].(map[string]any)
	return nil
}

// nameOf returns a string of 1 to maxName printable ASCII bytes.
func nameOf(value any) (string, bool) {
	s, ok := value.(string)
	if !ok || s == "" || len(s) > maxName {
		return "", false
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return "", false
		}
	}
	return s, true
}

func refuse(code, detail string) *Error { return &Error{Code: code, Detail: detail} }

// in says in which part of the token err was found.
func in(part string, err error) error {
	e := *err.(*Error)
	e.Detail = part + ": " + e.Detail
	return &e
}
