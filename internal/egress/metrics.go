package egress

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count by labels whose values are fixed: codes and names of destinations. Nothing of a request becomes a label.
type metrics struct {
	attempts *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	dial     *prometheus.HistogramVec
	dns      *prometheus.CounterVec
	strays   prometheus.Counter
}

func newMetrics(r prometheus.Registerer, p *Proxy) (*metrics, error) {
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_egress_attempts_total",
			Help: "Attempts to reach something, by destination and by the code of the decision, or of what went wrong behind an allow.",
		}, []string{"destination", "code"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_egress_bytes_total",
			Help: "Bytes of tunnels, and of the bodies of requests, to (out) and from (in) destinations.",
		}, []string{"destination", "direction"}),
		dial: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sallyport_egress_dial_seconds",
			Help:    "Time to connect, TLS not included.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"destination"}),
		dns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_egress_dns_answers_total",
			Help: "Answers to the service's questions for names, by code.",
		}, []string{"code"}),
		strays: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sallyport_egress_strays_total",
			Help: "Connections to the broker's listener that no broker had announced: closed.",
		}),
	}
	if r == nil {
		return m, nil
	}
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sallyport_egress_attempts_in_flight",
		Help: "Attempts, open tunnels among them, that have no outcome yet.",
	}, func() float64 { return float64(p.inFlight.Load()) })
	for _, c := range []prometheus.Collector{m.attempts, m.bytes, m.dial, m.dns, m.strays, open} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register a metric: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) dialled(x *passage, d time.Duration, err error) {
	if err == nil {
		m.dial.WithLabelValues(x.name()).Observe(d.Seconds())
	}
}

func (m *metrics) done(x *passage) {
	m.attempts.WithLabelValues(x.name(), string(x.code())).Inc()
	if x.in > 0 {
		m.bytes.WithLabelValues(x.name(), "out").Add(float64(x.in))
	}
	if x.back > 0 {
		m.bytes.WithLabelValues(x.name(), "in").Add(float64(x.back))
	}
}

// name is the destination's, empty where there is none.
func (x *passage) name() string {
	if x.destination == nil {
		return ""
	}
	return x.destination.Name
}
