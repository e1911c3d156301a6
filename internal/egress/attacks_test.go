package egress

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// The attacks on the gate behind a service: what an attacker writes, and what must become of it. Each test is one of
// them, against real listeners, real TLS and a real name server.

// refused asks the proxy for something and expects an answer of ours, and that no name server and no destination was asked.
func (s *stage) refused(request string, status int, codes ...string) problem {
	s.t.Helper()
	before := s.dns.Asked("")
	c := s.raw(request)
	res, p := c.response()
	c.Close()
	found := false
	for _, code := range codes {
		found = found || p.Code == code
	}
	if res.StatusCode != status || !found {
		s.t.Errorf("%q: %d %+v, want %d %v", request, res.StatusCode, p, status, codes)
	}
	if n := s.dns.Asked("") - before; n != 0 {
		s.t.Errorf("%q: %d questions were asked", request, n)
	}
	return p
}

func connectTo(host string) string { return "CONNECT " + host + " HTTP/1.1\r\nHost: x\r\n\r\n" }
func getOf(host string) string     { return "GET http://" + host + "/ HTTP/1.1\r\nHost: x\r\n\r\n" }

func TestE1BracketsAreForIPv6(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"example.com:443", "example.com:80"}, Protocol: "tcp"}}}, nil)
	for _, host := range []string{"[example.com]:443", "[1.2.3.4]:443", "[example.com:443", "example.com]:443", "[[::1]]:443", "[]:443"} {
		s.refused(connectTo(host), 400, "ambiguous_host", "host_invalid")
	}
	for _, host := range []string{"[denied.com]", "[example.com]", "[example.com]:80", "[127.0.0.1]"} {
		s.refused(getOf(host), 400, "ambiguous_host", "host_invalid")
	}
}

func TestE2OtherSpellingsOfANameAreThatName(t *testing.T) {
	server := serve(t, nil, echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port)}, Protocol: "tcp"}}}, nil)
	for host, status := range map[string]int{
		"denied.com:443": 403, "DENIED.com:443": 403, "denied.com.:443": 400, "DENIED.COM.:443": 400, "xn--dnied-bsa.com:443": 403,
		"allowed.com.:" + server.port: 400, "ａllowed.com:" + server.port: 400, "allowed。com:" + server.port: 400, "allowed.com..:" + server.port: 400,
	} {
		s.refused(connectTo(host), status, "destination_unknown", "ambiguous_host", "host_invalid")
	}
	s.connect("ALLOWED.com:" + server.port)
	if d := s.decision(9); d.Host != "allowed.com" {
		t.Errorf("%+v", d)
	}
}

func TestE3BytesThatNoHostHas(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"allowed.com:443", "allowed.com:80"}, Protocol: "tcp"}}}, nil)
	for _, evil := range []string{"evil.com\x00.allowed.com", "evil.com%00.allowed.com", "evil.com%0d.allowed.com", "evil.com .allowed.com",
		"evil.com@allowed.com", "allowed.com#evil.com", `evil.com\.allowed.com`, "allowed.com\tx", "evil.com\r.allowed.com", "evil.com\n.allowed.com",
		"allowed.com/", "evil.com,allowed.com", "*", "allowed..com", "-allowed.com", strings.Repeat("a", 64) + ".com"} {
		codes := []string{"ambiguous_host", "host_invalid", "request_line_malformed", "bare_lf", "bare_cr", "path_noncanonical", "header_malformed"}
		s.refused(connectTo(evil+":443"), 400, codes...)
		if evil != "allowed.com/" {
			s.refused(getOf(evil), 400, codes...)
		}
	}
	for _, port := range []string{"", ":", ":0", ":65536", ":443x", ":+443", ":0443", ":443:443", ": 443"} {
		s.refused(connectTo("allowed.com"+port), 400, "ambiguous_host", "host_invalid", "request_line_malformed")
	}
}

