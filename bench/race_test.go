package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRace has every gateway that is here refuse what it must, and measures each for a moment.
func TestRace(t *testing.T) {
	page := filepath.Join(t.TempDir(), "benchmarks.md")
	var out, progress bytes.Buffer
	err := dispatch([]string{"-sallyport", buildSallyport(t), "-peers", "../build", "-brief", "-format", "json", "-only", "gateways", "-page", page}, &out, &progress)
	t.Log(progress.String())
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	both := []string{oursName, oursName + reusedSuffix, goReverseProxy}
	want := map[string][]string{
		"gateways-es256-one": append([]string{noGateway}, both...), "gateways-es256-many": both, "gateways-rs256-one": both, "gateways-rs256-many": both,
		"gateways-eddsa-one": both, "gateways-eddsa-many": both, "gateways-new": append([]string{signatureRow}, both...),
		"gateways-parts":  {"all of it", "assertion reused", "without the assertion", "without the CEL condition", "records buffered", "records to /dev/null", "without the three"},
		"gateways-single": both, "gateways-rate": {oursName}, "gateways-memory": both, "gateways-start": append([]string{manyRoutes}, both...),
		"gateways-routes": {"1 route", "100 routes", manyRoutes}, "gateways-known": {"10 tokens", "10,000 tokens"},
		"gateways-revoked": {"0 revocations", "10,000 revocations", "1,000,000 revocations"},
		"gateways-goals":   {"idle, MiB", "first verified answer after execve(2), ms", "the same with 10,000 routes, ms"},
	}
	// What scripts/packages installs; where it is not, the comparison goes on without.
	if _, err := findProgram("haproxy"); err == nil || os.Getenv("CI") == "true" {
		for _, name := range []string{"gateways-es256-one", "gateways-es256-many", "gateways-rs256-one"} {
			want[name] = append(want[name], haproxyVerify, haproxyCached)
		}
		want["gateways-goals"] = append(want["gateways-goals"], "ES256, one token: requests, of "+haproxyVerify)
	}
	if _, err := os.Stat("/usr/lib/nginx/modules/ngx_http_js_module.so"); err == nil || os.Getenv("CI") == "true" {
		want["gateways-es256-one"] = append(want["gateways-es256-one"], nginxBare, nginxNJS)
	}
	for name, rows := range want {
		i := slices.IndexFunc(r.Tables, func(t *table) bool { return t.Name == name })
		if i < 0 {
			t.Errorf("there is no table %s", name)
			continue
		}
		for _, wanted := range rows {
			if r.Tables[i].row(wanted) == nil {
				t.Errorf("%s: no row %s; missing: %q", name, wanted, r.Tables[i].Missing)
			}
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"## Goals of the gate in front", "| **sallyport** |", "### HAProxy jwt_verify", "jwt_verify(txn.alg", "Oathkeeper: left out"} {
		if !bytes.Contains(text, []byte(part)) {
			t.Errorf("the page has no %q", part)
		}
	}
}

func newTestRace(t *testing.T) *race {
	t.Helper()
	s := &site{dir: t.TempDir()}
	t.Cleanup(s.release)
	r := &race{site: s}
	var err error
	if r.service, err = newService(); err != nil {
		t.Fatal(err)
	}
	s.later(r.service.close)
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestWhoeverLetsThroughIsDisqualified holds that the proof would not pass whatever it is shown: one that checks nothing, and one
// that remembers a token for longer than it is good.
func TestWhoeverLetsThroughIsDisqualified(t *testing.T) {
	r := newTestRace(t)
	lax := &gateway{algorithm: es256, peer: peer{name: "lax", address: r.service.address}}
	if seen, err := r.prove(lax); err == nil || !strings.Contains(err.Error(), "disqualified: it answers no token with 200") {
		t.Errorf("%q, %v", seen, err)
	}
	stale, err := r.remembered([]*gateway{lax})
	if err != nil || stale[lax] == nil || !strings.Contains(stale[lax].Error(), "disqualified") {
		t.Errorf("%v, %v", stale, err)
	}
	// One that refuses all is of no use either.
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusUnauthorized) }))
	defer refuses.Close()
	strict := &gateway{algorithm: es256, peer: peer{name: "strict", address: refuses.Listener.Addr().String()}}
	if seen, err := r.prove(strict); err == nil || !strings.Contains(err.Error(), "it answers a good token with 401") {
		t.Errorf("%q, %v", seen, err)
	}
}

func TestRefusals(t *testing.T) {
	r := newTestRace(t)
	for _, a := range algorithms() {
		list, err := r.issuer.refusals(a)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, b := range list {
			if seen[b.token] {
				t.Errorf("%s: %s is no other token", a, b.why)
			}
			seen[b.token] = true
		}
		if len(list) != 6 {
			t.Errorf("%s: %d refusals", a, len(list))
		}
		if µs, err := r.issuer.signatureAlone(a, time.Millisecond); err != nil || µs <= 0 {
			t.Errorf("%s: %v, %v", a, µs, err)
		}
	}
}

// TestAtARate holds that whatever was due is counted, and by when it was due.
func TestAtARate(t *testing.T) {
	r := newTestRace(t)
	out, err := drive(traffic{address: r.service.address, connections: 2, rate: 1000, lasts: 100 * time.Millisecond})
	if err != nil || out.count != 100 || out.p50 <= 0 || out.p99 < out.p50 {
		t.Errorf("%+v, %v; want 100 that were due", out, err)
	}
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(20 * time.Millisecond)
		w.Write([]byte("slow"))
	}))
	defer slow.Close()
	out, err = drive(traffic{address: slow.Listener.Addr().String(), connections: 1, rate: 1000, lasts: 200 * time.Millisecond})
	if err != nil || out.count != 200 || out.p50 < 50_000 {
		t.Errorf("%+v, %v; want 200 that waited for one another", out, err)
	}
}

