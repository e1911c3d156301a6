package config

// describeIntrospection is how an issuer is asked about tokens.
func describeIntrospection() key {
	const example = "{endpoint: https://auth.example.com/introspect, client_id: orders-gate, client_secret_file: secrets/introspect}"
	return key{name: "introspection", kind: section, example: example,
		doc: "It is asked about its tokens that are no JWT (RFC 7662), and about its JWTs where it has no `keys`. What it answers is judged on every request as if the token said it; " +
			"while it cannot be asked, requests with such tokens are answered 503. See [introspection.md](introspection.md).",
		unset:  "its opaque tokens are refused",
		either: [][]string{{"client_secret_file"}, {"private_key_file"}, {"client_certificate"}},
		say:    "how this gate proves that it may ask, in one of the three ways", keys: []key{
			{name: "endpoint", kind: link, required: true, example: "https://auth.example.com/introspect", check: secretURL, pattern: `^https?://[^ #]+$`, shape: "an https URL",
				doc: "Where it is asked: https, or http on a loopback host."},
			{name: "client_id", kind: text, required: true, example: "orders-gate", check: notBlank, doc: "Who we are there."},
			{name: "client_secret_file", kind: path, example: "secrets/introspect", doc: "The secret that proves it (`client_secret_basic`), in a file of its own that others cannot read; read again when it changes.",
				unset: "another of the three ways proves it"},
			{name: "private_key_file", kind: path, example: "secrets/introspect.pem",
				doc:   "The key that proves it (`private_key_jwt`, RFC 7523), PEM, or a JWK whose `kid` then names it: P-256, P-384, Ed25519, or RSA of at least 2048 bits. An assertion is for one request, for a minute, and for the issuer.",
				unset: "another of the three ways proves it"},
			{name: "client_certificate", kind: section, example: "{cert: tls/client.pem, key: tls/client-key.pem}", doc: "The certificate that proves it (`tls_client_auth`, RFC 8705); read again when it changes.",
				unset: "another of the three ways proves it", keys: []key{
					{name: "cert", kind: path, required: true, example: "tls/client.pem", doc: "The certificate chain, PEM."},
					{name: "key", kind: path, required: true, example: "tls/client-key.pem", doc: "Its private key, PEM, in a file that others cannot read."},
				}},
			{name: "ca_file", kind: path, example: "tls/auth-ca.pem", doc: "The authorities that may sign the endpoint's certificate, PEM.", unset: "the system's"},
			{name: "signed_response", kind: boolean, def: "false", example: "true",
				doc:   "Answers must be signed (RFC 9701) by the issuer's `keys`; one that is plain or encrypted is none.",
				unset: "answers are plain JSON, and believed because of TLS"},
			{name: "cache", kind: duration, min: 0, max: 30 * second, def: "30s", example: "10s",
				doc:   "How long an answer about an active token is used on routes that are `privileged: false`, and never past its `exp`. On all others each request is a question.",
				unset: "thirty seconds"},
			{name: "prefix", kind: text, example: "oat_", pattern: `^[A-Za-z0-9._~+/-]{1,64}$`, shape: "characters of a token",
				doc:   "How the opaque tokens of this issuer begin, if more than one has `introspection`.",
				unset: "it is asked about all opaque tokens that have no other issuer's prefix; one issuer may be"},
		}}
}

// describeStepUp is how a caller must have logged in.
func describeStepUp() key {
	return key{name: "step_up", kind: section, example: "{acr: [urn:example:mfa], max_age: 10m}", either: [][]string{{"acr", "max_age"}}, say: "how, or how lately, a caller must have logged in",
		doc: "How a caller's user must have logged in, besides the scopes and the condition. Another token is answered 401 `insufficient_user_authentication`, which tells the client what to ask " +
			"the authorization server for (RFC 9470).",
		unset: "any login will do", keys: []key{
			{name: "acr", kind: sequence, least: 1, example: "[urn:example:mfa]", doc: "The token's `acr` must be one of these, the most wanted first.", unset: "any will do",
				item: &key{kind: text, pattern: `^[!#-\[\]-~]{1,256}$`, shape: "printable ASCII without spaces, quotes and backslashes", example: "urn:example:mfa"}},
			{name: "max_age", kind: duration, min: second, max: 8760 * hour, example: "10m", check: wholeSeconds,
				doc:   "The token's `auth_time` must be no longer ago when a request begins.",
				unset: "a login of any time will do"},
		}}
}

// describeMetadata is where clients learn which authorization server to ask.
func describeMetadata() key {
	return key{name: "resource_metadata", kind: choice, example: "serve",
		doc: "Where clients find this API's metadata (RFC 9728); named in `WWW-Authenticate` when a request is refused. `serve`: the gate answers them itself, " +
			"at `/.well-known/oauth-protected-resource` and the path of `public_url`. A mapping does the same, and says more.",
		unset: "it is not named",
		alts: []key{
			{kind: text, check: metadataText, pattern: `^(serve|https?://[^ "\\#]+)$`, shape: "`serve`, or an https URL", example: "serve"},
			{kind: section, example: "{name: Orders, scopes: true}", keys: []key{
				{name: "name", kind: text, check: notBlank, example: "Orders", doc: "What people are told that this is (`resource_name`).", unset: "they are not told"},
				{name: "scopes", kind: boolean, def: "false", example: "true", doc: "Whether everybody may see which scopes the routes ask for (`scopes_supported`).",
					unset: "nobody does, but callers who lack them"},
			}},
		}}
}
