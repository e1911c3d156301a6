package ingress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/sallytest"
)

func (s *stage) uploadHead(extra string) string {
	return "POST /upload HTTP/1.1\r\nHost: a\r\n" + bearerHeader(s.token("")) + "\r\n" + extra + "\r\n\r\n"
}

// eventually waits for what another goroutine does.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for range 2000 {
		if is() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("did not happen: %s", what)
}

// An upload that goes wrong after its head has passed: the service never sees it end well, the client gets an answer if it
// is still there, and the outcome is on record.
func TestUploadThatBreaks(t *testing.T) {
	const whole = "the service must not take it for whole"
	s := open(t, func(s *stage) {
		s.config.Limits.BodyBytes = 1000
		s.config.Limits.BodyTimeout = time.Second
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 38\r\n\r\n"+whole)
			}
		})
	})
	chunked := s.uploadHead("Transfer-Encoding: chunked")
	for _, c := range []struct {
		name, head, rest string
		status           int // 0: the client leaves
		code             string
	}{
		{"chunk that is none", chunked, "5\r\nhello\r\n0x5\r\nhello\r\n0\r\n\r\n", 400, "chunk_malformed"},
		{"chunk longer than said", chunked, "5\r\nhello!\r\n0\r\n\r\n", 400, "chunk_malformed"},
		{"trailer that is none", chunked, "5\r\nhello\r\n0\r\nGET /admin HTTP/1.1\r\n\r\n", 400, "trailer_malformed"},
		{"over the limit in one chunk", chunked, "3e9\r\n" + strings.Repeat("a", 1001) + "\r\n0\r\n\r\n", 413, "body_too_large"},
		{"over the limit in many chunks", chunked, strings.Repeat("64\r\n"+strings.Repeat("a", 100)+"\r\n", 11) + "0\r\n\r\n", 413, "body_too_large"},
		{"H24 stops in the middle", chunked, "5\r\nhel", 408, "body_timeout"},
		{"stops in the middle of a length", s.uploadHead("Content-Length: 100"), "hello", 408, "body_timeout"},
		{"leaves in the middle", s.uploadHead("Content-Length: 100"), "hello", 0, "client_gone"},
		{"leaves in the middle of a chunk", chunked, "64\r\nhello", 0, "client_gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			s.service.Reset()
			before, _ := s.audit.entries(t)
			p := s.dial()
			p.send(c.head)
			eventually(t, "the head is forwarded", func() bool { return s.service.Requests() == 1 })
			p.send(c.rest)
			if c.status == 0 {
				p.Close()
			} else if a := p.read("POST"); a.StatusCode != c.status || a.code != c.code {
				t.Errorf("answered %d %s, want %d %s", a.StatusCode, a.code, c.status, c.code)
			} else if !p.closed() {
				t.Error("the connection is open still")
			}
			_, outcomes := s.settled(len(before) + 1)
			if o := outcomes[len(outcomes)-1]; o.Error != c.code || o.Status != c.status {
				t.Errorf("outcome %+v, want %d %s", o, c.status, c.code)
			}
			if raw := s.service.Raw(); bytes.Contains(raw, []byte("\r\n0\r\n")) {
				t.Errorf("the service saw the end of a body that had none: %q", raw)
			}
		})
	}
}

