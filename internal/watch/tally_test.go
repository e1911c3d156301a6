package watch

import (
	"runtime"
	"testing"
	"time"
)

// Twice as many tokens as are counted: what is held is bounded.
func TestMemoryIsBounded(t *testing.T) {
	const most = maxKeys / 8
	tally, now, before := newTally(most), time.Now(), held()
	fill(tally, 1, most, now)
	full := held()
	fill(tally, most+1, most, now)
	if len(tally.slots) > most {
		t.Errorf("%d keys are held", len(tally.slots))
	}
	again := held()
	if perKey := (full - before) / most; perKey > 200 {
		t.Errorf("%d bytes for each token", perKey)
	}
	if again > full+full/4 {
		t.Errorf("it grows: %d, then %d", full, again)
	}
	runtime.KeepAlive(tally)
}

func fill(t *tally, from, n uint64, now time.Time) {
	for i := range n {
		t.add(from+i, i|1, now, time.Minute)
	}
}

func held() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMillionTokens measures what a rule holds that counts by token.
func BenchmarkMillionTokens(b *testing.B) {
	for b.Loop() {
		before := held()
		tally := newTally(maxKeys)
		fill(tally, 1, maxKeys, time.Now())
		b.ReportMetric(float64(held()-before)/maxKeys, "B/token")
		runtime.KeepAlive(tally)
	}
}

// Whoever was forgotten first counts anew; whoever came last does not.
func TestTallyForgetsTheOldest(t *testing.T) {
	tally, now := newTally(3), time.Now()
	for key := range uint64(4) {
		tally.add(key+1, 0, now, time.Minute)
	}
	if _, n := tally.add(4, 0, now, time.Minute); n != 2 {
		t.Errorf("the last key counts %d", n)
	}
	if _, n := tally.add(1, 0, now, time.Minute); n != 1 {
		t.Errorf("the first key counts %d", n)
	}
}
