package ingress

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

func TestClientAddress(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	many := strings.Repeat("10.0.0.1, ", 40) + "10.0.0.1"
	for _, c := range []struct {
		name, peer string
		forwarded  []string
		want       string // empty: refused
	}{
		{"nobody's word counts", "192.0.2.1", []string{"198.51.100.1"}, "192.0.2.1"},
		{"nor does nonsense", "192.0.2.1", []string{"nonsense"}, "192.0.2.1"},
		{"proxy without a word", "10.0.0.1", nil, "10.0.0.1"},
		{"one proxy", "10.0.0.1", []string{"198.51.100.1"}, "198.51.100.1"},
		{"what the client wrote is left of what counts", "10.0.0.1", []string{"127.0.0.1, 198.51.100.1"}, "198.51.100.1"},
		{"and may be nonsense", "10.0.0.1", []string{"nonsense, 198.51.100.1"}, "198.51.100.1"},
		{"two proxies", "10.0.0.1", []string{"6.6.6.6, 198.51.100.1, 10.9.9.9"}, "198.51.100.1"},
		{"two lines are one list", "10.0.0.1", []string{"6.6.6.6, 198.51.100.1", "10.9.9.9"}, "198.51.100.1"},
		{"proxies only", "10.0.0.1", []string{"10.0.0.3,10.0.0.2"}, "10.0.0.3"},
		{"IPv6", "fd00::1", []string{"2001:db8::7"}, "2001:db8::7"},
		{"IPv4 in IPv6", "10.0.0.1", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"nonsense that counts", "10.0.0.1", []string{"198.51.100.1, nonsense"}, ""},
		{"empty", "10.0.0.1", []string{""}, ""},
		{"empty element", "10.0.0.1", []string{"198.51.100.1,,10.0.0.2"}, ""},
		{"port", "10.0.0.1", []string{"198.51.100.1:80"}, ""},
		{"zone", "10.0.0.1", []string{"fe80::1%eth0"}, ""},
		{"octal", "10.0.0.1", []string{"010.0.0.1"}, ""},
		{"too many", "10.0.0.1", []string{many}, ""},
	} {
		got, err := clientAddress(netip.MustParseAddr(c.peer), http.Header{"X-Forwarded-For": c.forwarded}, trusted)
		if c.want == "" {
			if err == nil {
				t.Errorf("%s: %s, want a refusal", c.name, got)
			}
		} else if err != nil || got.String() != c.want {
			t.Errorf("%s: %s, %v, want %s", c.name, got, err, c.want)
		}
	}
	if got, err := clientAddress(netip.Addr{}, http.Header{"X-Forwarded-For": {"1.2.3.4"}}, trusted); err != nil || got.IsValid() {
		t.Errorf("a peer without an address: %s, %v", got, err)
	}
}

