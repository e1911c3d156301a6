package ingress

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// A fading context ends the n-th time that somebody asks whether it has: at every point where the line looks.
type fading struct {
	context.Context
	mu   sync.Mutex
	left int
	done chan struct{}
}

func (c *fading) Done() <-chan struct{} { return c.done }

func (c *fading) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left > 0 {
		return nil
	}
	if c.left == 0 {
		close(c.done)
	}
	return context.Canceled
}

// H28: wherever the request's context ends on the way to the decision, there is no allow, and nothing is forwarded.
func TestCanceledAnywhere(t *testing.T) {
	s := setStage(t, nil)
	token := s.token("orders:read")
	allowed := false
	for n := 1; n < 100 && !allowed; n++ {
		ctx := &fading{Context: context.Background(), left: n, done: make(chan struct{})}
		r := httptest.NewRequest("GET", "/orders/1", nil).WithContext(ctx)
		r.Header.Set("Authorization", "Bearer "+token)
		before, _ := s.audit.entries(t)
		w := httptest.NewRecorder()
		func() {
			defer func() { recover() }() // a request that ends while it is forwarded is aborted
			s.gateway.ServeHTTP(w, r)
		}()
		d, o := s.settled(len(before) + 1)
		last := d[len(d)-1]
		ctx.mu.Lock()
		faded := ctx.left <= 0
		ctx.mu.Unlock()
		switch {
		case !faded:
			allowed = true // the line looked less often than n times: it went through
			if last.Decision != "allow" || w.Code != 200 || n < 7 {
				t.Errorf("at %d: %+v, answered %d", n, last, w.Code)
			}
			continue
		case last.Decision == "allow" && o[len(o)-1].Error == "":
			t.Errorf("ended at %d, and allowed: %+v", n, o[len(o)-1])
		case last.Decision == "deny" && (w.Code != 503 || last.Code != "canceled" && last.Code != "verification_canceled"):
			t.Errorf("ended at %d: %+v, answered %d", n, last, w.Code)
		}
		if s.service.Bytes() > 0 {
			t.Fatalf("ended at %d, and forwarded", n)
		}
	}
	if !allowed {
		t.Error("the line never went through")
	}
}

// H29: a panic anywhere is a denial with an outcome, and the process lives.
func TestPanics(t *testing.T) {
	var when atomic.Int32 // which reading of the clock panics
	var key atomic.Bool
	s := open(t, func(s *stage) {
		s.config.Now = func() time.Time {
			if when.Add(-1) == 0 {
				panic("the clock has " + "stopped")
			}
			return time.Now()
		}
		sign := s.config.Rules.Assert.Key
		s.config.Rules.Assert = &identity.Signer{Issuer: "sallyport", Audience: "orders", Key: func() identity.Key {
			if key.Load() {
				_ = []byte(strings.TrimSpace(" "))[0]
			}
			return sign()
		}}
	})
	raw := get("/orders/1", bearerHeader(s.token("orders:read")))
	when.Store(2) // begin, then decide
	s.denied(raw, 500, "internal_error")
	key.Store(true)
	a, _ := s.ask(raw)
	if a.StatusCode != 500 || a.code != "internal_error" {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
	s.service.Untouched(t)
	d, o := s.settled(2)
	if d[1].Decision != "allow" || o[1].Error != "internal_error" || o[1].Status != 500 {
		t.Errorf("recorded %+v, %+v", d[1], o[1])
	}
	key.Store(false)
	if a, _ := s.ask(raw); a.StatusCode != 200 {
		t.Errorf("afterwards: %d", a.StatusCode)
	}
	if n := s.gateway.inFlight.Load(); n != 0 {
		t.Errorf("%d requests in flight", n)
	}
	if log := s.log.String(); strings.Contains(log, "stopped") || !strings.Contains(log, "index out of range") {
		t.Errorf("the log has the value of a panic, or not the runtime's: %s", log)
	}
}

// No record, no action.
func TestAuditThatFails(t *testing.T) {
	s := open(t, nil)
	raw := get("/orders/1", bearerHeader(s.token("orders:read")))
	s.audit.fail(errors.New("no space left"))
	for _, raw := range []string{raw, get("/health"), get("/nothing"), "GET / HTTP/1.1\nHost: a\n\n"} {
		if a, _ := s.ask(raw); a.StatusCode != 503 || a.code != "audit_unavailable" {
			t.Errorf("answered %d %s", a.StatusCode, a.code)
		}
	}
	s.service.Untouched(t)
	s.audit.fail(nil)
	eventually(t, "the log takes records again", func() bool { a, _ := s.ask(raw); return a.StatusCode == 200 })
}

// Limits.Requests: more are told to come back.
func TestOverload(t *testing.T) {
	release := make(chan struct{})
	s := open(t, func(s *stage) {
		s.config.Limits.Requests = 2
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, _ *http.Request) {
			<-release
			io.WriteString(w, "HTTP/1.1 204 No Content\r\n\r\n")
		})
	})
	first, second := s.dial(), s.dial()
	first.send(get("/health"))
	second.send(get("/health"))
	eventually(t, "two requests in flight", func() bool { return s.service.Requests() == 2 })
	a, p := s.ask(get("/health"))
	if a.StatusCode != 503 || a.code != "overloaded" || a.Header.Get("Retry-After") != "1" {
		t.Errorf("answered %d %s %v", a.StatusCode, a.code, a.Header)
	}
	close(release)
	first.read("GET")
	second.read("GET")
	s.settled(3)
	p.send(get("/health"))
	if a := p.read("GET"); a.StatusCode != 204 {
		t.Errorf("afterwards: %d", a.StatusCode)
	}
	if n := s.service.Requests(); n != 3 {
		t.Errorf("%d requests reached the service", n)
	}
}