// H24: slow headers end at a fixed bound, with an answer if there was something to answer, and on record.
func TestSlowHeaders(t *testing.T) {
	s := open(t, func(s *stage) {
		s.config.Limits.HeaderTimeout = time.Second
		s.config.Limits.IdleTimeout = 2 * time.Second
	})
	silent := s.dial()
	slow := s.dial()
	slow.send("GET /health HTTP/1.1\r\nHost: a\r\n")
	if a := slow.read("GET"); a.StatusCode != 408 || a.code != "header_timeout" || !slow.closed() {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
	if !silent.closed() {
		t.Error("a silent connection stays open")
	}
	s.service.Untouched(t)
	second := s.dial() // slow in its second request
	second.send(get("/health"))
	second.read("GET")
	for _, c := range "GET /hea" {
		second.send(string(c))
		time.Sleep(5 * time.Millisecond)
	}
	if a := second.read("GET"); a.StatusCode != 408 || !second.closed() {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
	idle := s.dial()
	idle.send(get("/health"))
	idle.read("GET")
	if !idle.closed() {
		t.Error("an idle connection stays open")
	}
	d, _ := s.settled(4)
	timeouts := 0
	for _, e := range d {
		if e.Code == "header_timeout" {
			timeouts++
		}
	}
	if timeouts != 2 {
		t.Errorf("%d timeouts on record, want 2", timeouts)
	}
}

// H24: a body that comes a byte at a time ends at a fixed bound too, though it never stops, and the service is rid of it.
func TestSlowBody(t *testing.T) {
	s := open(t, func(s *stage) {
		s.config.Limits.BodyTimeout = 500 * time.Millisecond
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				io.WriteString(w, "HTTP/1.1 204 No Content\r\n\r\n")
			}
		})
	})
	p := s.dial()
	p.send("POST /hook HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
	go func() {
		for err := error(nil); err == nil; _, err = io.WriteString(p, "x") {
			time.Sleep(50 * time.Millisecond)
		}
	}()
	if a := p.read("POST"); a.StatusCode != 408 || a.code != "body_timeout" || !p.closed() {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
	if _, o := s.settled(1); o[0].Error != "body_timeout" || o[0].Status != 408 || o[0].BytesIn == 0 {
		t.Errorf("outcome %+v", o[0])
	}
}

// H26: who is denied is not invited to send a body; who is allowed is, by the service.
func TestExpectContinue(t *testing.T) {
	s := open(t, func(s *stage) {
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
			io.WriteString(w, "HTTP/1.1 100 Continue\r\n\r\n")
			b, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
		})
	})
	p := s.dial()
	p.send("POST /upload HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	line, err := p.r.ReadString('\n')
	if err != nil || line != "HTTP/1.1 401 Unauthorized\r\n" {
		t.Errorf("a denied upload was answered %q, %v", line, err)
	}
	s.service.Untouched(t)
	p = s.dial()
	p.send(s.uploadHead("Expect: 100-continue\r\nContent-Length: 5"))
	line, err = p.r.ReadString('\n')
	if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("answered %q, %v", line, err)
	}
	if line, err = p.r.ReadString('\n'); line != "\r\n" || err != nil {
		t.Fatalf("informational header %q, %v", line, err)
	}
	p.send("hello" + get("/health")) // "a different length": the rest is the next request, or nothing
	if a := p.read("POST"); a.StatusCode != 200 || a.body != "hello" {
		t.Errorf("answered %d %q", a.StatusCode, a.body)
	}
	if a := p.read("GET"); a.StatusCode != 200 {
		t.Errorf("next: %d", a.StatusCode)
	}
}

// Events pass one by one, and a stream ends with its token.
func TestServerSentEvents(t *testing.T) {
	next := make(chan string)
	ended := make(chan struct{})
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for {
			select {
			case event := <-next:
				fmt.Fprintf(w, "data: %s\n\n", event)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}))
	t.Cleanup(service.Close)
	s := open(t, func(s *stage) {
		s.config.Upstream = mustURL(t, service.URL)
		s.leeway = 100 * time.Millisecond
	})
	p := s.dial()
	p.send(get("/events", bearerHeader(s.issuer.Token(map[string]any{"exp": time.Now().Unix() + 5}))))
	res, err := http.ReadResponse(p.r, nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	body := bufio.NewReader(res.Body)
	for _, event := range []string{"one", "two"} {
		select {
		case next <- event:
		case <-ended:
			t.Fatal("the stream ended before its token")
		}
		if line, err := body.ReadString('\n'); err != nil || line != "data: "+event+"\n" {
			t.Fatalf("got %q, %v", line, err)
		}
		body.ReadString('\n')
	}
	if _, err := body.ReadString('\n'); err == nil || err == io.EOF {
		t.Errorf("the stream ended well: %v", err)
	}
	<-ended
	_, o := s.settled(1)
	if o[0].Error != "expired" || o[0].Status != 200 || o[0].BytesOut != 22 {
		t.Errorf("outcome %+v", o[0])
	}
}

