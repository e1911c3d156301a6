package main

import (
	"crypto/tls"

	"github.com/prometheus/client_golang/prometheus"
)

// measureHealth tells the metrics what readiness is made of, and until when the listener's certificate is good.
func measureHealth(g *gate, listener *tls.Config) {
	gauge := func(name, help string, value func() float64) {
		g.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	healthy := func(err error) float64 {
		if err != nil {
			return 0
		}
		return 1
	}
	gauge("sallyport_audit_healthy", "1 while the audit log takes records; 0 while everything is refused because it does not.",
		func() float64 { return healthy(g.audit.Healthy()) })
	gauge("sallyport_issuers_ready", "1 while there are keys of every issuer that are not too old; 0 while tokens of one are refused because there are none.",
		func() float64 { return healthy(g.tokens().Ready()) })
	if listener == nil || listener.GetCertificate == nil {
		return
	}
	gauge("sallyport_listener_certificate_expiry_timestamp_seconds", "When the certificate that the listener serves now expires.", func() float64 {
		c, err := listener.GetCertificate(&tls.ClientHelloInfo{})
		if err != nil || c.Leaf == nil {
			return 0
		}
		return float64(c.Leaf.NotAfter.Unix())
	})
}
