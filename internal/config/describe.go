package config

import "time"

const (
	second = int64(time.Second)
	minute = int64(time.Minute)
	hour   = int64(time.Hour)
)

// describe is the description of the whole file. It is the one place to add a key: the parser, the schema and the
// manual follow, and a test fails until a section's code reads it.
func describe() *key {
	return &key{kind: section, doc: "The whole file.", keys: []key{
		{name: "version", kind: integer, min: 1, max: 1, required: true, example: "1",
			doc: "The version of this format."},
		describeIngress(),
		describeEgress(),
		describeSandbox(),
		describeAudit(),
		describeState(),
		describeKeys(),
		describeWatch(),
		describeAdmin(),
		describeReload(),
		describeTelemetry(),
		describeAccessLog(),
	}}
}

func describeIngress() key {
	return key{name: "ingress", kind: section, required: true, example: "{listen: ..., upstream: ..., issuers: [...], routes: [...]}",
		doc: "The gate in front of the service: nothing reaches it without a verified token that the route allows.",
		keys: []key{
			{name: "listen", kind: address, unless: entries(), example: `":8080"`,
				doc:   "Where callers connect: `host:port`, `:port` for every interface, or `unix:PATH`. A host is an IP address.",
				unset: "**required**, unless proxies ask (`forward_auth`, `ext_authz`)"},
			describeProtocols(),
			describeTLS(),
			{name: "upstream", kind: link, unless: entries(), example: "http://127.0.0.1:3000", check: upstreamURL,
				pattern: upstreamPattern, shape: upstreamShape,
				doc: "Where the service listens: `http://HOST:PORT` or `unix:///PATH`, to which HTTP/1.1 is spoken; `h2c://HOST:PORT` or `unix+h2c:///PATH` for HTTP/2 " +
					"from the first byte, which a gRPC service speaks. A host other than this machine's loopback is for `serve` and is warned about: " +
					"the service there must be reachable through this gate alone.",
				unset: "**required**, unless proxies ask (`forward_auth`, `ext_authz`), which forward requests themselves"},
			describeForwardAuth(),
			describeExtAuthz(),
			{name: "trusted_proxies", kind: sequence, example: "[10.1.2.0/24]",
				doc: "The proxies in front of this gate whose forwarding headers are believed. An entry that is not a range, and one wider than any private " +
					"network (/8, or /7 for IPv6), is an error: anyone could then say who they are.",
				unset: "nobody's forwarding headers are believed: the client is the peer of the connection",
				item:  &key{kind: prefix, example: "10.1.2.0/24"}},
			describeProxyProtocol(),
			describePeers(),
			{name: "issuers", kind: sequence, required: true, least: 1, example: "[{issuer: https://auth.example.com, audience: [https://api.example.com], keys: discovery}]",
				doc: "The authorization servers whose tokens are verified. Keys never cross issuers.", item: describeIssuer()},
			{name: "routes", kind: sequence, example: "[{name: health, match: GET /health, scopes: []}]",
				doc:   "The ways in. Whatever no route names is answered 404. A route says who may pass: `scopes`, `when`, both, or `public`.",
				unset: "every request is answered 404, and a warning says so", item: describeRoute()},
			describeAssertion(),
			describeHops(),
			describeCORS(),
			describeLimits(),
			describeRateLimits(),
			describeTokenCache(),
			describeMetadata(),
			{name: "public_url", kind: link, example: "https://api.example.com", check: publicURL, pattern: `^https?://[^ ?#"\\\\]+$`, shape: "an http or https URL without query and fragment",
				doc:   "What clients' URLs of this gate begin with: scheme, host, port, and a path that a proxy in front takes away. A DPoP proof (RFC 9449) names it byte for byte; `resource_metadata: serve` names the resource by it.",
				unset: "no DPoP proof is accepted, so tokens that are bound to a key are refused"},
			{name: "keep_keys", kind: path, example: "issuer-keys",
				doc:   "A folder for the issuers' last good keys, so that a restart while an issuer is down need not refuse its tokens; they serve for an hour at most.",
				unset: "they are not kept: after a restart nobody is let in until the issuer answers"},
			{name: "realm", kind: text, def: "sallyport", example: "orders", pattern: `^[ !#-\[\]-~]{1,100}$`, shape: "printable ASCII without quotes and backslashes",
				doc: "The realm named in `WWW-Authenticate` when a request is refused.", unset: "it is `sallyport`"},
			{name: "engine", kind: text, enum: []string{"net/http", "http1"}, def: "net/http", example: "http1",
				doc: "What speaks HTTP/1 to callers and to the service: Go's standard library behind a strict reader, or an engine of our own, which reads each request " +
					"once and answers of the service strictly, and costs less. To a service that speaks HTTP/2, and for requests that came by HTTP/2, it is not used.",
				unset: "it is `net/http`"},
		}}
}

