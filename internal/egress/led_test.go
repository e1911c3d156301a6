package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestDirect(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "db", For: anyone(), Hosts: []string{"db.example:5432", "192.0.2.77:5432"}, Protocol: "tcp", Direct: true}}}, nil)
	s.dns.Set("db.example", "198.51.100.7")
	for n, to := range []string{"192.0.2.77:5432", "198.51.100.7:5432"} { // as written, and as looked up
		w := s.way(Attempt{Process: 9, Network: "tcp", To: at(to)})
		if w.Via != at(to) {
			t.Fatalf("%s: %+v", to, w)
		}
		if d := s.decision(n); d.Decision != "allow" || d.Detail["via"] != "direct" || d.Detail["destination"] != "db" || d.Detail["process"] != 9.0 {
			t.Errorf("%+v", d)
		}
		if n == 0 {
			w.Ended(nil)
		} else {
			w.Ended(syscall.ECONNREFUSED)
		}
	}
	if a, b := s.outcome(0), s.outcome(1); a.Error != "" || b.Error != "dial_failed" {
		t.Errorf("%+v %+v", a, b)
	}
}

func TestBegunMayComeLate(t *testing.T) {
	server := serve(t, nil, echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("127.0.0.1", server.port)}, Protocol: "tcp"}}}, nil)
	w := s.way(Attempt{Network: "tcp", To: at("127.0.0.1:" + server.port)})
	c := dial(t, w.Via.String(), "ping")
	time.Sleep(100 * time.Millisecond)
	// An IPv6 socket of the service has its address in that family's spelling.
	local := at(c.LocalAddr().String())
	w.Begun(netip.AddrPortFrom(netip.AddrFrom16(local.Addr().As16()), local.Port()))
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		t.Errorf("%q %v", b, err)
	}
}

func TestStraysAreClosed(t *testing.T) {
	s := newStage(t, Rules{}, nil)
	c := dial(t, s.proxy.Led().String(), "GET / HTTP/1.1\r\n\r\n")
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("a stray heard %q", b)
	}
	if n := counter(t, s.registry, "sallyport_egress_strays_total", ""); n != 1 {
		t.Errorf("counted %v", n)
	}
	// What was announced and did not come about does not lend its port to the next.
	s.proxy.led.announce(at("127.0.0.1:1"), &errand{})
	s.proxy.led.withdraw(at("127.0.0.1:1"))
	if len(s.proxy.led.announced) != 0 || len(s.proxy.led.waiting) != 0 {
		t.Errorf("%v %v", s.proxy.led.announced, s.proxy.led.waiting)
	}
}