// A service may answer while it still reads.
func TestBothWays(t *testing.T) {
	s := open(t, func(s *stage) {
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			b := make([]byte, 100)
			for {
				n, err := r.Body.Read(b)
				if n > 0 {
					fmt.Fprintf(w, "%x\r\n%s\r\n", n, b[:n])
				}
				if err != nil {
					break
				}
			}
			io.WriteString(w, "0\r\n\r\n")
		})
	})
	p := s.dial()
	p.send(s.uploadHead("Transfer-Encoding: chunked"))
	p.send("3\r\none\r\n")
	res, err := http.ReadResponse(p.r, nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	b := make([]byte, 3)
	for _, word := range []string{"one", "two", "six"} {
		if word != "one" {
			p.send("3\r\n" + word + "\r\n")
		}
		if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != word {
			t.Fatalf("got %q, %v", b, err)
		}
	}
	p.send("0\r\n\r\n")
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
		t.Errorf("the end: %q, %v", rest, err)
	}
	if !res.Close || !p.closed() {
		t.Error("the connection is open still, behind an answer that began before its request had ended")
	}
	_, o := s.settled(1)
	if o[0].BytesIn != 9 || o[0].BytesOut != 9 || o[0].Error != "" {
		t.Errorf("outcome %+v", o[0])
	}
}

// What a service can do wrong: an answer of ours, or an answer that is visibly not whole, and always an outcome.
func TestUpstreamThatFails(t *testing.T) {
	var answer atomic.Value
	s := open(t, func(s *stage) {
		s.config.Limits.UpstreamTimeout = 2 * time.Second
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
			answer.Load().(func(io.Writer, *http.Request))(w, r)
		})
	})
	says := func(text string) func(io.Writer, *http.Request) {
		return func(w io.Writer, r *http.Request) {
			io.WriteString(w, text)
			w.(io.Closer).Close()
		}
	}
	for _, c := range []struct {
		name   string
		answer func(w io.Writer, r *http.Request)
		status int
		code   string
	}{
		{"closes at once", says(""), 502, "upstream_bad_answer"},
		{"garbage", says("\x00\x01\x02 no http at all\r\n\r\n"), 502, "upstream_bad_answer"},
		{"closes in the header", says("HTTP/1.1 200 OK\r\nContent-Le"), 502, "upstream_bad_answer"},
		{"header without end", says("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 100<<10) + "\r\n\r\n"), 502, "upstream_bad_answer"},
		{"two lengths", says("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 502, "upstream_bad_answer"},
		{"switches unasked", says("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"), 502, "upstream_bad_answer"},
		{"switches unasked, to nothing", says("HTTP/1.1 101 Switching Protocols\r\n\r\n"), 502, "upstream_bad_answer"},
		{"hangs", func(w io.Writer, _ *http.Request) { io.Copy(io.Discard, w.(io.Reader)) }, 504, "upstream_timeout"},
		{"closes in the body", says("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"), 200, "upstream_bad_answer"},
		{"closes in a chunk", says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello"), 200, "upstream_bad_answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			answer.Store(c.answer)
			before, _ := s.audit.entries(t)
			p := s.dial()
			p.send(get("/orders/1", bearerHeader(s.token("orders:read"))))
			if c.status == 200 {
				res, err := http.ReadResponse(p.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(res.Body); err == nil {
					t.Errorf("half an answer passed for whole: %q", b)
				}
			} else if a := p.read("GET"); a.StatusCode != c.status || a.code != c.code {
				t.Errorf("answered %d %s, want %d %s", a.StatusCode, a.code, c.status, c.code)
			}
			_, o := s.settled(len(before) + 1)
			if last := o[len(o)-1]; last.Error != c.code || last.Status != c.status {
				t.Errorf("outcome %+v", last)
			}
		})
	}
}

func TestUpstreamThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s := open(t, func(s *stage) { s.config.Upstream = mustURL(t, "http://"+addr) })
	if a, _ := s.ask(get("/health")); a.StatusCode != 502 || a.code != "upstream_unreachable" {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
	_, o := s.settled(1)
	if o[0].Error != "upstream_unreachable" || o[0].Status != 502 {
		t.Errorf("outcome %+v", o[0])
	}
}

// A client that leaves while the service thinks takes its request along.
func TestClientThatLeaves(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	service := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(ended)
	}))
	t.Cleanup(service.Close)
	s := open(t, func(s *stage) { s.config.Upstream = mustURL(t, service.URL) })
	p := s.dial()
	p.send(get("/health"))
	<-begun // before that, the gate would not have sent it on
	p.Close()
	<-ended
	_, o := s.settled(1)
	if o[0].Error != "client_gone" || o[0].Status != 0 {
		t.Errorf("outcome %+v", o[0])
	}
}

