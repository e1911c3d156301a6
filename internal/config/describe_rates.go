package config

// describeRateLimits is ingress.rate_limits.
func describeRateLimits() key {
	return key{name: "rate_limits", kind: section, example: "{source: {requests: 100, per: 1s, burst: 200}}",
		doc: "How much may come from whom; more is answered 429 with `Retry-After` (doc/rate-limits.md). A reload keeps what was counted.", unset: "nothing is limited but what `limits` bounds",
		keys: []key{
			describeRate("source", "{requests: 100, per: 1s, burst: 200}",
				"Requests of one client address, an IPv6 one by its /64: the peer's, behind `proxy_protocol` and `trusted_proxies`. Counted before anything is read of the request.", "a source may send as much as it likes"),
			describeRate("caller", "{requests: 50, per: 1s, burst: 100}",
				"Requests of one verified caller, by the issuer and subject of its token, or the client where it has no subject.", "a caller may send as much as it likes"),
			{name: "failures", kind: section, example: "{count: 20, within: 1m, lockout: 5m}",
				doc:   "When a source is locked out: answered 429 whatever it sends. Credentials count that are no token, not of the issuer that they name, or unknown to it; not those that have expired, are for another audience or lack a right.",
				unset: "nobody is locked out",
				keys: []key{
					{name: "count", kind: integer, min: 1, max: 100, required: true, example: "20", doc: "How many refused credentials lock out."},
					{name: "within", kind: duration, min: second, max: 24 * hour, required: true, example: "1m", doc: "The time in which they must come."},
					{name: "lockout", kind: duration, min: second, max: 24 * hour, required: true, example: "5m", doc: "For how long the source is locked out."},
				}},
			{name: "shared", kind: boolean, def: "false", example: "true",
				doc:   "Whether replicas that share a `state` (`driver: nats`) count together, on routes too: within a quarter of a second each knows what the others let in. One that is cut off counts alone, and says so.",
				unset: "each replica counts what comes to it: divide a limit by their number"},
		}}
}

// describeRate is one rate.
func describeRate(name, example, doc, unset string) key {
	return key{name: name, kind: section, example: example, doc: doc, unset: unset, keys: []key{
		{name: "requests", kind: integer, min: 1, max: 1_000_000, required: true, example: "100", doc: "How many, in each `per`, for as long as it lasts."},
		{name: "per", kind: duration, min: second / 1000, max: 24 * hour, required: true, example: "1s", doc: "The time for `requests`."},
		{name: "burst", kind: integer, min: 1, max: 1_000_000, example: "200", doc: "How many at once, after a pause.", unset: "as many as `requests`"},
	}}
}
