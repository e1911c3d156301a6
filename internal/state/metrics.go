package state

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count by results, whose values are fixed.
type metrics struct {
	revoke *prometheus.HistogramVec
	once   *prometheus.CounterVec
	all    []prometheus.Collector
	in     prometheus.Registerer
}

// newMetrics registers what a store counts; held and age are asked when somebody scrapes.
func newMetrics(in prometheus.Registerer, held func() int, age func() time.Duration) (*metrics, error) {
	m := &metrics{
		in: in,
		revoke: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sallyport_state_revoke_duration_seconds",
			Help:    "Time until a revocation was durable, or known not to be.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"result"}),
		once: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_state_once_total",
			Help: "Identifiers that may be used once, by what was found: first, used, or error where it is not known.",
		}, []string{"result"}),
	}
	for _, result := range []string{"done", "error"} {
		m.revoke.WithLabelValues(result)
	}
	for _, result := range []string{"first", "used", "error"} {
		m.once.WithLabelValues(result)
	}
	if in == nil {
		return m, nil
	}
	m.all = []prometheus.Collector{m.revoke, m.once,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sallyport_state_revocations",
			Help: "Revocations that this process holds.",
		}, func() float64 { return float64(held()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sallyport_state_feed_age_seconds",
			Help: "How long ago it was last certain that no revocation is missing; +Inf before it ever was.",
		}, func() float64 {
			if a := age(); a != never {
				return a.Seconds()
			}
			return math.Inf(1)
		}),
	}
	for i, c := range m.all {
		if err := in.Register(c); err != nil {
			m.all = m.all[:i]
			m.close()
			return nil, fmt.Errorf("register a metric: %w", err)
		}
	}
	return m, nil
}

// close takes the metrics away, whose functions would ask a store that is closed.
func (m *metrics) close() {
	for _, c := range m.all {
		m.in.Unregister(c)
	}
}

// revoked counts a Revoke. What had a wrong form was none.
func (m *metrics) revoked(began time.Time, err error) {
	result := "done"
	switch {
	case errors.Is(err, ErrInvalid):
		return
	case err != nil:
		result = "error"
	}
	m.revoke.WithLabelValues(result).Observe(time.Since(began).Seconds())
}

// asked counts a Once.
func (m *metrics) asked(first bool, err error) {
	result := "used"
	switch {
	case err != nil:
		result = "error"
	case first:
		result = "first"
	}
	m.once.WithLabelValues(result).Inc()
}
