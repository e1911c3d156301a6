package ingress

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
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

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sallyport/sallyport/internal/limit"
)

const line1 = "PROXY TCP4 198.51.100.7 10.0.0.1 40000 443\r\n"

// header2 is a header of version 2 for 198.51.100.8, with some more behind the addresses.
func header2(more string) string {
	rest := "\xc6\x33\x64\x08\x0a\x00\x00\x01\x9c\x40\x01\xbb" + more
	return "\r\n\r\n\x00\r\nQUIT\n\x21\x11" + string(binary.BigEndian.AppendUint16(nil, uint16(len(rest)))) + rest
}

// tlv2 is one TLV, of as many bytes in all.
func tlv2(n int) string {
	return "\x04" + string(binary.BigEndian.AppendUint16(nil, uint16(n-3))) + strings.Repeat("\x00", n-3)
}

func behindBalancer(t *testing.T, change func(*stage)) *stage {
	return open(t, func(s *stage) {
		s.config.ProxyProtocol = &ProxyProtocol{From: []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}}
		s.config.Limits.HeaderTimeout = 2 * time.Second
		if change != nil {
			change(s)
		}
	})
}

// dialFrom connects from an address of the loopback network.
func (s *stage) dialFrom(address string) *peer {
	s.t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext(s.t.Context(), "tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return &peer{Conn: c, t: s.t, r: bufio.NewReader(c)}
}

// The address that a trusted balancer names is the client's, wherever an address counts.
func TestProxyProtocol(t *testing.T) {
	s := behindBalancer(t, func(s *stage) {
		s.config.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("198.51.100.8/32"), netip.MustParsePrefix("127.0.0.9/32")}
	})
	n := 0
	for _, c := range []struct{ header, forwarded, source string }{
		{line1, "", "198.51.100.7"},
		{line1, "203.0.113.1", "198.51.100.7"}, // who is no trusted proxy says nothing of others
		{header2(""), "", "198.51.100.8"},
		{header2(""), "203.0.113.1", "203.0.113.1"},
		{header2(tlv2(1000) + tlv2(3)), "", "198.51.100.8"},
		{header2(tlv2(4096 - 12)), "", "198.51.100.8"},
		{"PROXY TCP6 2001:db8::7 ::1 40000 443\r\n", "", "2001:db8::7"},
		{"PROXY UNKNOWN\r\n", "", "127.0.0.9"},
		{"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", "", "127.0.0.9"},
	} {
		p := s.dialFrom("127.0.0.9")
		headers := []string{}
		if c.forwarded != "" {
			headers = append(headers, "X-Forwarded-For: "+c.forwarded)
		}
		for _, piece := range []string{c.header[:7], c.header[7:], get("/health", headers...)} { // no piece is read beyond the header
			p.send(piece)
			time.Sleep(5 * time.Millisecond)
		}
		if a := p.read("GET"); a.StatusCode != 200 {
			t.Errorf("%.60q: answered %d %s", c.header, a.StatusCode, a.code)
		}
		p.send(get("/health", headers...)) // it holds for the connection
		p.read("GET")
		n += 2
		decisions, _ := s.settled(n)
		for _, d := range decisions[n-2:] {
			if d.Source != c.source {
				t.Errorf("%.60q: recorded as %s, want %s", c.header, d.Source, c.source)
			}
		}
		if raw := string(s.service.Raw()); !strings.Contains(raw, "X-Forwarded-For: "+c.source+"\r\n") {
			t.Errorf("%.60q: forwarded %q", c.header, raw)
		}
	}
}

// Whoever must say who has connected, and does not, or not clearly, is closed without a word; it is recorded and counted.
func TestProxyProtocolRefuses(t *testing.T) {
	s := behindBalancer(t, nil)
	for n, c := range []struct{ first, code string }{
		{get("/health"), "proxy_header_missing"},
		{"\x16\x03\x01\x02\x00\x01\x00", "proxy_header_missing"},
		{"PROXY TCP4 198.51.100.7 10.0.0.1 40000 0443\r\n", "proxy_header_invalid"},
		{"PROXY TCP4 198.51.100.7 10.0.0.1 40000 443\n" + get("/health"), "proxy_header_invalid"},
		{header2(tlv2(4096)), "proxy_header_invalid"},
		{header2("x"), "proxy_header_invalid"},
		{"PROXY TCP4 198.51.100.7", "proxy_header_timeout"},
		{header2("")[:20], "proxy_header_timeout"},
		{"", "proxy_header_timeout"},
	} {
		p := s.dialFrom("127.0.0.9")
		p.send(c.first)
		if !p.closed() {
			t.Errorf("%.60q: is open", c.first)
		}
		decisions, outcomes := s.settled(n + 1)
		if d := decisions[n]; d.Decision != "deny" || d.Code != c.code || d.Source != "127.0.0.9" || outcomes[n].Status != 0 {
			t.Errorf("%.60q: recorded as %+v, want %s", c.first, d, c.code)
		}
	}
	s.service.Untouched(t)
	if n := testutil.ToFloat64(s.gateway.metrics.closed.WithLabelValues("proxy_header_missing")); n != 2 {
		t.Errorf("counted %v", n)
	}
	if !strings.Contains(s.log.String(), "a connection was closed before a request") {
		t.Error("nothing is logged")
	}
}

