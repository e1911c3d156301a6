package main

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/bearer"
)

// remembered counts what verifiers have remembered of tokens, over reloads: each has a verifier of its own.
type remembered struct {
	mu           sync.Mutex
	now          *bearer.Verifier
	hits, misses uint64 // of those before
}

// follow counts on with another verifier.
func (r *remembered) follow(v *bearer.Verifier) {
	r.mu.Lock()
	defer r.mu.Unlock()
	hits, misses, _, _ := r.now.Remembered()
	r.hits, r.misses, r.now = r.hits+hits, r.misses+misses, v
}

// measure publishes the numbers.
func (r *remembered) measure(registry *prometheus.Registry) {
	read := func() (hits, misses, entries, bytes float64) {
		r.mu.Lock()
		defer r.mu.Unlock()
		h, m, e, b := r.now.Remembered()
		return float64(r.hits + h), float64(r.misses + m), float64(e), float64(b)
	}
	registry.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sallyport_ingress_token_cache_hits_total",
			Help: "Tokens whose signature was not checked again, because it had been.",
		}, func() float64 { hits, _, _, _ := read(); return hits }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sallyport_ingress_token_cache_misses_total",
			Help: "Tokens whose signature was checked, while some are remembered; refused ones among them.",
		}, func() float64 { _, misses, _, _ := read(); return misses }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sallyport_ingress_token_cache_entries",
			Help: "Tokens that are remembered.",
		}, func() float64 { _, _, entries, _ := read(); return entries }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sallyport_ingress_token_cache_bytes",
			Help: "Memory that what is remembered of tokens takes.",
		}, func() float64 { _, _, _, bytes := read(); return bytes }),
	)
}
