package egress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// web starts a stage before an HTTP server whose connections handle answers by itself.
func web(t testing.TB, change func(*Config), handle func(net.Conn)) (*stage, *server, string) {
	t.Helper()
	server := serve(t, nil, handle)
	h := host("web.com", server.port)
	return newStage(t, Rules{Destinations: []Destination{{Name: "web", For: anyone(), Hosts: []string{h}, Protocol: "http"}}}, change), server, h
}

// answering reads a request's header and says something.
func answering(text string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			io.WriteString(c, text)
		}
	}
}

func TestBadAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		text, code string
		status     int
	}{
		"no HTTP":            {"hello\r\n\r\n", "bad_answer", 502},
		"a header too large": {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 100<<10) + "\r\n\r\n", "bad_answer", 502},
		"interim for ever":   {strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 20), "bad_answer", 502},
		"switched unasked":   {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", "bad_answer", 502},
		"two lengths":        {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "bad_answer", 502},
		"interim":            {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "", 204},
	} {
		s, _, h := web(t, nil, answering(c.text))
		conn := s.raw(getOf(h))
		if res, p := conn.response(); res.StatusCode != c.status || p.Code != c.code {
			t.Errorf("%s: %d %+v", name, res.StatusCode, p)
		}
		if o := s.outcome(0); o.Error != c.code || o.Status != c.status {
			t.Errorf("%s: %+v", name, o)
		}
		s.stop()
	}
}

func TestAnswerThatBreaksOffIsNotWhole(t *testing.T) {
	for _, text := range []string{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"} {
		s, _, h := web(t, nil, func(c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, text)
		})
		res, err := s.client(nil).Get("http://" + h + "/")
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		if err == nil {
			t.Errorf("%q was taken for whole", text)
		}
		if o := s.outcome(0); o.Error != "bad_answer" {
			t.Errorf("%+v", o)
		}
		s.stop()
	}
}

func TestSlowAnswers(t *testing.T) {
	s, _, h := web(t, func(c *Config) { c.Limits.IdleTimeout = 100 * time.Millisecond }, func(c net.Conn) { io.Copy(io.Discard, c) })
	c := s.raw(getOf(h))
	if res, p := c.response(); res.StatusCode != 504 || p.Code != "answer_timeout" {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
}

func TestClientThatLeavesEndsItsRequest(t *testing.T) {
	gone := make(chan error, 1)
	arrived := make(chan struct{}, 1)
	s, _, h := web(t, nil, func(c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		arrived <- struct{}{}
		_, err := io.Copy(io.Discard, c)
		gone <- err
	})
	c := s.raw(getOf(h))
	<-arrived
	c.Close()
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Fatal("the destination's connection stays")
	}
	if o := s.outcome(0); o.Error != "client_gone" {
		t.Errorf("%+v", o)
	}
}

func TestEarlyAnswerEndsTheBody(t *testing.T) {
	s, _, h := web(t, nil, answering("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"))
	c := s.raw("POST http://" + h + "/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nbegun")
	res, err := http.ReadResponse(c.r, nil)
	if err != nil || res.StatusCode != 401 || !res.Close {
		t.Fatalf("%+v %v", res, err)
	}
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "no" {
		t.Errorf("%q %v", b, err)
	}
	if o := s.outcome(0); o.Status != 401 {
		t.Errorf("%+v", o)
	}
}

func TestBodiesPassAsTheyAre(t *testing.T) {
	service := sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n%x\r\n%s\r\n0\r\nX-Sum: 7\r\n\r\n", len(b), b)
	})
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "web", For: anyone(), Hosts: []string{host("web.com", port)}, Protocol: "http"}}}, nil)
	client := s.client(nil)
	for _, size := range []int{1, 1000, 1 << 20} {
		for _, chunked := range []bool{false, true} {
			body := bytes.Repeat([]byte("x"), size)
			var r io.Reader = bytes.NewReader(body)
			if chunked {
				r = io.MultiReader(r)
			}
			res, err := client.Post("http://web.com:"+port+"/", "text/plain", r)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || !bytes.Equal(b, body) || res.Trailer.Get("X-Sum") != "7" {
				t.Errorf("%d bytes, chunked %t: %d bytes, trailer %v, %v", size, chunked, len(b), res.Trailer, err)
			}
		}
	}
	if n := service.Connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
	if o := s.outcome(5); o.BytesIn != 1<<20 || o.BytesOut != 1<<20 {
		t.Errorf("%+v", o)
	}
}