// A header that nobody asked for is no part of HTTP, wherever it stands.
func TestProxyProtocolSpoofed(t *testing.T) {
	s := behindBalancer(t, nil)
	for _, raw := range []string{line1 + get("/health"), header2("") + get("/health"), "PROXY UNKNOWN\r\n" + get("/health")} {
		if a := s.from("127.0.0.2", raw); a.StatusCode != 400 || a.code != "request_line_malformed" && a.code != "bare_cr" && a.code != "bare_lf" {
			t.Errorf("from elsewhere %.40q: %d %s", raw, a.StatusCode, a.code)
		}
		if a := s.from("127.0.0.9", line1+raw); a.StatusCode != 400 {
			t.Errorf("twice %.40q: %d %s", raw, a.StatusCode, a.code)
		}
	}
	p := s.dialFrom("127.0.0.9") // behind a request: what a client smuggles into the balancer's connection
	p.send(line1 + get("/health"))
	if a := p.read("GET"); a.StatusCode != 200 {
		t.Fatalf("answered %d", a.StatusCode)
	}
	p.send(strings.Replace(line1, "198.51.100.7", "10.0.0.5", 1) + get("/health"))
	if a := p.read("GET"); a.StatusCode != 400 {
		t.Errorf("answered %d", a.StatusCode)
	}
	decisions, _ := s.settled(8)
	for _, d := range decisions {
		if d.Source == "10.0.0.5" || d.Code != "public" && d.Decision != "deny" {
			t.Errorf("recorded %+v", d)
		}
	}
}

