package ingress

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/policy"
)

// metrics count by labels whose values are fixed: codes, names of routes, classes of status. Nothing of a request
// becomes a label.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	wire     *prometheus.CounterVec
	lost     *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, g *Gateway) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_ingress_requests_total",
			Help: "Requests by route, by the code of the decision, and by the class of the answer's status.",
		}, []string{"route", "code", "class"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sallyport_ingress_request_duration_seconds",
			Help:    "Time from the request's header to the end of the answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60},
		}, []string{"route"}),
		wire: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_ingress_wire_refusals_total",
			Help: "Requests that were refused as bytes, before they were one.",
		}, []string{"code"}),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_ingress_ended_total",
			Help: "Requests and streams that were ended because they had lost what they were let in for, by why.",
		}, []string{"code"}),
	}
	if r == nil {
		return m, nil
	}
	inFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sallyport_ingress_requests_in_flight",
		Help: "Requests, upgraded connections among them, that have no outcome yet.",
	}, func() float64 { return float64(g.inFlight.Load()) })
	standing := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sallyport_ingress_standing_known",
		Help: "1 while what has been revoked is known; 0 while privileged routes are refused because it is not.",
	}, func() float64 {
		if g.known() != nil {
			return 0
		}
		return 1
	})
	for _, c := range []prometheus.Collector{m.requests, m.duration, m.wire, m.lost, inFlight, standing} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register a metric: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) refuse(code policy.Code) { m.wire.WithLabelValues(string(code)).Inc() }

func (m *metrics) done(x *exchange, d time.Duration) {
	route, code := x.decision.Route, x.decision.Code
	if x.failure == codeAudit {
		code = codeAudit
	}
	switch x.failure {
	case lostRevoked, lostExpired, lostKey, lostRoute:
		m.lost.WithLabelValues(string(x.failure)).Inc()
	}
	m.requests.WithLabelValues(route, string(code), class(x.w.status)).Inc()
	m.duration.WithLabelValues(route).Observe(d.Seconds())
}

func class(status int) string {
	switch {
	case status < 100 || status > 599:
		return "none"
	default:
		return "12345"[status/100-1:status/100] + "xx"
	}
}