func TestE4NumbersThatSomeTakeForAddresses(t *testing.T) {
	s := newStage(t, Rules{Report: true}, nil) // what is ambiguous stays refused in report mode
	for _, host := range []string{"0177.0.0.1", "0x7f.1", "2130706433", "127.1", "0", "0x7f000001", "127.0.0.01", "1.2.3.4.5"} {
		s.refused(connectTo(host+":443"), 400, "ambiguous_host")
		s.refused(getOf(host), 400, "ambiguous_host")
	}
}

// specials are addresses that nobody may be led to; the last two are ordinary ones.
func specials() []string {
	return strings.Fields(`0.0.0.0 0.1.2.3 10.0.0.1 100.100.100.200 127.0.0.1 168.63.129.16 169.254.169.254 169.254.170.2
		169.254.170.23 169.254.20.10 172.17.0.1 192.0.0.192 192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1
		240.0.0.1 255.255.255.255 ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::a9fe:a9fe 100::1
		2001::1 2001:db8::1 2002:7f00:1::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fd00:ec2::23 fd20:ce::254 fe80::1 fec0::1 ff02::1`)
}

func TestE5SpecialAddresses(t *testing.T) {
	server := serve(t, nil, echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port)}, Protocol: "tcp"}}}, nil)
	n := 0
	for _, a := range specials() {
		address := netip.MustParseAddr(a)
		s.refused(connectTo(netip.AddrPortFrom(address, 80).String()), 403, "destination_unknown", "escape_target")
		if w := s.way(Attempt{Network: "tcp", To: netip.AddrPortFrom(address, 80)}); w.Via.IsValid() {
			t.Errorf("%s: led to %s", a, w.Via)
		}
		n += 2
	}
	for _, port := range []string{":80", ":32526"} {
		s.refused(connectTo("168.63.129.16"+port), 403, "escape_target")
	}
	if d, _ := s.audit.entries(t); len(d) != n+2 {
		t.Errorf("%d records of %d", len(d), n+2)
	}
}

func TestE5MetadataStaysRefusedWhereverANameLeads(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"allowed.com:80"}, Protocol: "tcp"}}}, nil)
	for _, a := range []string{"169.254.169.254", "168.63.129.16", "169.254.170.2", "169.254.170.23", "192.0.0.192", "100.100.100.200",
		"fd00:ec2::254", "fd20:ce::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"} {
		s.dns.Set("allowed.com", a)
		c := s.raw(connectTo("allowed.com:80"))
		if res, p := c.response(); res.StatusCode != 403 || p.Code != "escape_target" {
			t.Errorf("%s: %d %+v", a, res.StatusCode, p)
		}
	}
}

// A name that somebody else answers for leads inside only where the operator did not say that it is public.
func TestE5PublicNames(t *testing.T) {
	server := serve(t, nil, echo)
	public, other := host("public.com", server.port), host("other.com", server.port)
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "public", For: anyone(), Hosts: []string{public}, Protocol: "tcp", Public: true}, {Name: "other", For: anyone(), Hosts: []string{other}, Protocol: "tcp"},
	}}, nil)
	s.dns.Set("other.com", "127.0.0.1")
	for _, a := range append(specials(), "127.0.0.1") {
		s.dns.Set("public.com", a)
		if res, p := s.raw(connectTo(public)).response(); res.StatusCode != 403 || p.Code != "special_address" && p.Code != "escape_target" {
			t.Errorf("%s: %d %+v", a, res.StatusCode, p)
		}
	}
	s.connect(other)
}

func TestE6MixedAnswersAndRebinding(t *testing.T) {
	server := serve(t, nil, echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port), host("stable.com", server.port)}, Protocol: "tcp"}}}, nil)
	s.dns.Set("allowed.com", "93.184.216.34", "10.0.0.5")
	c := s.raw(connectTo(host("allowed.com", server.port)))
	if res, p := c.response(); res.StatusCode != 403 || p.Code != "mixed_answer" {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
	s.connect(host("stable.com", server.port))
	if n := s.dns.Asked("stable.com"); n != 1 {
		t.Errorf("resolved %d times for one connection", n)
	}
	if d := s.decision(1); fmt.Sprint(d.Detail["addresses"]) != "[127.0.0.1]" {
		t.Errorf("judged %v", d.Detail["addresses"])
	}
}