func describeTLS() key {
	return key{name: "tls", kind: section, example: "{cert: tls/cert.pem, key: tls/key.pem}",
		doc: "The listener's certificate. Its files are read again when they change.", unset: "the gate speaks plain HTTP",
		keys: []key{
			{name: "cert", kind: path, required: true, example: "tls/cert.pem", doc: "The certificate chain, PEM."},
			{name: "key", kind: path, required: true, example: "tls/key.pem", doc: "Its private key, PEM."},
			{name: "client_ca", kind: path, example: "tls/clients.pem", doc: "The authorities whose client certificates are required, PEM. Read again when it changes, for handshakes from then on.",
				unset: "callers need no certificate"},
			{name: "client_certificates", kind: text, enum: []string{"requested"}, example: "requested",
				doc:   "Callers are asked for a certificate, and whoever signed it is taken: it is for tokens that are bound to it (RFC 8705). Excludes `client_ca`.",
				unset: "no certificate is asked for, unless `client_ca` requires one"},
			describeSPIFFE(),
		}}
}

func describeIssuer() *key {
	return &key{kind: section, example: "{issuer: https://auth.example.com, audience: [https://api.example.com], keys: discovery}",
		either: [][]string{{"keys", "introspection"}}, say: "`keys: discovery` for signed tokens; `introspection: {...}` for opaque ones", keys: append([]key{
			{name: "issuer", kind: link, required: true, example: "https://auth.example.com", check: issuerName, pattern: `^(https?|spiffe)://[^ ?#]+$`, shape: "an https URL without query and fragment",
				doc: "The `iss` of its tokens, compared byte for byte: a trailing slash matters. It must be https, except on a loopback host, where nobody " +
					"stands between us and the server (for tests); or `spiffe://DOMAIN`, where `kind` is spiffe and the tokens have no `iss`."},
			{name: "audience", kind: sequence, required: true, least: 1, example: "[https://api.example.com]",
				doc: "The names this service has in `aud`; a token must hold one of them, byte for byte.", item: &key{kind: text, check: notBlank}},
			describeKeysOf(),
			{name: "algorithms", kind: sequence, least: 1, def: "[ES256, EdDSA, RS256, PS256]", example: "[ES256, EdDSA]",
				doc: "The signature algorithms accepted from it. `none` and HMAC (`HS256` and the like) are never accepted.", unset: "ES256, EdDSA, RS256 and PS256 are accepted",
				item: &key{kind: text, enum: []string{"ES256", "ES384", "EdDSA", "RS256", "PS256"}, enumHint: neverAlgorithms()}},
			{name: "token_types", kind: sequence, least: 1, def: "[at+jwt]", example: "[at+jwt, JWT]",
				doc: "The `typ` values accepted, without regard to case and to a leading `application/`.", unset: "only `at+jwt` (RFC 9068) is accepted, not ID tokens",
				item: &key{kind: text, pattern: "^[A-Za-z0-9!#$&^_.+-]+(/[A-Za-z0-9!#$&^_.+-]+)?$", shape: "a media type"}},
			{name: "max_lifetime", kind: duration, min: second, max: 720 * hour, def: "1h", example: "15m",
				doc: "The longest a token may be valid, from `iat` to `exp`.", unset: "it is an hour"},
			{name: "leeway", kind: duration, min: second / 1000, max: 30 * second, def: "5s", example: "2s",
				doc: "How far its clock and ours may be apart.", unset: "it is five seconds"},
			{name: "claims", kind: section, example: "{required: [sub, jti]}", doc: "Which claims its tokens must and may hold.",
				unset: "any further claim may be there, and none need", keys: []key{
					{name: "required", kind: sequence, example: "[sub, jti]", doc: "Claims that must be there.", unset: "no further claim is required",
						item: &key{kind: text, check: notBlank}},
					{name: "only", kind: sequence, example: "[sub, jti, scope]", doc: "The closed list of claims: a token with any other is refused. Those of `required` and iss, aud, exp, nbf and iat belong to it by themselves; an empty list closes nothing.",
						unset: "unknown claims are ignored", item: &key{kind: text, check: notBlank}},
				}},
			{name: "events", kind: section, example: "{audience: [https://gate.example.com/events]}",
				doc:   "Its security event tokens (RFC 8417) are taken at the admin listener (`POST /events`): a session that it ends ends here too.",
				unset: "it can end nothing here: its tokens are good until they expire or are revoked here",
				keys: []key{
					{name: "audience", kind: sequence, required: true, least: 1, example: "[https://gate.example.com/events]",
						doc: "The names under which we receive its events: the `aud` of a security event token must hold one of them.", item: &key{kind: text, check: notBlank}},
				}},
			{name: "scope_claim", kind: text, def: "scope", example: "scp", check: notBlank,
				doc: "The claim that holds the scopes: a string separated by spaces, or a list of strings.", unset: "it is `scope` (RFC 9068)"},
		}, append(describeKind(), describeIntrospection())...)}
}

