package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
)

// ratesServer is the one other service that the example asks. It keeps what it was asked with.
type ratesServer struct {
	*httptest.Server
	mu    sync.Mutex
	asked []http.Header
}

func startRates(t testing.TB) *ratesServer {
	t.Helper()
	s := &ratesServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.Header.Clone())
		s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"base":%q,"rates":{"USD":1.25}}`, r.URL.Query().Get("base"))
	}))
	t.Cleanup(s.Close)
	return s
}

// address is where it listens.
func (s *ratesServer) address() string { return strings.TrimPrefix(s.URL, "http://") }

// heard returns the headers of all requests since the last call.
func (s *ratesServer) heard() []http.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

// TestRates has the example ask another service, with Node's own fetch and no word about proxies: it reaches what a
// destination names, and after a reload that names it no more it does not.
func TestRates(t *testing.T) {
	t.Parallel()
	as, rates := ordersServer(t), startRates(t)
	l := orders(t, as, "express")
	l.env = append(l.env, "RATES_URL="+rates.URL+"/v1/rates")
	l.over = setting{"egress": setting{"destinations": []setting{
		{"name": "rates", "hosts": []string{rates.address()}, "for": setting{"routes": []string{"rates"}}, "protocol": "http", "methods": []string{"GET"}, "paths": []string{"/v1/rates"}},
	}}}
	p := startProduct(t, l)
	clerk := as.token(t, "clerk", ordersAudience, "orders:read")

	a := p.fetch(t, http.MethodGet, "/rates?base=EUR", clerk, nil)
	if a.status != http.StatusOK || !strings.Contains(string(a.body), `"base":"EUR"`) {
		t.Fatalf("ask for rates: %d %s", a.status, a.body)
	}
	heard := rates.heard()
	if len(heard) != 1 || heard[0].Get("Authorization") != "" {
		t.Errorf("the other service heard %v", heard)
	}
	if r := p.outgoing(t, "allowed"); r.Detail["destination"] != "rates" || r.Path != "/v1/rates" {
		t.Errorf("the record: %+v", r)
	}

	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	closed := strings.ReplaceAll(string(text), rates.address(), "rates.example.com:80")
	if err := os.WriteFile(p.config, []byte(closed), 0o644); err != nil {
		t.Fatal(err)
	}
	if status, body := p.admin(t, http.MethodPost, "/reload"); status != http.StatusNoContent {
		t.Fatalf("reload: %d %s", status, body)
	}
	if a := p.fetch(t, http.MethodGet, "/rates?base=EUR", clerk, nil); a.status != http.StatusBadGateway {
		t.Errorf("ask for rates where no destination names them: %d %s", a.status, a.body)
	}
	if heard := rates.heard(); len(heard) != 0 {
		t.Errorf("the other service heard %v", heard)
	}
	p.outgoing(t, "destination_unknown")
	p.signal(t, os.Interrupt)
	p.complete(t)
}

// outgoing finds the last record of the gate behind, which must have the code.
func (p *product) outgoing(t testing.TB, code string) auditLine {
	t.Helper()
	var last auditLine
	for _, l := range readAudit(t, p.book(t)) {
		if l.Point == "egress" && !l.outcome() {
			last = l
		}
	}
	if last.Code != code {
		t.Errorf("the last outgoing record is %+v, want the code %s", last, code)
	}
	return last
}
