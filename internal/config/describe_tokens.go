package config

import "strings"

// smallestCache is the least that remembers anything worth its while, in bytes.
const smallestCache = 1 << 20

func describeTokenCache() key {
	return key{name: "token_cache", kind: section, example: "{size: 64MiB}",
		doc:   "What is remembered of tokens that come again: that their signature is good, and nothing else. Time, audience, keys, proof of possession, revocation and policy are judged on every request.",
		unset: "32 MiB are used for it", keys: []key{
			{name: "size", kind: size, min: 0, max: 16 << 30, def: "32MiB", example: "64MiB", number: true, pattern: `^(0|[0-9]{1,9}(B|KiB|MiB|GiB))$`, shape: "a size, or 0 for none",
				doc:   "How much memory it may take, a megabyte at least; a token takes about 1.5 KiB. `0` remembers nothing. A reload begins with an empty one.",
				unset: "it is 32 MiB"},
		}}
}

// describeKeysOf is where an issuer's keys are.
func describeKeysOf() key {
	return key{name: "keys", kind: choice, example: "discovery",
		unset: "there must be `introspection`, which is asked about every token",
		doc:   "Where its signing keys are: `discovery` asks the issuer (RFC 8414, then OpenID Connect); `{jwks_uri: URL}` or `{jwks_file: FILE}` name them.",
		alts: []key{
			{kind: text, enum: []string{"discovery"}, example: "discovery"},
			{kind: section, example: "{jwks_uri: https://auth.example.com/jwks.json}", either: [][]string{{"jwks_uri"}, {"jwks_file"}},
				say: "`discovery`, `{jwks_uri: URL}` or `{jwks_file: FILE}`", keys: []key{
					{name: "jwks_uri", kind: link, example: "https://auth.example.com/jwks.json", check: fetchURL, pattern: `^https?://[^ #]+$`, shape: "an https URL",
						doc: "A JWK set to fetch: https, or http on a loopback host.", unset: "`jwks_file` names the keys"},
					{name: "jwks_file", kind: path, example: "jwks.json", doc: "A JWK set in a file.", unset: "`jwks_uri` names the keys"},
					{name: "ca_file", kind: path, example: "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
						doc: "The roots by which the server of an https `jwks_uri` proves its name, PEM, in place of the system's; read at each fetch.", unset: "the system's roots"},
					{name: "token_file", kind: path, example: "/var/run/secrets/kubernetes.io/serviceaccount/token",
						doc: "A token that is sent to the server of an https `jwks_uri`, and nowhere else; read at each fetch.", unset: "none is sent"},
				}},
		}}
}

// describeKind is what is known of how an issuer's tokens are made, and what belongs to one kind only.
func describeKind() []key {
	return []key{
		{name: "kind", kind: text, enum: []string{"oauth", "kubernetes", "spiffe"}, def: "oauth", example: "kubernetes",
			doc:   "What its tokens are: `oauth` access tokens, `kubernetes` bound service account tokens, `spiffe` JWT-SVIDs ([tokens](tokens.md)).",
			unset: "it is an authorization server, and ID tokens are refused"},
		{name: "kubernetes", kind: section, example: "{bound_to: node}", doc: "What is asked of the tokens of `kind: kubernetes`.", unset: "they must be bound to a pod",
			keys: []key{
				{name: "bound_to", kind: text, enum: []string{"pod", "node", "any"}, def: "pod", example: "node",
					doc:   "What a token's life must be bound to: a `pod`, a pod or a `node`, or `any`thing or nothing, as `kubectl create token` makes them.",
					unset: "it is `pod`"},
			}},
		{name: "spiffe", kind: section, example: "{trust_domain: example.org}", doc: "What is asked of the tokens of `kind: spiffe`.", unset: "`issuer` names the trust domain, as `spiffe://DOMAIN`",
			keys: []key{
				{name: "trust_domain", kind: text, example: "example.org", pattern: `^[a-z0-9._-]{1,255}$`, shape: "a trust domain: a-z, 0-9, `.`, `-` and `_`",
					doc:   "Whose SPIFFE IDs `sub` holds, where `issuer` is a URL since the SVIDs have an `iss`.",
					unset: "`issuer` names it"},
			}},
	}
}

// issuerName admits what an issuer may be called.
func issuerName(s string) (problem, hint string) {
	if strings.HasPrefix(s, "spiffe://") {
		return "", "" // what follows, its kind says
	}
	return issuerURL(s)
}
