package config

func describeEgress() key {
	return key{name: "egress", kind: section, example: "{destinations: [{name: billing, hosts: [\"billing.internal:443\"]}]}",
		doc:   "The gate behind the service: what it may connect to, by name. `run` leads every connection of its program here (`sandbox.network`); `serve` guards those that come to `listen`.",
		unset: "the program that `run` starts reaches nobody", keys: []key{
			{name: "listen", kind: address, example: "127.0.0.1:8081", pattern: `^(unix:.+|(127\.[0-9.]+|\[::1\]|localhost):[0-9]{1,5})$`, shape: "unix:PATH or a loopback address and port",
				doc:   "A forward proxy (plain HTTP and `CONNECT`) for programs that take one, and the only port to connect to with `sandbox.network: ports`. On loopback: whoever reaches it may use it.",
				unset: "there is none; `sandbox.network: broker` needs none"},
			{name: "mode", kind: text, enum: []string{"enforce", "report"}, def: "enforce", example: "report",
				doc: "`report` records what would be denied and lets it pass, to learn what a service needs; a warning says so. What leads out of the container (the escape-target registry), to " +
					"ourselves, or has an ambiguous name is refused all the same.",
				unset: "`enforce`"},
			{name: "destinations", kind: sequence, example: "[{name: billing, hosts: [\"billing.internal:443\"]}]",
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
	return &key{kind: section, example: `{name: billing, hosts: ["billing.internal:443"]}`, keys: []key{
		{name: "name", kind: text, required: true, example: "billing", pattern: `^[a-z0-9-]+$`, shape: "made of a-z, 0-9 and `-`", doc: "Its name in records and metrics; unique."},
		{name: "hosts", kind: sequence, required: true, least: 1, example: `["billing.internal:443"]`,
			doc:  "Where it is: NAME:PORT or ADDRESS:PORT, in lower case, without wildcards. What is written here may be at a private address, which no other name may lead to, unless `addresses` says `public`.",
			item: &key{kind: text, check: hostPort, example: `"billing.internal:443"`}},
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
	}, later: []key{
		{name: "for", doc: "every request could cause this, whoever's it is",
			unset: "until then the destination is open to whatever the service does, so narrow it with `methods` and `paths`"},
		{name: "credential", doc: "no credential would be attached, nor a token exchanged",
			unset: "until then the service holds the credential: pass it in `sandbox.env.pass`, or in a file of `sandbox.read`"},
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
