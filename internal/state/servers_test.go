package state

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/natstest"
)

// servers is a cluster for one test.
type servers struct {
	*natstest.Cluster
	t testing.TB
}

func startServers(t testing.TB) *servers {
	t.Helper()
	c, err := natstest.Start(natstest.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &servers{c, t}
}

func (s *servers) start(i int) {
	s.t.Helper()
	if err := s.Begin(i); err != nil {
		s.t.Fatal(err)
	}
}

func (s *servers) settled() {
	s.t.Helper()
	if err := s.Settle(); err != nil {
		s.t.Fatal(err)
	}
}

// leader is the server that leads a bucket.
func (s *servers) leader(bucket string) int {
	s.t.Helper()
	found := -1
	becomes(s.t, "a leader of "+bucket, func() bool {
		found = s.Leader("KV_" + bucket)
		return found >= 0
	})
	return found
}

// store opens a replica that knows the servers named, in the order of their names.
func (s *servers) store(t *testing.T, bucket string, reg prometheus.Registerer, at ...int) *cluster {
	t.Helper()
	logger := discard()
	if testing.Verbose() {
		logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", fmt.Sprint(at))
	}
	o, err := Open(Config{Driver: NATS, URL: s.URLs(at...), Bucket: bucket}, logger, reg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, o) })
	return o.(*cluster)
}
