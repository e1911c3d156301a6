package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(engines{m}) }

// engines runs all tests once for each engine: what they hold does not depend on it.
type engines struct{ m *testing.M }

// engine is that of the stages of this run.
var engine string

func (e engines) Run() int {
	code := 0
	for _, engine = range []string{engineStandard, engineOwn} {
		if only := os.Getenv("SALLYPORT_TEST_ENGINE"); only != "" && only != engine {
			continue
		}
		if os.Getenv("SALLYPORT_PLAY") == "" {
			fmt.Fprintln(os.Stderr, "engine:", engine)
		} else if engine != engineStandard {
			break
		}
		code = max(code, e.m.Run())
	}
	return code
}

// A book is a file in memory that tests may read while it is written.
type book struct {
	mu  sync.Mutex
	b   bytes.Buffer
	err error // answered to every write, if set
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	return b.b.Write(p)
}

func (b *book) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *book) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

// entry is a line of the audit log.
type entry struct {
	Kind     string
	ID       string
	Decision string
	Code     string
	Reason   string
	Route    string
	Method   string
	Path     string
	Host     string
	Source   string
	Subject  string
	Status   int
	BytesIn  int64 `json:"bytes_in"`
	BytesOut int64 `json:"bytes_out"`
	Error    string

	Transaction string
	Workloads   []string
}

func (b *book) entries(t testing.TB) (decisions, outcomes []entry) {
	t.Helper()
	for line := range strings.SplitSeq(strings.TrimSpace(b.String()), "\n") {
		if line == "" {
			continue
		}
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("audit line %q: %v", line, err)
		}
		switch e.Kind {
		case "decision":
			decisions = append(decisions, e)
		case "outcome":
			outcomes = append(outcomes, e)
		}
	}
	return decisions, outcomes
}

// A stage is a gateway that serves, and everything around it, all real.
type stage struct {
	t        testing.TB
	gateway  *Gateway
	config   Config
	addr     string
	issuer   *sallytest.Issuer
	service  *sallytest.Recorder // nil if the test brings its own
	audit    *book
	log      *book
	registry *prometheus.Registry
	keys     map[string]ed25519.PublicKey
	leeway   time.Duration // of the issuer, if set
	stop     func() error  // ends Serve and returns its error; once
}

func testRoutes() []policy.Route {
	public := &policy.Public{Reason: "test", Owner: "tests", Expires: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)}
	return []policy.Route{
		{Name: "read-order", Match: "GET /orders/{id}", Scopes: []string{"orders:read"}},
		{Name: "create-order", Match: "POST /orders", Scopes: []string{"orders:write"}},
		{Name: "own-order", Match: "GET /mine/{id}", When: `claims.sub == path.id`},
		{Name: "broken", Match: "GET /broken/{id}", When: `claims.nothing.at.all == path.id`},
		{Name: "beta", Match: "GET /beta", When: `request.header["x-version"] == "2"`, Headers: []string{"x-version"}},
		{Name: "admin", Match: "GET /admin", Scopes: []string{"admin"}},
		{Name: "files", Match: "GET /files/{name}", AnyCaller: true, AllowInPath: []string{"%2F"}},
		{Name: "upload", Match: "POST /upload", AnyCaller: true},
		{Name: "events", Match: "GET /events", AnyCaller: true},
		{Name: "calls", Match: "POST /grpc.testing.TestService/{method}", AnyCaller: true},
		{Name: "socket", Match: "GET /socket", AnyCaller: true, Upgrades: []string{"websocket"}},
		{Name: "options", Match: "OPTIONS /options", AnyCaller: true},
		{Name: "health", Match: "GET /health", Public: public},
		{Name: "public", Match: "GET /public/{rest...}", Public: public},
		{Name: "hook", Match: "POST /hook", Public: public},
		{Name: "closed", Match: "GET /closed", Public: &policy.Public{Reason: "test", Owner: "tests", Expires: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}},
	}
}

// setStage builds a gateway before a Recorder, or before upstream if that is set, changed by change.
func setStage(t testing.TB, change func(*stage)) *stage {
	t.Helper()
	s := &stage{t: t, issuer: sallytest.NewIssuer(t), audit: &book{}, log: &book{}, registry: prometheus.NewRegistry(), keys: map[string]ed25519.PublicKey{}}
	jwks := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(jwks, s.issuer.JWKS(), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := policy.New(testRoutes())
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := identity.Key{ID: identity.Thumbprint(public), Private: private}
	s.keys[key.ID] = public
	log := audit.New(s.audit, audit.Config{})
	t.Cleanup(func() { log.Close() })
	s.config = Config{
		Rules: Rules{
			Policy: p,
			Assert: &identity.Signer{Issuer: "sallyport", Audience: "orders", Key: func() identity.Key { return key }},
		},
		Audit: log, Metrics: s.registry, Engine: engine,
		Logger: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(s)
	}
	if s.config.Rules.Verifier == nil {
		verifier, err := bearer.NewVerifier([]bearer.Issuer{{
			Issuer: s.issuer.URL, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{File: jwks}, Leeway: s.leeway,
		}}, bearer.Options{Bound: true, Remember: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(verifier.Close)
		s.config.Rules.Verifier = verifier
	}
	if s.config.Upstream == nil && !s.config.AskOnly {
		if s.service == nil {
			s.service = sallytest.NewRecorder(t)
		}
		s.config.Upstream = mustURL(t, s.service.URL)
	}
	if s.gateway, err = New(s.config); err != nil {
		t.Fatal(err)
	}
	return s
}

// open is setStage, and the gateway serves on a listener.
func open(t testing.TB, change func(*stage)) *stage {
	t.Helper()
	s := setStage(t, change)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.serve(l)
	return s
}

func (s *stage) serve(l net.Listener) {
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.gateway.Serve(ctx, l) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(30 * time.Second):
			return errors.New("Serve did not end")
		}
	})
	s.t.Cleanup(func() {
		if err := s.stop(); err != nil {
			s.t.Errorf("Serve: %v", err)
		}
	})
}

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// token is a good one.
func (s *stage) token(scope string) string {
	return s.issuer.Token(map[string]any{"scope": scope})
}

