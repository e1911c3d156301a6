package bearer

import "strings"

// The kinds of issuers (Issuer.Kind): what is known of how their tokens are made, and held against them.
const (
	KindOAuth      = "oauth"      // an authorization server; the empty kind too
	KindKubernetes = "kubernetes" // a cluster: bound service account tokens, as its API server makes them
	KindSPIFFE     = "spiffe"     // a trust domain: JWT-SVIDs
)

// applyKind fills in what the kind says and the issuer does not, and checks that the two agree.
func (a *authority) applyKind(check func(ok bool, format string, args ...any)) {
	check(a.Kind == KindKubernetes || a.BoundTo == "", "only a kubernetes issuer's tokens are bound to a pod or node")
	check(a.Kind == KindSPIFFE || a.TrustDomain == "", "only a spiffe issuer has a trust domain")
	switch a.Kind {
	case "", KindOAuth:
		check(!strings.HasPrefix(a.Issuer.Issuer, spiffeScheme), "its name is of SPIFFE, its kind is not")
		a.Kind = KindOAuth
		if len(a.TokenTypes) == 0 {
			a.TokenTypes = []string{"at+jwt"}
		}
	case KindKubernetes:
		a.applyKubernetes(check)
	case KindSPIFFE:
		a.applySPIFFE(check)
	default:
		check(false, "kind %s is not oauth, kubernetes or spiffe", brief(a.Kind))
	}
}

// judgeKind says why an authentic token is not one of the issuer's kind. It depends on the token alone.
func (a *authority) judgeKind(p *proof) *Error {
	switch a.Kind {
	case KindKubernetes:
		return a.judgeKubernetes(p.claims)
	case KindSPIFFE:
		return a.judgeSPIFFE(p.claims)
	}
	return judgeAccess(p)
}

// judgeAccess refuses an ID token. It tells its client that somebody has logged in, and whoever is shown it could be somebody
// else: a client that has one must not get in as its user, though the authorization server signed it with the same key.
//
// The type at+jwt says that a token is none (RFC 9068, section 4). Any other says nothing, JWT least of all. Then what only ID
// tokens hold makes it one: hashes of what was issued beside it (OpenID Connect Core, sections 3.1.3.6 and 3.3.2.11; s_hash of
// FAPI), or a use that says so, as Keycloak and Cognito write it. A nonce does, and the time of a log-in for a
// party (auth_time with azp), unless something shows an access token: a use that says so, scopes, or client_id
// (RFC 9068, section 2.2) beside the time.
func judgeAccess(p *proof) *Error {
	if p.typ == "at+jwt" {
		return nil
	}
	has := func(names ...string) string {
		for _, name := range names {
			if p.claims[name] != nil {
				return name
			}
		}
		return ""
	}
	if name := has("at_hash", "c_hash", "s_hash"); name != "" {
		return refuse(codeIDToken, "%s is there", name)
	}
	access := false
	for _, name := range []string{"token_use", "typ"} {
		switch use, _ := p.claims[name].(string); strings.ToLower(use) {
		case "id":
			return refuse(codeIDToken, "%s says so", name)
		case "access", "bearer", "dpop":
			access = true
		}
	}
	switch {
	case access:
	case has("scope", "scp") != "":
	case has("nonce") != "":
		return refuse(codeIDToken, "nonce is there, and no scope")
	case has("auth_time") != "" && has("azp") != "" && has("client_id") == "":
		return refuse(codeIDToken, "auth_time and azp are there, and neither scope nor client_id")
	}
	return nil
}
