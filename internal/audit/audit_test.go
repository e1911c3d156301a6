package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var durabilities = []Durability{Buffered, Written, Synced}

func mustOpen(t testing.TB, c Config) *Log {
	t.Helper()
	l, err := Open(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, paths ...string) []byte {
	t.Helper()
	var all []byte
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	return all
}

// id names the nth record of a writer; order reads it back.
func id(writer, n int) string { return fmt.Sprintf("%d-%d", writer, n) }

// checkAccepted holds data against what each writer had accepted: every line
// once, whole, and in its order. Lines that do not parse are counted; lines of
// records that were refused may be there where mayHold says so.
func checkAccepted(t *testing.T, data []byte, accepted map[int][]string, mayHold bool) (torn int) {
	t.Helper()
	if len(data) > 0 && data[len(data)-1] != '\n' {
		t.Errorf("the log ends in half a line")
	}
	found := map[int][]string{}
	for _, text := range bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")) {
		var m struct{ ID, Kind string }
		if json.Unmarshal(text, &m) != nil {
			torn++
			continue
		}
		if m.Kind == "gap" || m.Kind == "checkpoint" {
			continue
		}
		var writer, n int
		if _, err := fmt.Sscanf(m.ID, "%d-%d", &writer, &n); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		found[writer] = append(found[writer], m.ID+m.Kind)
	}
	for writer, want := range accepted {
		got := found[writer]
		if mayHold {
			wanted := map[string]bool{}
			for _, w := range want {
				wanted[w] = true
			}
			var kept []string
			for _, g := range got {
				if wanted[g] {
					kept = append(kept, g)
				}
			}
			got = kept
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			i := 0
			for i < len(got) && i < len(want) && got[i] == want[i] {
				i++
			}
			t.Errorf("writer %d: the file has %d lines, %d were accepted; they differ from the %dth: %v and %v",
				writer, len(got), len(want), i, got[i:min(i+3, len(got))], want[i:min(i+3, len(want))])
		}
	}
	return torn
}

// write gives each of the writers its records and outcomes, and returns what was accepted.
// What is refused is tried again a few times, as other requests would come.
func write(l *Log, writers, records int) map[int][]string {
	var mu sync.Mutex
	accepted := map[int][]string{}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			var mine []string
			for n := range records {
				if l.Record(Record{ID: id(w, n), Point: "ingress", Path: strings.Repeat("p", n%300)}) != nil {
					continue
				}
				mine = append(mine, id(w, n)+"decision")
				// an outcome whose error says that it is lost is not in the file; one that is kept is
				if err := l.Outcome(Outcome{ID: id(w, n), Status: 403}); !errors.Is(err, errFull) {
					mine = append(mine, id(w, n)+"outcome")
				}
			}
			mu.Lock()
			defer mu.Unlock()
			accepted[w] = mine
		})
	}
	wg.Wait()
	return accepted
}

func TestEveryRecordOnce(t *testing.T) {
	for _, d := range durabilities {
		t.Run(string(d), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			l := mustOpen(t, Config{File: path, Durability: d})
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("%v, %v", info, err)
			}
			accepted := write(l, 8, 100)
			mustClose(t, l)
			if torn := checkAccepted(t, read(t, path), accepted, false); torn != 0 || len(accepted[0]) != 200 {
				t.Errorf("%d torn lines; %d accepted", torn, len(accepted[0]))
			}
		})
	}
}

// Rotation renames the file and reopens the path, again and again, while eight writers write.
func TestReopenLosesNothing(t *testing.T) {
	for _, d := range durabilities {
		t.Run(string(d), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "audit.jsonl")
			l := mustOpen(t, Config{File: path, Durability: d})
			done := make(chan struct{})
			var accepted map[int][]string
			go func() {
				defer close(done)
				accepted = write(l, 8, 150)
			}()
			var files []string
			for running := true; running; {
				select {
				case <-done:
					running = false
				default:
				}
				to := filepath.Join(dir, fmt.Sprintf("audit.%d", len(files)))
				if err := os.Rename(path, to); err != nil {
					t.Fatal(err)
				}
				files = append(files, to)
				if err := l.Reopen(); err != nil {
					t.Fatal(err)
				}
			}
			mustClose(t, l)
			if torn := checkAccepted(t, read(t, append(files, path)...), accepted, false); torn != 0 || len(accepted[7]) != 300 {
				t.Errorf("%d torn lines; %d accepted", torn, len(accepted[7]))
			}
			t.Logf("%d rotations", len(files))
		})
	}
}

func TestReopenFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log", "audit.jsonl")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, Config{File: path})
	moved := filepath.Join(dir, "moved")
	if err := os.Rename(filepath.Dir(path), moved); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err == nil {
		t.Error("reopened a path without folder")
	}
	if err := errors.Join(l.Record(Record{ID: "0-0"}), l.Healthy()); err != nil {
		t.Errorf("the old file does not stay: %v", err)
	}
	mustClose(t, l)
	if got := lines(t, read(t, filepath.Join(moved, "audit.jsonl"))); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