func TestBothDirectionsAtOnce(t *testing.T) {
	s, _, h := web(t, nil, func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
		io.Copy(c, r.Body)
	})
	c := s.raw("POST http://" + h + "/ HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n")
	res, err := http.ReadResponse(c.r, nil)
	if err == nil && res.StatusCode == 100 {
		res, err = http.ReadResponse(c.r, nil)
	}
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %v", res, err)
	}
	for range 2 {
		io.WriteString(c, "ping")
		b := make([]byte, 4)
		if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "ping" {
			t.Errorf("%q %v", b, err)
		}
	}
}

func TestStreamsArriveAtOnce(t *testing.T) {
	next := make(chan struct{})
	s, _, h := web(t, nil, func(c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range 3 {
			io.WriteString(c, "3\r\none\r\n")
			<-next
		}
		io.WriteString(c, "0\r\n\r\n")
	})
	res, err := s.client(nil).Get("http://" + h + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for range 3 {
		b := make([]byte, 3)
		if _, err := io.ReadFull(res.Body, b); err != nil {
			t.Fatal(err)
		}
		next <- struct{}{}
	}
}

// A kept connection may have ended by the time that it is used: a request that may be repeated is, once, on a new one.
func TestStaleConnectionIsTriedAnew(t *testing.T) {
	var n atomic.Int32
	s, server, h := web(t, nil, func(c net.Conn) {
		r := bufio.NewReader(c)
		for i := range 2 {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			if i == 1 && n.Add(1) == 1 { // the second request on the first connection finds a close
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	for range 2 {
		if status, body := s.get("http://" + h + "/"); status != 200 || body != "ok" {
			t.Errorf("%d %q", status, body)
		}
	}
	if server.connections() != 2 {
		t.Errorf("%d connections", server.connections())
	}
	if o := s.outcome(1); o.Error != "stale_connection" || o.Status != 0 {
		t.Errorf("%+v", o)
	}
	if o := s.outcome(2); o.Error != "" || o.Status != 200 || o.ID == s.outcome(1).ID {
		t.Errorf("%+v", o)
	}
}

func TestWhatNobodyAskedForIsNotTheNextAnswer(t *testing.T) {
	s, server, h := web(t, nil, answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"))
	for range 3 {
		if status, body := s.get("http://" + h + "/"); status != 200 || body != "ok" {
			t.Errorf("%d %q", status, body)
		}
	}
	if server.connections() != 3 {
		t.Errorf("%d connections", server.connections())
	}
}

func TestManyAtOnce(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	db := serve(t, nil, echo)
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "web", For: anyone(), Hosts: []string{host("web.com", port)}, Protocol: "http"},
		{Name: "db", For: anyone(), Hosts: []string{host("127.0.0.1", db.port)}, Protocol: "tcp"},
	}}, nil)
	client := s.client(nil)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			for range 20 {
				if i%2 == 0 {
					res, err := client.Get("http://web.com:" + port + "/")
					if err != nil {
						t.Error(err)
						return
					}
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
					continue
				}
				c := s.lead("127.0.0.1:" + db.port)
				talk(t, c, "ping")
				c.Close()
			}
		})
	}
	all.Wait()
	for range 1000 {
		if s.proxy.inFlight.Load() == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	d, o := s.audit.entries(t)
	if len(d) != 320 || len(o) != 320 {
		t.Errorf("%d decisions, %d outcomes", len(d), len(o))
	}
}

// What came in one TLS record with an answer's end is not where the kernel shows it.
func TestWhatNobodyAskedForInsideTLS(t *testing.T) {
	ca := newAuthority(t)
	body := strings.Repeat("a", 12<<10)
	for more, connections := range map[string]int{"": 1, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged": 3} {
		config := ca.config(t, "web.com")
		config.DynamicRecordSizingDisabled = true
		server := serve(t, config, answering("HTTP/1.1 200 OK\r\nContent-Length: 12288\r\n\r\n"+body+more))
		h := host("web.com", server.port)
		s := newStage(t, Rules{Destinations: []Destination{{Name: "web", For: anyone(), Hosts: []string{h}, Originate: true, CA: ca.file}}}, nil)
		for range 3 {
			if status, got := s.get("http://" + h + "/"); status != 200 || got != body {
				t.Errorf("%d, %d bytes, %.20q", status, len(got), got)
			}
			s.settled(time.Second) // the connection is kept by then
		}
		if n := server.connections(); n != connections {
			t.Errorf("%.10q: %d connections", more, n)
		}
		s.stop()
	}
}

