package http1

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/wire"
)

// A script is a client that sends its bytes in pieces, and then has gone.
type script struct {
	net.Conn
	mu     sync.Mutex
	pieces [][]byte
	answer bytes.Buffer
	past   bool
	wait   chan struct{} // closed with the connection
	once   sync.Once
}

func newScript(stream []byte, size int) *script {
	s := &script{wait: make(chan struct{})}
	for len(stream) > 0 {
		n := min(size, len(stream))
		s.pieces = append(s.pieces, stream[:n:n])
		stream = stream[n:]
	}
	return s
}

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.past:
		return 0, os.ErrDeadlineExceeded
	case len(s.pieces) == 0:
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answer.Write(p)
}

func (s *script) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.past = !t.IsZero() && !t.After(time.Now())
	return nil
}

func (s *script) SetWriteDeadline(time.Time) error { return nil }
func (s *script) SetDeadline(t time.Time) error    { return s.SetReadDeadline(t) }
func (s *script) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (s *script) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (s *script) Close() error                     { s.once.Do(func() { close(s.wait) }); return nil }

// once is a listener with one connection.
type once struct {
	conn chan net.Conn
	done chan struct{}
}

func (o *once) Accept() (net.Conn, error) {
	select {
	case c := <-o.conn:
		return c, nil
	case <-o.done:
		return nil, net.ErrClosed
	}
}
func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return &net.UnixAddr{} }

// heard is a request as a handler was given it, or the code of its refusal.
type heard struct {
	Method, Target, Host, Path, Query, Header, Body, Version, Code string
	Length                                                         int64
	Close                                                          bool
}

// ear is a handler that notes what it hears, and answers as the gate does.
type ear struct {
	mu    sync.Mutex
	heard []heard
}

func (e *ear) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := wire.Of(r)
	refusal := c.Next()
	h := heard{}
	if refusal != nil {
		h = heard{Method: refusal.Method, Path: refusal.Path, Host: refusal.Host, Code: string(refusal.Code)}
	} else {
		body, err := io.ReadAll(r.Body)
		h = heard{
			Method: r.Method, Target: r.RequestURI, Host: r.Host, Path: r.URL.Path, Query: r.URL.RawQuery, Body: string(body), Version: r.Proto,
			Length: r.ContentLength, Close: r.Close, Code: string(c.Broken()),
		}
		if err != nil && h.Code == "" {
			h.Code = "the body does not end"
		}
		for _, name := range slices.Sorted(maps.Keys(r.Header)) {
			h.Header += fmt.Sprintf("%s: %q\n", name, r.Header[name])
		}
	}
	e.mu.Lock()
	e.heard = append(e.heard, h)
	e.mu.Unlock()
	if refusal != nil || h.Code != "" || r.Header["Upgrade"] != nil {
		w.Header().Set("Connection", "close")
		c.HangUp(wire.Code(h.Code))
	}
	io.WriteString(w, "ok")
}

func limits() wire.Limits {
	return wire.Limits{HeaderBytes: 32 << 10, HeaderFields: 100, HeaderTimeout: 10 * time.Second, BodyTimeout: time.Minute}
}

type server interface {
	Serve(net.Listener) error
	Close() error
}

// hear has a server serve a stream, and returns what its handler heard.
func hear(t testing.TB, stream []byte, size int, make func(http.Handler) server) []heard {
	t.Helper()
	e := &ear{}
	s := make(e)
	l := &once{make1(), make2()}
	conn := newScript(stream, size)
	go s.Serve(l)
	closed := make2()
	l.conn <- wire.New(conn, limits(), func() { close(closed) })
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatalf("%q is served for ever", stream)
	}
	close(l.done)
	s.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heard
}

func make1() chan net.Conn { return make(chan net.Conn) }
func make2() chan struct{} { return make(chan struct{}) }

func byEngine(h http.Handler) server {
	return &Server{Handler: h, Base: context.Background(), Idle: time.Minute, Log: slog.New(slog.DiscardHandler)}
}

func byStandard(h http.Handler) server {
	return &http.Server{
		Handler: h, ConnContext: wire.ConnContext, MaxHeaderBytes: limits().MaxHeaderBytes(), DisableGeneralOptionsHandler: true,
		ErrorLog: log.New(io.Discard, "", 0),
	}
}

// checkSame: a stream is the same requests to both servers, in whatever pieces it comes, and what one refuses the other does.
func checkSame(t testing.TB, stream []byte, size int) {
	t.Helper()
	ours, theirs := hear(t, stream, size, byEngine), hear(t, stream, size, byStandard)
	for i := range max(len(ours), len(theirs)) {
		var a, b heard
		if i < len(ours) {
			a = ours[i]
		}
		if i < len(theirs) {
			b = theirs[i]
		}
		if b.Header != "" {
			a.Close, b.Close = false, false // http.Request.Close is of HTTP/1.0's own keep-alive too, which we do not keep
		}
		if a != b && !(i >= len(ours) && i > 0 && ours[i-1].Version == "HTTP/1.0") {
			t.Fatalf("in pieces of %d, request %d of %q:\nours   %+v\ntheirs %+v", size, i, stream, a, b)
		}
	}
}

// vectors are those of wire: everything that is known to split parsers.
func vectors(t testing.TB) (made [][]byte) {
	t.Helper()
	b, err := os.ReadFile("../wire/testdata/requests.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		cells := strings.SplitN(strings.TrimSuffix(line, "\n"), " | ", 3)
		if len(cells) != 3 || line[0] == '#' {
			continue
		}
		raw, err := strconv.Unquote(cells[2])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		made = append(made, []byte(raw), []byte("POST /x HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n\r\nabc"+raw))
	}
	return made
}

func TestBothServersHearTheSame(t *testing.T) {
	for _, stream := range vectors(t) {
		for _, size := range []int{1, 3, 64, 1 << 20} {
			checkSame(t, stream, size)
		}
	}
}

// FuzzServers holds the engine to the server of the standard library behind the same strict reader.
func FuzzServers(f *testing.F) {
	for _, stream := range vectors(f) {
		f.Add(stream, uint16(5))
		f.Add(stream, uint16(4000))
	}
	f.Fuzz(func(t *testing.T, stream []byte, size uint16) { checkSame(t, stream, int(size)+1) })
}
