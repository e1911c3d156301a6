package config

import (
	"strings"

	"github.com/sallyport/sallyport/bearer"
)

// tokenCache is the size of what is remembered of tokens, in bytes.
func (r *reader) tokenCache(v *value) int64 {
	size := v.get("size")
	if !size.isSet {
		return 32 << 20
	}
	n := size.number()
	if size.ok && n > 0 && n < smallestCache {
		r.fail(size, "write 1MiB or more, or `0` to remember nothing", "less than %s remembers next to nothing", amount(smallestCache))
	}
	return n
}

// kindOf decodes what an issuer is, and refuses what only another kind has.
func (r *reader) kindOf(v *value, is *bearer.Issuer) {
	is.Kind, is.BoundTo, is.TrustDomain = v.get("kind").text(), v.get("kubernetes").get("bound_to").text(), v.get("spiffe").get("trust_domain").text()
	name, kind := v.get("issuer"), v.get("kind")
	if kind.wrong() {
		return
	}
	own := map[string]string{"kubernetes": bearer.KindKubernetes, "spiffe": bearer.KindSPIFFE}
	for _, section := range []string{"kubernetes", "spiffe"} {
		if s := v.get(section); s.isSet && is.Kind != own[section] {
			r.fail(s, "write `kind: "+section+"`, or remove it", "only for an issuer of that kind")
		}
	}
	if t := v.get("token_types"); t.isSet && (is.Kind == bearer.KindKubernetes || is.Kind == bearer.KindSPIFFE) {
		r.fail(t, "remove it", "the kind says which types its tokens have")
	}
	domain, named := strings.CutPrefix(name.raw, "spiffe://")
	switch d := v.get("spiffe").get("trust_domain"); {
	case !name.ok:
	case named && is.Kind != bearer.KindSPIFFE:
		r.fail(name, "write `kind: spiffe`", "a trust domain is no authorization server")
	case named && !isTrustDomain(domain):
		r.fail(name, "as `spiffe://example.org`: a-z, 0-9, `.`, `-` and `_`, and no path", "no trust domain")
	case named && d.ok && d.text() != domain:
		r.fail(d, "remove it", "not the trust domain that `issuer` names")
	case !named && is.Kind == bearer.KindSPIFFE && !v.get("spiffe").get("trust_domain").isSet:
		r.fail(name, "write `issuer: spiffe://DOMAIN`, or `spiffe: {trust_domain: DOMAIN}` where the SVIDs have an `iss`", "which trust domain it is of is not said")
	case named && is.Keys.Discovery:
		r.fail(v.get("keys"), "write `{jwks_uri: URL}` or `{jwks_file: FILE}` of its bundle", "a trust domain has no metadata to discover keys by")
	}
	for _, algorithm := range v.get("algorithms").entries {
		if is.Kind == bearer.KindSPIFFE && algorithm.text() == "EdDSA" {
			r.fail(algorithm, "remove it", "JWT-SVIDs are not signed with it")
		}
	}
}

// trustDomains refuses a trust domain of two issuers: a token without iss would be of either.
func (r *reader) trustDomains(v *value, issuers []bearer.Issuer) {
	first := map[string]int{}
	for i, is := range issuers {
		domain := is.TrustDomain
		if named, ok := strings.CutPrefix(is.Issuer, "spiffe://"); ok {
			domain = named
		}
		if before, again := first[domain]; again && domain != "" {
			r.fail(v.entries[i], "one trust domain is described once: join the two", "of the same trust domain as ingress.issuers[%d]", before)
			continue
		}
		first[domain] = i
	}
}

func isTrustDomain(s string) bool {
	return s != "" && len(s) <= 255 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}

// privateKeys refuses roots and a token where nobody would prove anything by the ones, or could read the other.
func (r *reader) privateKeys(v *value) {
	if uri := v.get("jwks_uri"); v.is(section) && !uri.wrong() && !strings.HasPrefix(uri.raw, "https://") {
		for _, name := range []string{"ca_file", "token_file"} {
			if f := v.get(name); f.isSet {
				r.fail(f, "remove it, or write an https `jwks_uri`", "only for a key set that is fetched over https")
			}
		}
	}
}