// A connection to an address that the guard refused, and report mode let pass, is not kept for a request that would not
// have to ask.
func TestReportModeKeepsNoRefusedAddress(t *testing.T) {
	server := serve(t, nil, answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	h := host("web.com", server.port)
	s := newStage(t, Rules{Report: true, Deny: []string{"127.0.0.1"}, Destinations: []Destination{{Name: "web", For: anyone(), Hosts: []string{h}, Protocol: "http"}}}, nil)
	for n := range 2 {
		s.get("http://" + h + "/")
		s.settled(time.Second)
		if d := s.decision(n); d.Code != "would_deny" || d.Detail["would"] != "denied_address" {
			t.Errorf("request %d: %+v", n, d)
		}
	}
}

// Nothing of the destination ends these requests: it takes everything, and never answers.
func TestPlacesOfClientsThatLeaveComeBack(t *testing.T) {
	s, _, h := web(t, func(c *Config) { c.Limits.IdleTimeout = 20 * time.Second }, func(c net.Conn) { io.Copy(io.Discard, c) })
	for i := range 400 {
		c := s.raw(getOf(h))
		time.Sleep(time.Duration(i) * 2 * time.Microsecond) // some leave just when an answer begins to be awaited
		c.Close()
	}
	if !s.settled(3 * time.Second) {
		t.Errorf("%d requests still wait for an answer", s.proxy.inFlight.Load())
	}
}

// A request for an upgrade stays one when it is sent anew, and a client that got no tunnel is told that nothing follows.
func TestUpgradeOnAStaleConnection(t *testing.T) {
	var n atomic.Int32
	s, _, h := web(t, nil, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			switch {
			case err != nil:
				return
			case req.URL.Path != "/ws":
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			case req.Header.Get("Upgrade") == "":
				io.WriteString(c, "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
			case n.Add(1) == 1: // on the kept connection: it has ended
				return
			case n.Load() == 2:
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				echo(c)
				return
			default:
				io.WriteString(c, "nonsense\r\n\r\n")
				return
			}
		}
	})
	upgrade := "GET http://" + h + "/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	s.get("http://" + h + "/")
	c := s.raw(upgrade)
	if res, _ := c.response(); res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%d", res.StatusCode)
	}
	talk(t, c, "ping")
	c.Close()
	c = s.raw(upgrade)
	if res, p := c.response(); res.StatusCode != http.StatusBadGateway || !res.Close {
		t.Errorf("%d %+v %v", res.StatusCode, p, res.Close)
	}
}

// Frameworks let a header say another method or path than the request line: what was judged must be what counts.
func TestHeadersThatNameAnotherMethodOrPath(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "some", For: anyone(), Hosts: []string{host("some.com", port)}, Protocol: "http", Methods: []string{"POST", "GET"}, Paths: []string{"/a"}},
		{Name: "all", For: anyone(), Hosts: []string{host("all.com", port)}, Protocol: "http"},
	}}, nil)
	ask := func(name, header string) (int, problem) {
		c := s.raw("POST http://" + host(name, port) + "/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n" + header + "\r\n\r\n")
		defer c.Close()
		res, p := c.response()
		return res.StatusCode, p
	}
	for _, header := range []string{
		"X-HTTP-Method-Override: DELETE", "x-http-method: PUT", "X-Method-Override: delete", "X-HTTP-Method-Override: GET, DELETE",
		"X-HTTP-Method-Override: GET\r\nX-HTTP-Method-Override: DELETE", "X-Original-URL: /admin", "X-Rewrite-URL: /admin",
	} {
		if status, p := ask("some.com", header); status != 403 || p.Code != "override_refused" {
			t.Errorf("%s: %d %+v", header, status, p)
		}
	}
	service.Untouched(t)
	if status, _ := ask("some.com", "X-HTTP-Method-Override: get"); status != 200 {
		t.Errorf("a method that is allowed: %d", status)
	}
	if status, _ := ask("all.com", "X-HTTP-Method-Override: DELETE\r\nX-Original-URL: /admin"); status != 200 {
		t.Errorf("where all is allowed: %d", status)
	}
}
