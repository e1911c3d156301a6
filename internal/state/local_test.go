package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

func openTest(t *testing.T, path string) *local {
	t.Helper()
	s, err := Open(Config{Path: path}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s.(*local)
}

func hour() time.Time { return time.Now().Add(time.Hour) }

func revokeToken(s Store, name string) error {
	return s.Revoke(context.Background(), Revocation{Issuer: issuerA, TokenID: name, Until: hour(), By: "admin"})
}

func holds(s Store, name string) bool {
	_, ok := s.Revoked(Token{Issuer: issuerA, TokenID: name})
	return ok
}

func TestFileIsHeld(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	s := openTest(t, path)
	began := time.Now()
	if _, err := Open(Config{Path: path}, nil, nil); !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
	if d := time.Since(began); d > 2*lockPatience {
		t.Errorf("it took %s to say so", d)
	}
	if err := revokeToken(s, "1"); err != nil {
		t.Error(err)
	}
}

func TestFileMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openTest(t, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: path}, nil, nil); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("%v", err)
	}
	if _, err := Open(Config{Path: t.TempDir()}, nil, nil); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("%v", err)
	}
	if _, err := Open(Config{Path: filepath.Join(path, "x")}, nil, nil); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if _, err := Open(Config{}, nil, nil); err == nil {
		t.Error("no path, and it opens")
	}
}

// An empty file is a new one: it is made, and given away, before sallyport becomes who it runs as.
func TestEmptyFileIsNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := revokeToken(openTest(t, path), "1"); err != nil {
		t.Error(err)
	}
}

// fill makes a file with some revocations and uses, and returns its bytes.
func fill(t *testing.T, path string, n int) []byte {
	t.Helper()
	s := openTest(t, path)
	var wg sync.WaitGroup
	for g := range 10 {
		wg.Go(func() {
			for i := range n / 10 {
				name := fmt.Sprint(g, "/", i)
				if err := revokeToken(s, name); err != nil {
					t.Error(err)
				}
				if _, err := s.Once(t.Context(), "dpop", name, hour()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A file that is damaged does not open, says so, and is left as it is for whoever can mend it. What opens has everything.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := fill(t, filepath.Join(dir, "good.db"), 200)
	path := filepath.Join(dir, "bad.db")
	try := func(name string, bad []byte) (opened bool) {
		t.Helper()
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Config{Path: path}, nil, nil)
		if err == nil {
			if n := s.(*local).held(); n != 200 {
				t.Errorf("%s: opened with %d of 200", name, n)
			}
			if err := s.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			return true
		}
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, bad) {
			t.Errorf("%s: the file was changed: %v", name, err)
		}
		return false
	}
	for _, n := range []int{1, 100, 4096, 8192, 12288, 16384, 20480} {
		if try(fmt.Sprintf("cut to %d", n), good[:n]) {
			t.Errorf("cut to %d of %d, and it opens", n, len(good))
		}
	}
	for name, bad := range map[string][]byte{"text": []byte(strings.Repeat("not a database\n", 5000)), "zeros": make([]byte, 64<<10)} {
		if try(name, bad) {
			t.Errorf("%s opens", name)
		}
	}
	// A page of other bytes anywhere: one that nothing points to may be anything, the others must be missed.
	refused := 0
	random := rand.New(rand.NewPCG(1, 2))
	for at := 0; at+4096 <= len(good); at += 4096 {
		bad := bytes.Clone(good)
		for i := range 4096 {
			bad[at+i] = byte(random.Uint32())
		}
		if !try(fmt.Sprintf("page %d", at/4096), bad) {
			refused++
		}
	}
	t.Logf("%d of %d damaged pages are refused", refused, len(good)/4096)
	if refused < 10 {
		t.Errorf("%d of %d damaged pages are refused", refused, len(good)/4096)
	}
	// A bit in a revocation
	at := bytes.Index(good, []byte(`"token_id":"3/7"`))
	bad := bytes.Clone(good)
	for ; at >= 0; at = bytes.Index(bad, []byte(`"token_id":"3/7"`)) { // old pages hold it too
		bad[at+12] ^= 1
	}
	if try("a bit", bad) {
		t.Error("one bit of a revocation is another, and it opens")
	}
}

func TestLaterFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	fill(t, path, 10)
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta()).Put(keyFormat(), []byte{7: format + 1}) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: path}, nil, nil); err == nil || !strings.Contains(err.Error(), "format 2") || errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

func TestExpiredLeavesTheFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	s := openTest(t, path)
	now := time.Now()
	var mu sync.Mutex
	s.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	for n := range 50 {
		until := now.Add(time.Duration(1+n%2) * time.Hour)
		name := fmt.Sprint(n)
		if err := s.Revoke(t.Context(), Revocation{Issuer: issuerA, TokenID: name, Until: until}); err != nil {
			t.Fatal(err)
		}
		if first, err := s.Once(t.Context(), "event", name, until); !first || err != nil {
			t.Fatal(first, err)
		}
	}
	mu.Lock()
	now = now.Add(time.Hour + grace + time.Second)
	mu.Unlock()
	s.sweep()
	if err := s.sweepFile(); err != nil {
		t.Fatal(err)
	}
	if s.held() != 25 || s.uses != 25 {
		t.Errorf("%d revocations, %d uses", s.held(), s.uses)
	}
	for n := range 50 {
		first, err := s.Once(t.Context(), "event", fmt.Sprint(n), now.Add(time.Hour))
		if first != (n%2 == 0) || err != nil || holds(s, fmt.Sprint(n)) != (n%2 == 1) {
			t.Errorf("%d: %v %v", n, first, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if again := openTest(t, path); again.held() != 25 || again.uses != 50 {
		t.Errorf("%d revocations, %d uses", again.held(), again.uses)
	}
}

// What a wider revocation covers is taken out of the file with it.
func TestCoveredLeavesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := openTest(t, path)
	now := time.Now().Truncate(time.Second)
	for n := range 20 {
		if err := s.Revoke(t.Context(), Revocation{Issuer: issuerA, Subject: "s", Before: now.Add(time.Duration(n) * time.Second), Until: now.Add(time.Hour + time.Duration(n))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openTest(t, path)
	if err := again.db.View(func(tx *bolt.Tx) error {
		list, err := stored(tx)
		if len(list) != 1 || !list[0].Before.Equal(now.Add(19*time.Second)) {
			t.Errorf("%+v", list)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	s, err := openLocal(Config{Path: filepath.Join(t.TempDir(), "state.db")}, limits{revocations: 5, uses: 5}, discard(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for n := range 8 {
		rerr := revokeToken(s, fmt.Sprint(n))
		_, oerr := s.Once(t.Context(), "dpop", fmt.Sprint(n), hour())
		if full := n >= 5; errors.Is(rerr, ErrFull) != full || errors.Is(oerr, ErrFull) != full {
			t.Errorf("%d: %v, %v", n, rerr, oerr)
		}
	}
	if first, err := s.Once(t.Context(), "dpop", "0", hour()); first || err != nil {
		t.Error("full, and what is in it is not found", first, err)
	}
}

// A real file system that fills up: nothing is acknowledged that is not there, and it goes on when there is room.
func TestFullFileSystem(t *testing.T) {
	const variable = "STATE_TEST_MOUNT"
	if dir := os.Getenv(variable); dir != "" {
		if err := syscall.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
			fmt.Println("NO MOUNT:", err)
			return
		}
		fillFileSystem(t, dir)
		fmt.Println("FILLED")
		return
	}
	c := exec.Command(os.Args[0], "-test.run=^TestFullFileSystem$", "-test.v")
	c.Env = append(os.Environ(), variable+"="+t.TempDir())
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	output, err := c.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EINVAL), bytes.Contains(output, []byte("NO MOUNT")):
		t.Skipf("no file system can be mounted in a namespace here: %v %s", err, output)
	case err != nil || !bytes.Contains(output, []byte("FILLED")):
		t.Errorf("%v\n%s", err, output)
	}
}

func fillFileSystem(t *testing.T, dir string) {
	path := filepath.Join(dir, "state.db")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 96<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openTest(t, path)
	var revoked, used []string
	step := func(n int) (rerr, oerr error) {
		name := fmt.Sprint(n)
		if rerr = revokeToken(s, name); rerr == nil {
			revoked = append(revoked, name)
		}
		first, oerr := s.Once(t.Context(), "dpop", name, hour())
		if first {
			used = append(used, name)
		}
		return rerr, oerr
	}
	n := 0
	for ; ; n++ {
		rerr, oerr := step(n)
		if rerr != nil && !errors.Is(rerr, syscall.ENOSPC) || oerr != nil && !errors.Is(oerr, syscall.ENOSPC) {
			t.Fatal(rerr, oerr)
		}
		if rerr != nil && oerr != nil {
			break
		}
	}
	if !holds(s, fmt.Sprint(n)) {
		t.Error("what could not be stored does not hold here")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		n++
		if rerr, oerr := step(n); rerr != nil || oerr != nil {
			t.Fatal("there is room again: ", rerr, oerr)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openTest(t, path)
	for _, name := range revoked {
		if !holds(again, name) {
			t.Errorf("%s is lost", name)
		}
	}
	for _, name := range used {
		if first, err := again.Once(t.Context(), "dpop", name, hour()); first || err != nil {
			t.Errorf("%s is first again: %v", name, err)
		}
	}
	if again.held() != len(revoked) {
		t.Errorf("%d are held, %d were acknowledged", again.held(), len(revoked))
	}
	fmt.Printf("%d revocations, %d uses\n", len(revoked), len(used))
}

// After the disk failed in another way than by being full nobody knows what it has: nothing is acknowledged any longer.
func TestBrokenStaysBroken(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "state.db"))
	broken := errors.New("input/output error")
	if err := s.change(t.Context(), func(*bolt.Tx) (bool, error) { return true, broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if err := revokeToken(s, "1"); !errors.Is(err, broken) || !holds(s, "1") {
		t.Error(err)
	}
	if first, err := s.Once(t.Context(), "dpop", "1", hour()); first || !errors.Is(err, broken) {
		t.Error(first, err)
	}
	if err := s.Ready(); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func BenchmarkLocal(b *testing.B) {
	s, err := Open(Config{Path: filepath.Join(b.TempDir(), "state.db")}, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.Run("Once", func(b *testing.B) {
		run := time.Now().UnixNano()
		var n int64
		var mu sync.Mutex
		b.SetParallelism(64)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				mu.Lock()
				n++
				name := fmt.Sprint(run, n)
				mu.Unlock()
				if first, err := s.Once(b.Context(), "dpop", name, hour()); !first || err != nil {
					b.Fatal(first, err)
				}
			}
		})
	})
	b.Run("Revoke", func(b *testing.B) {
		run := time.Now().UnixNano()
		for n := 0; b.Loop(); n++ {
			if err := revokeToken(s, fmt.Sprint(run, n)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
