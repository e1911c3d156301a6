package ingress

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/http1"
	"github.com/sallyport/sallyport/internal/wire"
)

// onUnix answers each connection to a unix socket by serve, until the test ends, and returns the service's URL.
func onUnix(t *testing.T, serve func(*net.UnixConn)) *url.URL {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go serve(c.(*net.UnixConn))
		}
	}()
	return mustURL(t, "unix://"+path)
}

// A service that takes no more of a body, and neither answers nor hangs up, is waited for as long as one that has it all.
func TestServiceThatStopsReading(t *testing.T) {
	s := open(t, func(s *stage) {
		s.config.Limits.UpstreamTimeout = 300 * time.Millisecond
		s.config.Upstream = onUnix(t, func(c *net.UnixConn) {
			b := make([]byte, 4096)
			c.Read(b)
			c.CloseRead()
		})
	})
	p := s.dial()
	p.send(s.uploadHead("Transfer-Encoding: chunked"))
	go func() {
		for range 100 {
			if _, err := io.WriteString(p, "5\r\nhello\r\n"); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if a := p.read("POST"); a.StatusCode != 504 && a.StatusCode != 502 {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
	_, outcomes := s.settled(1)
	if o := outcomes[0]; o.Error != "upstream_timeout" && o.Error != "upstream_bad_answer" {
		t.Errorf("the outcome is %+v", o)
	}
}

type panics struct{ io.ReadCloser }

func (panics) Read([]byte) (int, error) { panic("of a test") }

// A fault in what reads a body ends that request, not the process.
func TestEngineOutlivesPanics(t *testing.T) {
	if engine != engineOwn {
		return // net/http reads bodies itself
	}
	s := setStage(t, func(s *stage) {
		s.config.Upstream = onUnix(t, func(c *net.UnixConn) { io.Copy(io.Discard, c) })
	})
	s.serveWith(context.Background(), func(w http.ResponseWriter, r *http.Request) {
		r.Body = panics{r.Body}
		s.gateway.ServeHTTP(w, r)
	})
	a, p := s.ask(s.uploadHead("Content-Length: 100"))
	if a.StatusCode != 500 || a.code != "internal_error" {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
	if !p.closed() {
		t.Error("the connection is open still")
	}
	if _, outcomes := s.settled(1); outcomes[0].Error != "internal_error" || outcomes[0].Status != 500 {
		t.Errorf("the outcome is %+v", outcomes[0])
	}
	if !strings.Contains(s.log.String(), "panic in a request") || strings.Contains(s.log.String(), "of a test") {
		t.Errorf("logged %s", s.log)
	}
}

// wired is a listener as http1.Server wants it.
type wired struct{ net.Listener }

func (l wired) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return wire.New(c, Limits{}.WithDefaults().wire(), nil), nil
}

// serveWith serves by the engine what the gateway would.
func (s *stage) serveWith(base context.Context, handle http.HandlerFunc) *http1.Server {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	server := &http1.Server{Base: base, Idle: time.Minute, Log: s.gateway.log, Handler: handle}
	served := make(chan error, 1)
	go func() { served <- server.Serve(wired{l}) }()
	s.t.Cleanup(func() { l.Close(); <-served; server.Close(); s.gateway.closeIdle() })
	s.addr = l.Addr().String()
	return server
}

// Who is ended by the end of the gate before it was decided on is told so, as the record says.
func TestEngineAnswersWhoIsInterrupted(t *testing.T) {
	if engine != engineOwn {
		return
	}
	s := setStage(t, nil)
	base, end := context.WithCancel(context.Background())
	defer end()
	here, goOn := make(chan struct{}), make(chan struct{})
	server := s.serveWith(base, func(w http.ResponseWriter, r *http.Request) {
		close(here)
		<-goOn
		s.gateway.ServeHTTP(w, r)
	})
	p := s.dial()
	p.send(get("/orders/7", bearerHeader(s.token("orders:read"))))
	<-here
	end()
	server.Interrupt()
	close(goOn)
	if a := p.read("GET"); a.StatusCode != 503 || a.code != "canceled" || !p.closed() {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
}
