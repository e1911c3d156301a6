package config

import "slices"

func describeEgress() key {
	return key{name: "egress", kind: section, example: "{destinations: [{name: billing, hosts: [\"billing.internal:443\"], for: any}]}",
		doc:   "The gate behind the service: what it may connect to, by name. `run` leads every connection of its program here (`sandbox.network`); `serve` guards those that come to `listen`.",
		unset: "the program that `run` starts reaches nobody", keys: []key{
			{name: "listen", kind: address, example: "127.0.0.1:8081", pattern: `^(unix:.+|(127\.[0-9.]+|\[::1\]|localhost):[0-9]{1,5})$`, shape: "unix:PATH or a loopback address and port",
				doc:   "A forward proxy (plain HTTP and `CONNECT`) for programs that take one, and the only port to connect to with `sandbox.network: ports`. On loopback: whoever reaches it may use it.",
				unset: "there is none; `sandbox.network: broker` needs none"},
			{name: "mode", kind: text, enum: []string{"enforce", "report"}, def: "enforce", example: "report",
				doc: "`report` records what would be denied and lets it pass, to learn what a service needs; a warning says so. What leads out of the container (the escape-target registry), to " +
					"ourselves, or has an ambiguous name is refused all the same.",
				unset: "`enforce`"},
			{name: "destinations", kind: sequence, example: "[{name: billing, hosts: [\"billing.internal:443\"], for: any}]",
				doc: "The places that may be reached. Whatever none of them names is refused, and a name that is refused is not looked up.", unset: "nothing may be reached",
				item: describeDestination()},
			{name: "deny", kind: sequence, example: "[10.0.0.5, 10.1.0.0/16]", doc: "Addresses and ranges that are refused wherever a destination's name leads.", unset: "no further address is refused",
				item: &key{kind: text, check: addressOrRange, example: "10.1.0.0/16"}},
			{name: "resolvers", kind: sequence, least: 1, example: "[\"10.0.0.2:53\"]", doc: "The name servers that names of destinations are looked up at, as ADDRESS:PORT.", unset: "those of this machine",
				item: &key{kind: text, check: serverAddress, example: `"10.0.0.2:53"`}},
			{name: "unlock", kind: sequence, example: "[{name: docker-api, reason: the build service is ours}]",
				doc:   "Entries of the escape-target registry that may be reached all the same: container runtimes, metadata services, the orchestrator. They are refused under any other rule. It opens nothing by itself: a destination or a socket must still be named.",
				unset: "everything in the registry is refused", item: &key{kind: section, example: "{name: docker-api, reason: the build service is ours}", keys: []key{
					{name: "name", kind: text, required: true, example: "docker-api", check: escapeName, doc: "The entry's name, as a refusal says it."},
					{name: "reason", kind: text, required: true, example: "the build service is ours", check: notBlank, doc: "Why. It stands in the records."},
				}}},
			describeEgressLimits(),
		}}
}

func describeDestination() *key {
	return &key{kind: section, example: `{name: billing, hosts: ["billing.internal:443"], for: {routes: [create-order]}}`, keys: []key{
		{name: "name", kind: text, required: true, example: "billing", pattern: `^[a-z0-9-]+$`, shape: "made of a-z, 0-9 and `-`", doc: "Its name in records and metrics; unique."},
		{name: "hosts", kind: sequence, required: true, least: 1, example: `["billing.internal:443"]`,
			doc:  "Where it is: NAME:PORT or ADDRESS:PORT, in lower case, without wildcards. What is written here may be at a private address, which no other name may lead to, unless `addresses` says `public`.",
			item: &key{kind: text, check: hostPort, example: `"billing.internal:443"`}},
		describeFor(),
		{name: "protocol", kind: text, enum: []string{"tls", "http", "tcp"}, enumHint: mistakenProtocols(), def: "tls", example: "http",
			doc:   "What the service speaks. `tls`: it must ask for one of the names in `hosts` (SNI), in the open; what follows is not read. `http`: plain HTTP/1.1, request by request. `tcp`: bytes that nobody looks at, for databases.",
			unset: "`tls`"},
		{name: "tls", kind: text, enum: []string{"originate"}, example: "originate",
			doc: "The service speaks plain HTTP to us, and we speak TLS to the destination, which must prove its name. Each request is judged, and nothing leaves in the clear.", unset: "the service speaks what `protocol` says, end to end"},
		{name: "ca_file", kind: path, example: "tls/internal-ca.pem", doc: "Roots beside the system's by which the destination proves its name with `tls: originate`, PEM.", unset: "the system's roots alone"},
		{name: "methods", kind: sequence, least: 1, example: "[GET, POST]", doc: "The methods that it may be asked with. They are seen with `protocol: http` and `tls: originate` alone.", unset: "any method may",
			item: &key{kind: text, enum: []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}}},
		{name: "paths", kind: sequence, least: 1, example: `["/v1/invoices/{id}"]`, doc: "The paths that it may be asked for, as patterns of a route without the method: `/v1/{id}`, `/v1/{rest...}`. They are seen where methods are.", unset: "any path may",
			item: &key{kind: text, check: pathPattern, example: `"/v1/invoices/{id}"`}},
		{name: "addresses", kind: text, enum: []string{"public", "any"}, def: "any", example: "public",
			doc:   "Where its names may be. `public`: at ordinary addresses only, for a name that somebody else answers for, who could lead it inside. `any`: at private ones too, but never at an escape target.",
			unset: "`any`: the name is written down here"},
		{name: "direct", kind: boolean, def: "false", example: "true", doc: "A connection that `run` brokers goes straight to the judged address, without a copy through us: for `protocol: tcp`.", unset: "what the service sends passes through us"},
		describeCredential(),
	}}
}

