package main

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/bearer"
)

// questions counts how opaque tokens fared. Its labels are issuers of the configuration and words of bearer.Options.
type questions struct {
	asked, kept, refused *prometheus.CounterVec
	resting              *prometheus.Desc
	asking               func() (all, resting []string) // issuers with introspection, and those of them that are left alone
}

// newQuestions registers the metrics.
func newQuestions(r prometheus.Registerer, asking func() (all, resting []string)) *questions {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sallyport_introspection_" + name, Help: help}, append([]string{"issuer"}, labels...))
	}
	q := &questions{
		asked: counter("questions_total", "Questions to an issuer about a token, by what came of it: active, inactive, "+
			"refused (it does not say), in_vain (it cannot be asked, or its answer not be believed).", "result"),
		kept:    counter("kept_total", "Requests that were answered by what was known of a token already: active or inactive.", "result"),
		refused: counter("refused_total", "Requests with a token that is not known, whose source has sent too many that were not active: nobody was asked."),
		resting: prometheus.NewDesc("sallyport_introspection_resting", "1 while an issuer is left alone because it could not be asked; 0 otherwise.", []string{"issuer"}, nil),
		asking:  asking,
	}
	r.MustRegister(q.asked, q.kept, q.refused, q)
	return q
}

// count is a bearer.Options.Introspected.
func (q *questions) count(issuer, result string) {
	kind, of, _ := strings.Cut(result, "_")
	switch kind {
	case "asked":
		q.asked.WithLabelValues(issuer, of).Inc()
	case "kept":
		q.kept.WithLabelValues(issuer, of).Inc()
	default:
		q.refused.WithLabelValues(issuer).Inc()
	}
}

// Describe implements prometheus.Collector.
func (q *questions) Describe(c chan<- *prometheus.Desc) { c <- q.resting }

// Collect implements prometheus.Collector.
func (q *questions) Collect(c chan<- prometheus.Metric) {
	all, resting := q.asking()
	for _, issuer := range all {
		v := 0.0
		if slices.Contains(resting, issuer) {
			v = 1
		}
		c <- prometheus.MustNewConstMetric(q.resting, prometheus.GaugeValue, v, issuer)
	}
}

// asking is the issuers of the configuration in force that are asked about tokens.
func (g *gate) asking() (all, resting []string) {
	g.mu.Lock()
	verifier, file := g.verifier, g.file
	g.mu.Unlock()
	for _, i := range file.Ingress.Issuers {
		if i.Introspection != nil {
			all = append(all, i.Issuer)
		}
	}
	return all, verifier.Resting()
}

// unasked is issuers for a verifier that verifies nothing: it reads no secret, which may be elsewhere.
func unasked(issuers []bearer.Issuer) []bearer.Issuer {
	issuers = slices.Clone(issuers)
	for n := range issuers {
		issuers[n].Introspection = nil
		if issuers[n].Keys == (bearer.Keys{}) {
			issuers[n].Keys = bearer.Keys{Discovery: true}
		}
	}
	return issuers
}
