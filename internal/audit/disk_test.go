package audit

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// disk is a file on a disk that is full now and then: it takes a part of a
// write, or nothing, and says so.
type disk struct {
	mu      sync.Mutex
	data    []byte
	full    bool
	random  *rand.Rand // nil: full says it all
	syncs   int
	synced  int // bytes
	failing bool
	slow    time.Duration
}

func (d *disk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(p)
	if d.full || d.random != nil && d.random.IntN(5) == 0 {
		n = 0
		if d.random != nil {
			n = d.random.IntN(len(p) + 1)
		}
	}
	d.data = append(d.data, p[:n]...)
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func (d *disk) Sync() error {
	time.Sleep(d.slow)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	if d.failing || d.random != nil && d.random.IntN(5) == 0 {
		return syscall.EIO
	}
	d.synced = len(d.data)
	return nil
}

func (d *disk) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// However often and wherever the disk fails, what was accepted is there once, whole and in order.
func TestFlakyDisk(t *testing.T) {
	for _, durability := range durabilities {
		for seed := range uint64(10) {
			t.Run(fmt.Sprint(durability, seed), func(t *testing.T) {
				d := &disk{random: rand.New(rand.NewPCG(seed, 1))}
				l := New(d, Config{Durability: durability})
				done := make(chan struct{})
				var wg sync.WaitGroup
				wg.Go(func() { // the timer, far more often than it goes off
					for {
						select {
						case <-done:
							return
						default:
							l.tick()
							runtime.Gosched()
						}
					}
				})
				accepted := write(l, 4, 100)
				close(done)
				wg.Wait()
				d.set(func() { d.random = nil })
				mustClose(t, l)
				total := 0
				for _, a := range accepted {
					total += len(a)
				}
				// a record that was refused for its failed sync may be there
				torn := checkAccepted(t, d.data, accepted, durability == Synced)
				t.Logf("%d accepted, %d torn", total, torn)
				if total == 0 {
					t.Error("nothing was accepted")
				}
			})
		}
	}
}

func TestFullDisk(t *testing.T) {
	for _, durability := range durabilities {
		t.Run(string(durability), func(t *testing.T) {
			d := &disk{}
			l := New(d, Config{Durability: durability})
			if err := l.Record(Record{ID: "0-0"}); err != nil {
				t.Fatal(err)
			}
			d.set(func() { d.full = true })
			if durability == Buffered {
				until(t, func() bool { _ = l.Outcome(Outcome{ID: "0-0"}); return l.Healthy() != nil })
			} else if err := l.Outcome(Outcome{ID: "0-0"}); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("outcome: %v", err)
			}
			if err := l.Healthy(); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("healthy: %v", err)
			}
			for n := range 3 {
				if err := l.Record(Record{ID: id(1, n)}); !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("record: %v", err)
				}
			}
			d.set(func() { d.full = false })
			if err := l.Record(Record{ID: "2-0"}); err != nil {
				t.Fatal(err)
			}
			if err := l.Healthy(); err != nil {
				t.Error(err)
			}
			mustClose(t, l)
			var gap, outcome, last bool
			for _, m := range lines(t, d.data) {
				switch {
				case m["kind"] == "gap":
					gap = true
					if m["refused"] != 3.0 || m["lost"] != 0.0 || m["error"] != syscall.ENOSPC.Error() {
						t.Errorf("gap %v", m)
					}
				case m["kind"] == "outcome":
					outcome = true
				case m["id"] == "2-0":
					last = true
				case m["id"] != "0-0":
					t.Errorf("refused, and there: %v", m)
				}
			}
			if !gap || !outcome || !last {
				t.Errorf("gap %v, outcome %v, later record %v:\n%s", gap, outcome, last, d.data)
			}
		})
	}
}

// Readiness keeps traffic away from a log that is unhealthy, so it must become healthy without any.
func TestHealsByItself(t *testing.T) {
	d := &disk{full: true}
	l := New(d, Config{})
	defer l.Close()
	if l.Record(Record{ID: "0-0"}) == nil || l.Healthy() == nil {
		t.Fatal("accepted by a full disk")
	}
	d.set(func() { d.full = false })
	until(t, func() bool { return l.Healthy() == nil })
}

// until waits, for as long as a busy machine may need.
func until(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen")
		}
	}
}

func TestKeptOutcomesAreBounded(t *testing.T) {
	d := &disk{full: true}
	l := New(d, Config{})
	long := strings.Repeat("x", 900)
	kept, lost := 0, 0 // of two MiB
	for n := range 2 * maxPending / 1000 {
		if err := l.Outcome(Outcome{ID: id(0, n), Error: long}); errors.Is(err, errFull) {
			lost++
		} else if err != nil {
			kept++
		}
	}
	if lost == 0 || kept < maxPending/1200 {
		t.Errorf("%d lost, %d kept", lost, kept)
	}
	d.set(func() { d.full = false })
	mustClose(t, l)
	got := lines(t, d.data)
	if got[0]["kind"] != "gap" || got[0]["lost"] != float64(lost) || len(got) != kept+1 {
		t.Errorf("%v and %d lines; %d lost, %d kept", got[0], len(got)-1, lost, kept)
	}
}

func TestCloseSaysWhatIsLost(t *testing.T) {
	d := &disk{}
	l := New(d, Config{Durability: Buffered})
	if err := errors.Join(l.Record(Record{ID: "1"}), l.Record(Record{ID: "2"})); err != nil {
		t.Fatal(err)
	}
	d.set(func() { d.full = true })
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "2 lines are lost") {
		t.Errorf("%v", err)
	}
	if err := l.Record(Record{ID: "3"}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a record after Close: %v", err)
	}
	if l.Healthy() == nil || l.Outcome(Outcome{ID: "3"}) == nil || l.Close() != nil {
		t.Error("closed, and it goes on")
	}
}