// Shutdown waits for what is short and ends what is long, tunnels and streams alike, each with its outcome.
func TestDrain(t *testing.T) {
	release := make(chan struct{})
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/socket":
			c, err := websocket.Accept(w, r, nil)
			if err == nil {
				c.Read(r.Context())
				c.CloseNow()
			}
		case "/events":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			<-release
			io.WriteString(w, "done")
		}
	}))
	t.Cleanup(service.Close)
	s := open(t, func(s *stage) {
		s.config.Upstream = mustURL(t, service.URL)
		s.config.Limits.DrainTimeout = time.Second
	})
	c, _, err := s.socket(t.Context(), s.token(""))
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	stream, short, idle := s.dial(), s.dial(), s.dial()
	idle.send(get("/nothing"))
	idle.read("GET")
	stream.send(get("/events", bearerHeader(s.token(""))))
	short.send(get("/health"))
	eventually(t, "three requests in flight", func() bool { return s.gateway.inFlight.Load() == 3 })
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	eventually(t, "the port is closed", func() bool {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(release)
	if a := short.read("GET"); a.StatusCode != 200 || a.body != "done" {
		t.Errorf("the short request: %d %q", a.StatusCode, a.body)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Serve: %v", err)
	}
	_, o := s.settled(4)
	terminated := 0
	for _, e := range o {
		if e.Error == "stream_terminated" {
			terminated++
		}
	}
	if terminated != 2 {
		t.Errorf("%d streams ended by the drain, want 2:\n%s", terminated, s.audit)
	}
}

// TestAClientThatGoesIsNotForgotten holds that a request whose client has gone may still be what causes something, for longer
// than one that was answered: the service was not told to stop.
func TestAClientThatGoesIsNotForgotten(t *testing.T) {
	flight := cause.NewFlight()
	capability := make(chan string, 2)
	release := make(chan struct{})
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		capability <- r.Header.Get("X-Sallyport-Capability")
		if r.URL.Path != "/health" {
			<-release
		}
	}))
	defer service.Close()
	defer close(release)
	s := open(t, func(s *stage) { s.config.Flight, s.config.Upstream = flight, mustURL(t, service.URL) })
	c := s.dial()
	c.send(get("/events", bearerHeader(s.token(""))))
	gone := <-capability
	c.Close()
	s.settled(1)
	if a, _ := s.ask(get("/health")); a.StatusCode != 200 {
		t.Fatalf("answered %d", a.StatusCode)
	}
	answered := <-capability
	time.Sleep(cause.Tail + 100*time.Millisecond)
	if _, ok := flight.ByCapability(answered); ok {
		t.Error("one that was answered is in flight still")
	}
	if _, ok := flight.ByCapability(gone); !ok {
		t.Error("one that was left is forgotten, and the service is at work on it")
	}
}

// TestAServiceThatIsNotThereIsAtWorkOnNothing: what it never received counts no longer than what it has answered.
func TestAServiceThatIsNotThereIsAtWorkOnNothing(t *testing.T) {
	flight := cause.NewFlight()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	s := open(t, func(s *stage) { s.config.Flight, s.config.Upstream = flight, mustURL(t, gone.URL) })
	if a, _ := s.ask(get("/health")); a.StatusCode != 502 {
		t.Fatalf("answered %d", a.StatusCode)
	}
	time.Sleep(cause.Tail + 100*time.Millisecond)
	if w := flight.Window(); w.Requests != 0 {
		t.Errorf("%d may still cause something", w.Requests)
	}
}
