package egress

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

func TestE16SlowClients(t *testing.T) {
	server := serve(t, nil, echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port)}}}}, func(c *Config) {
		c.Limits.HeaderTimeout = 150 * time.Millisecond
	})
	began := time.Now()
	c := s.raw("CONNECT allowed.com:" + server.port + " HTTP/1.1\r\nHost: ")
	if res, p := c.response(); res.StatusCode != http.StatusRequestTimeout || p.Code != "header_timeout" {
		t.Errorf("half a request: %d %+v", res.StatusCode, p)
	}
	c = s.connect(host("allowed.com", server.port))
	io.WriteString(c, "\x16\x03\x01")
	if rest, _ := io.ReadAll(c.r); string(rest) != string(alert(alertAccessDenied)) {
		t.Errorf("half a hello: %q", rest)
	}
	if d := s.decision(1); d.Code != "hello_malformed" {
		t.Errorf("%+v", d)
	}
	s.proxy.names.learn("allowed.com", netip.MustParseAddr("127.0.0.1"))
	c = s.lead("127.0.0.1:" + server.port)
	if rest, _ := io.ReadAll(c); string(rest) != string(alert(alertAccessDenied)) {
		t.Errorf("no hello: %q", rest)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
	if n := server.connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

func TestE16LargeRequests(t *testing.T) {
	service := sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", port)}, Protocol: "http"}}}, func(c *Config) {
		c.Limits.BodyBytes = 100_000
	})
	post := "POST http://allowed.com:" + port + "/ HTTP/1.1\r\nHost: x\r\n"
	for _, c := range []struct {
		name, request, code string
		status              int
	}{
		{"1 MB header", post + "X: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", "header_too_large", 431},
		{"10 GB announced", post + "Content-Length: 10737418240\r\n\r\n", "body_too_large", 413},
		{"two lengths", post + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na", "content_length", 400},
		{"a list of lengths", post + "Content-Length: 1, 1\r\n\r\na", "content_length", 400},
		{"length and chunks", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "transfer_encoding", 400},
		{"a huge length", post + "Content-Length: 99999999999999999999\r\n\r\n", "content_length", 400},
		{"another coding", post + "Transfer-Encoding: gzip, chunked\r\n\r\n", "transfer_encoding", 400},
		{"a folded header", post + "X: 1\r\n y: 2\r\n\r\n", "obs_fold", 400},
	} {
		conn := s.raw(c.request)
		if res, p := conn.response(); res.StatusCode != c.status || p.Code != c.code {
			t.Errorf("%s: %d %+v", c.name, res.StatusCode, p)
		}
		conn.Close()
	}
	service.Untouched(t)
	// Chunks that do not end: what comes behind the limit does not reach the destination.
	conn := s.raw(post + "Transfer-Encoding: chunked\r\n\r\n")
	chunk := fmt.Sprintf("%x\r\n%s\r\n", 8192, strings.Repeat("a", 8192))
	go func() {
		for range 1000 {
			if _, err := io.WriteString(conn, chunk); err != nil {
				return
			}
		}
	}()
	res, err := http.ReadResponse(conn.r, nil)
	if err == nil && res.StatusCode != 413 {
		t.Errorf("%v %v", res, err)
	}
	if o := s.outcome(8); o.Error != "body_too_large" {
		t.Errorf("%+v", o)
	}
	if n := service.Bytes(); n > 120_000 {
		t.Errorf("%d bytes reached the destination", n)
	}
}

