package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// TestBothGates has callers with different rights ask at once, through the real gates, a service that sends for each of
// them what it is asked to send: by the capability of the request in hand, by somebody else's trace, and saying nothing.
func TestBothGates(t *testing.T) {
	issuer := sallytest.NewIssuer(t)
	var sent sync.Map // path: Authorization
	partner := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		sent.Store(r.URL.Path, r.Header.Get("Authorization"))
		fmt.Fprint(w, "partner")
	})
	var proxy string
	service := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		out, _ := http.NewRequestWithContext(r.Context(), "GET", r.URL.Query().Get("to"), nil)
		switch r.URL.Query().Get("as") {
		case "capability":
			out.Header.Set("Proxy-Authorization", "Bearer "+r.Header.Get("X-Sallyport-Capability"))
		case "trace":
			out.Header.Set("Traceparent", r.Header.Get("Traceparent"))
		}
		at, _ := url.Parse(proxy)
		client := &http.Client{Transport: &http.Transport{Proxy: func(*http.Request) (*url.URL, error) { return at, nil }, DisableKeepAlives: true}}
		res, err := client.Do(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		w.WriteHeader(res.StatusCode)
		io.Copy(w, res.Body)
	})
	dir := t.TempDir()
	partnerAt, serviceAt := strings.TrimPrefix(partner, "http://"), strings.TrimPrefix(service, "http://")
	if err := os.WriteFile(filepath.Join(dir, "sallyport.yaml"), fmt.Appendf(nil, `version: 1
ingress:
  listen: 127.0.0.1:0
  upstream: http://%s
  issuers: [{issuer: %q, audience: [https://orders.example.com], keys: discovery, token_types: [at+jwt, JWT]}]
  routes:
    - {name: read, match: GET /read, scopes: []}
    - {name: write, match: GET /write, scopes: [orders:write]}
egress:
  listen: 127.0.0.1:0
  destinations:
    - {name: partner, hosts: [%q], protocol: http, for: {routes: [write], scopes: [orders:write]},
       credential: {forward: {audience: https://orders.example.com, scopes: [orders:write]}}}
audit: {file: audit.jsonl}
`, serviceAt, issuer.URL, partnerAt), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := config.Read(filepath.Join(dir, "sallyport.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := openDoors(f)
	if err != nil {
		t.Fatal(err)
	}
	g, err := assemble(f, slog.New(slog.DiscardHandler), d)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{gate: g, signals: make(chan os.Signal, 1)} // as start has it, with our privileges
	proxy = "http://" + s.doors.egress.Addr().String()
	gateAt := "http://" + s.doors.data.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	if err := s.open(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	if err := waitReady(ctx, s.verifier, 5*time.Second); err != nil {
		t.Fatal(err)
	}

	token := func(scope string, n int) string {
		return issuer.Token(map[string]any{"aud": "https://orders.example.com", "scope": scope, "jti": fmt.Sprint(scope, n), "sub": fmt.Sprint(scope, "-", n)})
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(path, to, as, token string) (int, string) {
		r, _ := http.NewRequest("GET", gateAt+path+"?as="+as+"&to="+url.QueryEscape(partner+to), nil)
		r.Header.Set("Authorization", "Bearer "+token)
		res, err := client.Do(r)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		var p struct{ Code string }
		json.Unmarshal(b, &p)
		return res.StatusCode, p.Code
	}
	if status, code := get("/write", "/alone", "", token("orders:write", 0)); status != 200 {
		t.Errorf("alone, saying nothing: %d %s", status, code)
	}
	var wg sync.WaitGroup
	for n := 1; n <= 8; n++ {
		wg.Go(func() {
			reader, writer := token("orders:read", n), token("orders:write", n)
			path := fmt.Sprintf("/by-%d", n)
			for range 4 {
				if status, code := get("/write", path, "capability", writer); status != 200 {
					t.Errorf("a writer by its capability: %d %s", status, code)
				}
				if got, _ := sent.Load(path); got != "Bearer "+writer {
					t.Errorf("writer %d was sent with somebody else's token", n)
				}
				if status, code := get("/read", "/refused", "capability", reader); status != 403 || code != "cause_not_allowed" {
					t.Errorf("a reader by its capability: %d %s", status, code)
				}
				if status, code := get("/write", "/refused", "", writer); status != 403 || code != "cause_not_allowed" {
					t.Errorf("a writer that says nothing: %d %s", status, code)
				}
				if status, code := get("/write", "/refused", "trace", writer); status != 403 || code != "cause_not_allowed" {
					t.Errorf("a writer by its trace: %d %s", status, code)
				}
			}
		})
	}
	wg.Wait()
	if _, ok := sent.Load("/refused"); ok {
		t.Error("what was refused has left")
	}

	// What is revoked while it is being served ends behind it too.
	lost := s.flight.Sweep(func(r *cause.Request) *cause.Lost {
		if r.Caller != nil && strings.HasPrefix(r.Caller.Subject, "orders:write") {
			return &cause.Lost{Code: "revoked", Reason: "a test"}
		}
		return nil
	})
	if lost == 0 {
		t.Error("none in its tail loses its standing")
	}
	book, err := os.ReadFile(filepath.Join(dir, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(book) {
		var e struct {
			Kind, Point, Decision, Subject string
			Detail                         struct {
				Level    string
				Requests []string
			}
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		if e.Kind == "decision" && e.Point == "egress" && e.Decision == "allow" && (!strings.HasPrefix(e.Subject, "orders:write-") || len(e.Detail.Requests) != 1) {
			t.Errorf("allowed: %s", line)
		}
	}
}

// httpServer serves on loopback until the test ends.
func httpServer(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-done })
	return "http://" + l.Addr().String()
}
