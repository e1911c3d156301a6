package config

// describeReload, describeTelemetry and describeAccessLog are what an operator looks at and turns while the gates run.

func describeReload() key {
	return key{name: "reload", kind: section, example: "{watch: false}", doc: "When this file is read again. SIGHUP and `POST /reload` at the admin listener always do that.",
		unset: "it is read again when it changes",
		keys: []key{
			{name: "watch", kind: boolean, def: "true", example: "false",
				doc: "Whether this file, and those that it names and that a reload reads (`jwks_file`, a destination's `ca`), are watched. What changed is taken whole or not at all: " +
					"with a mistake in it the old configuration stays. doc/operations.md has the rest.",
				unset: "they are watched"},
		}}
}

func describeTelemetry() key {
	return key{name: "telemetry", kind: section, example: "{otlp: {endpoint: http://127.0.0.1:4318}}", doc: "Traces of some requests, sent to a collector (OpenTelemetry, OTLP over HTTP). No token, query or path is in them.",
		unset: "nothing is sent, and no trace of a client's is continued",
		keys: []key{
			{name: "otlp", kind: section, required: true, example: "{endpoint: http://127.0.0.1:4318}", doc: "The collector.", keys: []key{
				{name: "endpoint", kind: link, required: true, example: "https://otel.example.com", check: collectorURL, pattern: `^https?://[^ ?#@]+$`, shape: "an https URL without user, query and fragment",
					doc: "Its URL, to which `/v1/traces` is added. It must be https, except on a loopback host. It may be at a private address: it is written here."},
				{name: "headers_file", kind: path, example: "/run/secrets/otlp-headers", doc: "A file with headers that are sent along, `name: value` on a line each; the way for a secret. It is read again for each upload.",
					unset: "none is sent"},
				{name: "ca_file", kind: path, example: "collector-ca.pem", doc: "The authorities that may have signed the collector's certificate, PEM, besides the system's.", unset: "the system's alone"},
			}},
			{name: "sample", kind: fraction, def: "0.01", example: "0.05", doc: "Which part of the requests has a trace sent, from 0 to 1.", unset: "one in a hundred"},
			{name: "trust", kind: sequence, example: "[10.1.2.0/24]",
				doc: "The peers whose `traceparent` is believed: a request of theirs continues their trace, is sampled if they say so, and has their `tracestate` passed on. " +
					"Baggage never is.",
				unset: "every request begins a trace of its own, whatever it says", item: &key{kind: prefix, example: "10.1.2.0/24"}},
		}}
}

func describeAccessLog() key {
	return key{name: "access_log", kind: section, example: "{file: access.jsonl}", doc: "A line for each request that has its answer, for whoever counts and looks; apart from the audit log, and never waited for.",
		unset: "there is none", keys: []key{
			{name: "file", kind: path, dash: true, required: true, example: "/var/log/sallyport/access.jsonl",
				doc: "The file, one JSON object a line; `-` is standard output. SIGHUP opens it anew. Lines that cannot be written in time are dropped and counted."},
		}}
}

// collectorURL is fetchURL for what is told of requests.
func collectorURL(s string) (problem, hint string) {
	problem, hint = fetchURL(s)
	if problem == "must be https" {
		hint = "http is for loopback hosts only: anyone on the way could read along"
	}
	return problem, hint
}