func TestConnectBeforeAndAfterServeLed(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"192.0.2.77:80"}, Protocol: "tcp"}}}, nil)
	early, err := New(Config{Rules: s.proxy.rules.Load().Rules, Audit: s.proxy.config.Audit, Limits: Limits{DialTimeout: 50 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []Attempt{{Network: "tcp", To: at("192.0.2.77:80")}, {Network: "udp", To: at("192.0.2.77:53")}, {Network: "sctp"}, {}} {
		ways := make(chan Way, 1)
		early.Connect(a, func(w Way) { ways <- w })
		if w := <-ways; w.Via.IsValid() || w.Allow {
			t.Errorf("%+v: %+v", a, w)
		}
	}
}

func TestSockets(t *testing.T) {
	dir := t.TempDir()
	path, engine := filepath.Join(dir, "a.sock"), filepath.Join(dir, "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	rules := Rules{Sockets: []string{path, engine, "/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock"}}
	s := newStage(t, rules, nil)
	for p, code := range map[string]string{
		"/run/docker.sock": "escape_target", "/var/run/docker.sock": "escape_target", "/run/containerd/containerd.sock": "escape_target",
		filepath.Join(dir, "b.sock"): "socket_not_allowed", path + "/": "socket_not_allowed", dir: "socket_not_allowed", "": "socket_not_allowed",
	} {
		if w := s.way(Attempt{Network: "unix", Path: p}); w.Allow || w.Via.IsValid() {
			t.Errorf("%s: %+v", p, w)
		}
		d, _ := s.audit.entries(t)
		if last := d[len(d)-1]; last.Decision != "deny" || last.Code != code || last.Path != p {
			t.Errorf("%s: %+v", p, last)
		}
	}
	w := s.way(Attempt{Network: "unix", Path: path})
	if !w.Allow {
		t.Errorf("%+v", w)
	}
	w.Ended(nil)
	rules.Unlock = []Unlock{{Name: "docker-socket", Reason: "a test"}}
	if err := s.proxy.Swap(rules); err != nil {
		t.Fatal(err)
	}
	if w := s.way(Attempt{Network: "unix", Path: "/run/docker.sock"}); !w.Allow {
		t.Error("unlocked with a reason, and refused")
	}
	rules.Sockets = nil
	if err := s.proxy.Swap(rules); err != nil {
		t.Fatal(err)
	}
	if w := s.way(Attempt{Network: "unix", Path: "/run/docker.sock"}); w.Allow {
		t.Error("unlocking alone opened it")
	}
}

func TestReportModeRecordsAndLetsPass(t *testing.T) {
	ca := newAuthority(t)
	plain, secure := serve(t, nil, echo), serve(t, ca.config(t, "other.com"), echo)
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Report: true, Destinations: []Destination{
		{Name: "tls", For: anyone(), Hosts: []string{host("tls.com", secure.port)}},
		{Name: "web", For: anyone(), Hosts: []string{host("web.com", port)}, Protocol: "http", Methods: []string{"POST"}, Paths: []string{"/a"}},
	}}, nil)
	s.dns.Set("unknown.com", "127.0.0.1")
	s.dns.Set("imds.com", "169.254.169.254")
	would := func(n int, code string) {
		t.Helper()
		if d := s.decision(n); d.Decision != "allow" || d.Code != "would_deny" || d.Detail["would"] != code {
			t.Errorf("%+v, want %s", d, code)
		}
	}
	talk(t, s.connect(host("unknown.com", plain.port)), "ping")
	would(0, "destination_unknown")
	if status, _ := s.get("http://web.com:" + port + "/b"); status != 200 {
		t.Errorf("%d", status)
	}
	would(1, "method_not_allowed")
	client := tls.Client(s.connect(host("tls.com", secure.port)), &tls.Config{ServerName: "other.com", RootCAs: ca.pool})
	talk(t, client, "ping")
	would(2, "sni_mismatch")
	if status, _ := s.get("http://unknown.com:" + port + "/"); status != 200 {
		t.Errorf("%d", status)
	}
	would(3, "destination_unknown")
	talk(t, s.lead("127.0.0.1:"+plain.port), "ping") // an address that nobody knows
	would(4, "destination_unknown")
	for n, h := range []string{"imds.com:80", "169.254.169.254:80", "127.1:80", s.addr} {
		c := s.raw(connectTo(h))
		if res, _ := c.response(); res.StatusCode != 403 && res.StatusCode != 400 {
			t.Errorf("%s: %d", h, res.StatusCode)
		}
		if d := s.decision(5 + n); d.Decision != "deny" {
			t.Errorf("%+v", d)
		}
	}
}

func TestSwapIsAllOrNothingAndLeavesTunnels(t *testing.T) {
	server := serve(t, nil, echo)
	good := Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port)}, Protocol: "tcp"}}}
	s := newStage(t, good, nil)
	open := s.connect(host("allowed.com", server.port))
	for what, bad := range map[string]Rules{
		"no such protocol": {Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"a:1"}, Protocol: "udp"}}},
		"no port":          {Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"a"}}}},
		"a pattern":        {Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"*.a:1"}}}},
		"a number":         {Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"127.1:1"}}}},
		"direct TLS":       {Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"a:1"}, Direct: true}}},
		"TCP originated":   {Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"a:1"}, Protocol: "tcp", Originate: true}}},
		"no such file":     {Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"a:1"}, Originate: true, CA: "/nowhere"}}},
		"CA for nothing":   {Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"a:1"}, CA: "/nowhere"}}},
		"methods unseen":   {Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"a:1"}, Methods: []string{"GET"}}}},
		"deny":             {Deny: []string{"ten"}},
		"resolvers":        {Resolvers: []string{"ns.example"}},
		"sockets":          {Sockets: []string{"a.sock"}},
	} {
		if err := s.proxy.Swap(bad); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	good.Resolvers = []string{s.dns.Addr}
	talk(t, s.connect(host("allowed.com", server.port)), "as before")
	if err := s.proxy.Swap(Rules{}); err != nil {
		t.Fatal(err)
	}
	s.refused(connectTo(host("allowed.com", server.port)), 403, "destination_unknown")
	talk(t, open, "still open")
}

