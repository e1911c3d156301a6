package keys

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// Rotate is Maintain ahead of time: the same minute, the same overlap.
func TestRotateAheadOfTime(t *testing.T) {
	c := newFolder(t)
	start := time.Now().Add(-10 * time.Minute).Truncate(time.Second)
	first := mustGenerate(t, c, start).ID
	r := mustOpen(t, c)
	at := start.Add(20 * time.Minute)
	info, err := r.Rotate(at)
	if err != nil {
		t.Fatal(err)
	}
	if info.Signing || info.Use() != "next" || !info.Activates.Equal(at.Add(time.Minute)) || !info.Rotates.Equal(at.Add(time.Hour)) {
		t.Errorf("the next key: %+v", info)
	}
	list := r.List()
	if len(list) != 2 || list[0].ID != info.ID || list[1].ID != first || list[1].Use() != "signing" || !list[1].Rotates.IsZero() {
		t.Fatalf("after Rotate: %+v", list)
	}
	if in := published(t, c); !in(first) || !in(info.ID) {
		t.Error("both must be published")
	}
	if err := r.Maintain(at.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if r.Signing().ID != info.ID || r.List()[1].Use() != "verifying" {
		t.Errorf("a minute later: %+v", r.List())
	}
}

func TestWithdraw(t *testing.T) {
	c := newFolder(t)
	start := time.Now().Add(-10 * time.Minute).Truncate(time.Second)
	first := mustGenerate(t, c, start).ID
	r := mustOpen(t, c)
	if err := r.Withdraw(first, start); !errors.Is(err, ErrLastKey) {
		t.Errorf("the last key: %v", err)
	}
	if err := r.Withdraw("nobody", start); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a key that is not there: %v", err)
	}
	next, err := r.Rotate(start.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	// the successor has been published for no time at all, and signs all the same: the other one has leaked
	if err := r.Withdraw(first, start.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if r.Signing().ID != next.ID {
		t.Errorf("%s signs", r.Signing().ID)
	}
	if in := published(t, c); in(first) || !in(next.ID) {
		t.Error("the withdrawn key is published still, or the other one is not")
	}
	if _, err := os.Stat(filepath.Join(c.Path, first+".json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its file: %v", err)
	}
	// it does not come back
	if err := r.Maintain(start.Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if list := mustOpen(t, c).List(); len(list) != 1 || list[0].ID != next.ID {
		t.Errorf("opened anew: %+v", list)
	}
}

// A withdrawn key signs nothing more, though nobody could be told: and once somebody can, they are.
func TestWithdrawWhileNothingCanBePublished(t *testing.T) {
	c := newFolder(t)
	start := time.Now().Add(-10 * time.Minute)
	first := mustGenerate(t, c, start).ID
	r := mustOpen(t, c)
	next, err := r.Rotate(start.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	// a folder with something in it has the name of the published file: nothing is written over that, by root neither
	if err := os.Remove(c.Publish); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(c.Publish, "in the way"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.Withdraw(first, start.Add(2*time.Minute)); err == nil {
		t.Error("the set was not published, and nothing was said")
	}
	if r.Signing().ID != next.ID {
		t.Error("the withdrawn key signs still")
	}
	if err := os.RemoveAll(c.Publish); err != nil {
		t.Fatal(err)
	}
	if err := r.Maintain(start.Add(3 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if in := published(t, c); in(first) || !in(next.ID) {
		t.Error("the set was not published later")
	}
}

func TestOverdue(t *testing.T) {
	c := newFolder(t)
	start := time.Now().Truncate(time.Second)
	mustGenerate(t, c, start)
	r := mustOpen(t, c)
	for at, want := range map[time.Duration]bool{0: false, time.Hour: false, time.Hour + 5*time.Minute: false, time.Hour + 5*time.Minute + time.Second: true} {
		if err := r.Overdue(start.Add(at), 5*time.Minute); (err != nil) != want {
			t.Errorf("after %v: %v", at, err)
		}
	}
	if r.Overdue(start.Add(-time.Hour), 5*time.Minute) == nil {
		t.Error("a key of the future alone is no reason for alarm")
	}
}

// While keys are rotated, and withdrawn once nobody holds what they have signed, whoever reads the published file verifies
// everything. The ring's clock is ahead of everybody else's.
func TestNothingFailsDuringRotation(t *testing.T) {
	c := newFolder(t)
	clock := newClock(time.Now().Truncate(time.Second))
	mustGenerate(t, c, clock.now())
	r := mustOpen(t, c)
	signer := &identity.Signer{Issuer: "gate", Audience: "orders", Key: r.Signing}
	caller := identity.Caller{Issuer: "https://auth.example.com", Subject: "alice", TokenID: "t-1", Expires: time.Now().Add(24 * time.Hour)}

	const clients = 4
	var signed, failed, rounds, seen atomic.Int64
	var group sync.WaitGroup
	done := make(chan struct{})
	for range clients {
		lookup, err := identity.KeysFile(c.Publish)
		if err != nil {
			t.Fatal(err)
		}
		verifier := &identity.Verifier{Issuer: "gate", Audience: "orders", Keys: lookup}
		group.Go(func() {
			for round := int64(0); ; {
				if now := rounds.Load(); round < now {
					round = now
					seen.Add(1)
				}
				select {
				case <-done:
					return
				default:
				}
				assertion, err := signer.Sign(caller, "read-order", "request")
				if err == nil {
					_, err = verifier.Verify(assertion)
				}
				signed.Add(1)
				if err != nil && failed.Add(1) <= 3 {
					t.Error(err)
				}
			}
		})
	}
	rotations := 3
	if testing.Short() {
		rotations = 1
	}
	used := map[string]bool{}
	for range rotations {
		clock.add(time.Second)
		old := r.Signing().ID
		if _, err := r.Rotate(clock.now()); err != nil {
			t.Fatal(err)
		}
		// a reader of the file looks once a second by the wall clock, which a minute of the ring's stands for
		time.Sleep(1500 * time.Millisecond)
		clock.add(time.Minute)
		if err := r.Maintain(clock.now()); err != nil {
			t.Fatal(err)
		}
		if r.Signing().ID == old {
			t.Fatal("the new key does not sign")
		}
		used[r.Signing().ID] = true
		rounds.Add(1)
		for seen.Load() < rounds.Load()*clients {
			time.Sleep(time.Millisecond) // until nobody holds anything that the old one has signed
		}
		if err := r.Withdraw(old, clock.now()); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	group.Wait()
	if failed.Load() > 0 || len(used) != rotations {
		t.Errorf("%d of %d assertions failed, by %d keys", failed.Load(), signed.Load(), len(used))
	}
}

// clock is one that the test sets.
type clock struct{ at atomic.Int64 }

func newClock(t time.Time) *clock {
	c := &clock{}
	c.at.Store(t.UnixNano())
	return c
}

func (c *clock) now() time.Time      { return time.Unix(0, c.at.Load()) }
func (c *clock) add(d time.Duration) { c.at.Add(int64(d)) }
