package main

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nats "github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sallytest"
	"github.com/sallyport/sallyport/internal/state"
)

// How long a revocation is kept unless somebody says so. Whoever has a key that leaked makes tokens with it for as long as the
// issuer publishes it: what it signs is ended for good, and not for as long as one token lives.
func TestHowLongARevocationIsKept(t *testing.T) {
	const issuer = "https://auth.example.com"
	f := &config.File{}
	f.Ingress.Issuers = []bearer.Issuer{{Issuer: issuer, MaxLifetime: 15 * time.Minute, Leeway: 10 * time.Second}}
	now := time.Now()
	lives := 15*time.Minute + 20*time.Second
	for name, c := range map[string]struct {
		asked state.Revocation
		until time.Time
	}{
		"a token":                 {state.Revocation{Issuer: issuer, TokenID: "t"}, now.Add(lives)},
		"a user":                  {state.Revocation{Issuer: issuer, Subject: "alice"}, now.Add(lives)},
		"of another issuer":       {state.Revocation{Issuer: "https://hop.example", Subject: "alice"}, now.Add(longestDay)},
		"a key":                   {state.Revocation{Issuer: issuer, KeyID: "k"}, now.AddDate(10, 0, 0)},
		"a key, as of a time":     {state.Revocation{Issuer: issuer, KeyID: "k", Before: now.Add(-time.Hour)}, now.Add(lives)},
		"as long as it was asked": {state.Revocation{Issuer: issuer, KeyID: "k", Until: now.Add(time.Hour)}, now.Add(time.Hour)},
	} {
		if got := complete(c.asked, f, now); !got.Until.Equal(c.until) {
			t.Errorf("%s is kept until %s, want %s", name, got.Until, c.until)
		}
	}
}

// A command that stands in for a sallyport that does not run waits for the cluster: what it revokes is in the servers when it
// says so, and what it lists is what they hold.
func TestRevokeInTheCluster(t *testing.T) {
	n, err := nats.NewServer(&nats.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 2 << 30})
	if err != nil {
		t.Fatal(err)
	}
	n.Start()
	defer n.WaitForShutdown()
	defer n.Shutdown()
	if !n.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server does not start")
	}
	f := &config.File{State: state.Config{Driver: state.NATS, URL: []string{n.ClientURL()}, Replicas: 1}}
	f.Audit.File = filepath.Join(t.TempDir(), "audit.jsonl")
	terminal := newTerminal(os.Stdin, io.Discard, io.Discard)
	held, err := revokeAt(t.Context(), terminal, f, state.Revocation{Issuer: "https://auth.example.com", Subject: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	err = withStore(t.Context(), terminal, f, func(_ *audit.Log, s state.Store) error {
		if list, total := s.List(1); total != 1 || list[0].Subject != held.Subject {
			t.Errorf("%d are held: %+v", total, list)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Callers that came by a hop are of issuers whose tokens are verified elsewhere: those can be ended here too.
func TestRevokeOfAHop(t *testing.T) {
	f := &config.File{}
	f.Ingress.Issuers = []bearer.Issuer{{Issuer: "https://a.example"}}
	f.Ingress.Hops = []config.Hop{{Issuer: "orders-gate", Callers: []string{"https://a.example", "https://b.example"}}}
	for issuer, known := range map[string]bool{"https://a.example": true, "https://b.example": true, "orders-gate": false, "": false} {
		r := state.Revocation{Issuer: issuer, Subject: "alice"}
		if err := whose(&r, f, false); (err == nil) != known {
			t.Errorf("%q: %v", issuer, err)
		}
	}
	f.Ingress.Hops = nil
	r := state.Revocation{Subject: "alice"}
	if err := whose(&r, f, false); err != nil || r.Issuer != "https://a.example" {
		t.Errorf("%v, %+v", err, r)
	}
}

// Whoever sends a security event slowly keeps nobody else's from being taken.
func TestSlowEvents(t *testing.T) {
	a := &admin{
		gate: &gate{audit: audit.New(io.Discard, audit.Config{}), log: slog.New(slog.DiscardHandler)}, busy: make(chan struct{}, maxEvents),
		event: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "events"}, []string{"result"}),
	}
	server := httptest.NewServer(http.HandlerFunc(a.events))
	defer server.Close()
	for range maxEvents {
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/secevent+jwt\r\nContent-Length: 9\r\n\r\n")
	}
	time.Sleep(100 * time.Millisecond) // until all of them are being read
	r, err := http.Post(server.URL, "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusBadRequest {
		t.Errorf("answered %d", r.StatusCode)
	}
}

// A reload follows the keys of hops anew. It waits for them, or it would end what every hop has passed on; and it does not wait
// for a hop that is away.
func TestReloadWaitsForHops(t *testing.T) {
	issuer := sallytest.NewIssuer(t)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(300 * time.Millisecond)
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Write(issuer.JWKS())
	}))
	defer slow.Close()
	g := &gate{log: slog.New(slog.DiscardHandler)}
	hops, err := g.followHops([]config.Hop{{Issuer: "a", Keys: bearer.Keys{URI: slow.URL}, Callers: []string{"x"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer closeHops(hops)
	g.awaitHops(t.Context(), hops, 10*time.Second)
	if err := hops[0].Keys.Ready(); err != nil {
		t.Error(err)
	}
	slow.Close()
	away, err := g.followHops([]config.Hop{{Issuer: "b", Keys: bearer.Keys{URI: slow.URL}, Callers: []string{"x"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer closeHops(away)
	began := time.Now()
	g.awaitHops(t.Context(), append(away, away...), 200*time.Millisecond)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
}
