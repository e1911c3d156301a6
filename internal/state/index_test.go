package state

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// start is a time in whole seconds.
func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// plain decides as the contract is written, without an index.
func plain(list []Revocation, t Token, now time.Time) bool {
	return slices.ContainsFunc(list, func(r Revocation) bool {
		s, v := r.target()
		has := [...]string{all: "", byTokenID: t.TokenID, byDigest: t.Digest, bySubject: t.Subject, byClient: t.Client, bySession: t.Session, byKeyID: t.KeyID}
		return r.Issuer == t.Issuer && has[s] == v && (r.Before.IsZero() || t.IssuedAt.IsZero() || !t.IssuedAt.After(r.Before)) && now.Before(r.Until.Add(grace))
	})
}

// Whatever is added, in whatever order, the index says what the contract says; and it drops only what is covered.
func TestIndexAgainstTheContract(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 7))
		now := start()
		x := newIndex(func() time.Time { return now })
		var list, heard []Revocation
		x.subs.add(func(r Revocation) { heard = append(heard, r) })
		value := func() string { return strconv.Itoa(random.IntN(3)) }
		for range 60 {
			r := Revocation{Issuer: []string{issuerA, issuerB}[random.IntN(2)], Until: now.Add(time.Duration(random.IntN(20)+1) * time.Minute), At: now}
			if random.IntN(3) > 0 {
				r.Before = now.Add(time.Duration(random.IntN(20)-10) * time.Minute)
				if r.Before.After(r.Until) {
					r.Before = r.Until
				}
			}
			for i, f := range []*string{&r.TokenID, &r.Digest, &r.Subject, &r.Client, &r.Session, &r.KeyID} {
				if random.IntN(7) == i {
					*f = value()
					break
				}
			}
			if err := r.validate(now); err != nil {
				t.Fatal(err)
			}
			before := len(heard)
			a := x.add(r)
			list = append(list, r)
			if a.fresh != (len(heard) > before) {
				t.Fatalf("fresh %v, and heard %d", a.fresh, len(heard)-before)
			}
			if a.fresh && keyOf(heard[before]) != keyOf(r) {
				t.Fatalf("heard %+v of %+v", heard[before], r)
			}
			switch random.IntN(4) {
			case 0:
				now = now.Add(time.Duration(random.IntN(120)) * time.Second)
			case 1:
				x.sweep()
			}
			for range 30 {
				tok := Token{Issuer: []string{issuerA, issuerB, "c"}[random.IntN(3)]}
				for _, f := range []*string{&tok.TokenID, &tok.Digest, &tok.Subject, &tok.Client, &tok.Session, &tok.KeyID} {
					if random.IntN(3) == 0 {
						*f = value()
					}
				}
				if random.IntN(4) > 0 {
					tok.IssuedAt = now.Add(time.Duration(random.IntN(30)-15) * time.Minute)
				}
				r, got := x.revoked(tok)
				if want := plain(list, tok, now); got != want {
					t.Fatalf("seed %d: revoked %v, want %v: %+v", seed, got, want, tok)
				}
				if got && !plain([]Revocation{r}, tok, now) {
					t.Fatalf("seed %d: %+v does not end %+v", seed, r, tok)
				}
			}
		}
		now = now.Add(time.Hour)
		x.sweep()
		if _, n := x.list(10); n != 0 || len(x.issuers) != 0 || x.newest != nil || x.oldest != nil || x.held() != 0 {
			t.Fatalf("%d remain, %d issuers", n, len(x.issuers))
		}
	}
}

func TestIssuedAtTheCutoff(t *testing.T) {
	x := newIndex(start)
	x.add(Revocation{Issuer: issuerA, Subject: "s", Before: start(), Until: start().Add(time.Hour)})
	for _, c := range []struct {
		issued time.Time
		want   bool
	}{{start(), true}, {start().Add(999 * time.Millisecond), true}, {start().Add(time.Second), false}, {start().Add(-time.Second), true}, {time.Time{}, true}} {
		if _, got := x.revoked(Token{Issuer: issuerA, Subject: "s", IssuedAt: c.issued}); got != c.want {
			t.Errorf("issued %s: %v", c.issued, got)
		}
	}
	if _, got := x.revoked(Token{Issuer: issuerA, IssuedAt: start()}); got {
		t.Error("a token without a subject falls under a subject's revocation")
	}
}

func TestListIsNewestFirst(t *testing.T) {
	x := newIndex(start)
	for n := range 10 {
		x.add(Revocation{Issuer: issuerA, TokenID: strconv.Itoa(n), Until: start().Add(time.Hour)})
	}
	list, total := x.list(3)
	if total != 10 || len(list) != 3 || list[0].TokenID != "9" || list[2].TokenID != "7" {
		t.Errorf("%d: %+v", total, list)
	}
	if list, total := x.list(0); list == nil || len(list) != 0 || total != 10 {
		t.Errorf("%d: %+v", total, list)
	}
}

// A subscriber may cancel, and ask, while it is called.
func TestSubscriberMayAskAndCancel(t *testing.T) {
	x := newIndex(start)
	calls := 0
	var cancel func()
	cancel = x.subs.add(func(r Revocation) {
		calls++
		if _, ok := x.revoked(Token{Issuer: r.Issuer, TokenID: r.TokenID}); !ok {
			t.Error("told before it holds")
		}
		cancel()
	})
	x.add(Revocation{Issuer: issuerA, TokenID: "1", Until: start().Add(time.Hour)})
	x.add(Revocation{Issuer: issuerA, TokenID: "2", Until: start().Add(time.Hour)})
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
}

func TestIndexUnderRaces(t *testing.T) {
	x := newIndex(time.Now)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := range 500 {
				tok := Token{Issuer: issuerA, TokenID: fmt.Sprint(g, n)}
				x.add(Revocation{Issuer: issuerA, TokenID: tok.TokenID, Until: time.Now().Add(time.Hour)})
				if _, ok := x.revoked(tok); !ok {
					t.Error("added, and not revoked")
				}
				x.list(3)
				if n%100 == 0 {
					x.sweep()
				}
			}
		})
	}
	wg.Wait()
	if x.held() != 2000 {
		t.Errorf("%d are held", x.held())
	}
}

// filled holds n revocations of token ids.
func filled(n int) *index {
	x := newIndex(time.Now)
	until := time.Now().Add(time.Hour)
	for i := range n {
		x.add(Revocation{Issuer: issuerA, TokenID: fmt.Sprintf("0b7f3c1e-5d1a-4c86-9f0e-%012d", i), Until: until.Add(time.Duration(i)), At: until, By: "admin"})
	}
	return x
}

func BenchmarkRevoked(b *testing.B) {
	tok := Token{Issuer: issuerA, TokenID: "0b7f3c1e-5d1a-4c86-9f0e-none", Subject: "alice", Client: "web", Session: "4711", KeyID: "k1", IssuedAt: time.Now()}
	for _, n := range []int{0, 1, 1_000, 100_000, 1_000_000} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		x := filled(n)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.Run(fmt.Sprintf("held=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := x.revoked(tok); ok {
					b.Fatal("revoked")
				}
			}
			if n > 1 {
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/revocation")
			}
		})
		if n == 1_000_000 {
			b.Run("held=1000000,parallel", func(b *testing.B) {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						x.revoked(tok)
					}
				})
			})
		}
		runtime.KeepAlive(x)
	}
}
