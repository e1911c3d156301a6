package state

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// revoker revokes through a store until it is stopped, and keeps what was acknowledged.
type revoker struct {
	stop  chan struct{}
	done  sync.WaitGroup
	mu    sync.Mutex
	acked []string
}

func startRevoking(stores ...Store) *revoker {
	r := &revoker{stop: make(chan struct{})}
	run := time.Now().UnixNano()
	for i, s := range stores {
		r.done.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-r.stop:
					return
				default:
				}
				name := fmt.Sprint(run, "/", i, "/", n)
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				err := s.Revoke(ctx, Revocation{Issuer: issuerA, TokenID: name, Until: hour()})
				cancel()
				time.Sleep(2 * time.Millisecond) // three servers and their clients share this machine
				if err == nil {
					r.mu.Lock()
					r.acked = append(r.acked, name)
					r.mu.Unlock()
				}
			}
		})
	}
	return r
}

func (r *revoker) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.acked)
}

// end stops, and returns what was acknowledged.
func (r *revoker) end() []string {
	close(r.stop)
	r.done.Wait()
	return r.acked
}

// grows waits until that many more are acknowledged.
func (r *revoker) grows(t *testing.T, by int) {
	t.Helper()
	from := r.count()
	becomes(t, "more revocations", func() bool { return r.count() >= from+by })
}

func allHold(t *testing.T, who string, s Store, names []string) {
	t.Helper()
	lost := 0
	for _, name := range names {
		if !holds(s, name) {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%s: of %d acknowledged revocations %d are lost", who, len(names), lost)
	}
}

// fresh waits until a replica knows all that was acknowledged before.
func fresh(t *testing.T, s Store) {
	t.Helper()
	began := time.Now()
	becomes(t, "a complete feed", func() bool { return s.Age() < time.Since(began) })
}

// The server that leads goes away while three replicas revoke and use: nothing acknowledged is lost, nothing is used twice.
func TestLeaderIsLost(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	stores := []Store{s.store(t, "b", nil, 0, 1, 2), s.store(t, "b", nil, 1, 2, 0), s.store(t, "b", nil, 2, 0, 1)}
	for _, o := range stores {
		ready(t, o)
	}
	r := startRevoking(stores...)
	r.grows(t, 20)
	var race sync.WaitGroup
	race.Go(func() { raceOnce(t, stores, 300, 9, true) })
	time.Sleep(100 * time.Millisecond)
	leader := s.leader("b")
	s.End(leader)
	r.grows(t, 20) // with two of three
	race.Wait()
	s.start(leader)
	s.settled()
	r.grows(t, 20)
	acked := r.end()
	for i, o := range stores {
		fresh(t, o)
		allHold(t, fmt.Sprint("replica ", i), o, acked)
	}
	late := s.store(t, "b", nil, leader)
	ready(t, late)
	allHold(t, "a new replica", late, acked)
	t.Logf("%d revocations", len(acked))
}

// A server is cut off from the others, with a replica that knows no other: what that replica knows grows old, though its
// connection stands. The rest goes on; when the cut is mended it has all of it.
func TestPartition(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	first := s.store(t, "b", nil, 0, 1, 2)
	ready(t, first)
	leader := s.leader("b")
	other, third := (leader+1)%3, (leader+2)%3
	cutOff := s.store(t, "b", nil, leader)
	mobile := s.store(t, "b", nil, leader, other) // begins at any of the two
	stays := s.store(t, "b", nil, other, third)
	stores := []Store{cutOff, mobile, stays}
	for _, o := range stores {
		ready(t, o)
		fresh(t, o)
	}
	r := startRevoking(stores...)
	r.grows(t, 20)

	s.Isolate(leader, true)
	began := time.Now()
	becomes(t, "the replica that is cut off knows that it is", func() bool { return cutOff.Age() > 2*time.Second })
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("it took %s until the age was 2 s", d)
	}
	if !cutOff.conn.IsConnected() {
		t.Error("its connection did not stand")
	}
	r.grows(t, 20) // an election, and on it goes
	raceOnce(t, []Store{cutOff, mobile, stays}, 1, 6, true)
	revoked := fmt.Sprint("elsewhere ", time.Now().UnixNano())
	if err := revokeToken(stays, revoked); err != nil {
		t.Error(err)
	}
	fresh(t, mobile) // it has found the others
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	if err := cutOff.Revoke(ctx, Revocation{Issuer: issuerA, TokenID: "here", Until: hour()}); err == nil || !holds(cutOff, "here") {
		t.Errorf("revoked without a quorum: %v", err)
	}
	if first, err := cutOff.Once(ctx, "dpop", "x", hour()); first || err == nil {
		t.Errorf("used without a quorum: %v %v", first, err)
	}
	cancel()
	if age := cutOff.Age(); age < time.Since(began)-time.Second || holds(cutOff, revoked) {
		t.Errorf("cut off for %s, and the age is %s", time.Since(began), age)
	}

	s.Isolate(leader, false)
	fresh(t, cutOff)
	acked := append(r.end(), revoked)
	for i, o := range append(stores, first) {
		fresh(t, o)
		allHold(t, fmt.Sprint("replica ", i), o, acked)
		becomes(t, "what was revoked without a quorum holds everywhere", func() bool { return holds(o, "here") })
	}
	t.Logf("%d revocations", len(acked))
}

