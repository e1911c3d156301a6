package ingress

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/limit"
)

// balance starts a real HAProxy before the gate, and returns where it listens and its log.
func balance(t *testing.T, gate, header string) (addr string) {
	t.Helper()
	if _, err := exec.LookPath("haproxy"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	config := fmt.Sprintf(`defaults
  mode tcp
  timeout connect 5s
  timeout client 20s
  timeout server 20s
frontend in
  bind %s
  default_backend gate
backend gate
  option httpchk GET /health
  http-check send hdr Host api.example.com ver HTTP/1.1
  server gate %s source 127.0.0.9 %s check inter 100ms
`, addr, gate, header)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, "haproxy", "-db", "-f", file)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		c.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	return addr
}

// A real balancer says who has connected to it, its own health checks are its own, and who tries tokens through it is locked out alone.
func TestBehindHAProxy(t *testing.T) {
	for _, header := range []string{"send-proxy check-send-proxy", "send-proxy-v2 check-send-proxy", "send-proxy-v2 proxy-v2-options crc32c,unique-id check-send-proxy"} {
		t.Run(strings.Fields(header)[0], func(t *testing.T) {
			s := behindBalancer(t, func(s *stage) {
				s.config.Protocols = []string{"http/1.1", "h2c"}
				s.config.Limits.HeaderTimeout = 10 * time.Second
				s.config.Rules.RateLimits.Failures = limit.Lockout{Count: 3, Within: time.Minute, For: time.Minute}
			})
			gate := s.addr
			s.addr = balance(t, gate, header)
			inTime(t, "the balancer serves", func() bool {
				c, err := net.Dial("tcp", s.addr)
				if err != nil {
					return false
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				io.WriteString(c, get("/health"))
				b := make([]byte, 12)
				_, err = io.ReadFull(c, b)
				return err == nil && string(b) == "HTTP/1.1 200"
			})
			for n := range 3 {
				s.expect("127.0.0.31", get("/orders/1", s.forgery(n)), 401, "bad_signature")
			}
			good := bearerHeader(s.token("orders:read"))
			s.expect("127.0.0.31", get("/orders/1", good), 429, "locked_out")
			s.expect("127.0.0.31", get("/orders/1", good, "X-Forwarded-For: 127.0.0.32"), 429, "locked_out")
			s.expect("127.0.0.32", get("/orders/1", good), 200, "")
			inTime(t, "its checks, and who was locked out, are on record", func() bool {
				decisions, _ := s.audit.entries(t)
				checks, locked := 0, 0
				for _, d := range decisions {
					switch {
					case d.Source == "127.0.0.9" && d.Code == "public":
						checks++
					case d.Source == "127.0.0.31" && d.Code == "locked_out":
						locked++
					case d.Source == "127.0.0.9" || strings.HasPrefix(d.Code, "proxy_header"):
						t.Fatalf("recorded %+v", d)
					}
				}
				return checks > 0 && locked == 2
			})
		})
	}
}

// Over HTTP/2 the address is the same, and each stream is counted.
func TestProxyProtocolAndHTTP2(t *testing.T) {
	s := openH2(t, func(s *stage) {
		s.config.ProxyProtocol = &ProxyProtocol{From: []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}}
		s.config.Rules.RateLimits.Source = limit.Rate{Requests: 2, Per: time.Hour}
	})
	c := s.dialFrom("127.0.0.9")
	c.send(line1)
	p := newH2Peer(t, c.Conn)
	for n, want := range []string{"200", "200", "429"} {
		r := p.read(p.ask(true, pseudo("GET", "/health")...), nil)
		if r.status != want || want == "429" && r.header.Get("Retry-After") != "1800" {
			t.Errorf("stream %d: %s %v, want %s", n, r.status, r.header, want)
		}
	}
	decisions, _ := s.settled(3)
	for _, d := range decisions {
		if d.Source != "198.51.100.7" {
			t.Errorf("recorded %+v", d)
		}
	}
}