func TestE7DenyIsStrongerThanDestinations(t *testing.T) {
	s := newStage(t, Rules{
		Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"10.0.0.5:80", "allowed.com:80", "169.254.169.254:80"}, Protocol: "tcp"}},
		Deny:         []string{"10.0.0.5", "10.1.0.0/16"},
	}, nil)
	s.dns.Set("allowed.com", "10.1.2.3")
	for host, code := range map[string]string{"10.0.0.5:80": "denied_address", "allowed.com:80": "denied_address", "169.254.169.254:80": "escape_target"} {
		c := s.raw(connectTo(host))
		if res, p := c.response(); res.StatusCode != 403 || p.Code != code {
			t.Errorf("%s: %d %+v", host, res.StatusCode, p)
		}
	}
	for _, to := range []string{"10.0.0.5:80", "169.254.169.254:80"} {
		if w := s.way(Attempt{Network: "tcp", To: netip.MustParseAddrPort(to)}); w.Via.IsValid() {
			t.Errorf("%s: led", to)
		}
	}
}

func TestE8RedirectsAreJudgedAnew(t *testing.T) {
	service := sallytest.NewRecorderFunc(t, func(w io.Writer, _ *http.Request) {
		io.WriteString(w, "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\n\r\n")
	})
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", port)}, Protocol: "http"}}}, nil)
	client := s.client(nil)
	client.CheckRedirect = nil // it follows, as most do
	res, err := client.Get("http://allowed.com:" + port + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 403 || service.Requests() != 1 {
		t.Errorf("%d after %d requests", res.StatusCode, service.Requests())
	}
	if d := s.decision(1); d.Code != "escape_target" || d.Host != "169.254.169.254" {
		t.Errorf("%+v", d)
	}
}

func TestE9TheClientHelloMustAskForTheDestination(t *testing.T) {
	ca := newAuthority(t)
	server := serve(t, ca.config(t, "allowed.com", "other.com"), echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port), host("alias.com", server.port)}}}}, nil)
	good := helloOf(t, &tls.Config{ServerName: "allowed.com"})
	cases := []struct {
		name, code string
		hello      []byte
	}{
		{"another name", "sni_mismatch", helloOf(t, &tls.Config{ServerName: "other.com"})},
		{"another name, in pieces", "sni_mismatch", records(helloOf(t, &tls.Config{ServerName: "other.com"})[recordHeader:], 40)},
		{"no name", "sni_missing", helloOf(t, &tls.Config{})},
		{"encrypted hello", "encrypted_hello", withExtension(t, good, extensionECH, []byte{0, 0, 1, 0, 1, 7, 0, 0, 0, 1, 0})},
		{"two names", "hello_malformed", withExtension(t, good, extensionName, sni("other.com"))},
		{"no TLS", "hello_malformed", []byte("GET / HTTP/1.1\r\nHost: allowed.com\r\n\r\n")},
	}
	decisions := 0
	for _, c := range cases {
		for _, led := range []bool{false, true} {
			var tunnel *conn
			if led {
				s.proxy.names.learn("allowed.com", netip.MustParseAddr("127.0.0.1"))
				tunnel = s.lead("127.0.0.1:" + server.port)
			} else {
				tunnel = s.connect(host("allowed.com", server.port))
			}
			tunnel.Write(c.hello)
			rest, err := io.ReadAll(tunnel.r)
			if err != nil && !strings.Contains(err.Error(), "reset") || err == nil && string(rest) != string(alert(alertAccessDenied)) {
				t.Errorf("%s, led %t: %q %v", c.name, led, rest, err)
			}
			if d := s.decision(decisions); d.Decision != "deny" || d.Code != c.code {
				t.Errorf("%s, led %t: %+v", c.name, led, d)
			}
			decisions++
		}
	}
	if n := server.connections(); n != 0 {
		t.Errorf("the destination saw %d connections", n)
	}
	// A hello that comes in pieces is one all the same.
	tunnel := s.connect(host("allowed.com", server.port))
	for _, b := range records(good[recordHeader:], 200) {
		if _, err := tunnel.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, recordHeader)
	if _, err := io.ReadFull(tunnel.r, b); err != nil || b[0] != recordHandshake {
		t.Errorf("no ServerHello: %v %v", b, err)
	}
}