// All servers end and start again; so does a replica.
func TestServersRestart(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	a, b := s.store(t, "b", nil, 0, 1, 2), s.store(t, "b", nil, 1, 2, 0)
	ready(t, a)
	ready(t, b)
	r := startRevoking(a, b)
	r.grows(t, 50)
	if first, err := a.Once(t.Context(), "dpop", "x", hour()); !first || err != nil {
		t.Fatal(first, err)
	}
	closeStore(t, b)
	for i := range s.Node {
		s.End(i)
	}
	becomes(t, "it is known", func() bool { return a.Age() > time.Second })
	for i := range s.Node {
		s.start(i)
	}
	s.settled()
	r.grows(t, 10)
	fresh(t, a)
	acked := r.end()
	again := s.store(t, "b", nil, 0, 1, 2)
	ready(t, again)
	allHold(t, "the one that stayed", a, acked)
	allHold(t, "the one that began again", again, acked)
	for _, o := range []Store{a, again} {
		if first, err := o.Once(t.Context(), "dpop", "x", hour()); first || err != nil {
			t.Error(first, err)
		}
	}
	t.Logf("%d revocations", len(acked))
}

// A replica is not ready before it holds everything, and hears of each as it begins to hold.
func TestNewReplica(t *testing.T) {
	s := startServers(t)
	a := s.store(t, "b", nil, 0, 1, 2)
	ready(t, a)
	var names []string
	var wg sync.WaitGroup
	for g := range 10 {
		for n := range 100 {
			names = append(names, fmt.Sprint(g, "/", n))
		}
		wg.Go(func() {
			for n := range 100 {
				if err := revokeToken(a, fmt.Sprint(g, "/", n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s.Client(1).Cut(true)
	late := s.store(t, "b", nil, 1)
	var heard atomic.Int32
	defer late.Subscribe(func(Revocation) { heard.Add(1) })()
	time.Sleep(300 * time.Millisecond)
	if err := late.Ready(); err == nil || late.Age() != never {
		t.Errorf("ready without a server: %v, age %s", err, late.Age())
	}
	if first, err := late.Once(t.Context(), "dpop", "x", hour()); first || err == nil {
		t.Error(first, err)
	}
	s.Client(1).Cut(false)
	for late.Ready() != nil { // as fast as it can
	}
	allHold(t, "at the moment of readiness", late, names)
	if int(heard.Load()) != len(names) {
		t.Errorf("heard of %d", heard.Load())
	}
	// Cut off from every server, and back.
	s.Client(1).Cut(true)
	becomes(t, "it is known", func() bool { return late.Age() > 1500*time.Millisecond })
	if err := revokeToken(a, "meanwhile"); err != nil {
		t.Error(err)
	}
	s.Client(1).Cut(false)
	fresh(t, late)
	allHold(t, "after the cut", late, append(names, "meanwhile"))
}

// Clients are killed in the middle of their work.
func TestKilledReplica(t *testing.T) {
	s := startServers(t)
	a := s.store(t, "sallyport", nil, 0, 1, 2)
	ready(t, a)
	var revoked, used []string
	for range 3 {
		r, u := killed(t, NATS+" "+s.URLs(0)[0]+","+s.URLs(1)[0]+","+s.URLs(2)[0], 150)
		revoked, used = append(revoked, r...), append(used, u...)
	}
	fresh(t, a)
	allHold(t, "another replica", a, revoked)
	again := s.store(t, "sallyport", nil, 2, 1, 0)
	ready(t, again)
	allHold(t, "a new replica", again, revoked)
	for _, name := range used {
		if first, err := again.Once(t.Context(), "dpop", name, hour()); first || err != nil {
			t.Errorf("%s was used, and is first again: %v", name, err)
		}
	}
	t.Logf("%d revocations, %d uses", len(revoked), len(used))
}

// The servers lose what they acknowledged: a replica that holds it gives it back.
func TestServersForget(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	a, b := s.store(t, "b", nil, 0, 1, 2), s.store(t, "b", nil, 1, 2, 0)
	ready(t, a)
	ready(t, b)
	var names []string
	for n := range 50 {
		names = append(names, fmt.Sprint(n))
		if err := revokeToken(a, names[n]); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.js.DeleteKeyValue(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	becomes(t, "it is known", func() bool { return a.Age() > time.Second })
	fresh(t, a)
	fresh(t, b)
	becomes(t, "a new replica holds it all", func() bool {
		late := s.store(t, "b", nil, 2)
		defer late.Close()
		ready(t, late)
		return late.held() == len(names)
	})
}

// A bucket that keeps less than is asked is refused.
func TestWeakBucket(t *testing.T) {
	s := startServers(t)
	weak, err := openCluster(Config{URL: s.URLs(0, 1, 2), Bucket: "weak", Replicas: 1}, discard(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ready(t, weak)
	closeStore(t, weak)
	o := s.store(t, "weak", nil, 0, 1, 2)
	becomes(t, "it says why", func() bool {
		err := o.Ready()
		return err != nil && o.trouble.Load() != nil && errors.Is(err, *o.trouble.Load())
	})
	if err := o.Ready(); err == nil || o.buckets.Load() != nil {
		t.Errorf("%v", err)
	} else {
		t.Log(err)
	}
}