func TestOriginate(t *testing.T) {
	ca := newAuthority(t)
	config := ca.config(t, "api.example")
	var name string
	var mu sync.Mutex
	config.GetConfigForClient = func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		name = i.ServerName
		return nil, nil
	}
	server := serve(t, config, func(c net.Conn) {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil || !strings.Contains(string(b[:n]), "GET /v1/7 HTTP/1.1\r\nHost: api.example:") {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
		}
	})
	s := newStage(t, Rules{Destinations: []Destination{{Name: "api", For: anyone(), Hosts: []string{host("api.example", server.port)}, Originate: true, CA: ca.file, Paths: []string{"/v1/{id}"}}}}, nil)
	for range 3 {
		if status, body := s.get("http://api.example:" + server.port + "/v1/7"); status != 200 || body != "ok" {
			t.Errorf("%d %q", status, body)
		}
	}
	// A client that asks its proxy for https in absolute-form gets it here.
	c := s.raw("GET https://api.example:" + server.port + "/v1/7 HTTP/1.1\r\nHost: x\r\n\r\n")
	if res, _ := c.response(); res.StatusCode != 200 {
		t.Errorf("%d", res.StatusCode)
	} else {
		io.Copy(io.Discard, res.Body) // to its end, or the next request finds the connection in use
	}
	if status, body := s.get("http://api.example:" + server.port + "/v2"); status != 403 || !strings.Contains(body, "path_not_allowed") {
		t.Errorf("%d %q", status, body)
	}
	led := s.lead("127.0.0.1:" + server.port)
	io.WriteString(led, "GET /v1/7 HTTP/1.1\r\nHost: api.example:"+server.port+"\r\n\r\n")
	if res, _ := led.response(); res.StatusCode != 200 {
		t.Errorf("led: %d", res.StatusCode)
	} else {
		io.Copy(io.Discard, res.Body)
	}
	if name != "api.example" {
		t.Errorf("the server was asked for %q", name)
	}
	if n := server.connections(); n != 1 {
		t.Errorf("%d connections for five requests", n)
	}
}

// TestRequestsOnALedConnectionAreJudgedOneByOne: two parsers that disagree would let one request hide in another.
func TestRequestsOnALedConnectionAreJudgedOneByOne(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("web.com", port)}, Protocol: "http", Methods: []string{"POST"}, Paths: []string{"/a"}}}}, nil)
	s.proxy.names.learn("web.com", netip.MustParseAddr("127.0.0.1"))
	h := "Host: web.com:" + port + "\r\n"
	hidden := "GET /admin HTTP/1.1\r\n" + h + "\r\n"
	for _, smuggled := range []string{
		"POST /a HTTP/1.1\r\n" + h + "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"POST /a HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"POST /a HTTP/1.1\r\n" + h + "Content-Length: 1\r\n\r\nx" + hidden,
		"POST /a HTTP/1.1\n" + h + "\r\n" + hidden,
		"POST /a HTTP/1.1\r\n" + h + "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + hidden,
		"POST /a HTTP/1.1\r\n" + h + "Content-Length : 5\r\n\r\n" + hidden,
		"CONNECT /a HTTP/1.1\r\n" + h + "\r\n" + hidden,
		"POST http://web.com/a HTTP/1.1\r\n" + h + "\r\n" + hidden,
	} {
		c := s.lead("127.0.0.1:" + port)
		io.WriteString(c, smuggled)
		c.Conn.(*net.TCPConn).CloseWrite()
		io.ReadAll(c)
	}
	if raw := string(service.Raw()); strings.Contains(raw, "admin") {
		t.Errorf("the destination saw %q", raw)
	}
}

func TestProxyOnASocket(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("web.com", port)}, Protocol: "http"}}}, nil)
	path := filepath.Join(t.TempDir(), "egress.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.proxy.Serve(ctx, l) }()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET http://web.com:"+port+"/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if b, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 OK") {
		t.Errorf("%q %v", b, err)
	}
	if w := s.way(Attempt{Network: "unix", Path: path}); !w.Allow {
		t.Errorf("%+v", w)
	}
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// An engine's socket is known by its file name wherever it is mounted, and by the variable that names it.
func TestEngineSocketAtAnotherPlace(t *testing.T) {
	dir := t.TempDir()
	mounted, named := filepath.Join(dir, "docker.sock"), filepath.Join(dir, "engine")
	t.Setenv("DOCKER_HOST", "unix://"+named)
	for _, report := range []bool{false, true} {
		s := newStage(t, Rules{Report: report, Sockets: []string{mounted, named}}, nil)
		for n, path := range []string{mounted, named} {
			if w := s.way(Attempt{Network: "unix", Path: path}); w.Allow {
				t.Errorf("report %t: %s may be connected to", report, path)
			}
			if d := s.decision(n); d.Decision != "deny" || d.Code != "escape_target" {
				t.Errorf("%+v", d)
			}
		}
		s.stop()
	}
}

// While all places are taken, connections are announced that nobody claims: looking through them must not cost more with
// each.
func TestManyAnnouncementsStayCheap(t *testing.T) {
	l := led{announced: map[netip.AddrPort]*errand{}, waiting: map[netip.AddrPort]chan *errand{}}
	began := time.Now()
	for i := range 60_000 {
		l.announce(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(i)), &errand{})
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("it took %s", d)
	}
	for _, e := range l.announced {
		e.begun = e.begun.Add(-time.Hour)
	}
	l.pruned = l.pruned.Add(-time.Hour)
	l.announce(at("127.0.0.1:1"), &errand{})
	if n := len(l.announced); n != 1 {
		t.Errorf("%d are kept", n)
	}
}
