package audit

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport/identity"
)

var testKey = func() identity.Key {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	return identity.Key{ID: identity.Thumbprint(private.Public().(ed25519.PublicKey)), Private: private}
}()

// everything are the lines and the checkpoints.
func everything(t *testing.T, data []byte) (all []map[string]any) {
	t.Helper()
	for text := range strings.Lines(string(data)) {
		all = append(all, parseLine(t, text))
	}
	return all
}

// A chain begins with a checkpoint, has one when it is due, at the end of a file, at the beginning of the next and at its own.
func TestCheckpoints(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	l := mustOpen(t, Config{File: path, Durability: Buffered, Sign: func() identity.Key { return testKey }})
	for n := range CheckpointEvery + 1 {
		if err := l.Record(Record{ID: id(0, n)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Reopen(); err != nil { // in the same file, as a reload has it
		t.Fatal(err)
	}
	if err := l.Record(Record{ID: "last"}); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	if err := l.flush(); err != nil {
		t.Error(err)
	}
	l.mu.Unlock()
	l.due()
	l.due() // nothing new
	mustClose(t, l)
	var got []string
	for i, m := range everything(t, read(t, path)) {
		if m["n"] != float64(i+1) || m["chain"] != l.chain.id {
			t.Fatalf("line %d: %v", i+1, m)
		}
		if m["kind"] != "checkpoint" {
			continue
		}
		got = append(got, fmt.Sprint(m["why"], i+1))
		if m["kid"] != testKey.ID || len(m["sig"].(string)) != 86 || (m["head"] != nil) != (i > 0) || m["seen"] != nil {
			t.Errorf("%v", m)
		}
	}
	if want := "[begin1 due1002 leave1004 open1005 due1007 end1008]"; fmt.Sprint(got) != want {
		t.Errorf("%v", got)
	}
}

// A log that nobody wrote into stays as it is; a key that is not there yet leaves a checkpoint unsigned.
func TestNothingToCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := mustOpen(t, Config{File: path, Sign: func() identity.Key { t.Error("asked for a key"); return identity.Key{} }})
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if len(read(t, path)) != 0 {
		t.Errorf("%s", read(t, path))
	}
	var b bytes.Buffer
	l = New(&b, Config{Sign: func() identity.Key { return identity.Key{} }})
	if err := l.Record(Record{ID: "1"}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if strings.Contains(b.String(), "sig") || !strings.Contains(b.String(), `"why":"end"`) {
		t.Errorf("%s", &b)
	}
}

// Each observed once, what was refused not at all, what was kept at once.
func TestObserve(t *testing.T) {
	for _, durability := range durabilities {
		d := &disk{}
		var mu sync.Mutex
		seen := map[string]int{}
		var l *Log
		l = New(d, Config{Durability: durability, Observe: func(r *Record, o *Outcome) {
			_ = l.Healthy() // outside of the log's lock
			mu.Lock()
			defer mu.Unlock()
			if (r == nil) == (o == nil) {
				t.Errorf("%v, %v", r, o)
			} else if r != nil {
				seen["decision "+r.ID]++
			} else {
				seen["outcome "+o.ID]++
			}
		}})
		if err := errors.Join(l.Record(Record{ID: "1"}), l.Record(Record{ID: "2"}), l.Outcome(Outcome{ID: "1"})); err != nil {
			t.Fatal(err)
		}
		d.set(func() { d.full, d.failing = true, true })
		if durability == Buffered {
			l.tick() // what is in memory cannot be written
		}
		if err := l.Outcome(Outcome{ID: "2"}); durability != Synced && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", durability, err)
		}
		if l.Record(Record{ID: "3"}) == nil || l.Record(Record{}) == nil {
			t.Error("accepted")
		}
		d.set(func() { d.full, d.failing = false, false })
		mustClose(t, l)
		want := map[string]int{"decision 1": 1, "decision 2": 1, "outcome 1": 1, "outcome 2": 1}
		if fmt.Sprint(seen) != fmt.Sprint(want) {
			t.Errorf("%s: %v", durability, seen)
		}
	}
}

// Two writers of one file: a checkpoint names the last line that the other had written.
func TestCheckpointsSeeOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	a, b := mustOpen(t, Config{File: path}), mustOpen(t, Config{File: path})
	if err := errors.Join(a.Record(Record{ID: "1"}), b.Record(Record{ID: "2"})); err != nil {
		t.Fatal(err)
	}
	mustClose(t, a)
	mustClose(t, b)
	all := everything(t, read(t, path))
	for i, of := range map[int]int{2: 1, 4: 3, 5: 4} { // b begins, a ends, b ends
		seen, _ := all[i]["seen"].(map[string]any)
		if seen["chain"] != all[of]["chain"] || seen["n"] != all[of]["n"] || seen["hash"] != all[of]["hash"] {
			t.Errorf("%v\nhas not seen %v", all[i], all[of])
		}
	}
	if all[0]["seen"] != nil {
		t.Errorf("%v", all[0])
	}
}