func TestBufferedIsFlushed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := mustOpen(t, Config{File: path, Durability: Buffered})
	for n := range 3 {
		if err := l.Record(Record{ID: id(0, n)}); err != nil {
			t.Fatal(err)
		}
		until(t, func() bool { return bytes.Count(read(t, path), []byte(`"kind":"decision"`)) == n+1 })
	}
	// more than the memory holds is written before its time
	for n := range 2 * maxPending / 1000 {
		if err := l.Record(Record{ID: id(1, n), Path: strings.Repeat("x", 900)}); err != nil {
			t.Fatal(err)
		}
	}
	l.mu.Lock()
	if len(l.pending) > maxPending {
		t.Errorf("%d bytes in memory", len(l.pending))
	}
	l.mu.Unlock()
}

// When Record returns, a sync has covered its line; those who come at the same time share one.
func TestGroupCommit(t *testing.T) {
	d := &disk{slow: 2 * time.Millisecond}
	l := New(d, Config{Durability: Synced})
	const writers, records = 50, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range records {
				if err := l.Record(Record{ID: id(w, n)}); err != nil {
					t.Error(err)
				}
				d.mu.Lock()
				if !bytes.Contains(d.data[:d.synced], []byte(`"id":"`+id(w, n)+`"`)) {
					t.Errorf("%s was accepted and not synced", id(w, n))
				}
				d.mu.Unlock()
			}
		})
	}
	wg.Wait()
	if d.syncs > writers*records/2 {
		t.Errorf("%d syncs for %d records", d.syncs, writers*records)
	}
	t.Logf("%d syncs for %d records", d.syncs, writers*records)

	before := d.syncs
	if err := l.Outcome(Outcome{ID: "0-0"}); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.syncs > before && d.synced == len(d.data)
	})

	d.set(func() { d.failing = true })
	if err := l.Record(Record{ID: "98-0"}); !errors.Is(err, syscall.EIO) || l.Healthy() == nil {
		t.Errorf("a failed sync: %v, %v", err, l.Healthy())
	}
	d.set(func() { d.failing = false })
	if err := errors.Join(l.Record(Record{ID: "99-0"}), l.Healthy()); err != nil {
		t.Error(err)
	}
	mustClose(t, l)
	if got := lines(t, d.data); got[len(got)-2]["kind"] != "gap" || got[len(got)-2]["refused"] != 1.0 {
		t.Errorf("the last lines: %v", got[len(got)-2:])
	}
}

// The kernel's own full disk: no byte goes in.
func TestDevFull(t *testing.T) {
	l, err := Open(Config{File: "/dev/full"}, nil)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		t.Skipf("no /dev/full here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Record(Record{ID: "1"}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("record: %v", err)
	}
	if err := l.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("close: %v", err)
	}
}

// A real file system of 64 KiB that fills up, is emptied, and goes on. It is mounted in a namespace of a subprocess.
func TestFullFileSystem(t *testing.T) {
	const variable = "AUDIT_TEST_MOUNT"
	if dir := os.Getenv(variable); dir != "" {
		if err := syscall.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
			fmt.Println("NO MOUNT:", err)
			return
		}
		for _, d := range durabilities {
			fillFileSystem(t, dir, d)
		}
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

func fillFileSystem(t *testing.T, dir string, d Durability) {
	path := filepath.Join(dir, "audit.jsonl")
	l := mustOpen(t, Config{File: path, Durability: d})
	var accepted []string
	n := 0
	record := func() error {
		n++
		err := l.Record(Record{ID: id(0, n), Point: "ingress", Path: strings.Repeat("/p", n%400)})
		if err == nil {
			accepted = append(accepted, id(0, n)+"decision")
		}
		return err
	}
	for {
		err := record()
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if d == Buffered {
			time.Sleep(time.Millisecond) // or the memory would take more than the whole file system
		}
	}
	if l.Healthy() == nil {
		t.Error("healthy, and full")
	}
	full := read(t, path)
	// what an operator does: move the log away, and have it reopened
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := record(); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, l)
	if full[len(full)-1] != '\n' {
		full = append(full, tornMark...) // a reader passes over a last line without line end
	}
	torn := checkAccepted(t, append(full, read(t, path)...), map[int][]string{0: accepted}, false)
	fmt.Printf("%s: %d accepted of %d, %d torn\n", d, len(accepted), n, torn)
	if torn > 1 {
		t.Errorf("%d torn lines", torn)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// The same file goes on when the disk has room again: the half line is ended first.
func TestShortWriteIsEnded(t *testing.T) {
	d := &disk{}
	l := New(writerFunc(func(p []byte) (int, error) {
		if d.syncs++; d.syncs == 2 {
			d.data = append(d.data, p[:20]...)
			return 20, syscall.ENOSPC
		}
		return d.Write(p)
	}), Config{})
	if l.Record(Record{ID: "1"}) != nil || l.Record(Record{ID: "2"}) == nil || l.Record(Record{ID: "3"}) != nil {
		t.Fatalf("%s", d.data)
	}
	mustClose(t, l)
	got := strings.Split(strings.TrimSuffix(unsealed(string(d.data)), "\n"), "\n")
	if len(got) != 4 || len(got[1]) != 20+len("[torn]") || !strings.Contains(got[2], `"gap"`) || !strings.Contains(got[3], `"id":"3"`) {
		t.Errorf("%q", got)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
