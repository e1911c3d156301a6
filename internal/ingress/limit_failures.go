package ingress

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/jws"
	"github.com/sallyport/sallyport/internal/limit"
	"github.com/sallyport/sallyport/internal/policy"
)

// forged reports whether a credential was refused for what happens to nobody who was given it: it is no token, or not of the
// issuer that it names. What time, a rotation of keys, another audience or missing rights do to a good token does not
// count, or a deployment that goes wrong would lock its own clients out; nor does unknown_key, which a new key looks like
// until it has been fetched, and behind which no signature is verified that could be guessed at. Nor does token_inactive, since an
// opaque token that has ended looks like one that never was: who invents those is stopped by the budget of questions
// (too_many_unknown_tokens).
func forged(code policy.Code) bool {
	switch code {
	case jws.CodeTooLong, jws.CodeNotCompact, jws.CodeBase64, jws.CodeJSON, jws.CodeEncoding, jws.CodeDuplicate, jws.CodeDepth, jws.CodeNumber,
		jws.CodeCritical, jws.CodeHeader, jws.CodeAlgorithm, jws.CodeType, jws.CodeKeyIDFormat,
		"unknown_issuer", "alg_not_allowed", "bad_signature":
		return true
	}
	return false
}

// noteFailure counts a forged credential against its source, which is locked out when there were too many.
func (x *exchange) noteFailure() {
	l := x.rules.limiter
	if l.guard == nil || x.decision.Allowed() || !forged(x.decision.Code) || x.source() != nil {
		return
	}
	x.spread(byFailure, func() string { return sourceName(x.request.Source) })
	if l.guard.Fail(l.keys.Source(x.request.Source), l.instant(x.g.now())) {
		x.g.log.Warn("a source is locked out: too many of its credentials were forged, malformed or unknown", "request", x.id,
			"source", sourceName(x.request.Source), "code", string(x.decision.Code), "for", l.Failures.For.String())
	}
}

// limitMetrics are what can be seen of the counters as a whole.
func limitMetrics(g *Gateway) []prometheus.Collector {
	of := func(name, help string, labels prometheus.Labels, value func(*counters) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 {
			return float64(value(g.counters.Load()))
		})
	}
	evicted := func(of func(*counters) *limit.Meter) func(*counters) uint64 {
		return func(c *counters) uint64 {
			if m := of(c); m != nil {
				return m.Evicted()
			}
			return 0
		}
	}
	guard := func(value func(*limit.Guard) uint64) func(*counters) uint64 {
		return func(c *counters) uint64 {
			if c.guard == nil {
				return 0
			}
			return value(c.guard)
		}
	}
	const name, help = "sallyport_ingress_limits_forgotten_total", "Sources and callers that begin anew, though they had used some of their limit, or were locked out: more came than there is room for."
	table := func(kind string) prometheus.Labels { return prometheus.Labels{"table": kind} }
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sallyport_ingress_limits_shared",
			Help: "1 while replicas count together; 0 while this one counts alone: it does not hear the others, or rate_limits.shared is not set.",
		}, func() float64 {
			if g.shared() {
				return 1
			}
			return 0
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sallyport_ingress_limits_unsaid_total",
			Help: "Requests that were counted here and not told to the other replicas: they came from too many.",
		}, func() float64 { return float64(g.sharing.unsaid.Load()) }),
		of("sallyport_ingress_lockouts_total", "How often a source was locked out.", nil, guard((*limit.Guard).Lockouts)),
		of(name, help, table("source"), evicted(func(c *counters) *limit.Meter { return c.source })),
		of(name, help, table("caller"), evicted(func(c *counters) *limit.Meter { return c.caller })),
		of(name, help, table("route"), evicted(func(c *counters) *limit.Meter { return c.route })),
		of(name, help, table("lockout"), guard((*limit.Guard).Evicted)),
	}
}