func describeScope() *key {
	return &key{kind: text, pattern: `^[!#-\[\]-~]+$`, shape: "a scope: printable ASCII without spaces, quotes and backslashes", example: "orders:read"}
}

func describeRoute() *key {
	scope := describeScope()
	return &key{kind: section, example: `{name: read-order, match: "GET /orders/{id}", scopes: [orders:read]}`, either: [][]string{{"scopes", "when"}, {"public"}},
		say: "name the scopes a caller needs; `scopes: []` admits every verified caller; a public route has `public: {reason: ..., owner: ..., expires: ...}`", keys: []key{
			{name: "name", kind: text, required: true, example: "read-order", pattern: `^[a-z0-9-]+$`, shape: "made of a-z, 0-9 and `-`",
				doc: "Its name in records, metrics and the assertion; unique."},
			{name: "match", kind: text, required: true, example: "GET /orders/{id}", check: notBlank,
				doc: "The method and the path pattern of Go's `net/http.ServeMux`: `METHOD /path/{segment}/{rest...}`. The most specific wins, and a conflict is an error. `GET` matches `HEAD` too."},
			{name: "scopes", kind: choice, example: "[orders:read]",
				doc:   "The scopes a caller needs: `[a, b]` all of them, `{any: [a, b]}` at least one, `{all: [a], any: [b, c]}` both. `[]`, written out, admits every verified caller.",
				unset: "`when` or `public` must say who may pass",
				alts: []key{
					{kind: sequence, item: scope, example: "[orders:read]"},
					{kind: section, either: [][]string{{"all", "any"}}, say: "`[]` admits every verified caller", example: "{any: [orders:read, orders:admin]}", keys: []key{
						{name: "all", kind: sequence, least: 1, item: scope, example: "[orders:read]", doc: "Scopes of which the caller needs every one.", unset: "only `any` counts"},
						{name: "any", kind: sequence, least: 1, item: scope, example: "[orders:write, orders:admin]", doc: "Scopes of which the caller needs at least one.", unset: "only `all` counts"},
					}},
				}},
			{name: "when", kind: text, example: `claims.tenant == path.tenant`, check: condition,
				doc:   "A CEL expression over `claims`, `request` (method, path, host, source, header) and `path` (the pattern's captures), type-checked when the file is read. It must be true besides the scopes; an error denies.",
				unset: "the scopes alone decide"},
			{name: "public", kind: section, example: "{reason: load balancer probe, owner: platform, expires: 2027-06-01}",
				doc: "Nobody need prove anything here. It excludes `scopes` and `when`.", unset: "a verified token is required", keys: []key{
					{name: "reason", kind: text, required: true, check: notBlank, example: "load balancer probe", doc: "Why."},
					{name: "owner", kind: text, required: true, check: notBlank, example: "platform", doc: "Who answers for it."},
					{name: "expires", kind: date, required: true, example: "2027-06-01", doc: "From the beginning of this day (UTC) the route is closed. A past date is a warning, not an error."},
				}},
			{name: "allow_in_path", kind: sequence, example: `["%2F"]`,
				doc:   "What else a captured part of the path may hold: an escaped slash, a semicolon. Open it only for a service that reads both as this gate does.",
				unset: "a path that holds either is refused", item: &key{kind: text, enum: []string{"%2F", ";"}}},
			{name: "upgrades", kind: sequence, example: "[websocket]", doc: "The protocols a request may switch to. The token is verified at the switch.", unset: "a request to switch is refused",
				item: &key{kind: text, enum: []string{"websocket"}}},
			{name: "sender_constrained", kind: text, enum: []string{"required", "if_bound"}, def: "if_bound", example: "required",
				doc:   "`required` takes only tokens that are bound to a key or a certificate (`cnf`), with the proof of it: DPoP (RFC 9449), or the certificate of the connection (RFC 8705).",
				unset: "a token that is bound needs its proof, and one that is not bound needs none"},
			{name: "dpop_nonce", kind: text, enum: []string{"required"}, example: "required",
				doc:   "A DPoP proof must hold a nonce of this gate, which a client without one is told.",
				unset: "the time in a proof, of the last minute, is enough"},
			describeStepUp(),
			{name: "require_jti", kind: boolean, def: "false", example: "true", doc: "Whether a token must have an identifier (`jti`), by which it can be revoked alone.",
				unset: "a token without one is revoked by its digest, or with others"},
			describeRate("rate_limit", "{requests: 5, per: 1m}",
				"How often one caller may come by this route; on a public one, one source.", "`ingress.rate_limits` alone limits it"),
			{name: "privileged", kind: boolean, def: "true", example: "false",
				doc: "Whether the route is closed (503) while what has been revoked is not known: the state is not loaded, or older than `state.max_feed_age`. " +
					"And whether the authorization server is asked about an opaque token on each request, whatever it said a moment ago.",
				unset: "it is closed then, and asked"},
			{name: "headers", kind: sequence, example: "[x-tenant]", doc: "Request headers that `when` may read as `request.header[\"x-tenant\"]`. The caller chooses what they hold.",
				unset: "`when` sees no header", item: &key{kind: text, pattern: `^[a-z0-9][a-z0-9-]*$`, shape: "a header name in lower case", example: "x-tenant", check: readableHeader}},
		}}
}

