package story

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
)

// disk is full now and then, in the middle of a write too, and fails to sync.
type disk struct {
	mu     sync.Mutex
	data   []byte
	random *rand.Rand // nil: it has room
}

func (d *disk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(p)
	if d.random != nil && d.random.IntN(4) == 0 {
		n = d.random.IntN(len(p) + 1)
	}
	d.data = append(d.data, p[:n]...)
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func (d *disk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.random != nil && d.random.IntN(4) == 0 {
		return syscall.EIO
	}
	return nil
}

// However often a disk fills up, the chain goes on, and what was refused is not in it.
func TestFullDiskKeepsTheChain(t *testing.T) {
	for _, durability := range []audit.Durability{audit.Buffered, audit.Written, audit.Synced} {
		for seed := range uint64(10) {
			d := &disk{random: rand.New(rand.NewPCG(seed, 1))}
			l := audit.New(d, audit.Config{Durability: durability, Sign: func() identity.Key { return newKey(1) }})
			var mu sync.Mutex
			accepted := map[string]bool{}
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					for n := range 60 {
						id := fmt.Sprintf("%d-%d", w, n)
						if l.Record(audit.Record{ID: id, Point: "ingress", Path: strings.Repeat("/x", n)}) != nil {
							continue
						}
						mu.Lock()
						accepted[id] = true
						mu.Unlock()
						_ = l.Outcome(audit.Outcome{ID: id}) // what cannot be written is kept
						if n%20 == 0 {
							time.Sleep(time.Millisecond)
						}
					}
				})
			}
			wg.Wait()
			d.mu.Lock()
			d.random = nil
			d.mu.Unlock()
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			v := &Verifier{Keys: lookup(newKey(1)), Whole: true}
			if err := v.File("f", bytes.NewReader(d.data)); err != nil {
				t.Fatalf("%s, seed %d: %v", durability, seed, err)
			}
			if c := v.Report().Chains; len(c) != 1 || !c[0].Ended || c[0].Signed != c[0].Last {
				t.Errorf("%s, seed %d: %+v", durability, seed, c)
			}
			found := map[string]int{}
			if _, err := Lines("f", bytes.NewReader(d.data), nil, func(l Line) { found[l.Kind+l.ID]++ }); err != nil {
				t.Fatal(err)
			}
			for id := range accepted {
				if found["decision"+id] != 1 || found["outcome"+id] != 1 {
					t.Errorf("%s, seed %d: %s was accepted: %d records, %d outcomes", durability, seed, id, found["decision"+id], found["outcome"+id])
				}
			}
		}
	}
}

// Processes that are killed while they write, one after the other and two at a time, leave a log that verifies.
func TestKilledWriters(t *testing.T) {
	const variable = "STORY_TEST_LOG"
	if path := os.Getenv(variable); path != "" {
		l, err := audit.Open(audit.Config{File: path, Sign: func() identity.Key { return newKey(1) }}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 1_000_000 { // it is killed long before
			if err := l.Record(audit.Record{ID: fmt.Sprint(os.Getpid(), n), Point: "ingress", Path: strings.Repeat("/x", n%500)}); err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				fmt.Println("WRITING")
			}
		}
		t.Fatal("nobody has ended it")
	}
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	start := func() *exec.Cmd {
		c := exec.Command(os.Args[0], "-test.run=^TestKilledWriters$")
		c.Env = append(os.Environ(), variable+"="+path)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Kill() })
		if _, err := io.ReadFull(out, make([]byte, len("WRITING"))); err != nil {
			t.Fatal(err)
		}
		return c
	}
	kill := func(c *exec.Cmd) {
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
	}
	other := start()
	for range 4 {
		c := start()
		time.Sleep(10 * time.Millisecond)
		kill(c)
	}
	kill(other)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v := &Verifier{Keys: lookup(newKey(1)), Whole: true}
	if err := v.File(path, f); err != nil {
		t.Fatal(err)
	}
	r := v.Report()
	if len(r.Chains) != 5 {
		t.Errorf("%d chains", len(r.Chains))
	}
	for _, c := range r.Chains {
		if c.Ended || c.Signed == 0 {
			t.Errorf("%+v", c)
		}
	}
	t.Logf("%d lines, %d torn", r.Lines, r.Torn)
}