func describeCredential() key {
	audience := key{name: "audience", kind: text, example: "https://billing.example.com", check: notBlank, doc: "Whom the token is for."}
	scopes := key{name: "scopes", kind: sequence, least: 1, item: describeScope(), example: "[invoice:write]"}
	with := func(k key, change func(*key)) key { change(&k); return k }
	endpoint := []key{
		{name: "token_endpoint", kind: link, required: true, example: "https://auth.example.com/token", check: secretURL, pattern: `^https?://[^ #]+$`, shape: "an https URL", doc: "Where it is asked for: https, or http on a loopback host."},
		{name: "client_id", kind: text, required: true, example: "orders-gate", check: notBlank, doc: "Who we are there."},
		{name: "client_secret_file", kind: path, required: true, example: "secrets/exchange", doc: "The secret that proves it, in a file of its own; read again when it changes."},
	}
	return key{name: "credential", kind: choice, example: "{exchange: {token_endpoint: https://auth.example.com/token, client_id: orders-gate, client_secret_file: secrets/exchange, audience: https://billing.example.com, scopes: [invoice:write]}}",
		doc:   "What we attach to each request to it, where requests are seen: the service never holds it, and what it sends of its own (`Authorization` and the like) is dropped. A credential of the caller needs to know who that is: the request's capability, or one caller alone in flight.",
		unset: "nothing is attached", alts: []key{
			{kind: text, enum: []string{"none"}, example: "none"},
			{kind: section, example: "{file: {path: secrets/billing}}", either: [][]string{{"forward"}, {"exchange"}, {"service"}, {"file"}, {"assertion"}},
				say: "`forward`, `exchange`, `service`, `file`, `assertion`, or `none` in its place", keys: []key{
					{name: "forward", kind: section, example: "{audience: https://billing.example.com}", doc: "The caller's own token, where its `aud` has the audience and its scopes are enough.", unset: "it is not handed on", keys: []key{
						with(audience, func(k *key) { k.required = true }),
						with(scopes, func(k *key) { k.doc, k.unset = "The caller's token has each of them.", "its scopes do not matter" }),
					}},
					{name: "exchange", kind: section, example: "{token_endpoint: https://auth.example.com/token, client_id: orders-gate, client_secret_file: secrets/exchange, audience: https://billing.example.com, scopes: [invoice:write]}",
						doc: "A token for the same caller, in exchange for theirs (RFC 8693).", unset: "none is exchanged", keys: append(slices.Clone(endpoint),
							with(audience, func(k *key) { k.unset = "`resource` says whom it is for" }),
							with(scopes, func(k *key) {
								k.doc, k.required = "What it is asked to be good for; one that is good for more is not used.", true
							}),
							key{name: "resource", kind: link, example: "https://billing.example.com/", pattern: `^https?://[^ #]+$`, shape: "an https URL", check: fetchURL, doc: "Whom it is for, as RFC 8707 has it.", unset: "`audience` says whom it is for"})},
					{name: "service", kind: section, example: "{token_endpoint: https://auth.example.com/token, client_id: orders-gate, client_secret_file: secrets/service}",
						doc: "A token of our own (client credentials), whoever called.", unset: "none is asked for", keys: append(slices.Clone(endpoint),
							with(audience, func(k *key) { k.unset = "the authorization server chooses" }),
							with(scopes, func(k *key) { k.doc, k.unset = "What it is asked to be good for.", "the authorization server chooses" }))},
					{name: "file", kind: section, example: "{path: secrets/billing}", doc: "A static secret.", unset: "none is attached", keys: []key{
						{name: "path", kind: path, required: true, example: "secrets/billing", doc: "The file that it stands in, alone; read again when it changes."},
						{name: "header", kind: text, def: "Authorization", example: "X-Api-Key", pattern: `^[A-Za-z0-9-]{1,100}$`, shape: "a header's name", doc: "The header that carries it.", unset: "`Authorization`"},
						{name: "prefix", kind: text, example: `"Bearer "`, pattern: `^[ -~]{1,100}$`, shape: "printable ASCII", doc: "What stands before it there.", unset: "`Bearer ` without `header`, and otherwise nothing"},
					}},
					{name: "assertion", kind: section, example: "{audience: billing}", doc: "A statement of the caller, signed by us, for the gate of another service.", unset: "none is made", keys: []key{
						with(audience, func(k *key) { k.required, k.doc, k.example = true, "The service that it is for.", "billing" }),
						with(scopes, func(k *key) { k.doc, k.unset = "The most that it says of the caller's.", "it says none" }),
					}},
				}},
		}}
}

