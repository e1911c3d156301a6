package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/natstest"
)

// The test program is also what the comparison starts.
func TestMain(m *testing.M) {
	if served, err := natstest.Serve(); served {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && slices.Contains([]string{"probe", "proxy", "contained", "jwt-proxy"}, os.Args[1]) {
		main()
		return
	}
	os.Exit(m.Run())
}

func buildSallyport(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sallyport")
	build := exec.Command("go", "build", "-o", path, "../cmd/sallyport")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// TestEachRuns measures everything but gateways once, for a moment: that it can be measured, not how fast it is.
func TestEachRuns(t *testing.T) {
	sallyport := buildSallyport(t)
	if out, err := exec.Command(sallyport, "doctor").CombinedOutput(); err != nil {
		t.Skipf("there are no walls here: %v\n%s", err, out)
	}
	var out, progress bytes.Buffer
	began := time.Now()
	err := dispatch([]string{"-sallyport", sallyport, "-smokescreen", "../build/smokescreen", "-service", t.TempDir(), "-preload", "../internal/preload/preload.cjs", "-brief", "-format", "json",
		"-only", strings.Join(slices.DeleteFunc(names(), func(name string) bool { return slices.Contains(gatewayTables(), name) }), ",")}, &out, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	t.Logf("%s\n%s", time.Since(began), progress.String())
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"connect":       {"bare", "ports", "broker", "broker" + ledSuffix, "broker in a container", "broker in a container" + ledSuffix},
		"connections":   {"bare", "ports", "broker", "broker" + ledSuffix, "broker in a container", "broker in a container" + ledSuffix},
		"stream":        {"bare", "ports", "broker", "broker" + ledSuffix, "broker in a container", "broker in a container" + ledSuffix},
		"round-trips":   {"bare", "ports", "broker", "broker" + ledSuffix, "broker in a container", "broker in a container" + ledSuffix},
		"node":          {"bare", "sallyport run", "sallyport run, in a container"},
		"preload":       {"without", "with the preload"},
		"preload-http":  {"without", "with the preload"},
		"preload-fetch": {"without", "with the preload"},
		"preload-https": {"without", "with the preload"},
		"requests":      {"sallyport", "net/http", noProxy},
		"tunnels":       {"sallyport", "sallyport, by name", "sallyport, buffered", "net/http", noProxy},
		"tunnel-stream": {"sallyport", "net/http", noProxy},
		"revocation":    {"no other request", "1,000 others a second", "5,000 others a second"},
	}
	for name, rows := range want {
		i := slices.IndexFunc(r.Tables, func(t *table) bool { return t.Name == name })
		if i < 0 {
			t.Errorf("there is no table %s", name)
			continue
		}
		for _, wanted := range rows {
			j := slices.IndexFunc(r.Tables[i].Rows, func(r *row) bool { return r.Name == wanted })
			if j < 0 {
				t.Errorf("%s: no row %s; missing: %q", name, wanted, r.Tables[i].Missing)
			} else if f := r.Tables[i].Rows[j].Figures; len(f) != len(r.Tables[i].Columns) || f[0].Median <= 0 {
				t.Errorf("%s, %s: %v", name, wanted, f)
			}
		}
	}
}

// rows makes a table of given rounds.
func rows(t *table, list map[string][]float64) *table {
	for _, name := range []string{"bare", "walls", "fast", "slow", "ours"} {
		values, ok := list[name]
		if !ok {
			continue
		}
		r := &row{Name: name, checks: name == "fast" || name == "slow"}
		for _, v := range values {
			r.rounds = append(r.rounds, []float64{v})
		}
		if name == "walls" || name == "ours" {
			limit := 1.0
			if t.By == byDifference {
				limit = 60
			}
			r.limit = &limit
		}
		t.Rows = append(t.Rows, r)
	}
	t.Columns = []column{{"v", "ms"}}
	t.judge()
	return t
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		table   *table
		rounds  map[string][]float64
		base    string
		row     string
		against figure
		goal    goal
	}{
		// The differences of the rounds, not that of the medians, which is 61.
		{&table{By: byDifference, Base: "bare"}, map[string][]float64{"bare": {10, 100, 39}, "walls": {60, 161, 100}}, "bare", "walls", figure{61, 50, 61}, goal{"at most 60 ms more than bare", false}},
		{&table{By: byDifference, Base: "bare"}, map[string][]float64{"bare": {10, 100, 40, 40}, "walls": {60, 161, 100, 99}}, "bare", "walls", figure{59.5, 50, 61}, goal{"at most 60 ms more than bare", true}},
		{&table{By: byRatio}, map[string][]float64{"bare": {9, 9, 9}, "fast": {4, 5, 4}, "slow": {2, 2, 2}, "ours": {4, 10, 2}}, "fast", "ours", figure{1, 0.5, 2}, goal{"at least 1.00 of fast", true}},
		{&table{By: byRatio}, map[string][]float64{"slow": {2, 2, 2}, "ours": {1, 1.9, 2}}, "slow", "ours", figure{0.95, 0.5, 1}, goal{"at least 1.00 of slow", false}},
	} {
		got := rows(c.table, c.rounds)
		i := slices.IndexFunc(got.Rows, func(r *row) bool { return r.Name == c.row })
		r := got.Rows[i]
		if got.Base != c.base || *r.Against != c.against || *r.Goal != c.goal {
			t.Errorf("%v: against %s: %v, %v; want against %s: %v, %v", c.rounds, got.Base, *r.Against, *r.Goal, c.base, c.against, c.goal)
		}
	}
}

// TestNobodyToCompareWith holds that a table without a base is still a table.
func TestNobodyToCompareWith(t *testing.T) {
	got := rows(&table{Title: "alone", By: byRatio, Missing: []string{"squid: not here"}}, map[string][]float64{"ours": {1, 2, 3}})
	var out strings.Builder
	if err := (&report{Tables: []*table{got}}).write(&out, "text"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ours  2.00 (1.00–3.00)\n", "not measured: squid: not here\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestText(t *testing.T) {
	got := rows(&table{Title: "What is compared", By: byRatio, Base: "bare"}, map[string][]float64{"bare": {1000, 1100, 900}, "walls": {990, 1100, 850}})
	got.Rows[1].Note = "as it is"
	var out strings.Builder
	r := report{Machine: []fact{{"kernel", "6.18"}}, Seconds: 3, Tables: []*table{got}}
	if err := r.write(&out, "text"); err != nil {
		t.Fatal(err)
	}
	const want = `kernel       6.18

What is compared

         v, ms            of bare            goal
  bare   1000 (900–1100)
  walls  990 (850–1100)   0.990 (0.94–1.00)  at least 1.00 of bare: MISSED
  walls: as it is

Medians of the rounds, and between what they were. 3 s in all.
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestReadAnswer(t *testing.T) {
	for text, want := range map[string]answer{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n":                            {200, 5, false},
		"HTTP/1.1 403 Forbidden\r\ncontent-length:7\r\nConnection: close\r\n\r\n": {403, 7, true},
		"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n":                            {200, 5, true},
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n":                       {200, 0, false},
	} {
		got, err := readAnswer(bufio.NewReader(strings.NewReader(text)))
		if err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "SSH-2.0-x\r\n", "HTTP/1.1 abc OK\r\n\r\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"} {
		if got, err := readAnswer(bufio.NewReader(strings.NewReader(text))); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}

// FuzzReadAnswer holds that what comes behind the header is not touched.
func FuzzReadAnswer(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", "body")
	f.Add("HTTP/1.0 200 OK\n\n", "")
	f.Fuzz(func(t *testing.T, head, rest string) {
		r := bufio.NewReader(strings.NewReader(head + rest))
		a, err := readAnswer(r)
		if err != nil {
			return
		}
		if a.status < 100 || a.status > 999 || a.length < 0 {
			t.Errorf("%q: %v", head, a)
		}
		left, _ := r.Peek(r.Buffered())
		all := head + rest
		read := all[:len(all)-len(left)]
		if !strings.HasSuffix(all, string(left)) || !strings.HasSuffix(strings.TrimRight(read, "\r"), "\n") {
			t.Errorf("%q: what was read ends in %q", all, read)
		}
	})
}

// TestSink holds that pour and pingPong and what takes them count the same bytes.
func TestSink(t *testing.T) {
	p, err := newPlace(&site{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.stream(&peer{name: noProxy})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		if v, err := pour(c, 5*time.Millisecond); err != nil || v <= 0 {
			t.Fatal(v, err)
		}
		if v, err := pingPong(c, 5*time.Millisecond); err != nil || v <= 0 {
			t.Fatal(v, err)
		}
	}
}

func TestClientHello(t *testing.T) {
	if b := clientHello("localhost"); len(b) < 100 || b[0] != 22 || !bytes.Contains(b, []byte("localhost")) {
		t.Errorf("no ClientHello: %q", b)
	}
}

func TestProbe(t *testing.T) {
	p, err := newPlace(&site{})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	orders := fmt.Sprintf("sink %s\nsink 127.0.0.1:1\nconnect\nnonsense 1 2\n", p.sink)
	go func() { (<-p.come).Close() }()
	if err := probe(strings.NewReader(orders), &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 || lines[0] != "ok" || !strings.HasPrefix(lines[1], "failed dial") || !strings.HasPrefix(lines[2], "failed no such order") || !strings.HasPrefix(lines[3], "failed no such order") {
		t.Errorf("%q", lines)
	}
}