func TestE9HostInsideATunnelMustBeTheDestination(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", port)}, Protocol: "http", Paths: []string{"/a"}}}}, nil)
	tunnel := s.connect(host("allowed.com", port))
	io.WriteString(tunnel, "GET /a HTTP/1.1\r\nHost: other.com\r\n\r\n")
	if res, p := tunnel.response(); res.StatusCode != http.StatusMisdirectedRequest || p.Code != "host_mismatch" {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
	service.Untouched(t)
	tunnel = s.connect(host("allowed.com", port))
	io.WriteString(tunnel, "GET /a HTTP/1.1\r\nHost: allowed.com:"+port+"\r\n\r\nGET /b HTTP/1.1\r\nHost: allowed.com:"+port+"\r\n\r\n")
	if res, _ := tunnel.response(); res.StatusCode != 200 {
		t.Errorf("%d", res.StatusCode)
	} else {
		io.Copy(io.Discard, res.Body)
	}
	if res, p := tunnel.response(); res.StatusCode != 403 || p.Code != "path_not_allowed" {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
}

func TestE10OtherPorts(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"allowed.com:443", "docker.com:2375"}, Protocol: "tcp"}}}, nil)
	s.refused(connectTo("allowed.com:2375"), 403, "destination_unknown")
	// A port that leads to the host is refused even if somebody wrote it down without a reason.
	p := s.refused(connectTo("docker.com:2375"), 403, "escape_target")
	if !strings.Contains(p.Hint, "docker-api") {
		t.Errorf("hint %q", p.Hint)
	}
	if err := s.proxy.Swap(Rules{Unlock: []Unlock{{Name: "docker-api"}}}); err == nil {
		t.Error("an entry was unlocked without a reason")
	}
	if err := s.proxy.Swap(Rules{Unlock: []Unlock{{Name: "no-such-thing", Reason: "x"}}}); err == nil {
		t.Error("what is no entry was unlocked")
	}
}

func TestE11NothingLeadsBackToUs(t *testing.T) {
	admin := serve(t, nil, echo)
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1")
	t.Setenv("http_proxy", "http://192.0.2.1:1")
	t.Setenv("HTTPS_PROXY", "http://192.0.2.1:1")
	t.Setenv("ALL_PROXY", "socks5://192.0.2.1:1")
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	rules := Rules{Destinations: []Destination{
		{Name: "admin", For: anyone(), Hosts: []string{host("admin.com", admin.port)}, Protocol: "tcp"},
		{Name: "web", For: anyone(), Hosts: []string{host("web.com", port)}, Protocol: "http"},
	}}
	s := newStage(t, rules, func(c *Config) {
		c.Own = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:" + admin.port)}
	})
	_, own, _ := net.SplitHostPort(s.addr)
	rules.Resolvers = []string{s.dns.Addr}
	for _, p := range []string{own, fmt.Sprint(s.proxy.Led().Port())} {
		rules.Destinations = append(rules.Destinations, Destination{Name: "self-" + p, For: anyone(), Hosts: []string{host("self.com", p)}, Protocol: "tcp"})
	}
	s.dns.Set("self.com", "127.0.0.1")
	if err := s.proxy.Swap(rules); err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{host("admin.com", admin.port), host("self.com", own), host("self.com", fmt.Sprint(s.proxy.Led().Port()))} {
		c := s.raw(connectTo(h))
		if res, p := c.response(); res.StatusCode != 403 || p.Code != "own_address" {
			t.Errorf("%s: %d %+v", h, res.StatusCode, p)
		}
	}
	if n := admin.connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
	if status, _ := s.get("http://web.com:" + port + "/"); status != 200 {
		t.Errorf("with a proxy in our environment: %d", status)
	}
	// The proxy itself may be connected to, since what is said there is judged.
	if w := s.way(Attempt{Network: "tcp", To: netip.MustParseAddrPort(s.addr)}); w.Via.String() != s.addr {
		t.Errorf("our own proxy: %+v", w)
	}
	if w := s.way(Attempt{Network: "tcp", To: s.proxy.Led()}); w.Via.IsValid() {
		t.Error("led to where we lead")
	}
}