func describeFor() key {
	return key{name: "for", kind: choice, required: true, example: "{routes: [create-order]}",
		doc: "What may cause a connection or request to it: `{routes: [...], scopes: [...]}` requests on one of these routes whose caller has all of these scopes; `background` what no request causes; " +
			"`any` everything. Where it cannot be told which request it was, every request in flight must be entitled (doc/egress.md).",
		alts: []key{
			{kind: text, enum: []string{"any", "background"}, example: "any"},
			{kind: section, example: "{routes: [create-order], scopes: [orders:write]}", either: [][]string{{"routes", "scopes", "background"}},
				say: "`{routes: [create-order]}`, `{scopes: [orders:write]}`, `background` or `any`", keys: []key{
					{name: "routes", kind: sequence, least: 1, example: "[create-order]", doc: "Names of `ingress.routes`: the request came in on one of them.", unset: "on any route",
						item: &key{kind: text, pattern: `^[a-z0-9-]+$`, shape: "made of a-z, 0-9 and `-`"}},
					{name: "scopes", kind: sequence, least: 1, example: "[orders:write]", doc: "Its caller has every one of them; on a public route nobody has any.", unset: "of any caller, or of none",
						item: describeScope()},
					{name: "background", kind: boolean, def: "false", example: "true", doc: "What no request causes may reach it too: a timer, a queue, a connection pool that fills itself.", unset: "only a request may cause it"},
				}},
		}}
}

// mistakenProtocols says what to write in place of names that sound right.
func mistakenProtocols() map[string]string {
	return map[string]string{
		"https": "`tls`, where the service speaks TLS by itself; or `tls: originate` in place of `protocol`",
		"udp":   "nothing but TCP leaves; names are looked up by us",
	}
}

func describeEgressLimits() key {
	return key{name: "limits", kind: section, example: "{tunnels: 256}", doc: "What the service can make the gate behind it hold.", unset: "each limit has its default: there is no way to have none",
		keys: []key{
			{name: "dial_timeout", kind: duration, min: second / 1000, max: 10 * minute, def: "5s", example: "2s", doc: "For looking a name up, for connecting, and for the TLS handshake of `tls: originate`, each.", unset: "5 s"},
			{name: "header_timeout", kind: duration, min: second / 1000, max: 10 * minute, def: "10s", example: "5s", doc: "For a request's header, or the beginning of TLS.", unset: "10 s"},
			{name: "idle_timeout", kind: duration, min: second / 1000, max: 24 * hour, def: "5m", example: "1h", doc: "Without a byte in either direction.", unset: "5 min"},
			{name: "tunnel_lifetime", kind: duration, min: second, max: 8760 * hour, def: "24h", example: "1h", doc: "Of one connection.", unset: "24 h"},
			{name: "tunnels", kind: integer, min: 1, max: 1_000_000, def: "4096", example: "256", doc: "Connections at once; more are refused.", unset: "4096"},
			{name: "header_bytes", kind: size, min: 1 << 10, max: 1 << 20, def: "32KiB", example: "16KiB", doc: "The request line and all header fields.", unset: "32 KiB"},
			{name: "body_bytes", kind: size, min: 1, max: 1 << 40, def: "1GiB", example: "10MiB", doc: "The request's body.", unset: "1 GiB"},
		}}
}