func describeCORS() key {
	header := &key{kind: text, pattern: `^[A-Za-z0-9][A-Za-z0-9-]*$`, shape: "a header name", example: "X-Request-Id"}
	return key{name: "cors", kind: section, example: "{origins: [https://app.example.com], methods: [GET]}",
		doc: "The browser origins that may read answers. Preflights are answered here and never forwarded.", unset: "every preflight is refused",
		keys: []key{
			{name: "origins", kind: sequence, required: true, least: 1, example: "[https://app.example.com]",
				doc:  "Exact origins: scheme, host and port, without a path. `*` is any, and only without `credentials`.",
				item: &key{kind: text, pattern: `^(\*|https?://[a-z0-9.:\[\]-]+)$`, shape: "`*` or an origin such as `https://app.example.com`", check: origin}},
			{name: "methods", kind: sequence, example: "[GET, POST]", doc: "Methods that a preflight may ask for.", unset: "no preflight for a method is granted",
				item: &key{kind: text, enum: []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}}},
			{name: "headers", kind: sequence, example: "[Authorization, Content-Type]", doc: "Request headers that a preflight may ask for.", unset: "none is granted", item: header},
			{name: "expose", kind: sequence, example: "[X-Request-Id]", doc: "Response headers that a script may read.", unset: "none is exposed", item: header},
			{name: "credentials", kind: boolean, def: "false", example: "true", doc: "Whether cookies and client certificates may come along.", unset: "they may not"},
			{name: "max_age", kind: duration, min: second, max: 24 * hour, example: "10m", doc: "How long a browser may remember a preflight's answer.", unset: "the browser's own few seconds"},
		}}
}

func describeLimits() key {
	return key{name: "limits", kind: section, example: "{body_bytes: 1MiB}", doc: "What one client can make the gate hold.", unset: "each limit has its default: there is no way to have none",
		keys: []key{
			{name: "header_bytes", kind: size, min: 1 << 10, max: 1 << 20, def: "32KiB", example: "16KiB", doc: "The request line and all header fields.", unset: "32 KiB"},
			{name: "header_fields", kind: integer, min: 1, max: 10_000, def: "100", example: "50", doc: "The number of header fields.", unset: "100"},
			{name: "body_bytes", kind: size, min: 1, max: 1 << 40, def: "10MiB", example: "1MiB", doc: "The request's body; in a gRPC call each message, of which there may be any number.", unset: "10 MiB"},
			{name: "header_timeout", kind: duration, min: second / 1000, max: 10 * minute, def: "10s", example: "5s", doc: "From the first byte of a request to the end of its header.", unset: "10 s"},
			{name: "body_timeout", kind: duration, min: second / 1000, max: hour, def: "60s", example: "30s", doc: "Without a single byte of progress; or waited for in all, unless the client has sent 500 bytes for each second beyond. Between two messages a gRPC call may rest for as long as its token is good.", unset: "60 s"},
			{name: "idle_timeout", kind: duration, min: second / 1000, max: hour, def: "120s", example: "90s", doc: "Between two requests of a connection.", unset: "120 s"},
			{name: "upstream_timeout", kind: duration, min: second / 1000, max: hour, def: "30s", example: "20s", doc: "Until the service's response header. A gRPC call has the deadline that its client sets.", unset: "30 s"},
			{name: "requests", kind: integer, min: 1, max: 1_000_000, def: "1024", example: "512", doc: "Requests in flight at once; more are answered 503.", unset: "1024"},
			{name: "connections", kind: integer, min: 1, max: 1_000_000, def: "4096", example: "2048", doc: "Connections open at once; more wait in the kernel's queue.", unset: "4096"},
			{name: "streams", kind: integer, min: 1, max: 100_000, def: "250", example: "100", doc: "Requests in flight at once on one HTTP/2 connection.", unset: "250"},
			{name: "drain_timeout", kind: duration, min: second / 1000, max: hour, def: "20s", example: "10s", doc: "For requests in flight at shutdown.", unset: "20 s"},
		}}
}