// H16: the addresses of a trusted proxy are recorded and passed on; its other headers are not believed.
func TestTrustedProxy(t *testing.T) {
	s := open(t, func(s *stage) { s.config.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	if a, _ := s.ask(get("/health", "X-Forwarded-For: 6.6.6.6, 198.51.100.7", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "Forwarded: for=6.6.6.6")); a.StatusCode != 200 {
		t.Fatalf("answered %d", a.StatusCode)
	}
	d, _ := s.settled(1)
	seen, err := http.ReadRequest(newReader(string(s.service.Raw())))
	if err != nil {
		t.Fatal(err)
	}
	if h := seen.Header; d[0].Source != "198.51.100.7" || h.Get("X-Forwarded-For") != "198.51.100.7" || h.Get("X-Forwarded-Proto") != "http" ||
		h.Get("X-Forwarded-Host") != "api.example.com" || h.Get("Forwarded") != "" {
		t.Errorf("recorded %+v, forwarded %v", d[0], h)
	}
	s.service.Reset()
	if a, _ := s.ask(get("/health", "X-Forwarded-For: unknown")); a.StatusCode != 400 || a.code != "forwarded_invalid" || s.service.Bytes() > 0 {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
}

// A preflight is answered here, never forwarded, and opens nothing; the request that follows needs its token.
func TestCORS(t *testing.T) {
	s := open(t, func(s *stage) {
		s.config.Rules.CORS = &CORS{
			Origins: []string{"https://app.example.com"}, Methods: []string{"GET", "POST"}, Headers: []string{"Authorization", "Content-Type"},
			Expose: []string{"X-Request-Id"}, Credentials: true, MaxAge: time.Hour,
		}
	})
	origin := "Origin: https://app.example.com"
	preflight := func(headers ...string) string { return request("OPTIONS", "/orders/1", "", headers...) }
	a, _ := s.ask(preflight(origin, "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization,content-type"))
	if d, o := s.settled(1); a.StatusCode != 204 || d[0].Code != "preflight_answered" || d[0].Decision != "deny" || o[0].Status != 204 {
		t.Errorf("answered %d, recorded %+v, %+v", a.StatusCode, d, o)
	}
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": "https://app.example.com", "Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": "3600",
		"Access-Control-Allow-Headers": "Authorization, Content-Type", "Access-Control-Allow-Credentials": "true",
	} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for name, raw := range map[string]string{
		"another origin":  preflight("Origin: https://evil.example.com", "Access-Control-Request-Method: GET"),
		"origin null":     preflight("Origin: null", "Access-Control-Request-Method: GET"),
		"suffix":          preflight("Origin: https://app.example.com.evil", "Access-Control-Request-Method: GET"),
		"two origins":     preflight(origin, origin, "Access-Control-Request-Method: GET"),
		"another method":  preflight(origin, "Access-Control-Request-Method: DELETE"),
		"another header":  preflight(origin, "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: x-other"),
		"method twice":    preflight(origin, "Access-Control-Request-Method: GET", "Access-Control-Request-Method: GET"),
		"method in lower": preflight(origin, "Access-Control-Request-Method: get"),
	} {
		t.Run(name, func(t *testing.T) {
			s := *s
			s.t = t
			a, _ := s.denied(raw, 403, "preflight_refused")
			if name != "method twice" && name != "another method" && name != "another header" && name != "method in lower" && a.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("allowed origin %q", a.Header.Get("Access-Control-Allow-Origin"))
			}
		})
	}
	s.denied(preflight(origin), 405, "method_not_allowed") // OPTIONS that is no preflight needs a route
	a, _ = s.denied(get("/orders/1", origin), 401, "missing_token")
	if a.Header.Get("Access-Control-Allow-Origin") != "https://app.example.com" {
		t.Error("the page cannot read why it was refused")
	}
	a, _ = s.ask(get("/orders/1", origin, bearerHeader(s.token("orders:read"))))
	if a.StatusCode != 200 || a.Header.Get("Access-Control-Allow-Origin") != "https://app.example.com" || a.Header.Get("Access-Control-Expose-Headers") != "X-Request-Id" ||
		!hasToken(a.Header["Vary"], "origin") {
		t.Errorf("answered %d %v", a.StatusCode, a.Header)
	}
	if a, _ = s.ask(get("/orders/1", "Origin: https://evil.example.com", bearerHeader(s.token("orders:read")))); a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("another origin may read: %v", a.Header)
	}
	closed := open(t, nil)
	closed.denied(preflight(origin, "Access-Control-Request-Method: GET"), 403, "preflight_refused")
}

// writePair writes a self-signed certificate for 127.0.0.1 with the name and its key, and returns a pool that trusts it.
func writePair(t *testing.T, name, certFile, keyFile string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return pool
}

