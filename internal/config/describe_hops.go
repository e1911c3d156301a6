package config

// serviceName is the name of a service in an assertion: req_wl joins such names with commas.
const serviceName = "^[!#-+\\--\\[\\]-~]{1,256}$"

func describeAssertion() key {
	return key{name: "assertion", kind: section, example: "{audience: orders}",
		doc: "What the service receives in place of the token: a statement of who calls, signed by us with the newest key of `keys`. It is a transaction " +
			"token (draft-ietf-oauth-transaction-tokens-10), for this service alone.",
		unset: "the service receives no statement of who calls",
		keys: []key{
			{name: "issuer", kind: text, def: "sallyport", example: "https://gate.example.com", check: notBlank, doc: "Its `iss`. Where gates call one another, each has its own.", unset: "it is `sallyport`"},
			{name: "audience", kind: text, required: true, example: "orders", check: notBlank, pattern: serviceName, shape: "printable ASCII without spaces, commas, quotes and backslashes",
				doc: "The service's name: `tctx.service`, and its entry in `req_wl`."},
			{name: "trust_domain", kind: text, example: "shop.example.com", check: notBlank,
				doc: "Its `aud`: what the services that call one another have in common.", unset: "it is the audience, and the service is alone in it"},
			{name: "lifetime", kind: duration, min: second, max: minute, def: "60s", example: "30s", doc: "How long it is valid, if the token is.", unset: "it is a minute, the most there is"},
			describeReuse(),
			{name: "header", kind: text, def: "Txn-Token", example: "Authorization", pattern: `^[A-Za-z0-9][A-Za-z0-9-]*$`, shape: "a header name", check: assertionHeader,
				doc: "The header that carries it, bare. `Authorization` is for guards that look there: it holds `Bearer ...`, and `Txn-Token` the same.", unset: "it is `Txn-Token`"},
			{name: "claims", kind: sequence, example: "[tenant]", doc: "Claims of the token that are copied into it, and, but for `scope` and `scp`, into what the gate behind signs for the next service.", unset: "what it says of the token is issuer, id, subject, client, session and scopes only",
				item: &key{kind: text, check: notBlank}},
		}}
}

func describeHops() key {
	return key{name: "hops", kind: sequence, example: "[{issuer: https://cart-gate.example.com, keys: {jwks_uri: https://cart-gate.example.com/.well-known/jwks.json}, callers: [https://auth.example.com]}]",
		doc: "Other gates of the trust domain, whose word is taken for who calls: a request with their transaction token in `Txn-Token`, and no `Authorization`, " +
			"is its first caller's. It needs `assertion.trust_domain`. Their keys are no condition of readiness, since gates that call one another would wait for each other.",
		unset: "a `Txn-Token` that a client sends is dropped",
		item: &key{kind: section, example: "{issuer: https://cart-gate.example.com, keys: {jwks_file: cart.jwks.json}, callers: [https://auth.example.com]}", keys: []key{
			{name: "issuer", kind: text, required: true, example: "https://cart-gate.example.com", check: notBlank, doc: "Its `assertion.issuer`, byte for byte; not our own."},
			{name: "keys", kind: section, required: true, example: "{jwks_uri: https://cart-gate.example.com/.well-known/jwks.json}", either: [][]string{{"jwks_uri"}, {"jwks_file"}},
				say: "`{jwks_uri: URL}` or `{jwks_file: FILE}`", doc: "Where its keys are: Ed25519, each named by its thumbprint.", keys: []key{
					{name: "jwks_uri", kind: link, example: "https://cart-gate.example.com/.well-known/jwks.json", check: fetchURL, pattern: `^https?://[^ #]+$`, shape: "an https URL",
						doc: "A JWK set to fetch, every minute and when a key is missing: https, or http on a loopback host. A key that it lacks is out of use; while fetching fails, the last ones serve for five minutes.", unset: "`jwks_file` names the keys"},
					{name: "jwks_file", kind: path, example: "cart.jwks.json", doc: "A JWK set in a file, as `keys.publish` of that gate is. It is looked at again every second.", unset: "`jwks_uri` names the keys"},
				}},
			{name: "scopes", kind: sequence, example: "[orders:read]", doc: "The scopes that count when it says them. What the caller has not is not added.", unset: "none count: only routes that ask for no scope can be reached by it",
				item: &key{kind: text, pattern: `^[!#-\[\]-~]+$`, shape: "a scope: printable ASCII without spaces, quotes and backslashes", example: "orders:read"}},
			{name: "callers", kind: sequence, required: true, least: 1, example: "[https://auth.example.com]",
				doc:  "The issuers of tokens whose callers it may pass on, byte for byte.",
				item: &key{kind: text, check: notBlank}},
		}}}
}
