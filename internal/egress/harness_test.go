package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	Kind, ID, Point, Decision, Code, Reason, Method, Path, Host, Source, Subject string
	Status                                                                       int
	BytesIn                                                                      int64   `json:"bytes_in"`
	BytesOut                                                                     int64   `json:"bytes_out"`
	Duration                                                                     float64 `json:"duration_ms"`
	Error                                                                        string
	Detail                                                                       map[string]any
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

// A stage is a proxy that serves both its listeners, and what is around it.
type stage struct {
	t        testing.TB
	proxy    *Proxy
	addr     string // of Serve's listener
	audit    *book
	log      *book
	registry *prometheus.Registry
	dns      *sallytest.Resolver
	stop     func() error // ends both; once
}

// newStage starts a proxy whose name server has the names, all at 127.0.0.1 unless the table says otherwise.
func newStage(t testing.TB, rules Rules, change func(*Config)) *stage {
	t.Helper()
	s := &stage{t: t, audit: &book{}, log: &book{}, registry: prometheus.NewRegistry()}
	names := map[string][]string{}
	for _, d := range rules.Destinations {
		for _, h := range d.Hosts {
			if name, _, err := net.SplitHostPort(h); err == nil {
				if _, err := netip.ParseAddr(name); err != nil {
					names[name] = []string{"127.0.0.1"}
				}
			}
		}
	}
	s.dns = sallytest.NewResolver(t, names)
	rules.Resolvers = []string{s.dns.Addr}
	c := Config{
		Rules: rules, Audit: audit.New(s.audit, audit.Config{}), Metrics: s.registry,
		Logger: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&c)
	}
	var err error
	if s.proxy, err = New(c); err != nil {
		t.Fatal(err)
	}
	s.proxy.search = []string{".cluster.local"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- s.proxy.Serve(ctx, l) }()
	go func() { ended <- s.proxy.ServeLed(ctx) }()
	<-s.proxy.led.ready
	for !s.proxy.isEntrance(netip.MustParseAddrPort(s.addr)) {
		time.Sleep(time.Millisecond)
	}
	s.stop = sync.OnceValue(func() error {
		cancel()
		return errors.Join(<-ended, <-ended)
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("serving ended: %v", err)
		}
		s.proxy.Close()
		c.Audit.Close()
		if n := s.proxy.inFlight.Load(); n != 0 {
			t.Errorf("%d attempts have no outcome", n)
		}
		if t.Failed() {
			t.Logf("audit:\n%s\nlog:\n%s", s.audit, s.log)
		}
	})
	return s
}

// client is an HTTP client that goes through the proxy.
func (s *stage) client(roots *x509.CertPool) *http.Client {
	transport := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: s.addr}),
		TLSClientConfig: &tls.Config{RootCAs: roots},
	}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// get asks for a URL through the proxy.
func (s *stage) get(address string) (status int, body string) {
	s.t.Helper()
	res, err := s.client(nil).Get(address)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// raw sends bytes to the proxy and returns the connection.
func (s *stage) raw(text string) *conn {
	s.t.Helper()
	return dial(s.t, s.addr, text)
}

type conn struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func dial(t testing.TB, address, text string) *conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return &conn{c, t, bufio.NewReader(c)}
}

// response reads an answer whole.
func (c *conn) response() (*http.Response, problem) {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	var p problem
	if res.Header.Get("Content-Type") == "application/problem+json" {
		if err := json.NewDecoder(res.Body).Decode(&p); err != nil {
			c.t.Fatal(err)
		}
	}
	return res, p
}

// connect opens a tunnel.
func (s *stage) connect(host string) *conn {
	s.t.Helper()
	c := s.raw("CONNECT " + host + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
	c.established()
	return c
}

func (c *conn) established() {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, &http.Request{Method: http.MethodConnect})
	if err != nil || res.StatusCode != 200 {
		c.t.Fatalf("no tunnel: %v %v", res, err)
	}
}

// lead connects as the broker would, to an address; nil if the way is refused.
func (s *stage) lead(to string) *conn {
	s.t.Helper()
	w := s.way(Attempt{Process: 7, Network: "tcp", To: netip.MustParseAddrPort(to)})
	if !w.Via.IsValid() {
		return nil
	}
	c, err := net.Dial("tcp", w.Via.String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if w.Begun != nil {
		w.Begun(netip.MustParseAddrPort(c.LocalAddr().String()))
	}
	if w.Ended != nil {
		w.Ended(nil)
	}
	return &conn{c, s.t, bufio.NewReader(c)}
}

func (s *stage) way(a Attempt) Way {
	s.t.Helper()
	ways := make(chan Way, 2)
	s.proxy.Connect(a, func(w Way) { ways <- w })
	select {
	case w := <-ways:
		return w
	case <-time.After(10 * time.Second):
		s.t.Fatal("no way was given")
		return Way{}
	}
}

// decision waits for the nth decision.
func (s *stage) decision(n int) entry {
	s.t.Helper()
	for range 2000 {
		if d, _ := s.audit.entries(s.t); len(d) > n {
			return d[n]
		}
		time.Sleep(time.Millisecond)
	}
	s.t.Fatalf("there is no decision %d", n)
	return entry{}
}

func (s *stage) outcome(n int) entry {
	s.t.Helper()
	for range 5000 {
		if _, o := s.audit.entries(s.t); len(o) > n {
			return o[n]
		}
		time.Sleep(time.Millisecond)
	}
	s.t.Fatalf("there is no outcome %d", n)
	return entry{}
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	file string // PEM
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, pool: x509.NewCertPool(), file: filepath.Join(t.TempDir(), "ca.pem")}
	a.cert, _ = x509.ParseCertificate(der)
	a.pool.AddCert(a.cert)
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) config(t testing.TB, names ...string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// echo is a TLS server that sends back what it receives, and counts its connections.
type server struct {
	net.Listener
	port string
	mu   sync.Mutex
	n    int
}

func (s *server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// serve starts a server on loopback that handles each connection by itself.
func serve(t testing.TB, config *tls.Config, handle func(net.Conn)) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Listener: l}
	_, s.port, _ = net.SplitHostPort(l.Addr().String())
	var wg sync.WaitGroup
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.n++
			open[c] = true
			s.mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				if config != nil {
					handle(tls.Server(c, config))
					return
				}
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		for c := range open {
			c.Close()
		}
		s.mu.Unlock()
		wg.Wait()
	})
	return s
}

func echo(c net.Conn) { io.Copy(c, c) }

// talk sends a line through and expects it back.
func talk(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("send %q: %v", text, err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("sent %q, got %q, %v", text, b, err)
	}
}

// host is a host as it is configured.
func host(name, port string) string { return fmt.Sprintf("%s:%s", name, port) }

// settled waits until no attempt is in flight.
func (s *stage) settled(patience time.Duration) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s.proxy.inFlight.Load() == 0 {
			return true
		}
	}
	return false
}

// anyone is for whatever causes it.
func anyone() policy.For { return policy.For{Any: true} }
