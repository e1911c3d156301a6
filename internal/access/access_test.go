package access

import (
	"bufio"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string) *Log {
	t.Helper()
	l, err := Open(path, nil, func(err error) { t.Logf("failed: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func linesOf(t *testing.T, path string) (lines []map[string]any) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var line map[string]any
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v", s.Bytes(), err)
		}
		lines = append(lines, line)
	}
	return lines
}

func TestLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.jsonl")
	l := open(t, path)
	l.Write(Entry{
		Time: time.Date(2027, 3, 1, 12, 0, 0, 123456000, time.UTC), ID: "01J", Method: "GET", Route: "read", Status: 200, Code: "allowed",
		Path: "/a\"\x1b[31m\u202e/eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln", Duration: 1500 * time.Microsecond, BytesIn: 1, BytesOut: 2,
		Source: netip.MustParseAddr("192.0.2.1"), Protocol: "HTTP/1.1", Way: "proxy",
	})
	l.Write(Entry{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	lines := linesOf(t, path)
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	for name, want := range map[string]any{
		"time": "2027-03-01T12:00:00.123456Z", "id": "01J", "method": "GET", "route": "read", "status": 200.0, "code": "allowed", "duration_ms": 1.5,
		"bytes_in": 1.0, "bytes_out": 2.0, "source": "192.0.2.1", "protocol": "HTTP/1.1", "entry": "proxy", "path": "/a\"\x1b[31m\u202e/[redacted]",
	} {
		if lines[0][name] != want {
			t.Errorf("%s is %v, want %v", name, lines[0][name], want)
		}
		delete(lines[0], name)
	}
	if len(lines[0]) > 0 {
		t.Errorf("and there is %v", lines[0])
	}
	raw, _ := os.ReadFile(path)
	if strings.ContainsAny(string(raw), "\x1b\u202e") {
		t.Errorf("a terminal would act on %q", raw)
	}
}

// TestNobodyWaits holds that a reader who has stopped costs lines and no time, and that what is lost is counted.
func TestNobodyWaits(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0) // a pipe with a reader, who reads nothing
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, pipe)
	const n = 20_000 // of 200 bytes and more, which is more than may wait
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range n {
			l.Write(Entry{Path: strings.Repeat("/x", 100)})
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("a writer waits")
	}
	if dropped := testutil.ToFloat64(l.dropped); dropped < 1 {
		t.Errorf("%v lines were dropped", dropped)
	}
	if err := l.Close(); err == nil {
		t.Error("closed, with lines that nobody took")
	}
	reader.Close() // and with it the pipe: the last write fails
	select {
	case <-l.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the writer stays")
	}
	written, dropped := testutil.ToFloat64(l.written), testutil.ToFloat64(l.dropped)
	if written+dropped != n {
		t.Errorf("%v written and %v dropped, of %d", written, dropped, n)
	}
}

// TestRotation holds that no line is lost while the file is moved away.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.jsonl")
	l := open(t, path)
	const n = 2000
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range n / 4 {
				l.Write(Entry{ID: "x"})
			}
		})
	}
	for _, name := range []string{"1", "2", "3"} {
		if err := os.Rename(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, name := range []string{"1", "2", "3", "access.jsonl"} {
		total += len(linesOf(t, filepath.Join(dir, name)))
	}
	if total != n {
		t.Errorf("%d lines, want %d", total, n)
	}
}

func TestNoLog(t *testing.T) {
	var l *Log
	l.Write(Entry{})
	if err := l.Reopen(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "no", "folder"), nil, nil); err == nil {
		t.Error("opened in a folder that is not there")
	}
}

func BenchmarkWrite(b *testing.B) {
	l, err := Open("/dev/null", nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	e := Entry{Time: time.Now(), ID: "01J9ZK", Method: "GET", Path: "/orders/7", Route: "read", Status: 200, Code: "allowed", Source: netip.MustParseAddr("192.0.2.1"), Protocol: "HTTP/1.1", Way: "proxy"}
	for b.Loop() {
		l.Write(e)
	}
}
