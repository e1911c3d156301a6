package ingress

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/h2"
	"github.com/sallyport/sallyport/internal/policy"
)

// metrics count by labels whose values are fixed: codes, names of routes, classes of status. Nothing of a request
// becomes a label.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	wire     *prometheus.CounterVec
	lost     *prometheus.CounterVec
	arrivals *prometheus.CounterVec
	open     *prometheus.GaugeVec
	floods   *prometheus.CounterVec
	errors2  *prometheus.CounterVec
	limited  *prometheus.CounterVec
	closed   *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, g *Gateway) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_ingress_requests_total",
			Help: "Requests by route, by the code of the decision, by the class of the answer's status, and by where they came in.",
		}, []string{"route", "code", "class", "entry"}),
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
		arrivals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_ingress_connections_total",
			Help: "Connections by the protocol that they speak; none: no TLS handshake, or nothing that the gate speaks.",
		}, []string{"protocol"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sallyport_ingress_connections_open",
			Help: "Connections that are open, by the protocol that they speak.",
		}, []string{"protocol"}),
		floods: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_ingress_http2_floods_total",
			Help: "HTTP/2 connections that were ended for what is cheap to send and dear to take, by what that was.",
		}, []string{"kind"}),
		errors2: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_ingress_http2_errors_total",
			Help: "Streams that were reset and HTTP/2 connections that were ended because RFC 9113 was not kept, by how.",
		}, []string{"kind"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_ingress_limited_total",
			Help: "Requests that were answered 429, by the limit that they met: source, caller, route or lockout.",
		}, []string{"kind"}),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_ingress_connections_refused_total",
			Help: "Connections that were closed before a request, by why: peer_refused, proxy_header_missing, _invalid or _timeout.",
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
	for _, c := range append([]prometheus.Collector{m.requests, m.duration, m.wire, m.lost, m.arrivals, m.open, m.floods, m.errors2, m.limited, m.closed, inFlight, standing}, limitMetrics(g)...) {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register a metric: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) refuse(code policy.Code) { m.wire.WithLabelValues(string(code)).Inc() }

// arrived counts a connection, once it is known what it speaks.
func (m *metrics) arrived(protocol string) {
	m.arrivals.WithLabelValues(protocol).Inc()
	if protocol != speaksNothing {
		m.open.WithLabelValues(protocol).Inc()
	}
}

// left counts a connection that has been closed.
func (m *metrics) left(protocol string) {
	if protocol != speaksNothing {
		m.open.WithLabelValues(protocol).Dec()
	}
}

func (m *metrics) flooded(kind h2.Kind) { m.floods.WithLabelValues(string(kind)).Inc() }

// malformed hears of net/http which rule was broken: one of the names that it has for them.
func (m *metrics) malformed(kind string) { m.errors2.WithLabelValues(kind).Inc() }

func (m *metrics) done(x *exchange, d time.Duration) {
	route, code := x.decision.Route, x.decision.Code
	if x.failure == codeAudit {
		code = codeAudit
	}
	switch x.failure {
	case lostRevoked, lostExpired, lostKey, lostRoute, lostInactive:
		m.lost.WithLabelValues(string(x.failure)).Inc()
	}
	m.requests.WithLabelValues(route, string(code), class(x.w.status), x.entryPoint()).Inc()
	observe(m.duration.WithLabelValues(route), d, x.traceID())
}

// observe gives the trace of a sampled request as an exemplar.
func observe(o prometheus.Observer, d time.Duration, trace string) {
	if e, ok := o.(prometheus.ExemplarObserver); ok && trace != "" {
		e.ObserveWithExemplar(d.Seconds(), prometheus.Labels{"trace_id": trace})
		return
	}
	o.Observe(d.Seconds())
}

func class(status int) string {
	switch {
	case status < 100 || status > 599:
		return "none"
	default:
		return "12345"[status/100-1:status/100] + "xx"
	}
}