// Limits.Connections: more wait, and get their turn.
func TestConnectionLimit(t *testing.T) {
	s := open(t, func(s *stage) { s.config.Limits.Connections = 2 })
	var peers []*peer
	for range 3 {
		p := s.dial()
		p.send(get("/health"))
		peers = append(peers, p)
	}
	peers[0].read("GET")
	peers[1].read("GET")
	peers[2].SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if b, err := peers[2].r.Peek(1); err == nil {
		t.Errorf("the third was served: %q", b)
	}
	peers[2].SetReadDeadline(time.Now().Add(20 * time.Second))
	peers[0].Close()
	peers[2].r.Reset(peers[2].Conn)
	if a := peers[2].read("GET"); a.StatusCode != 200 {
		t.Errorf("the third, in its turn: %d", a.StatusCode)
	}
}

// C08: whatever a client does with its token, no sink has it afterwards but the client's own path and headers.
func TestTokenIsNowhere(t *testing.T) {
	s := open(t, nil)
	good := s.token("orders:read")
	bad := good[:len(good)-4] + "AAAA"
	expired := s.issuer.Token(map[string]any{"iat": 1700000000, "exp": 1700000300})
	opaque := "opaque-" + rand.Text()
	var answers strings.Builder
	for _, raw := range []string{
		get("/orders/1", bearerHeader(good)),
		get("/orders/1", bearerHeader(bad)),
		get("/orders/1", bearerHeader(expired)),
		get("/orders/1", bearerHeader(opaque)),
		get("/orders/1", bearerHeader(good)+" "),
		get("/orders/1", bearerHeader(good)+" x"),
		get("/orders/1", "Authorization: Token "+good),
		get("/orders/1", bearerHeader(good), bearerHeader(opaque)),
		get("/orders/1?access_token=" + good),
		get("/orders/1?access_token="+opaque, bearerHeader(bad)),
		get("/health?access_token=" + opaque),
		get("/nothing", bearerHeader(good), "Referer: http://a/?access_token="+opaque),
		get("/orders/"+good, bearerHeader(good)+"x"),
		get("/public/../" + good),
		get("/orders/1?access_token="+good+";", bearerHeader(bad)),
		"GET /orders/1?access_token=" + opaque + " HTTP/1.1\nHost: a\n\n",
		"GET http://a/?access_token=" + opaque + " HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + good + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nAuthorization : Bearer " + opaque + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: " + good + "\r\nAuthorization: Bearer " + opaque + "\r\n\r\n",
		request("POST", "/upload", "access_token="+opaque, "Content-Type: application/x-www-form-urlencoded", bearerHeader(expired)),
	} {
		a, _ := s.ask(raw)
		answers.WriteString(a.body)
		for name, values := range a.Header {
			answers.WriteString(name + ": " + strings.Join(values, ",") + "\n")
		}
	}
	s.settled(20)
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var metrics strings.Builder
	for _, f := range families {
		metrics.WriteString(f.String())
	}
	for sink, text := range map[string]string{"audit": s.audit.String(), "log": s.log.String(), "answers": answers.String(), "metrics": metrics.String(), "service": string(s.service.Raw())} {
		for _, token := range []string{good, bad, expired, opaque} {
			// half of it is too much already
			if strings.Contains(text, token) || strings.Contains(text, token[len(token)/2:]) {
				t.Errorf("%s has a token:\n%s", sink, text)
			}
		}
	}
	if metrics.Len() == 0 || !strings.Contains(s.audit.String(), "redacted") {
		t.Error("a sink that should have something is empty")
	}
}