func TestE13HeadersThatAreOursOrNobodys(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	flight := cause.NewFlight()
	entry := flight.Begin(cause.Request{ID: "one", Route: "r"})
	defer entry.Done()
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", port)}, Protocol: "http"}}},
		func(c *Config) { c.Flight = flight })
	c := s.raw("GET http://allowed.com:" + port + "/ HTTP/1.1\r\nHost: ignored.com\r\nProxy-Authorization: Bearer " + entry.Capability + "\r\n" +
		"Proxy-Connection: keep-alive\r\nX-Smokescreen-Role: admin\r\nX-Upstream-Https-Proxy: http://evil.com\r\nX-Sallyport-Capability: " + entry.Capability + "\r\n" +
		"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nExpect: 100-continue\r\n" +
		"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nTracestate: a=b\r\nAuthorization: Bearer own\r\nX-API-Key: k\r\nCookie: a=b\r\n\r\n")
	if res, _ := c.response(); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	raw := strings.ToLower(string(service.Raw()))
	for _, gone := range []string{"proxy-", "smokescreen", "upstream", "sallyport", "hop", "keep-alive", "\r\nte:", "expect", "ignored.com", "user-agent", "connection", "authorization", "x-api-key", entry.Capability} {
		if strings.Contains(raw, gone) {
			t.Errorf("%q reached the destination: %q", gone, raw)
		}
	}
	for _, kept := range []string{"traceparent: 00-0af7651916cd43dd8448eb211c80319c", "tracestate: a=b", "cookie: a=b", "host: allowed.com:" + port} {
		if !strings.Contains(raw, kept) {
			t.Errorf("%q did not reach the destination: %q", kept, raw)
		}
	}
	if d := s.decision(0); fmt.Sprint(d.Detail["dropped"]) != "[authorization x-api-key]" || d.Detail["level"] != "capability" {
		t.Errorf("recorded %+v", d)
	}
}

func TestE17BadCertificates(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	for name, config := range map[string]*tls.Config{
		"unknown authority": stranger.config(t, "api.example"),
		"another name":      ca.config(t, "other.example"),
		"old TLS":           {Certificates: ca.config(t, "api.example").Certificates, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10},
	} {
		server := serve(t, config, func(c net.Conn) { io.Copy(io.Discard, c) })
		s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("api.example", server.port)}, Originate: true, CA: ca.file}}}, nil)
		status, body := s.get("http://api.example:" + server.port + "/")
		if status != 502 || !strings.Contains(body, "tls_failed") {
			t.Errorf("%s: %d %s", name, status, body)
		}
		if d, o := s.decision(0), s.outcome(0); d.Decision != "allow" || o.Error != "tls_failed" {
			t.Errorf("%s: %+v %+v", name, d, o)
		}
	}
}