// A peer is a raw connection to the gate.
type peer struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func (s *stage) dial() *peer {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return &peer{Conn: c, t: s.t, r: bufio.NewReader(c)}
}

func (p *peer) send(raw string) {
	p.t.Helper()
	if _, err := io.WriteString(p, raw); err != nil {
		p.t.Fatalf("send: %v", err)
	}
}

// reply is an answer, read whole.
type reply struct {
	*http.Response
	body string
	code string // of a problem body
}

func (p *peer) read(method string) reply {
	p.t.Helper()
	res, err := http.ReadResponse(p.r, &http.Request{Method: method})
	if err != nil {
		p.t.Fatalf("read the answer: %v", err)
	}
	for res.StatusCode < 200 && res.StatusCode != 101 {
		if res, err = http.ReadResponse(p.r, &http.Request{Method: method}); err != nil {
			p.t.Fatalf("read the answer behind an informational one: %v", err)
		}
	}
	if res.StatusCode == 101 {
		return reply{Response: res}
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatalf("read the body: %v", err)
	}
	a := reply{Response: res, body: string(b)}
	if res.Header.Get("Content-Type") == "application/problem+json" && len(b) > 0 {
		var problem struct {
			Type, Title, Code string
			Status            int
			RequestID         string `json:"request_id"`
		}
		if err := json.Unmarshal(b, &problem); err != nil {
			p.t.Fatalf("problem body %q: %v", b, err)
		}
		if problem.Status != res.StatusCode || problem.RequestID != res.Header.Get("X-Request-Id") || problem.RequestID == "" {
			p.t.Errorf("problem body %q does not fit its header %v", b, res.Header)
		}
		a.code = problem.Code
	}
	return a
}

// closed reports whether the gate has closed the connection, and nothing more came.
func (p *peer) closed() bool {
	b, err := io.ReadAll(p.r)
	if len(b) > 0 {
		p.t.Errorf("more came: %q", b)
	}
	return err == nil || strings.Contains(err.Error(), "reset")
}

// ask sends one request on a connection of its own.
func (s *stage) ask(raw string) (reply, *peer) {
	s.t.Helper()
	p := s.dial()
	p.send(raw)
	method, _, _ := strings.Cut(raw, " ")
	return p.read(method), p
}

// get makes a request without body.
func get(target string, headers ...string) string {
	return request("GET", target, "", headers...)
}

func request(method, target, body string, headers ...string) string {
	var b strings.Builder
	b.WriteString(method + " " + target + " HTTP/1.1\r\nHost: api.example.com\r\n")
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	if body != "" {
		b.WriteString("Content-Length: " + itoa(len(body)) + "\r\n")
	}
	b.WriteString("\r\n" + body)
	return b.String()
}

func itoa(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}

func bearerHeader(token string) string { return "Authorization: Bearer " + token }

// settled waits until every decision has its outcome, and returns both.
func (s *stage) settled(n int) (decisions, outcomes []entry) {
	s.t.Helper()
	for range 1000 {
		decisions, outcomes = s.audit.entries(s.t)
		if len(outcomes) >= n && len(decisions) == len(outcomes) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if len(decisions) != n || len(outcomes) != n {
		s.t.Fatalf("%d decisions and %d outcomes on record, want %d of each:\n%s", len(decisions), len(outcomes), n, s.audit)
	}
	for _, d := range decisions {
		same := func(o entry) bool { return o.ID == d.ID }
		if i := slices.IndexFunc(outcomes, same); i < 0 {
			s.t.Fatalf("decision %s has no outcome", d.ID)
		}
	}
	return decisions, outcomes
}

// denied asserts the whole of a denial: the answer, one record, one outcome, and that the service saw nothing.
func (s *stage) denied(raw string, status int, code string) (reply, *peer) {
	s.t.Helper()
	before, _ := s.audit.entries(s.t)
	a, p := s.ask(raw)
	if a.StatusCode != status || a.code != code && !strings.HasPrefix(raw, "HEAD") {
		s.t.Errorf("answered %d %q, want %d %q", a.StatusCode, a.code, status, code)
	}
	decisions, outcomes := s.settled(len(before) + 1)
	d := decisions[len(decisions)-1]
	if d.Decision != "deny" || d.Code != code {
		s.t.Errorf("recorded %s %s (%s), want deny %s", d.Decision, d.Code, d.Reason, code)
	}
	o := outcomes[slices.IndexFunc(outcomes, func(o entry) bool { return o.ID == d.ID })]
	if o.Status != status {
		s.t.Errorf("the outcome says %d, want %d", o.Status, status)
	}
	if d.ID != a.Header.Get("X-Request-Id") {
		s.t.Errorf("recorded as %s, answered as %s", d.ID, a.Header.Get("X-Request-Id"))
	}
	if a.Header.Get("Cache-Control") != "no-store" {
		s.t.Errorf("a denial may be cached: %v", a.Header)
	}
	if s.service != nil {
		s.service.Untouched(s.t)
	}
	return a, p
}

func newReader(s string) *bufio.Reader { return bufio.NewReader(strings.NewReader(s)) }