// Labels are of the configuration, never of the request.
func TestMetrics(t *testing.T) {
	s := open(t, nil)
	for _, raw := range []string{
		get("/orders/1", bearerHeader(s.token("orders:read"))), get("/orders/2"), get("/weird/path"), request("BREW", "/health", ""), "GET /x HTTP/1.1\nHost: a\n\n",
	} {
		s.ask(raw)
	}
	s.settled(5)
	eventually(t, "all are counted", func() bool { return counted(t, s.registry, "sallyport_ingress_requests_total") == 5 })
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{
		"allowed read-order 2xx": true, "missing_token read-order 4xx": true, "no_route  4xx": true, "method_not_allowed  4xx": true, "bare_lf  4xx": true,
	}
	for _, f := range families {
		if f.GetName() != "sallyport_ingress_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			key := labels["code"] + " " + labels["route"] + " " + labels["class"]
			if !want[key] || len(labels) != 4 || labels["entry"] != "proxy" {
				t.Errorf("unexpected labels %v", labels)
			}
			delete(want, key)
		}
	}
	if len(want) > 0 {
		t.Errorf("not counted: %v", want)
	}
	if n := counted(t, s.registry, "sallyport_ingress_wire_refusals_total"); n != 1 {
		t.Errorf("%v wire refusals", n)
	}
	if _, err := New(s.config); err == nil {
		t.Error("a second gateway on one registry builds, and would count into the first")
	}
}

func counted(t *testing.T, r *prometheus.Registry, name string) (sum float64) {
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// Reload: requests that begin afterwards see the new rules, whole; what is incomplete changes nothing.
func TestSwap(t *testing.T) {
	s := open(t, nil)
	token := bearerHeader(s.token("orders:read"))
	p := s.dial()
	p.send(get("/orders/1", token))
	if a := p.read("GET"); a.StatusCode != 200 {
		t.Fatalf("answered %d", a.StatusCode)
	}
	// Of these a client says what it likes, and the service sees what we say, or nothing.
	for _, name := range []string{"x-real-ip", "x-forwarded-for", "x-request-id", "x-remote-user", "te", "connection", "upgrade", "x-caller"} {
		p, err := policy.New([]policy.Route{{Name: "a", Match: "GET /a", When: "true", Headers: []string{name}}})
		if err != nil {
			t.Fatal(err)
		}
		rules := s.config.Rules
		rules.Policy, rules.AssertHeader = p, "X-Caller"
		if err := s.gateway.Swap(rules); err == nil || !strings.Contains(err.Error(), http.CanonicalHeaderKey(name)) {
			t.Errorf("a condition may read %s: %v", name, err)
		}
	}
	for _, r := range []Rules{{}, {Policy: s.config.Rules.Policy}, {Verifier: s.config.Rules.Verifier},
		{Policy: s.config.Rules.Policy, Verifier: s.config.Rules.Verifier, AssertHeader: "Content-Length"}} {
		if err := s.gateway.Swap(r); err == nil {
			t.Errorf("%+v was taken", r)
		}
	}
	p.send(get("/orders/1", token))
	if a := p.read("GET"); a.StatusCode != 200 {
		t.Errorf("after refused rules: %d", a.StatusCode)
	}
	none, err := policy.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	rules := s.config.Rules
	rules.Policy = none
	if err := s.gateway.Swap(rules); err != nil {
		t.Fatal(err)
	}
	p.send(get("/orders/1", token))
	if a := p.read("GET"); a.StatusCode != 404 {
		t.Errorf("after the swap: %d", a.StatusCode)
	}
}

// A gateway that could only ever be wrong does not build.
func TestNewRefuses(t *testing.T) {
	s := setStage(t, nil)
	s.config.Metrics = nil
	for name, change := range map[string]func(*Config){
		"no policy":             func(c *Config) { c.Rules.Policy = nil },
		"no verifier":           func(c *Config) { c.Rules.Verifier = nil },
		"no audit log":          func(c *Config) { c.Audit = nil },
		"no upstream":           func(c *Config) { c.Upstream = nil },
		"engine unknown":        func(c *Config) { c.Engine = "http2" },
		"https upstream":        func(c *Config) { c.Upstream = mustURL(t, "https://127.0.0.1:1") },
		"upstream with a path":  func(c *Config) { c.Upstream = mustURL(t, "http://127.0.0.1:1/x") },
		"upstream with a user":  func(c *Config) { c.Upstream = mustURL(t, "http://u:p@127.0.0.1:1") },
		"unix without path":     func(c *Config) { c.Upstream = mustURL(t, "unix:///") },
		"everybody trusted":     func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} },
		"everybody, IPv6":       func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("::/0")} },
		"nobody trusted":        func(c *Config) { c.TrustedProxies = []netip.Prefix{{}} },
		"negative limit":        func(c *Config) { c.Limits.BodyBytes = -1 },
		"realm with a quote":    func(c *Config) { c.Realm = `a"b` },
		"metadata with a quote": func(c *Config) { c.ResourceMetadata = `https://a/"` },
		"assertion in Host":     func(c *Config) { c.Rules.AssertHeader = "host" },
		"assertion in X_Y":      func(c *Config) { c.Rules.AssertHeader = "X_Y" },
		"cors without origins":  func(c *Config) { c.Rules.CORS = &CORS{} },
		"cors open to all users": func(c *Config) {
			c.Rules.CORS = &CORS{Origins: []string{"*"}, Credentials: true}
		},
		"cors with a path": func(c *Config) { c.Rules.CORS = &CORS{Origins: []string{"https://a/"}} },
	} {
		c := s.config
		change(&c)
		if g, err := New(c); err == nil || g != nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(s.config); err != nil {
		t.Errorf("the unchanged one: %v", err)
	}
}