// TLS: HTTP/1.1 only, read as strictly, and a new certificate is served without a restart.
func TestTLS(t *testing.T) {
	certFile, keyFile := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	pool := writePair(t, "first", certFile, keyFile)
	var faults atomic.Int64
	get1, err := CertificateFiles(certFile, keyFile, func(error) { faults.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, func(s *stage) {
		s.config.TLS = &tls.Config{GetCertificate: get1, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
		s.config.Limits.HeaderTimeout = 2 * time.Second
	})
	dial := func(pool *x509.CertPool) (*tls.Conn, error) {
		c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: pool, NextProtos: []string{"h2", "http/1.1"}})
		if err == nil {
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(20 * time.Second))
		}
		return c, err
	}
	c, err := dial(pool)
	if err != nil {
		t.Fatal(err)
	}
	if p := c.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
		t.Errorf("negotiated %q", p)
	}
	p := &peer{Conn: c, t: t, r: bufio.NewReader(c)}
	p.send(strings.Replace(get("/health"), "api.example.com", "API.example.com.:443", 1))
	if a := p.read("GET"); a.StatusCode != 200 {
		t.Fatalf("answered %d", a.StatusCode)
	}
	if raw := string(s.service.Raw()); !strings.Contains(raw, "X-Forwarded-Proto: https\r\n") || !strings.Contains(raw, "\r\nHost: api.example.com\r\n") {
		t.Errorf("forwarded %q", raw)
	}
	p.send("GET / HTTP/1.1\nHost: a\n\n")
	if a := p.read("GET"); a.code != "bare_lf" || !p.closed() {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
	plain := s.dial()
	plain.send(get("/health"))
	if b, _ := io.ReadAll(plain.r); strings.HasPrefix(string(b), "HTTP/1.1 200") {
		t.Errorf("plain HTTP was served: %q", b)
	}
	silent := s.dial() // a handshake that never begins
	if b, err := io.ReadAll(silent.r); err != nil || len(b) > 0 {
		t.Errorf("silent: %q, %v", b, err)
	}

	next := writePair(t, "second", certFile, keyFile)
	eventually(t, "the new certificate is served", func() bool { _, err := dial(next); return err == nil })
	if err := os.WriteFile(keyFile, []byte("half of a ke"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(recheck + 100*time.Millisecond)
	if _, err := dial(next); err != nil {
		t.Errorf("while the files do not fit: %v", err)
	}
	if faults.Load() != 1 {
		t.Errorf("the operator was told %d times", faults.Load())
	}
	if _, err := CertificateFiles(certFile, keyFile, nil); err == nil {
		t.Error("half a key was taken at the start")
	}
}

// The service may listen on a unix socket; so may the gate.
func TestUnixSockets(t *testing.T) {
	dir := t.TempDir()
	upstream, err := net.Listen("unix", filepath.Join(dir, "app.sock"))
	if err != nil {
		t.Fatal(err)
	}
	service := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Host+" "+r.RequestURI+" "+r.Header.Get("X-Forwarded-For"))
	}))
	service.Listener.Close()
	service.Listener = upstream
	service.Start()
	t.Cleanup(service.Close)
	s := setStage(t, func(s *stage) {
		s.config.Upstream = mustURL(t, "unix://"+filepath.Join(dir, "app.sock"))
		s.config.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	l, err := net.Listen("unix", filepath.Join(dir, "gate.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s.serve(l)
	c, err := net.Dial("unix", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := &peer{Conn: c, t: t, r: bufio.NewReader(c)}
	p.send(get("/public/a?b", "X-Forwarded-For: 1.2.3.4"))
	if a := p.read("GET"); a.StatusCode != 200 || a.body != "api.example.com /public/a?b " {
		t.Errorf("answered %d %q", a.StatusCode, a.body)
	}
}

// Every entry of the table is a canonical name and says why; nothing that a client may say is in it.
func TestHygieneTable(t *testing.T) {
	h := newHygiene()
	for _, o := range ours() {
		name := strings.TrimSuffix(o.name, "*")
		if http.CanonicalHeaderKey(name) != name || o.why == "" {
			t.Errorf("%q: %q", o.name, o.why)
		}
	}
	for _, name := range []string{"Accept", "Content-Type", "Cookie", "Origin", "Referer", "User-Agent", "Traceparent", "Tracestate", "Range", "If-None-Match",
		"Idempotency-Key", "X-Requested-With", "X-Correlation-Id", "X-Csrf-Token", "X-Api-Version", "Accept-Language", "Sec-Websocket-Key", "Sec-Fetch-Site", "Dnt"} {
		if h.drops(name) {
			t.Errorf("%s is dropped", name)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	s := setStage(b, nil)
	r := httptest.NewRequest("GET", "/orders/42?expand=lines", nil)
	r.Header.Set("Authorization", "Bearer "+s.token("orders:read"))
	b.ReportAllocs()
	for b.Loop() {
		x := s.gateway.begin(nil, r)
		x.judge()
		s.gateway.inFlight.Add(-1)
		if !x.decision.Allowed() {
			b.Fatal(x.decision)
		}
	}
}

// BenchmarkGate is a whole request over loopback, with verification, record, assertion and outcome; the client and the
// service, both in Go and in the same process, are in the numbers.
func BenchmarkGate(b *testing.B) {
	for _, bench := range []struct{ name, target string }{{"protected", "/orders/42"}, {"public", "/health"}, {"denied", "/nothing"}} {
		b.Run(bench.name, func(b *testing.B) {
			service := sallytest.NewRecorder(b)
			s := open(b, func(s *stage) { s.service = service })
			raw := []byte(get(bench.target, bearerHeader(s.token("orders:read"))))
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				c, err := net.Dial("tcp", s.addr)
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				reader := bufio.NewReader(c)
				for pb.Next() {
					if _, err := c.Write(raw); err != nil {
						b.Error(err)
						return
					}
					res, err := http.ReadResponse(reader, nil)
					if err != nil {
						b.Error(err)
						return
					}
					io.Copy(io.Discard, res.Body)
				}
			})
			b.StopTimer()
		})
	}
}
