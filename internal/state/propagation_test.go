package state

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// propagation revokes many times on one of three replicas, each connected to another server of the cluster, and measures
// for each how long it took until it was acknowledged, and until both others held it.
func propagation(t testing.TB, s *servers, revocations, atOnce int) (acked, everywhere []time.Duration) {
	t.Helper()
	var stores []*cluster
	for i := range s.Node {
		o, err := openCluster(Config{URL: s.URLs(i), Bucket: "b"}, discard(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		becomes(t, "ready", func() bool { return o.Ready() == nil })
		stores = append(stores, o)
	}
	var mu sync.Mutex
	began := make(map[string]time.Time)
	heard := make(map[string]int)
	all := make(chan struct{})
	for _, o := range stores[1:] {
		defer o.Subscribe(func(r Revocation) {
			now := time.Now()
			mu.Lock()
			defer mu.Unlock()
			if heard[r.TokenID]++; heard[r.TokenID] == 2 {
				if everywhere = append(everywhere, now.Sub(began[r.TokenID])); len(everywhere) == revocations {
					close(all)
				}
			}
		})()
	}
	var wg sync.WaitGroup
	for g := range atOnce {
		wg.Go(func() {
			for n := g; n < revocations; n += atOnce {
				name := fmt.Sprint(n)
				start := time.Now()
				mu.Lock()
				began[name] = start
				mu.Unlock()
				if err := revokeToken(stores[0], name); err != nil {
					t.Error(err)
				}
				took := time.Since(start)
				mu.Lock()
				acked = append(acked, took)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	select {
	case <-all:
	case <-time.After(30 * time.Second):
		t.Fatal("some never arrived")
	}
	slices.Sort(acked)
	slices.Sort(everywhere)
	return acked, everywhere
}

func percentile(sorted []time.Duration, p int) time.Duration { return sorted[(len(sorted)-1)*p/100] }

// What is revoked on one replica holds on the others within a second.
func TestPropagation(t *testing.T) {
	acked, everywhere := propagation(t, startServers(t), 300, 2)
	t.Logf("acknowledged: p50 %s, p99 %s; everywhere: p50 %s, p99 %s",
		percentile(acked, 50), percentile(acked, 99), percentile(everywhere, 50), percentile(everywhere, 99))
	if p := percentile(everywhere, 99); p > time.Second {
		t.Errorf("of a hundred revocations one takes %s", p)
	}
}

func BenchmarkPropagation(b *testing.B) {
	for _, atOnce := range []int{1, 16} {
		b.Run(fmt.Sprintf("atOnce=%d", atOnce), func(b *testing.B) {
			acked, everywhere := propagation(b, startServers(b), max(b.N, 10), atOnce)
			for name, d := range map[string]time.Duration{
				"acked-p50-ms": percentile(acked, 50), "acked-p99-ms": percentile(acked, 99),
				"everywhere-p50-ms": percentile(everywhere, 50), "everywhere-p99-ms": percentile(everywhere, 99),
			} {
				b.ReportMetric(float64(d)/float64(time.Millisecond), name)
			}
		})
	}
}
