package bearer

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A flood of unknown kids at the real pace, in the time of a bubble: it costs at
// most a burst and one fetch in 10 s, and a rotation in the middle of it is seen
// within 15 s.
func TestFloodAtTheRealPace(t *testing.T) {
	old, next := newSigner("k1", "ES256"), newSigner("k2", "ES256")
	synctest.Test(t, func(t *testing.T) {
		server := &fakeServer{set: jwks(old.jwk())}
		s := server.source(defaultPace(Options{}))
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		go s.run(ctx, time.Now())
		synctest.Wait()

		start, seen := time.Now(), time.Duration(0)
		for i := range 10000 {
			time.Sleep(6 * time.Millisecond)
			if _, refusal := s.lookup("random", true, "ES256"); refusal == nil || refusal.Code != codeKey {
				t.Fatalf("got %v", refusal)
			}
			if _, refusal := s.lookup(old.kid, true, "ES256"); refusal != nil {
				t.Fatalf("a good token: %v", refusal)
			}
			if i == 4100 { // 24.6 s: the budget is spent
				server.publish(jwks(old.jwk(), next.jwk()))
			}
			if _, refusal := s.lookup(next.kid, true, "ES256"); refusal == nil && seen == 0 {
				seen = time.Since(start) - 4100*6*time.Millisecond
			}
		}
		if fetches := server.count(); fetches > 1+2+6 || fetches < 1+2+5 {
			t.Errorf("%d fetches in %s of flood", fetches, time.Since(start))
		}
		if seen == 0 || seen > 15*time.Second {
			t.Errorf("the rotation was seen after %s", seen)
		}
	})
}

// A miss that the budget cannot serve at once is served when it can, without another miss.
func TestMissIsNotForgotten(t *testing.T) {
	old, next := newSigner("k1", "ES256"), newSigner("k2", "ES256")
	synctest.Test(t, func(t *testing.T) {
		server := &fakeServer{set: jwks(old.jwk())}
		s := server.source(defaultPace(Options{}))
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		go s.run(ctx, time.Now())
		synctest.Wait()
		for range 2 { // an attacker spends the burst
			s.lookup("random", true, "ES256")
			synctest.Wait()
		}
		if n := server.count(); n != 3 {
			t.Fatalf("%d fetches: is the burst still 2?", n)
		}
		server.publish(jwks(next.jwk()))
		s.lookup(next.kid, true, "ES256")
		time.Sleep(9 * time.Second)
		if n := server.count(); n != 3 {
			t.Errorf("%d fetches before the budget allows one", n)
		}
		time.Sleep(1100 * time.Millisecond)
		if _, refusal := s.lookup(next.kid, true, "ES256"); refusal != nil {
			t.Errorf("after 10 s: %v", refusal)
		}
	})
}

func TestRefreshAtTheRealPace(t *testing.T) {
	k := newSigner("k1", "ES256")
	for _, test := range []struct {
		name    string
		options Options
		maxAge  time.Duration
		want    time.Duration // between two fetches, less a tenth at most
	}{
		{"nothing said", Options{}, -1, 5 * time.Minute},
		{"the server says", Options{}, 20 * time.Minute, 20 * time.Minute},
		{"the server says too little", Options{}, 0, time.Minute},
		{"the server says too much", Options{}, 24 * time.Hour, time.Hour},
		{"the operator says", Options{Refresh: 2 * time.Minute}, 24 * time.Hour, 2 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &fakeServer{set: jwks(k.jwk()), maxAge: test.maxAge}
				s := server.source(defaultPace(test.options))
				ctx, cancel := context.WithCancel(t.Context())
				defer synctest.Wait()
				defer cancel()
				go s.run(ctx, time.Now())
				time.Sleep(10*test.want + time.Second)
				times := server.times()
				if len(times) < 10 {
					t.Fatalf("%d fetches in ten intervals", len(times))
				}
				for i := range len(times) - 1 {
					if d := times[i+1].Sub(times[i]); d > test.want || d < test.want-test.want/10-time.Second {
						t.Errorf("fetched again after %s, not %s less a tenth at most", d, test.want)
					}
				}
			})
		})
	}
}