func TestE18AbortsAndPanicsEndNothing(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"allowed.com:443"}}}}, nil)
	for _, text := range []string{"", "CONNECT", "CONNECT allowed.com:443 HTTP/1.1\r\n", connectTo("allowed.com:443"), connectTo("allowed.com:443") + "\x16\x03", "\x16\x03\x01", "GET http://", "\x00"} {
		c := s.raw(text)
		c.Conn.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	// What the service sends cannot make a step panic; broken rules can.
	whole := s.proxy.rules.Load()
	broken := *whole
	broken.guard = nil
	s.proxy.rules.Store(&broken)
	c := s.raw(connectTo("allowed.com:443"))
	if res, p := c.response(); res.StatusCode != 500 || p.Code != "internal_error" {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
	s.proxy.names.learn("allowed.com", netip.MustParseAddr("192.0.2.1"))
	if w := s.way(Attempt{Network: "tcp", To: netip.MustParseAddrPort("192.0.2.1:443")}); w.Via.IsValid() {
		t.Errorf("%+v", w)
	}
	s.proxy.rules.Store(whole)
	s.refused(connectTo("denied.com:443"), 403, "destination_unknown")
}

func TestE19NoQuestionCarriesAnythingOut(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"allowed.com:443"}}}}, nil)
	c := s.lead("192.0.2.53:53") // whatever name server the program knows
	for range 50 {
		if a := ask(t, c, "secret.evil.com.", dnsmessage.TypeA); a.RCode != dnsmessage.RCodeNameError {
			t.Fatalf("%v", a.RCode)
		}
	}
	if n := s.dns.Asked(""); n != 0 {
		t.Errorf("%d questions went out", n)
	}
	if d, _ := s.audit.entries(t); len(d) != 1 || d[0].Code != "name_not_allowed" || d[0].Host != "secret.evil.com" {
		t.Errorf("%+v", d)
	}
	if n := counter(t, s.registry, "sallyport_egress_dns_answers_total", "name_not_allowed"); n != 50 {
		t.Errorf("counted %v", n)
	}
	for _, to := range []string{"93.184.216.34:443", "8.8.8.8:123"} {
		if w := s.way(Attempt{Network: "udp", To: netip.MustParseAddrPort(to)}); w.Via.IsValid() {
			t.Errorf("UDP to %s: %+v", to, w)
		}
	}
	if w := s.way(Attempt{Network: "udp", To: netip.MustParseAddrPort("8.8.8.8:53")}); w.Via != s.proxy.led.dns {
		t.Errorf("a question over UDP: %+v", w)
	}
}

func TestE19AltSvcIsNotPassedOn(t *testing.T) {
	service := sallytest.NewRecorderFunc(t, func(w io.Writer, _ *http.Request) {
		io.WriteString(w, "HTTP/1.1 200 OK\r\nAlt-Svc: h3=\":443\"\r\nContent-Length: 0\r\n\r\n")
	})
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", port)}, Protocol: "http"}}}, nil)
	res, err := s.client(nil).Get("http://allowed.com:" + port + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if len(res.Header["Alt-Svc"]) > 0 || len(res.Header["Content-Type"]) > 0 {
		t.Errorf("%v", res.Header)
	}
}

func TestNoRecordNoAction(t *testing.T) {
	server := serve(t, nil, echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port)}, Protocol: "tcp", Direct: true}}}, nil)
	s.audit.fail(errors.New("disk full"))
	c := s.raw(connectTo(host("allowed.com", server.port)))
	if res, p := c.response(); res.StatusCode != 503 || p.Code != "audit_unavailable" {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
	s.proxy.names.learn("allowed.com", netip.MustParseAddr("127.0.0.1"))
	if w := s.way(Attempt{Network: "tcp", To: netip.MustParseAddrPort("127.0.0.1:" + server.port)}); w.Via.IsValid() {
		t.Errorf("%+v", w)
	}
	if n := server.connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
	s.audit.fail(nil)
	time.Sleep(10 * time.Millisecond)
}