func TestE16MoreTunnelsThanMayBe(t *testing.T) {
	server := serve(t, nil, echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port)}, Protocol: "tcp"}}}, func(c *Config) {
		c.Limits.Tunnels = 3
	})
	var open []*conn
	for range 3 {
		open = append(open, s.connect(host("allowed.com", server.port)))
	}
	c := s.raw(connectTo(host("allowed.com", server.port)))
	res, p := c.response()
	if res.StatusCode != 503 || p.Code != "limit_reached" || res.Header.Get("Retry-After") == "" {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
	if w := s.way(Attempt{Network: "tcp", To: netip.MustParseAddrPort("127.0.0.1:" + server.port)}); w.Via.IsValid() || w.Errno == 0 {
		t.Errorf("%+v", w)
	}
	if n := counter(t, s.registry, "sallyport_egress_attempts_in_flight", ""); n != 3 {
		t.Errorf("%v in flight", n)
	}
	open[0].Close()
	s.outcome(0)
	for range 1000 {
		if s.proxy.inFlight.Load() < 3 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	talk(t, s.connect(host("allowed.com", server.port)), "room again")
}

func TestE16EarlyBytes(t *testing.T) {
	ca := newAuthority(t)
	plain, secure := serve(t, nil, echo), serve(t, ca.config(t, "tls.com"), echo)
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", plain.port)}, Protocol: "tcp"},
		{Name: "b", For: anyone(), Hosts: []string{host("tls.com", secure.port)}},
	}}, nil)
	c := s.raw(connectTo(host("allowed.com", plain.port)) + "early")
	c.established()
	b := make([]byte, 5)
	if _, err := io.ReadFull(c.r, b); err != nil || string(b) != "early" {
		t.Errorf("%q %v", b, err)
	}
	hello := helloOf(t, &tls.Config{ServerName: "tls.com"})
	c = s.raw(connectTo(host("tls.com", secure.port)) + string(hello))
	c.established()
	if _, err := io.ReadFull(c.r, b); err != nil || b[0] != recordHandshake {
		t.Errorf("%v %v", b, err)
	}
	// What comes behind a CONNECT that is refused is no request.
	c = s.raw(connectTo("denied.com:443") + getOf(host("allowed.com", plain.port)))
	if res, _ := c.response(); res.StatusCode != 403 {
		t.Errorf("%d", res.StatusCode)
	}
	if rest, _ := io.ReadAll(c.r); len(rest) != 0 {
		t.Errorf("and then %q", rest)
	}
	if n := plain.connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestE20UpgradesAreJudgedLikeEverything(t *testing.T) {
	service := sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" {
			io.WriteString(w, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			return
		}
		io.WriteString(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nlate")
		io.Copy(w, w.(io.Reader))
		w.(io.Closer).Close()
	})
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", port)}, Protocol: "http", Paths: []string{"/ws"}}}}, nil)
	upgrade := "Connection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
	websocket := fmt.Sprintf(upgrade, "websocket")
	get := "GET http://%s/%s HTTP/1.1\r\nHost: x\r\n"

	s.refused(fmt.Sprintf(get, "denied.com", "ws")+websocket, 403, "destination_unknown")
	s.refused(fmt.Sprintf(get, host("allowed.com", port), "other")+websocket, 403, "path_not_allowed")
	s.refused(fmt.Sprintf(get, host("allowed.com", port), "ws")+fmt.Sprintf(upgrade, "h2c"), 400, "upgrade_refused")
	s.refused(fmt.Sprintf(get, host("allowed.com", port), "ws")+fmt.Sprintf(upgrade, "websocket, h2c"), 400, "upgrade_refused")
	s.refused("PRI http://allowed.com:"+port+"/ HTTP/2.0\r\nHost: x\r\n\r\n", 400, "http_version")
	service.Untouched(t)

	for _, led := range []bool{false, true} {
		var c *conn
		if led {
			c = s.lead("127.0.0.1:" + port)
			io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: "+host("allowed.com", port)+"\r\n"+websocket)
		} else {
			c = s.raw(fmt.Sprintf(get, host("allowed.com", port), "ws") + websocket)
		}
		res, err := http.ReadResponse(c.r, nil)
		if err != nil || res.StatusCode != 101 || res.Header.Get("Sec-Websocket-Accept") != "x" {
			t.Fatalf("%v %v", res, err)
		}
		late := make([]byte, 4)
		if _, err := io.ReadFull(c.r, late); err != nil || string(late) != "late" {
			t.Errorf("%q %v", late, err)
		}
		io.WriteString(c, "ping")
		if _, err := io.ReadFull(c.r, late); err != nil || string(late) != "ping" {
			t.Errorf("%q %v", late, err)
		}
		c.Close()
	}
	if o := s.outcome(5); o.Status != 101 || o.BytesIn != 4 || o.BytesOut != 8 {
		t.Errorf("%+v", o)
	}
}

func TestIdleTunnelsEnd(t *testing.T) {
	server := serve(t, nil, echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port)}, Protocol: "tcp"}}}, func(c *Config) {
		c.Limits.IdleTimeout = 200 * time.Millisecond
	})
	c := s.connect(host("allowed.com", server.port))
	for range 8 { // not idle
		talk(t, c, "ping")
		time.Sleep(50 * time.Millisecond)
	}
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
	if o := s.outcome(0); o.Error != "idle" || o.BytesIn != 32 || o.BytesOut != 32 {
		t.Errorf("%+v", o)
	}
}

func TestOldTunnelsEnd(t *testing.T) {
	server := serve(t, nil, echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port)}, Protocol: "tcp"}}}, func(c *Config) {
		c.Limits.TunnelLifetime = 100 * time.Millisecond
	})
	c := s.connect(host("allowed.com", server.port))
	talk(t, c, "ping")
	io.ReadAll(c.r)
	if o := s.outcome(0); o.Error != "lifetime" || o.BytesIn != 4 {
		t.Errorf("%+v", o)
	}
}

func TestShutdownEndsTunnelsAndRecordsThem(t *testing.T) {
	server := serve(t, nil, echo)
	slow := serve(t, nil, func(c net.Conn) { io.Copy(io.Discard, c) })
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "a", For: anyone(), Hosts: []string{host("allowed.com", server.port), host("127.0.0.1", server.port)}, Protocol: "tcp"},
		{Name: "b", For: anyone(), Hosts: []string{host("slow.com", slow.port)}, Protocol: "http"},
	}}, nil)
	talk(t, s.connect(host("allowed.com", server.port)), "ping")
	talk(t, s.lead("127.0.0.1:"+server.port), "ping")
	c := s.raw(getOf(host("slow.com", slow.port)))
	s.decision(2)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	_, outcomes := s.audit.entries(t)
	if len(outcomes) != 3 {
		t.Errorf("%d outcomes", len(outcomes))
	}
	for _, o := range outcomes {
		if o.Error != "closing" {
			t.Errorf("%+v", o)
		}
	}
	if res, err := http.ReadResponse(c.r, nil); err == nil && res.StatusCode != 503 {
		t.Errorf("%v", res.Status)
	}
}

// A client that has said all and reads nothing: the one direction has ended, and the other waits in a write, which has no
// deadline.
func TestTunnelThatNobodyReadsEnds(t *testing.T) {
	server := serve(t, nil, func(c net.Conn) {
		b := make([]byte, 64<<10)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	h := host("allowed.com", server.port)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{h}, Protocol: "tcp"}}}, func(c *Config) { c.Limits.IdleTimeout = 200 * time.Millisecond })
	c := s.connect(h)
	c.Conn.(*net.TCPConn).CloseWrite()
	if !s.settled(5 * time.Second) {
		t.Error("a tunnel in which nothing moves stays open")
	}
	if o := s.outcome(0); o.Error != "idle" {
		t.Errorf("%+v", o)
	}
}