// While fetching fails it is tried again soon, then at most every 15 s; the keys serve for the interval and an hour.
func TestFailureAtTheRealPace(t *testing.T) {
	k := newSigner("k1", "ES256")
	synctest.Test(t, func(t *testing.T) {
		server := &fakeServer{set: jwks(k.jwk()), maxAge: -1, err: errors.New("down")}
		s := server.source(defaultPace(Options{}))
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		go s.run(ctx, time.Now())
		time.Sleep(time.Second)
		if n := server.count(); n < 3 {
			t.Errorf("%d tries in the first second", n)
		}
		time.Sleep(time.Minute)
		if n := server.count(); n > 20 {
			t.Errorf("%d tries in the first minute", n)
		}
		server.fail(nil)
		time.Sleep(15 * time.Second)
		if _, err := s.usable(); err != nil {
			t.Fatalf("15 s after recovery: %v", err)
		}
		fetched := server.last()
		server.fail(errors.New("down again"))
		time.Sleep(time.Until(fetched.Add(65*time.Minute - time.Second)))
		if _, err := s.usable(); err != nil {
			t.Errorf("within the hour: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := s.usable(); err == nil {
			t.Error("keys serve after the hour")
		}
		server.fail(nil)
		time.Sleep(15 * time.Second)
		if _, err := s.usable(); err != nil {
			t.Errorf("after recovery: %v", err)
		}
	})
}

func TestBucket(t *testing.T) {
	start := time.Unix(1e9, 0)
	b := bucket{every: 10 * time.Second, left: 2, burst: 2, at: start}
	for _, step := range []struct{ at, next time.Duration }{
		{0, 0}, {0, 0}, {0, 10 * time.Second}, {3 * time.Second, 10 * time.Second}, {10 * time.Second, 10 * time.Second}, {10 * time.Second, 20 * time.Second},
		{45 * time.Second, 45 * time.Second}, {45 * time.Second, 45 * time.Second}, {46 * time.Second, 55 * time.Second},
	} {
		now := start.Add(step.at)
		next := b.next(now)
		if next.Sub(start) != step.next {
			t.Errorf("at %s: next after %s, want %s", step.at, next.Sub(start), step.next)
		}
		if !next.After(now) {
			b.take(now)
		}
	}
}

func TestMaxAge(t *testing.T) {
	for _, test := range []struct {
		headers []string
		want    time.Duration
	}{
		{nil, -1},
		{[]string{""}, -1},
		{[]string{"public"}, -1},
		{[]string{"max-age=300"}, 5 * time.Minute},
		{[]string{"public, MAX-AGE=300 , must-revalidate"}, 5 * time.Minute},
		{[]string{`max-age="300"`}, 5 * time.Minute},
		{[]string{"max-age=300", "no-cache"}, 0},
		{[]string{"no-store, max-age=300"}, 0},
		{[]string{"max-age=300, max-age=60"}, time.Minute},
		{[]string{"s-maxage=300"}, -1},
		{[]string{"max-age=-1"}, -1},
		{[]string{"max-age=1e9"}, -1},
		{[]string{"max-age=99999999999999999999"}, -1},
		{[]string{"max-age"}, -1},
	} {
		if got := maxAge(test.headers); got != test.want {
			t.Errorf("%q: got %s, want %s", test.headers, got, test.want)
		}
	}
}

// fakeServer stands in for the network where a test needs a bubble's time.
type fakeServer struct {
	mu      sync.Mutex
	set     string
	maxAge  time.Duration
	err     error
	fetched []time.Time
}

func (f *fakeServer) source(p pace) *source {
	return &source{
		issuer: testIssuer, algorithms: supported(), fetch: f.fetch, pace: p, now: time.Now,
		log: slog.New(slog.DiscardHandler), missed: make(chan struct{}, 1),
	}
}

func (f *fakeServer) fetch(context.Context) (document, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fetched = append(f.fetched, time.Now())
	return document{[]byte(f.set), f.maxAge}, f.err
}

func (f *fakeServer) publish(set string) { f.mu.Lock(); defer f.mu.Unlock(); f.set = set }
func (f *fakeServer) fail(err error)     { f.mu.Lock(); defer f.mu.Unlock(); f.err = err }
func (f *fakeServer) times() []time.Time { f.mu.Lock(); defer f.mu.Unlock(); return f.fetched }
func (f *fakeServer) count() int         { return len(f.times()) }
func (f *fakeServer) last() time.Time    { times := f.times(); return times[len(times)-1] }