func TestDrive(t *testing.T) {
	r := newTestRace(t)
	minted, err := r.issuer.many(eddsa, 5)
	if err != nil {
		t.Fatal(err)
	}
	next, marks := 0, 0
	before := r.service.served.Load()
	load := traffic{address: r.service.address, connections: 3, tokens: minted, next: &next, wrap: true, requests: 12, mark: func() error { marks++; return nil }}
	out, err := drive(load)
	if err != nil || out.count != 12 || marks != 2 || r.service.served.Load()-before != 12 {
		t.Errorf("%+v, %v, %d marks, %d served", out, err, marks, r.service.served.Load()-before)
	}
	load.wrap = false
	if _, err := drive(load); !errors.Is(err, errNoMoreTokens) {
		t.Errorf("tokens come again: %v", err)
	}
	closes := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") }))
	defer closes.Close()
	out, err = drive(traffic{address: closes.Listener.Addr().String(), connections: 2, requests: 6})
	if err != nil || out.count != 6 || out.broken != 6 {
		t.Errorf("connections that end: %+v, %v", out, err)
	}
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusUnauthorized) }))
	defer refuses.Close()
	if out, err := drive(traffic{address: refuses.Listener.Addr().String(), connections: 1, requests: 1}); err == nil {
		t.Errorf("a refusal was counted: %+v", out)
	}
}

// TestService holds that requests which arrive in pieces and together are answered once each.
func TestService(t *testing.T) {
	s, err := newService()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	c, err := net.Dial("tcp4", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := len(serviceAnswer())
	for _, piece := range []string{"GET / HTTP/1.1\r\nHo", "st: a\r\n\r\nGET / HTTP/1.1\r\n\r\nGET", " / HTTP/1.1\r\n\r\n"} {
		if _, err := c.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 4*want)
	for n := 0; n < 3*want; {
		m, err := c.Read(b[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if s.served.Load() != 3 {
		t.Errorf("%d requests were served", s.served.Load())
	}
}

func TestAnswerSize(t *testing.T) {
	for text, want := range map[string]struct {
		size   int
		closes bool
	}{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello":                  {43, false},
		"HTTP/1.1 200 OK\r\ncontent-length:0\r\nConnection: close\r\n\r\n":   {56, true},
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n":                           {-1, false},
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nCache-Control: a\r\n\r\nhe": {61, false},
	} {
		if size, closes, err := answerSize([]byte(text)); size != want.size || closes != want.closes || err != nil {
			t.Errorf("%q: %d, %v, %v; want %v", text, size, closes, err, want)
		}
	}
	for _, text := range []string{"HTTP/1.1 401 Unauthorized\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "SSH\r\n\r\n"} {
		if size, _, err := answerSize([]byte(text)); err == nil {
			t.Errorf("%q: %d, want an error", text, size)
		}
	}
}

// FuzzAnswerSize holds that an answer's size does not depend on what comes behind its header.
func FuzzAnswerSize(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", "body")
	f.Add("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "")
	f.Fuzz(func(t *testing.T, head, rest string) {
		size, closes, err := answerSize([]byte(head))
		if err != nil || size < 0 {
			return
		}
		if s, c, e := answerSize([]byte(head + rest)); s != size || c != closes || e != nil || size < strings.Index(head, "\r\n\r\n")+4 {
			t.Errorf("%q: %d, %v; with %q behind it %d, %v, %v", head, size, closes, rest, s, c, e)
		}
	})
}

// TestOurConfiguration holds that what is not asked for is not written, so that it is what the program does by itself.
func TestOurConfiguration(t *testing.T) {
	plain := sallyportGate{algorithm: es256, records: "written"}.yaml()
	for _, key := range []string{"engine", "token_cache", "when", "assertion", "state"} {
		if strings.Contains(plain, key) {
			t.Errorf("%s is in\n%s", key, plain)
		}
	}
	full := sallyportGate{algorithm: es256, engine: "http1", cache: "1MiB", condition: true, assertion: true, records: "written", routes: 1, state: "/x"}.yaml()
	for _, line := range []string{"  engine: http1\n", "  token_cache: {size: 1MiB}\n", "      when: claims.tenant", "  assertion: {", "state: {driver: local, path: /x}\n", "/v1/other-0/{id}"} {
		if !strings.Contains(full, line) {
			t.Errorf("%q is not in\n%s", line, full)
		}
	}
}

func TestGoalBook(t *testing.T) {
	measured := &table{Name: "t", Columns: []column{{"requests", "1/s"}, {"processor", "µs"}}, Rows: []*row{
		{Name: "a", rounds: [][]float64{{30, 1}, {40, 2}, {90, 3}}}, {Name: "b", rounds: [][]float64{{10, 1}, {20, 0}, {30, 1}}},
	}}
	g := goalBook{&table{}}
	g.ratio("three times", measured, "a", measured, "b", 0, atLeast(3))
	g.ratio("at most two", measured, "a", measured, "b", 0, atMost(2))
	g.ratio("nobody", measured, "a", measured, "c", 0, atMost(2))
	g.ratio("nothing", nil, "a", nil, "c", 0, atMost(2))
	g.ratio("divided by nothing", measured, "a", measured, "b", 1, nil)
	rows := g.t.Rows
	if len(rows) != 3 || rows[0].Figures[0] != (figure{3, 2, 3}) || !rows[0].Goal.Met || rows[1].Goal.Met || rows[2].Figures[0].Max != 3 || rows[2].Goal != nil {
		t.Errorf("%+v", rows)
	}
	if !slices.Equal(g.t.Missing, []string{"nobody", "nothing"}) {
		t.Errorf("missing: %q", g.t.Missing)
	}
}
