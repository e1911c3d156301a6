package ingress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/limit"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// from sends one request from an address of the loopback network.
func (s *stage) from(address, raw string) reply {
	s.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	c, err := d.DialContext(s.t.Context(), "tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	p := &peer{Conn: c, t: s.t, r: bufio.NewReader(c)}
	p.send(raw)
	method, _, _ := strings.Cut(raw, " ")
	return p.read(method)
}

func (s *stage) expect(address, raw string, status int, code string) reply {
	s.t.Helper()
	a := s.from(address, raw)
	if a.StatusCode != status || a.code != code {
		s.t.Errorf("from %s: answered %d %q, want %d %q: %.80q", address, a.StatusCode, a.code, status, code, raw)
	}
	return a
}

// openLimited is a gate with limits and a clock of its own.
func openLimited(t *testing.T, limits RateLimits, change func(*stage)) (*stage, *sallytest.Clock) {
	clock := sallytest.NewClock(time.Now())
	return open(t, func(s *stage) {
		s.config.Now, s.config.Rules.RateLimits = clock.Now, limits
		if change != nil {
			change(s)
		}
	}), clock
}

// forgery is a token that only its signature is wrong with.
func (s *stage) forgery(n int) string {
	head, _, _ := strings.Cut(s.token("orders:read"), ".")
	other := sallytest.NewIssuer(s.t).Token(map[string]any{"iss": s.issuer.URL, "sub": fmt.Sprint(n)})
	_, rest, _ := strings.Cut(other, ".")
	return bearerHeader(head + "." + rest)
}

// Whoever tries tokens is locked out, whatever it then sends and however it writes its address; nobody else is.
func TestLockout(t *testing.T) {
	s, clock := openLimited(t, RateLimits{Failures: limit.Lockout{Count: 3, Within: time.Minute, For: 10 * time.Second}}, nil)
	good := bearerHeader(s.token("orders:read"))
	for n := range 3 {
		s.expect("127.0.0.2", get("/orders/1", s.forgery(n)), 401, "bad_signature")
	}
	for _, raw := range []string{
		get("/orders/1", good), get("/health"), get("/nothing"), get("/orders/1"), get("/a/../b"), get("/orders/1", s.forgery(9)),
		get("/orders/1", good, "X-Forwarded-For: 127.0.0.3"), get("/orders/1", good, "Forwarded: for=127.0.0.3", "X-Real-IP: 127.0.0.3"),
	} {
		if a := s.expect("127.0.0.2", raw, 429, "locked_out"); a.Header.Get("Retry-After") != "10" || a.Header.Get("RateLimit") != "" || a.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("header %v", a.Header)
		}
	}
	s.service.Untouched(t)
	s.expect("127.0.0.3", get("/orders/1", good), 200, "")
	decisions, _ := s.settled(12)
	if d := decisions[4]; d.Decision != "deny" || d.Code != "locked_out" || d.Source != "127.0.0.2" || d.Route != "" {
		t.Errorf("recorded %+v", d)
	}
	clock.Advance(9*time.Second + time.Millisecond)
	if a := s.expect("127.0.0.2", get("/orders/1", good), 429, "locked_out"); a.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q with 999 ms left", a.Header.Get("Retry-After"))
	}
	clock.Advance(time.Second)
	s.expect("127.0.0.2", get("/orders/1", good), 200, "")
	if n := testutil.ToFloat64(s.gateway.metrics.limited.WithLabelValues("lockout")); n != 9 {
		t.Errorf("counted %v", n)
	}
	if log := s.log.String(); !strings.Contains(log, "a source is locked out") || !strings.Contains(log, "source=127.0.0.2") {
		t.Error("nothing is logged")
	}
}