// Durability that cannot be had is refused, not weakened.
func TestDurabilityRefused(t *testing.T) {
	var b bytes.Buffer
	if err := New(&b, Config{Durability: Synced}).Record(Record{ID: "1"}); err == nil {
		t.Error("synced to something that cannot be synced")
	}
	if err := New(&b, Config{Durability: "durable"}).Record(Record{ID: "1"}); err == nil {
		t.Error("an unknown durability")
	}
	if _, err := Open(Config{File: filepath.Join(t.TempDir(), "a"), Durability: "durable"}, nil); err == nil {
		t.Error("an unknown durability")
	}
	if _, err := Open(Config{File: "/dev/null", Durability: Synced}, nil); err == nil {
		t.Error("synced to a device")
	}
	if _, err := Open(Config{File: t.TempDir()}, nil); err == nil {
		t.Error("a folder")
	}
}

// A file that ends in half a line, as a power cut leaves it, is gone on with on a line of its own.
func TestTornBefore(t *testing.T) {
	for _, d := range durabilities {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		if err := os.WriteFile(path, []byte("{\"v\":1}\n{\"v\":1,\"ti"), 0o600); err != nil {
			t.Fatal(err)
		}
		l := mustOpen(t, Config{File: path, Durability: d})
		if err := l.Record(Record{ID: "1"}); err != nil {
			t.Fatal(err)
		}
		mustClose(t, l)
		got := strings.Split(unsealed(string(read(t, path))), "\n")
		if len(got) != 4 || got[1] != `{"v":1,"ti[torn]` || !json.Valid([]byte(got[2])) || got[3] != "" {
			t.Errorf("%s: %q", d, got)
		}
	}
}

// A reader of standard output that goes away is an error, not the end of the process.
func TestStdout(t *testing.T) {
	const variable = "AUDIT_TEST_STDOUT"
	if os.Getenv(variable) != "" {
		l, err := Open(Config{File: "-"}, nil)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		if err := errors.Join(l.Record(Record{ID: "1"}), l.Reopen()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		io.ReadAll(os.Stdin) // until the parent has gone away from the pipe
		if err := l.Record(Record{ID: "2"}); !errors.Is(err, syscall.EPIPE) {
			fmt.Fprintln(os.Stderr, "after the reader has gone:", err)
			os.Exit(3)
		}
		os.Exit(7)
	}
	c := exec.Command(os.Args[0], "-test.run=^TestStdout$")
	c.Env = append(os.Environ(), variable+"=1")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1024)
	n, err := stdout.Read(first)
	if err != nil {
		t.Errorf("%v: %s", err, &stderr)
	} else if got := lines(t, first[:n]); got[0]["id"] != "1" {
		t.Errorf("%v", got)
	}
	stdout.Close()
	stdin.Close()
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("%v: %s", err, &stderr)
	}
}

// Two logs on one path, as two replicas on one host have: no line mixes with another's.
func TestTwoLogsOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	a, b := mustOpen(t, Config{File: path}), mustOpen(t, Config{File: path})
	var wg sync.WaitGroup
	for _, l := range []*Log{a, b} {
		wg.Go(func() { write(l, 4, 100) })
	}
	wg.Wait()
	mustClose(t, a)
	mustClose(t, b)
	if got := lines(t, read(t, path)); len(got) != 2*4*100*2 {
		t.Errorf("%d lines", len(got))
	}
}

func BenchmarkRecord(b *testing.B) {
	r := fullRecord(b)
	r.Detail = nil
	for _, d := range durabilities {
		b.Run(string(d), func(b *testing.B) {
			l := mustOpen(b, Config{File: filepath.Join(b.TempDir(), "audit.jsonl"), Durability: d})
			b.ReportAllocs()
			for b.Loop() {
				if err := l.Record(r); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(string(d)+"/64 at once", func(b *testing.B) {
			l := mustOpen(b, Config{File: filepath.Join(b.TempDir(), "audit.jsonl"), Durability: d})
			b.ReportAllocs()
			b.SetParallelism(32) // times GOMAXPROCS
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := l.Record(r); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// The encoder alone.
func BenchmarkLine(b *testing.B) {
	r := fullRecord(b)
	r.Detail = nil
	var e line
	b.ReportAllocs()
	for b.Loop() {
		e.record(r, nil)
	}
}

// A file is left only when what is in it is on the device: one that cannot be synced stays.
func TestReopenSyncsTheOldFile(t *testing.T) {
	r, w, err := os.Pipe() // which cannot be synced
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	l := New(w, Config{Durability: Synced})
	l.path = filepath.Join(t.TempDir(), "audit.jsonl")
	if err := l.Reopen(); !errors.Is(err, syscall.EINVAL) || l.w != w {
		t.Errorf("left a file that is not synced: %v", err)
	}
}

// What the chain costs: the same line encoded, and encoded and sealed.
func BenchmarkSealed(b *testing.B) {
	r := fullRecord(b)
	r.Detail = nil
	for _, sealed := range []bool{false, true} {
		b.Run(fmt.Sprint(sealed), func(b *testing.B) {
			l := New(io.Discard, Config{Sign: func() identity.Key { return testKey }})
			var e line
			b.ReportAllocs()
			for b.Loop() {
				if e.record(r, nil); sealed {
					l.seal(e.b, "")
					l.settle(len(l.chain.out))
				}
			}
		})
	}
}
