package main

import (
	"context"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// A reload takes another verifier, which knows no token; what is counted goes on.
func TestCountersOutliveAVerifier(t *testing.T) {
	issuer := sallytest.NewIssuer(t)
	verifier := func() *bearer.Verifier {
		v, err := bearer.NewVerifier([]bearer.Issuer{{Issuer: issuer.URL, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{Discovery: true}}},
			bearer.Options{Remember: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Close)
		if err := waitReady(t.Context(), v, hopPatience); err != nil {
			t.Fatal(err)
		}
		return v
	}
	var r remembered
	registry := prometheus.NewRegistry()
	r.measure(registry)
	token := bearer.NewToken(issuer.Token(nil))
	want := func(hits, misses, entries float64) {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			got[f.GetName()] = f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
		const prefix = "sallyport_ingress_token_cache_"
		if got[prefix+"hits_total"] != hits || got[prefix+"misses_total"] != misses || got[prefix+"entries"] != entries || (got[prefix+"bytes"] > 0) != (misses > 0) {
			t.Errorf("%v", got)
		}
	}
	want(0, 0, 0)
	for i, entries := range []float64{1, 1} {
		v := verifier()
		r.follow(v)
		for range 3 {
			if _, err := v.Verify(context.Background(), token); err != nil {
				t.Fatal(err)
			}
		}
		n := float64(i + 1)
		want(n, 2*n, entries)
	}
}
