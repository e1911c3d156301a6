package ingress

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/access"
)

// TestAccessLog holds that each request has its line, whatever became of it, and that neither token nor query is in it.
func TestAccessLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.jsonl")
	log, err := access.Open(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, func(s *stage) { s.config.Access = log })
	token := s.token("orders:read")
	s.ask("GET /orders/7?secret=query HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + token + "\r\nConnection: close\r\n\r\n")
	s.ask("GET /nowhere HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + token + "\r\nConnection: close\r\n\r\n")
	s.ask("GET /orders/7 HTTP/1.1\nHost: a\n\n") // refused on the wire
	s.ask("GET /files/" + token + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{token, token[strings.LastIndexByte(token, '.')+1:], "secret", "query"} {
		if strings.Contains(string(data), secret) {
			t.Errorf("%q is in the log:\n%s", secret, data)
		}
	}
	var got []string
	for line := range strings.Lines(string(data)) {
		var e struct {
			ID, Path, Route, Code, Source, Protocol, Entry string
			Status                                         int
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.ID == "" || e.Source != "127.0.0.1" || e.Entry != "proxy" || e.Status == 0 {
			t.Errorf("%s", line)
		}
		got = append(got, e.Path+" "+e.Route+" "+e.Code)
	}
	want := []string{"/orders/7 read-order allowed", "/nowhere  no_route", "  bare_lf", "/files/[redacted] files missing_token"}
	for i := range want {
		if i >= len(got) || !strings.HasPrefix(got[i], want[i]) {
			t.Fatalf("%q, want %q", got, want)
		}
	}
}