// The line up to the decision, for a request that is not there.
func TestExplain(t *testing.T) {
	s := setStage(t, nil)
	token := bearer.NewToken(s.token("orders:read"))
	for _, c := range []struct {
		method, target string
		token          bearer.Token
		steps          string
		code           policy.Code
		route          string
		status         int
	}{
		{"GET", "/orders/1", token, "canonical route token verify proof standing decide", "allowed", "read-order", 0},
		{"GET", "/orders/1", bearer.Token{}, "canonical route token!", "missing_token", "read-order", 401},
		{"GET", "/orders/1", bearer.NewToken("a.b.c"), "canonical route token verify!", "", "read-order", 401},
		{"GET", "/admin", token, "canonical route token verify proof standing decide!", "insufficient_scope", "admin", 403},
		{"GET", "/health", bearer.Token{}, "canonical route token verify proof standing decide", "public", "health", 0},
		{"GET", "/a/../b", token, "canonical!", "path_noncanonical", "", 400},
		{"PUT", "/nothing", token, "canonical route!", "no_route", "", 404},
	} {
		e := s.gateway.Explain(t.Context(), c.method, c.target, "api.example.com", c.token)
		var steps []string
		for _, step := range e.Steps {
			if step.Detail == "" {
				t.Errorf("%s %s: step %s says nothing", c.method, c.target, step.Name)
			}
			if !step.OK {
				step.Name += "!"
			}
			steps = append(steps, step.Name)
		}
		if got := strings.Join(steps, " "); got != c.steps || c.code != "" && e.Decision.Code != c.code || e.Route != c.route || e.Status != c.status ||
			e.Decision.Allowed() != (c.status == 0) {
			t.Errorf("%s %s: %q %s %s %d", c.method, c.target, got, e.Decision.Code, e.Route, e.Status)
		}
	}
	s.service.Untouched(t)
	if s.audit.String() != "" || s.gateway.inFlight.Load() != 0 {
		t.Error("an explanation left a trace")
	}
}

// H18: no code of the gate reads User-Agent, so that no decision can depend on it.
func TestNobodyReadsUserAgent(t *testing.T) {
	var files []string
	for _, folder := range []string{".", "../wire", "../policy", "../jws", "../../bearer"} {
		found, err := filepath.Glob(folder + "/*.go")
		if err != nil || len(found) < 5 {
			t.Fatal(folder, found, err)
		}
		files = append(files, found...)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.ToLower(string(b)); strings.Contains(text, "user-agent") || strings.Contains(text, "useragent") {
			t.Errorf("%s speaks of the user agent", f)
		}
	}
}
