package e2e

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/policy"
)

// gate is the gateway in this process, wired as the program wires it.
type gate struct {
	addr string
	book *transcript // the audit log
	stop func()      // drains, and ends everything
}

// startGate puts the gateway in front of a service, with an engine of its configuration's.
func startGate(t testing.TB, engine, upstream, issuer, audience string, routes []policy.Route) *gate {
	t.Helper()
	to, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.New(routes)
	if err != nil {
		t.Fatal(err)
	}
	v, err := bearer.NewVerifier([]bearer.Issuer{{
		Issuer: issuer, Audience: []string{audience}, Keys: bearer.Keys{Discovery: true},
	}}, bearer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{book: new(transcript)}
	log := audit.New(g.book, audit.Config{})
	gateway, err := ingress.New(ingress.Config{
		Upstream: to, Audit: log, Rules: ingress.Rules{Policy: p, Verifier: v}, Engine: engine,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- gateway.Serve(ctx, l) }()
	ended := false
	g.stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		v.Close()
		if err := log.Close(); err != nil {
			t.Errorf("close the audit log: %v", err)
		}
	}
	t.Cleanup(g.stop)
	eventually(t, 20*time.Second, "the issuer's keys are there", func() bool { return v.Ready() == nil })
	return g
}

// TestDifferential is the differential fuzz of the gate against real routers: no raw target runs a handler that the policy
// did not decide for. TestDifferentialControl shows that it can fail.
func TestDifferential(t *testing.T) {
	t.Parallel()
	as := startAuthServer(t, []resource{{fuzzAudience, "ES256", fuzzScopes()}}, client{
		ID: "fuzzer", Lifetime: 3000, Claims: map[string]any{"tenant": "acme"},
	})
	token := as.token(t, "fuzzer", fuzzAudience, fuzzScopes()...)
	for i, router := range routers {
		t.Run(router, func(t *testing.T) {
			t.Parallel()
			b := startBackend(t, router)
			for k, open := range []bool{false, true} {
				t.Run(map[bool]string{false: "closed", true: "open"}[open], func(t *testing.T) {
					engine := []string{"net/http", "http1"}[(i+k)%2] // each before every router
					g := startGate(t, engine, b.URL, as.Issuer, fuzzAudience, fuzzRoutes(open))
					differ(t, g, b, token, newGenerator(fuzzSeed(t)+uint64(2*i+k)), open)
				})
			}
		})
	}
}

func differ(t *testing.T, g *gate, b *backend, token string, gen *generator, open bool) {
	statuses := send(t, g.addr, token, gen.honest())
	_, honest := runs(b.journal(t))
	for _, r := range fuzzRoutes(open) {
		if r.Name == "site" || len(r.Upgrades) > 0 || honest[handlerOf(r.Name)] > 0 {
			continue
		}
		t.Errorf("no honest request ran %s: what the fuzz says of it is empty", r.Name)
	}
	if honest["websocket"] == 0 || honest["socket"] == 0 {
		t.Errorf("no honest request opened a socket: %v", honest)
	}
	fmt.Fprintln(t.Output(), "honest requests:", statuses)

	statuses = send(t, g.addr, token, gen.mutants(fuzzSize(t)))
	journal := b.journal(t)
	g.stop()
	decisions := decisionsOf(t, g.book.String())
	found := disagreements(journal, decisions)
	total, by := runs(journal)
	allowed := 0
	for _, d := range decisions {
		if d.allowed {
			allowed++
		}
	}
	for _, e := range journal {
		if e.Kind == "malformed" {
			found = append(found, "the gate forwarded what node refuses to parse")
		}
	}
	t.Logf("%v answers; %d decisions, %d allowed; %d handlers ran: %v", statuses, len(decisions), allowed, total, by)
	if total < fuzzSize(t)/50 || len(by) < 10 {
		t.Errorf("only %d runs of %d handlers: the fuzz hardly reaches the service", total, len(by))
	}
	if len(found) > 0 {
		t.Errorf("%d disagreements:\n%s", len(found), sample(found, 20))
	}
}
