package bearer

import (
	"net/http"
	"net/url"
	"strings"
)

// FromRequest takes the one credential of a request (RFC 6750, section 2.1). A *Error has code
// "missing_token" (none), "multiple_credentials", "malformed_authorization" or "unsupported_scheme".
//
// Only the Authorization header is a credential. A token in the query, a cookie or
// a form is never taken, and the body is never read; but an access_token in the query
// or a cookie beside the header is "multiple_credentials", since whoever stands behind
// may prefer the other.
func FromRequest(r *http.Request) (Token, error) {
	token, _, err := take(r, false)
	return token, err
}

// Take is FromRequest for somebody who checks proofs: with Options.Bound it also takes a token of the scheme DPoP (RFC 9449,
// section 7.1), and reports that it was sent so. Such a token must not be believed without its proof.
func (v *Verifier) Take(r *http.Request) (t Token, dpop bool, err error) {
	return take(r, v != nil && v.bound)
}

func take(r *http.Request, proven bool) (t Token, dpop bool, err error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return Token{}, false, refuse(codeMissing, "no Authorization header")
	}
	if len(values) > 1 {
		return Token{}, false, refuse(codeMultiple, "%d Authorization headers", len(values))
	}
	if namesToken(r.URL) || inCookie(r.Header["Cookie"]) {
		return Token{}, false, refuse(codeMultiple, "an access_token in the query or a cookie beside the Authorization header")
	}
	return fromHeader(values[0], proven)
}

// fromHeader takes the token from "Bearer" (or, if that is asked for, "DPoP"), in any case, one space and a b64token.
func fromHeader(value string, proven bool) (t Token, dpop bool, err error) {
	if joined(value) {
		return Token{}, false, refuse(codeMultiple, "more than one credential in the Authorization header")
	}
	scheme, raw, spaced := strings.Cut(value, " ")
	dpop = proven && strings.EqualFold(scheme, "DPoP")
	switch {
	case !isName(scheme):
		return Token{}, false, refuse(codeMalformed, "no authentication scheme and one space")
	case !strings.EqualFold(scheme, "Bearer") && !dpop:
		return Token{}, false, refuse(codeScheme, "scheme %s", brief(scheme))
	case !spaced || !isToken68(raw):
		return Token{}, false, refuse(codeMalformed, "the scheme is not followed by one space and one token")
	}
	return NewToken(raw), dpop, nil
}

// joined tells whether a list of credentials was made of several headers on the
// way (RFC 9110, section 5.3): a comma, and a Bearer or DPoP credential on either
// side.
func joined(value string) bool {
	first, rest, comma := strings.Cut(value, ",")
	if !comma {
		return false
	}
	for part := range strings.SplitSeq(rest, ",") {
		scheme, _, spaced := strings.Cut(strings.Trim(part, " \t"), " ")
		if spaced && (holdsToken(scheme) || holdsToken(first) && isName(scheme)) {
			return true
		}
	}
	return false
}

func holdsToken(credential string) bool {
	scheme, _, _ := strings.Cut(credential, " ")
	return strings.EqualFold(scheme, "Bearer") || strings.EqualFold(scheme, "DPoP")
}

const tokenParameter = "access_token"

// namesToken tells whether any reader of the query could find an access_token in
// it, so it splits at both separators, takes name[] for name and reads names that
// are not quite well formed.
func namesToken(u *url.URL) bool {
	if u == nil || u.RawQuery == "" {
		return false
	}
	for pair := range strings.FieldsFuncSeq(u.RawQuery, func(r rune) bool { return r == '&' || r == ';' }) {
		name, _, _ := strings.Cut(pair, "=")
		if unescaped, err := url.QueryUnescape(name); err == nil {
			name = unescaped
		}
		name, _, _ = strings.Cut(name, "[")
		if strings.EqualFold(strings.TrimSpace(name), tokenParameter) {
			return true
		}
	}
	return false
}

// inCookie tells whether any reader of the cookies could find an access_token in them. http.Request.CookiesNamed will
// not do: it reads none where there are very many, and leaves out a value that it finds malformed.
func inCookie(lines []string) bool {
	for _, line := range lines {
		for pair := range strings.FieldsFuncSeq(line, func(r rune) bool { return r == ';' || r == ',' }) {
			name, _, _ := strings.Cut(pair, "=")
			if strings.EqualFold(strings.Trim(name, " \t\""), tokenParameter) {
				return true
			}
		}
	}
	return false
}

// isName is RFC 9110's token: what a scheme is written with.
func isName(s string) bool {
	return s != "" && strings.Trim(s, "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

// isToken68 is RFC 6750's b64token.
func isToken68(s string) bool {
	body := strings.TrimRight(s, "=")
	if body == "" {
		return false
	}
	for i := range len(body) {
		c := body[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~+/", c) >= 0) {
			return false
		}
	}
	return true
}
