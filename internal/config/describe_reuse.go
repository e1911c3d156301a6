package config

func describeReuse() key {
	return key{name: "reuse", kind: duration, min: second, max: 10 * second, example: "5s",
		doc: "For how long one serves further requests of the same token on the same route: signing is the dearest of what the gate does. Each of them is verified, decided and recorded " +
			"as ever, and has its own `X-Request-Id`; but the `jti` and the `txn` of what the service receives are those of the first, which the records of the others name as `transaction`. " +
			"At most half of `lifetime`. Not for a service that takes a `jti` only once.",
		unset: "each request has one of its own"}
}

// reuse decodes for how long an assertion is used again. Whoever receives it has at least half of its lifetime left.
func (r *reader) reuse(v *value, a *Assertion) {
	a.Reuse = v.duration()
	if v.ok && a.Reuse > a.Lifetime/2 {
		r.fail(v, "shorten it, or lengthen `lifetime`, which is a minute at most", "longer than half of the lifetime, %s", a.Lifetime)
	}
}
