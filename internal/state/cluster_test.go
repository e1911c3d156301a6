package state

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestClusterConforms(t *testing.T) {
	s := startServers(t)
	buckets := 0
	conforms(t, func(*testing.T) place {
		buckets++
		bucket := fmt.Sprintf("conforms-%d", buckets)
		return place{many: true, open: func(t *testing.T, reg prometheus.Registerer) Store { return s.store(t, bucket, reg, 0, 1, 2) }}
	})
}