// What happens to who was given a token locks nobody out.
func TestNoLockout(t *testing.T) {
	s, _ := openLimited(t, RateLimits{Failures: limit.Lockout{Count: 1, Within: time.Minute, For: time.Minute}}, nil)
	for _, raw := range []string{
		get("/orders/1"), get("/nothing"), get("/orders/1", bearerHeader(s.token("nothing"))), get("/orders/1", "Authorization: Basic YTpi"),
		get("/orders/1", bearerHeader(s.issuer.Token(map[string]any{"iat": time.Now().Unix() - 600, "exp": time.Now().Unix() - 300}))),
		get("/orders/1", bearerHeader(s.issuer.Token(map[string]any{"aud": "another"}))),
		get("/orders/%2E%2E/1"), "GET / HTTP/1.1\nHost: a\n\n",
	} {
		if a := s.from("127.0.0.2", raw); a.StatusCode == 200 || a.StatusCode == 429 {
			t.Errorf("%.60q: answered %d %s", raw, a.StatusCode, a.code)
		}
	}
	s.expect("127.0.0.2", get("/orders/1", bearerHeader("no.token.atall")), 401, "token_base64")
	s.expect("127.0.0.2", get("/health"), 429, "locked_out")
}

// Behind a trusted proxy the client is the source, the one that the proxy has seen and no other; the proxy is none.
func TestLockoutBehindProxy(t *testing.T) {
	s, _ := openLimited(t, RateLimits{
		Failures: limit.Lockout{Count: 3, Within: time.Minute, For: time.Minute},
		Source:   limit.Rate{Requests: 50, Per: time.Minute},
	}, func(s *stage) { s.config.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")} })
	good := bearerHeader(s.token("orders:read"))
	for n := range 3 { // each with another address that it made up
		s.expect("127.0.0.9", get("/orders/1", s.forgery(n), fmt.Sprintf("X-Forwarded-For: 192.0.2.%d, 198.51.100.1", n)), 401, "bad_signature")
	}
	s.expect("127.0.0.9", get("/orders/1", good, "X-Forwarded-For: 198.51.100.2, 198.51.100.1"), 429, "locked_out")
	s.expect("127.0.0.9", get("/orders/1", good, "X-Forwarded-For: 198.51.100.1, 198.51.100.2"), 200, "")
	s.expect("127.0.0.9", get("/orders/1", good, "X-Forwarded-For: nonsense"), 400, "forwarded_invalid")
	for n := range 60 { // more than one source may send
		s.expect("127.0.0.9", get("/health", fmt.Sprintf("X-Forwarded-For: 203.0.113.%d", n)), 200, "")
	}
	for n := range 3 {
		s.expect("127.0.0.9", get("/orders/1", s.forgery(n), "X-Forwarded-For: 2001:db8:1:1::"+fmt.Sprint(n)), 401, "bad_signature")
	}
	s.expect("127.0.0.9", get("/health", "X-Forwarded-For: 2001:db8:1:1:ffff::1"), 429, "locked_out")
	s.expect("127.0.0.9", get("/health", "X-Forwarded-For: 2001:db8:1:2::1"), 200, "")
	// Who is no proxy says nothing: it is its own address that is counted.
	for n := range 3 {
		s.expect("127.0.0.8", get("/orders/1", s.forgery(n), fmt.Sprintf("X-Forwarded-For: 192.0.2.%d", 100+n)), 401, "bad_signature")
	}
	s.expect("127.0.0.8", get("/health", "X-Forwarded-For: 192.0.2.200"), 429, "locked_out")
	s.expect("127.0.0.9", get("/health", "X-Forwarded-For: 192.0.2.100"), 200, "")
}

func TestSourceRate(t *testing.T) {
	s, clock := openLimited(t, RateLimits{Source: limit.Rate{Requests: 2, Per: time.Minute, Burst: 3}}, nil)
	for range 3 {
		s.expect("127.0.0.2", get("/health"), 200, "")
	}
	a := s.expect("127.0.0.2", get("/health"), 429, "rate_limited")
	if h := a.Header; h.Get("Retry-After") != "30" || h.Get("RateLimit-Policy") != `"source";q=2;w=60` || h.Get("RateLimit") != `"source";r=0;t=30` {
		t.Errorf("header %v", h)
	}
	s.expect("127.0.0.3", get("/health"), 200, "")
	clock.Advance(30*time.Second - time.Millisecond)
	s.expect("127.0.0.2", get("/health"), 429, "rate_limited")
	clock.Advance(time.Millisecond)
	s.expect("127.0.0.2", get("/health"), 200, "")
	s.expect("127.0.0.2", get("/health"), 429, "rate_limited")
}

func limitedRoutes(t *testing.T, r limit.Rate) *policy.Policy {
	t.Helper()
	routes := testRoutes()
	for i := range routes {
		if routes[i].Name == "read-order" || routes[i].Name == "health" {
			routes[i].Rate = r
		}
	}
	p, err := policy.New(routes)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A caller is counted wherever it comes from, and for each route apart; on a public route the source is.
func TestCallerAndRouteRate(t *testing.T) {
	s, clock := openLimited(t, RateLimits{Caller: limit.Rate{Requests: 5, Per: time.Minute}}, func(s *stage) {
		s.config.Rules.Policy = limitedRoutes(t, limit.Rate{Requests: 2, Per: time.Minute})
	})
	token := func(sub string) string {
		return bearerHeader(s.issuer.Token(map[string]any{"sub": sub, "scope": "orders:read"}))
	}
	a, b := token("a"), token("b")
	s.expect("127.0.0.2", get("/orders/1", a), 200, "")
	s.expect("127.0.0.3", get("/orders/2", a), 200, "")
	if got := s.expect("127.0.0.4", get("/orders/3", a), 429, "rate_limited"); got.Header.Get("RateLimit-Policy") != `"route";q=2;w=60` || got.Header.Get("Retry-After") != "30" {
		t.Errorf("header %v", got.Header)
	}
	decisions, _ := s.settled(3)
	if d := decisions[2]; d.Route != "read-order" || d.Subject != "a" {
		t.Errorf("recorded %+v", d)
	}
	s.expect("127.0.0.2", get("/orders/1", b), 200, "")
	s.expect("127.0.0.2", get("/events", a), 200, "")
	s.expect("127.0.0.2", get("/events", token("a")), 200, "") // another token of the same caller; the fifth request of it
	if got := s.expect("127.0.0.2", get("/events", a), 429, "rate_limited"); got.Header.Get("RateLimit-Policy") != `"caller";q=5;w=60` {
		t.Errorf("header %v", got.Header)
	}
	s.expect("127.0.0.2", get("/events", b), 200, "")
	s.expect("127.0.0.2", get("/health"), 200, "")
	s.expect("127.0.0.2", get("/health"), 200, "")
	s.expect("127.0.0.2", get("/health"), 429, "rate_limited")
	s.expect("127.0.0.3", get("/health"), 200, "")

	// A reload forgets nothing, and one that is wrong changes nothing.
	wrong := s.config.Rules
	wrong.RateLimits.Source = limit.Rate{Requests: -1, Per: time.Second}
	if err := s.gateway.Swap(wrong); err == nil {
		t.Error("a negative rate is taken")
	}
	next := s.config.Rules
	next.RateLimits.Failures = limit.Lockout{Count: 1, Within: time.Minute, For: time.Minute}
	if err := s.gateway.Swap(next); err != nil {
		t.Fatal(err)
	}
	s.expect("127.0.0.2", get("/health"), 429, "rate_limited")
	s.expect("127.0.0.2", get("/events", a), 429, "rate_limited")
	next.RateLimits, next.Policy = RateLimits{}, limitedRoutes(t, limit.Rate{})
	if err := s.gateway.Swap(next); err != nil {
		t.Fatal(err)
	}
	s.expect("127.0.0.2", get("/orders/1", a), 200, "")
	if err := s.gateway.Swap(s.config.Rules); err != nil {
		t.Fatal(err)
	}
	s.expect("127.0.0.2", get("/health"), 429, "rate_limited")
	clock.Advance(time.Minute)
	s.expect("127.0.0.2", get("/health"), 200, "")
}

// A spelling that a lenient service reads as another route's does not get around that route's rate.
func TestRateIsPartOfTheRequirement(t *testing.T) {
	public := &policy.Public{Reason: "test", Owner: "tests", Expires: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)}
	p, err := policy.New([]policy.Route{
		{Name: "login", Match: "POST /login", Public: public, Rate: limit.Rate{Requests: 1, Per: time.Minute}},
		{Name: "rest", Match: "POST /{rest...}", Public: public},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, _ := openLimited(t, RateLimits{}, func(s *stage) { s.config.Rules.Policy = p })
	s.expect("127.0.0.2", request("POST", "/login", "x"), 200, "")
	s.expect("127.0.0.2", request("POST", "/login", "x"), 429, "rate_limited")
	s.expect("127.0.0.2", request("POST", "/LOGIN", "x"), 400, "path_ambiguous")
	s.expect("127.0.0.2", request("POST", "/login/", "x"), 400, "path_ambiguous")
	s.expect("127.0.0.2", request("POST", "/other", "x"), 200, "")
}

// Many sources at once, all with forged tokens, take no memory, and free nobody who is locked out.
func TestManySources(t *testing.T) {
	s, _ := openLimited(t, RateLimits{
		Source:   limit.Rate{Requests: 5, Per: time.Minute},
		Failures: limit.Lockout{Count: 3, Within: time.Minute, For: time.Hour},
	}, func(s *stage) {
		s.config.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
		log := audit.New(io.Discard, audit.Config{})
		s.t.Cleanup(func() { log.Close() })
		s.config.Audit = log
		s.config.Logger = nil
	})
	bad := bearerHeader("no.token.atall")
	for range 3 {
		s.expect("127.0.0.1", get("/orders/1", bad, "X-Forwarded-For: 192.0.2.1"), 401, "token_base64")
	}
	const n = 20_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p := s.dial()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w := bufio.NewWriter(p)
		for i := range n {
			io.WriteString(w, get("/orders/1", bad, fmt.Sprintf("X-Forwarded-For: 2001:db8:%x:%x::1", i>>8, i&0xff)))
		}
		w.Flush()
	}()
	for range n {
		p.SetDeadline(time.Now().Add(20 * time.Second))
		if a := p.read("GET"); a.StatusCode != 401 {
			t.Fatalf("answered %d %s", a.StatusCode, a.code)
		}
	}
	<-done
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d sources left %d bytes", n, grown)
	}
	s.expect("127.0.0.1", get("/health", "X-Forwarded-For: 192.0.2.1"), 429, "locked_out")
}

func TestExplainLimits(t *testing.T) {
	s, _ := openLimited(t, RateLimits{Source: limit.Rate{Requests: 2, Per: time.Minute, Burst: 3}}, func(s *stage) {
		s.config.Rules.Policy = limitedRoutes(t, limit.Rate{Requests: 2, Per: time.Minute})
	})
	e := s.gateway.Explain(t.Context(), "GET", "/health", "api.example.com", bearer.Token{})
	want := "each source: 2 in 1m0s, 3 at once; each source on this route: 2 in 1m0s, 2 at once"
	if i := slices.IndexFunc(e.Steps, func(s Step) bool { return s.Name == "limit" }); i < 0 || e.Steps[i].Detail != want || e.Status != 0 {
		t.Errorf("explained as %+v", e)
	}
}

// An authorization server says the same of a token that it has ended and of one that it never knew. A client that has not noticed the end, and
// others behind its address, are not locked out for that; nor is who was given a token that is no access token.
func TestNoLockoutForEndedTokens(t *testing.T) {
	s := askingStage(t, func(s *stage) {
		s.config.Rules.RateLimits = RateLimits{Failures: limit.Lockout{Count: 1, Within: time.Minute, For: time.Minute}}
	})
	ended, good := s.issuer.Opaque(map[string]any{"scope": "foo"}), s.issuer.Opaque(map[string]any{"scope": "foo"})
	s.issuer.End(ended)
	for range 3 {
		s.expect("127.0.0.2", get("/privileged", bearerHeader(ended)), 401, "token_inactive")
	}
	s.expect("127.0.0.2", get("/privileged", bearerHeader(good)), 200, "")
	for _, code := range []policy.Code{
		"id_token", "legacy_token", "wrong_subject", "unbound_token", "too_many_unknown_tokens", "introspection_unavailable", "unknown_key", "keys_unavailable",
	} {
		if forged(code) {
			t.Errorf("%s locks out", code)
		}
	}
	s.expect("127.0.0.2", get("/a", bearerHeader("no.token.atall")), 401, "token_inactive") // no JWT's form: opaque
	s.expect("127.0.0.2", get("/a", bearerHeader(s.issuer.Token(map[string]any{"iss": "https://other.example"}))), 401, "unknown_issuer")
	s.expect("127.0.0.2", get("/a", bearerHeader(good)), 429, "locked_out")
}