// Balancers that do not say anything keep nobody waiting, and end with the gate.
func TestProxyProtocolSilent(t *testing.T) {
	s := behindBalancer(t, func(s *stage) { s.config.Limits.HeaderTimeout = time.Minute })
	for range 50 {
		s.dialFrom("127.0.0.9").send("PROXY TCP4 ")
	}
	begun := time.Now()
	s.expect("127.0.0.2", get("/health"), 200, "")
	s.expect("127.0.0.9", line1+get("/health"), 200, "")
	if took := time.Since(begun); took > proxyPatience {
		t.Errorf("others waited for %s", took)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

// The header comes before the handshake, and limits count whom it names.
func TestProxyProtocolAndTLS(t *testing.T) {
	certFile, keyFile := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	pool := writePair(t, "gate", certFile, keyFile)
	certificate, err := CertificateFiles(certFile, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := behindBalancer(t, func(s *stage) {
		s.config.TLS = &tls.Config{GetCertificate: certificate, MinVersion: tls.VersionTLS12}
		s.config.Rules.RateLimits.Source = limit.Rate{Requests: 1, Per: time.Hour}
	})
	for _, c := range []struct {
		header string
		status int
	}{{line1, 200}, {line1, 429}, {header2(""), 200}} {
		raw := s.dialFrom("127.0.0.9")
		raw.send(c.header)
		conn := tls.Client(raw.Conn, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"})
		p := &peer{Conn: conn, t: t, r: bufio.NewReader(conn)}
		p.send(get("/health"))
		if a := p.read("GET"); a.StatusCode != c.status {
			t.Errorf("%.40q: answered %d, want %d", c.header, a.StatusCode, c.status)
		}
	}
	decisions, _ := s.settled(3)
	if decisions[0].Source != "198.51.100.7" || decisions[2].Source != "198.51.100.8" {
		t.Errorf("recorded %+v", decisions)
	}
}

// curlAs asks through a unix socket as another user.
func curlAs(t *testing.T, uid, gid uint32, socket, path string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), "curl", "-sS", "--max-time", "20", "--unix-socket", socket, "http://api.example.com"+path)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return string(out)
}

// onSocket is a gate on a unix socket that every user reaches, as far as files go.
func onSocket(t *testing.T, change func(*stage)) (s *stage, socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "peers") // t.TempDir is for its owner alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "gate.sock")
	s = setStage(t, change)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o755, socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	s.serve(l)
	return s, socket
}

// peerUIDs are the users in the records, in their order.
func peerUIDs(t *testing.T, s *stage) (uids []float64) {
	t.Helper()
	for line := range strings.SplitSeq(strings.TrimSpace(s.audit.String()), "\n") {
		var e struct {
			Kind, Decision string
			Detail         struct {
				UID *float64 `json:"peer_uid"`
			}
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Decision != "" && e.Detail.UID != nil {
			uids = append(uids, *e.Detail.UID)
		}
	}
	return uids
}

// Which process may connect the kernel tells, and no mode of a file.
func TestPeers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s, socket := onSocket(t, func(s *stage) { s.config.Peers = &Peers{UIDs: []uint32{4321}, GIDs: []uint32{8765}} })
	for n, c := range []struct {
		uid, gid uint32
		in       bool
	}{{4321, 1, true}, {4322, 1, false}, {4322, 8765, true}, {0, 0, false}, {8765, 4321, false}} {
		got := curlAs(t, c.uid, c.gid, socket, "/health")
		if in := !strings.Contains(got, "exit status"); in != c.in {
			t.Errorf("uid %d, gid %d: %s", c.uid, c.gid, got)
		}
		decisions, _ := s.settled(n + 1)
		if d := decisions[n]; c.in && d.Code != "public" || !c.in && d.Code != "peer_refused" {
			t.Errorf("recorded %+v", d)
		}
	}
	if got := fmt.Sprint(peerUIDs(t, s)); got != "[4321 4322 4322 0 8765]" {
		t.Errorf("recorded users %s", got)
	}
	if log := s.log.String(); !strings.Contains(log, "peer_refused") || strings.Contains(log, "invalid IP") {
		t.Errorf("logged %s", log)
	}
	if n := testutil.ToFloat64(s.gateway.metrics.closed.WithLabelValues("peer_refused")); n != 3 {
		t.Errorf("counted %v", n)
	}
	if n := s.service.Requests(); n != 2 {
		t.Errorf("%d requests reached the service", n)
	}
}

// Without peers everybody may connect, and who it was is on record.
func TestPeersOnRecord(t *testing.T) {
	s, socket := onSocket(t, nil)
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := &peer{Conn: c, t: t, r: bufio.NewReader(c)}
	p.send(get("/health"))
	if a := p.read("GET"); a.StatusCode != 200 {
		t.Errorf("answered %d", a.StatusCode)
	}
	s.settled(1)
	if got := fmt.Sprint(peerUIDs(t, s)); got != fmt.Sprintf("[%d]", os.Getuid()) {
		t.Errorf("recorded users %s", got)
	}
}

// On a unix socket whoever peers names must say who has connected; without peers nobody is believed.
func TestProxyProtocolOnSocket(t *testing.T) {
	ask := func(socket, raw string) string {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, raw); err != nil {
			t.Fatal(err)
		}
		b, _ := bufio.NewReader(c).ReadString('\n')
		return b
	}
	s, socket := onSocket(t, func(s *stage) {
		s.config.Peers, s.config.ProxyProtocol = &Peers{UIDs: []uint32{uint32(os.Getuid())}}, &ProxyProtocol{}
	})
	if got := ask(socket, line1+get("/health")); got != "HTTP/1.1 200 OK\r\n" {
		t.Errorf("answered %q", got)
	}
	if got := ask(socket, get("/health")); got != "" {
		t.Errorf("without the header: answered %q", got)
	}
	decisions, _ := s.settled(2)
	if decisions[0].Source != "198.51.100.7" || decisions[1].Code != "proxy_header_missing" {
		t.Errorf("recorded %+v", decisions)
	}
	_, socket = onSocket(t, func(s *stage) {
		s.config.ProxyProtocol = &ProxyProtocol{From: []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}}
	})
	if got := ask(socket, line1+get("/health")); !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("whoever reaches the socket is believed: %q", got)
	}
}

func TestDoorsThatDoNotBuild(t *testing.T) {
	s := setStage(t, nil)
	s.config.Metrics = nil
	for name, change := range map[string]func(*Config){
		"everybody":      func(c *Config) { c.ProxyProtocol = &ProxyProtocol{From: []netip.Prefix{netip.MustParsePrefix("::/0")}} },
		"nobody":         func(c *Config) { c.ProxyProtocol = &ProxyProtocol{} },
		"no peer":        func(c *Config) { c.Peers = &Peers{} },
		"spiffe, no TLS": func(c *Config) { c.SPIFFE = &SPIFFE{TrustDomain: "example.org"} },
		"spiffe, any": func(c *Config) {
			c.SPIFFE, c.TLS = &SPIFFE{TrustDomain: "example.org"}, &tls.Config{ClientAuth: tls.RequireAnyClientCert}
		},
	} {
		c := s.config
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: builds", name)
		}
	}
}
