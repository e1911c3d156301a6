package forwardauth

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// book is an audit log in memory.
type book struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *book) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }

func (b *book) last(t *testing.T) (d struct{ Code, Decision, Source, Path, Method, Host, Reason string }) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.SplitSeq(b.b.String(), "\n") {
		if strings.Contains(line, `"kind":"decision"`) {
			d = struct{ Code, Decision, Source, Path, Method, Host, Reason string }{}
			if err := json.Unmarshal([]byte(line), &d); err != nil {
				t.Fatal(err)
			}
		}
	}
	return d
}

type stage struct {
	t      *testing.T
	addr   string
	issuer *sallytest.Issuer
	audit  *book
	stop   func() error
}

// open serves a gateway's answers in a dialect, to those from.
func open(t *testing.T, dialect string, from ...string) *stage {
	t.Helper()
	s := &stage{t: t, issuer: sallytest.NewIssuer(t), audit: &book{}}
	jwks := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(jwks, s.issuer.JWKS(), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := bearer.NewVerifier([]bearer.Issuer{{Issuer: s.issuer.URL, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{File: jwks}}}, bearer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	p, err := policy.New([]policy.Route{
		{Name: "read-order", Match: "GET /orders/{id}", Scopes: []string{"orders:read"}},
		{Name: "here", Match: "GET /here", When: `request.source == "192.0.2.7"`},
	})
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := identity.Key{ID: identity.Thumbprint(public), Private: private}
	log := audit.New(s.audit, audit.Config{})
	t.Cleanup(func() { log.Close() })
	g, err := ingress.New(ingress.Config{
		AskOnly: true, Audit: log, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		Rules: ingress.Rules{Policy: p, Verifier: v, Assert: &identity.Signer{Issuer: "sallyport", Audience: "orders", Key: func() identity.Key { return key }}, CORS: &ingress.CORS{Origins: []string{"https://app.example.com"}, Methods: []string{"GET"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Gateway: g, Dialect: dialect}
	for _, f := range from {
		c.From = append(c.From, netip.MustParsePrefix(f))
	}
	server, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	network, address := "tcp", "127.0.0.1:0"
	if len(from) == 0 {
		network, address = "unix", filepath.Join(t.TempDir(), "ask.sock")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	s.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// ask sends a question as bytes.
func (s *stage) ask(raw string) (*http.Response, string) {
	s.t.Helper()
	network := "tcp"
	if strings.HasPrefix(s.addr, "/") {
		network = "unix"
	}
	c, err := net.Dial(network, s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, raw); err != nil {
		s.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res, string(b)
}

// said is what each dialect says of GET target of api.example.com, over https from 192.0.2.7.
func said(dialect, target string) []string {
	switch dialect {
	case "nginx":
		return []string{"X-Original-Method: GET", "X-Original-URI: " + target, "X-Original-Host: api.example.com", "X-Original-Proto: https", "X-Forwarded-For: 192.0.2.7"}
	case "envoy":
		return []string{"X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.7"}
	}
	return []string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: " + target, "X-Forwarded-Host: api.example.com", "X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.7"}
}

// question is one with these fields.
func question(dialect, target string, fields ...string) string {
	line := "GET / HTTP/1.1\r\nHost: sallyport\r\n"
	if dialect == "envoy" {
		line = "GET " + target + " HTTP/1.1\r\nHost: api.example.com\r\n"
	}
	return line + strings.Join(fields, "\r\n") + "\r\n\r\n"
}

func TestDialects(t *testing.T) {
	for _, dialect := range []string{"nginx", "traefik", "caddy", "envoy"} {
		t.Run(dialect, func(t *testing.T) {
			s := open(t, dialect, "127.0.0.0/8")
			token := "Authorization: Bearer " + s.issuer.Token(map[string]any{"scope": "orders:read"})
			full := said(dialect, "/orders/7?x=1")
			res, _ := s.ask(question(dialect, "/orders/7?x=1", append(full, token)...))
			if res.StatusCode != 200 || res.Header.Get("X-Sallyport-Target") != "/orders/7?x=1" || res.Header.Get("X-Forwarded-Proto") != "https" ||
				res.Header.Get("X-Request-Id") == "" || res.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("a good request is answered %d %v", res.StatusCode, res.Header)
			}
			if removed := res.Header.Get("X-Envoy-Auth-Headers-To-Remove"); (removed == "authorization,x-forwarded-proto") != (dialect == "envoy") && removed != "authorization" {
				t.Errorf("to be removed: %q", removed)
			}
			if d := s.audit.last(t); d.Source != "192.0.2.7" || d.Path != "/orders/7" || d.Method != "GET" || d.Host != "api.example.com" {
				t.Errorf("recorded %+v", d)
			}
			res, body := s.ask(question(dialect, "/orders/7", said(dialect, "/orders/7")...))
			if res.StatusCode != 401 || res.Header.Get("Www-Authenticate") == "" || !strings.Contains(body, `"missing_token"`) {
				t.Errorf("without a token: %d %v %s", res.StatusCode, res.Header, body)
			}
			status := 404
			if dialect == "nginx" {
				status = 403
			}
			res, body = s.ask(question(dialect, "/nowhere", append(said(dialect, "/nowhere"), token)...))
			if res.StatusCode != status || !strings.Contains(body, `"no_route"`) {
				t.Errorf("without a route: %d %s", res.StatusCode, body)
			}
			if dialect == "nginx" && (res.Header.Get("X-Sallyport-Status") != "404" || res.Header.Get("X-Sallyport-Code") != "no_route" || res.Header.Get("X-Sallyport-Problem") != body) {
				t.Errorf("nginx is told %v", res.Header)
			}
			// Each of the words missing, empty, or there twice: nobody guesses.
			for i, field := range full {
				name, value, _ := strings.Cut(field, ":")
				without := append(append([]string{token}, full[:i]...), full[i+1:]...)
				for what, fields := range map[string][]string{
					"missing": without,
					"empty":   append([]string{name + ":"}, without...),
					"twice":   append([]string{field, name + ":" + value}, without...),
				} {
					res, body := s.ask(question(dialect, "/orders/7?x=1", fields...))
					if res.StatusCode != 403 || !strings.Contains(body, `"inquiry_malformed"`) {
						t.Errorf("%s %s: %d %s", name, what, res.StatusCode, body)
					}
				}
			}
			for _, c := range [][2]string{{"X-Forwarded-For: 192.0.2.7", "X-Forwarded-For: unknown"}, {"Proto: https", "Proto: https, http"}, {"Proto: https", "Proto: wss"}} {
				raw := strings.Replace(question(dialect, "/orders/7", append(said(dialect, "/orders/7"), token)...), c[0], c[1], 1)
				if res, body := s.ask(raw); res.StatusCode != 403 || !strings.Contains(body, `"inquiry_malformed"`) {
					t.Errorf("%s: %d %s", c[1], res.StatusCode, body)
				}
			}
			// A body would be the request's, which nobody has judged.
			raw := question(dialect, "/orders/7", append(said(dialect, "/orders/7"), token, "Content-Length: 2")...) + "{}"
			if res, body := s.ask(raw); res.StatusCode != 403 || !res.Close || !strings.Contains(body, `"inquiry_malformed"`) {
				t.Errorf("a body: %d %v %s", res.StatusCode, res.Header, body)
			}
		})
	}
}

// A client can add the words of another proxy. They are not what is judged.
func TestOtherDialectsWords(t *testing.T) {
	for _, dialect := range []string{"nginx", "traefik", "envoy"} {
		s := open(t, dialect, "127.0.0.0/8")
		fields := said(dialect, "/orders/7")
		for _, other := range []string{"nginx", "traefik"} {
			if other == dialect {
				continue
			}
			for _, f := range said(other, "/here") {
				if !strings.Contains(strings.Join(fields, " "), strings.SplitN(f, ":", 2)[0]) {
					fields = append(fields, f)
				}
			}
		}
		fields = append(fields, "X-HTTP-Method-Override: OPTIONS", "Forwarded: for=192.0.2.9;proto=http")
		res, _ := s.ask(question(dialect, "/orders/7", fields...))
		if d := s.audit.last(t); res.StatusCode != 401 || d.Path != "/orders/7" || d.Method != "GET" || d.Source != "192.0.2.7" {
			t.Errorf("%s: %d, recorded %+v", dialect, res.StatusCode, d)
		}
	}
}

// H15: who is not in from is answered 403, whatever the token is worth, and what it says is not on record as true.
func TestWhoMayAsk(t *testing.T) {
	s := open(t, "traefik", "192.0.2.0/24")
	token := "Authorization: Bearer " + s.issuer.Token(map[string]any{"scope": "orders:read"})
	for _, raw := range []string{
		question("traefik", "", append(said("traefik", "/orders/7"), token)...),
		question("traefik", "", said("traefik", "/orders/7")...),
		"GET / HTTP/1.1\nHost: x\n\n",
	} {
		res, body := s.ask(raw)
		if d := s.audit.last(t); res.StatusCode != 403 || !strings.Contains(body, `"asker_refused"`) || d.Source != "127.0.0.1" || d.Path != "" || d.Code != "asker_refused" {
			t.Errorf("%d %s, recorded %+v", res.StatusCode, body, d)
		}
	}
	if s = open(t, "traefik"); !strings.HasPrefix(s.addr, "/") {
		t.Fatal(s.addr)
	}
	token = "Authorization: Bearer " + s.issuer.Token(map[string]any{"scope": "orders:read"})
	if res, body := s.ask(question("traefik", "", append(said("traefik", "/orders/7"), token)...)); res.StatusCode != 200 {
		t.Errorf("over the socket: %d %s", res.StatusCode, body)
	}
}

// The client is the proxy's peer, unless that is a proxy that is trusted in its turn.
func TestClientBehindProxies(t *testing.T) {
	s := open(t, "traefik", "127.0.0.0/8")
	for list, want := range map[string]string{
		"192.0.2.7":                               "192.0.2.7",
		"203.0.113.5, 192.0.2.7":                  "192.0.2.7",
		"203.0.113.5, 198.51.100.3":               "203.0.113.5",
		"10.0.0.1, 203.0.113.5,198.51.100.3":      "203.0.113.5",
		"::ffff:203.0.113.5, ::ffff:198.51.100.3": "203.0.113.5",
	} {
		fields := said("traefik", "/here")
		fields[4] = "X-Forwarded-For: " + list
		s.ask(question("traefik", "", fields...))
		if d := s.audit.last(t); d.Source != want {
			t.Errorf("%s: recorded %+v, want %s", list, d, want)
		}
	}
}

// A preflight is answered 204 by the gate in front of a service. A proxy would take that for an allow.
func TestPreflightIsNoAllow(t *testing.T) {
	for _, dialect := range []string{"nginx", "traefik", "envoy"} {
		s := open(t, dialect, "127.0.0.0/8")
		raw := question(dialect, "/orders/7", append(said(dialect, "/orders/7"), "Origin: https://app.example.com", "Access-Control-Request-Method: GET")...)
		raw = strings.NewReplacer("Method: GET\r\nX-O", "Method: OPTIONS\r\nX-O", "Method: GET\r\nX-F", "Method: OPTIONS\r\nX-F").Replace(raw)
		if dialect == "envoy" {
			raw = "OPTIONS" + strings.TrimPrefix(raw, "GET")
		}
		if res, _ := s.ask(raw); res.StatusCode != 403 || s.audit.last(t).Code != "preflight_answered" {
			t.Errorf("%s: %d, recorded %+v", dialect, res.StatusCode, s.audit.last(t))
		}
	}
}

// A field that the proxy hands on, and no connection of ours would have let pass, has the code that it has there.
func TestRefusedOnTheWire(t *testing.T) {
	s := open(t, "caddy", "127.0.0.0/8")
	for field, code := range map[string]string{"X_Forwarded_User: root": "header_name", "X-A: a\x00b": "header_value", "X-A : b": "header_malformed"} {
		res, body := s.ask(question("caddy", "", append(said("caddy", "/orders/7"), field)...))
		if res.StatusCode != 400 || !res.Close || !strings.Contains(body, fmt.Sprintf("%q", code)) {
			t.Errorf("%q: %d %s", field, res.StatusCode, body)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	g := &ingress.Gateway{}
	for name, c := range map[string]Config{
		"nothing":       {},
		"no dialect":    {Gateway: g},
		"other dialect": {Gateway: g, Dialect: "Nginx"},
		"everybody":     {Gateway: g, Dialect: "nginx", From: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
		"nobody":        {Gateway: g, Dialect: "nginx", From: []netip.Prefix{{}}},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: it builds", name)
		}
	}
	if _, err := New(Config{Gateway: g, Dialect: "nginx"}); err != nil {
		t.Error(err)
	}
}
