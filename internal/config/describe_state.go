package config

func describeState() key {
	return key{name: "state", kind: section, example: "{driver: local, path: state.db}",
		doc:   "What is revoked, and which identifiers have been used: what a restart must not forget, and replicas must agree on (doc/state.md).",
		unset: "it is kept in `state.db` beside this file, by one process",
		keys: []key{
			{name: "driver", kind: text, enum: []string{"local", "nats"}, def: "local", example: "nats",
				doc: "`local`: a file of this process. `nats`: a NATS JetStream cluster (server 2.11 or later), for several replicas.", unset: "`local`"},
			{name: "path", kind: path, def: "state.db", example: "/var/lib/sallyport/state.db",
				doc: "The file of `driver: local`. One process has it open; the program behind the gate may neither read nor write it.", unset: "`state.db` beside this file"},
			{name: "url", kind: sequence, least: 1, example: "[\"tls://nats-1.internal:4222\", \"tls://nats-2.internal:4222\"]",
				doc:   "Servers of the cluster, for `driver: nats`: `tls://`, `wss://`, or `nats://`, which is TLS too where there is a `ca_file`. Without TLS only on loopback: anyone on the way could leave revocations out.",
				unset: "required with `driver: nats`",
				item:  &key{kind: text, check: clusterURL, example: `"tls://nats-1.internal:4222"`}},
			{name: "credentials_file", kind: path, example: "nats.creds", doc: "The user's JWT and seed, as `nsc` writes them. Read at each connection.", unset: "the servers ask for none"},
			{name: "ca_file", kind: path, example: "tls/nats-ca.pem", doc: "The roots by which the servers prove who they are, PEM. With it nothing is spoken but TLS.", unset: "the system's roots"},
			{name: "bucket", kind: text, def: "sallyport", example: "orders", pattern: `^[A-Za-z0-9_-]{1,64}$`, shape: "at most 64 of A-Z, a-z, 0-9, `_` and `-`",
				doc: "The key-value bucket that the replicas share; a second has `-once` after its name. They are made where they are missing.", unset: "`sallyport`"},
			{name: "replicas", kind: integer, min: 1, max: 5, def: "3", example: "5",
				doc: "How many servers of the cluster keep each entry when the buckets are made: 3 survive the loss of one, 5 of two.", unset: "3"},
			{name: "max_feed_age", kind: duration, min: 2 * second, max: hour, def: "10s", example: "5s",
				doc:   "How long a replica that no longer hears from the cluster may let requests pass on routes that are not public. `local` hears itself.",
				unset: "10 s"},
		}}
}

// clusterURL checks the address of a NATS server. Whether it needs TLS takes a second key to see.
func clusterURL(s string) (problem, hint string) {
	u, problem, hint := parseURL(s)
	switch {
	case problem != "":
		return problem, hint
	case u.Scheme != "nats" && u.Scheme != "tls" && u.Scheme != "wss":
		return "must begin with tls://, wss:// or nats://", ""
	case u.User != nil:
		return "holds a user", "secrets are not written in this file: name a `credentials_file`"
	case u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "must be SCHEME://HOST:PORT", ""
	}
	return "", ""
}
