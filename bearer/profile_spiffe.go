package bearer

import (
	"maps"
	"slices"
	"strings"
)

const (
	spiffeScheme   = "spiffe://"
	maxSPIFFEID    = 2048 // SPIFFE-ID, section 2.3
	maxTrustDomain = 255
)

// applySPIFFE fills in what JWT-SVIDs are like (JWT-SVID, sections 2 and 3), and which trust domain they are of.
func (a *authority) applySPIFFE(check func(ok bool, format string, args ...any)) {
	check(len(a.TokenTypes) == 0, "token types of a spiffe issuer: those of JWT-SVIDs are JWT, JOSE and none")
	a.TokenTypes = []string{"", "jwt", "jose"}
	if len(a.Algorithms) == 0 {
		a.Algorithms = []string{"ES256", "ES384", "RS256", "PS256"}
	}
	check(!slices.Contains(a.Algorithms, "EdDSA"), "algorithm EdDSA is none of a JWT-SVID's")
	if domain, ok := strings.CutPrefix(a.Issuer.Issuer, spiffeScheme); ok {
		check(a.TrustDomain == "" || a.TrustDomain == domain, "its trust domain is not that of its name")
		check(!a.Keys.Discovery, "discovery: a trust domain has no metadata; name the URI or file of its bundle")
		a.TrustDomain = domain
	}
	check(a.TrustDomain != "", "a spiffe issuer without trust domain: name it spiffe://DOMAIN, or say which one it is")
	check(a.TrustDomain == "" || isTrustDomain(a.TrustDomain), "trust domain %s: lower-case letters, digits, dots, dashes and underscores", brief(a.TrustDomain))
}

// judgeSPIFFE wants the SPIFFE ID of a workload of the trust domain in sub (JWT-SVID, section 3.1).
func (a *authority) judgeSPIFFE(claims map[string]any) *Error {
	domain, ok := readSPIFFE(claims["sub"])
	if !ok {
		return refuse(codeSubject, "sub is not the SPIFFE ID of a workload")
	}
	if domain != a.TrustDomain {
		return refuse(codeSubject, "sub is of trust domain %s", brief(domain))
	}
	return nil
}

// readSPIFFE returns the trust domain of a workload's SPIFFE ID (SPIFFE-ID, section 2): no port, no user information, no query, no
// escape, no empty or dotted segment, so that there is one spelling of each.
func readSPIFFE(sub any) (domain string, ok bool) {
	id, ok := sub.(string)
	if !ok || len(id) > maxSPIFFEID {
		return "", false
	}
	rest, ok := strings.CutPrefix(id, spiffeScheme)
	if !ok {
		return "", false
	}
	domain, path, ok := strings.Cut(rest, "/")
	if !ok || !isTrustDomain(domain) {
		return "", false // without a path it is the trust domain itself, which is no workload
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, func(r rune) bool { return !isPathRune(r) }) {
			return "", false
		}
	}
	return domain, true
}

func isTrustDomain(s string) bool {
	return s != "" && len(s) <= maxTrustDomain && !strings.ContainsFunc(s, func(r rune) bool { return !isPathRune(r) || 'A' <= r && r <= 'Z' })
}

func isPathRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '.' || r == '-' || r == '_'
}

// svidKey makes a key of a trust domain's bundle one that jwk reads: there use says which kind of SVID a key signs
// (SPIFFE-Trust-Domain-and-Bundle, section 4.2.2), and those for X.509-SVIDs sign no token.
func svidKey(member map[string]any) map[string]any {
	if member["use"] != "jwt-svid" {
		return member
	}
	member = maps.Clone(member)
	member["use"] = "sig"
	return member
}
