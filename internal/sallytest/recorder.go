package sallytest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
)

// Recorder is an upstream that keeps every byte that reaches it, as it was on
// the wire, and answers HTTP/1.1 well enough for a proxy. It says "zero bytes
// reached the service", which a server that parses first cannot.
type Recorder struct {
	URL  string // "http://127.0.0.1:port"
	Addr string // "127.0.0.1:port"

	listener net.Listener
	answer   func(w io.Writer, r *http.Request)
	wg       sync.WaitGroup

	mu          sync.Mutex
	connections []*connection
	requests    int
	closed      bool
}

// connection is one that was accepted.
type connection struct {
	net.Conn
	owner *Recorder
	raw   bytes.Buffer // guarded by owner.mu
}

// Read records what it reads.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.owner.mu.Lock()
	defer c.owner.mu.Unlock()
	c.raw.Write(p[:n])
	return n, err
}

// NewRecorder starts a recorder that answers each request 200 with the body "ok".
func NewRecorder(t testing.TB) *Recorder {
	t.Helper()
	return NewRecorderFunc(t, func(w io.Writer, _ *http.Request) {
		io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")
	})
}

// NewRecorderFunc starts a recorder whose answers answer writes, byte for byte,
// after the request's header was read. The body may be read, and what is left of
// it is read afterwards. The connection is closed if the request says so, or if
// answer closes w, which is the connection itself: an io.Closer.
func NewRecorderFunc(t testing.TB, answer func(w io.Writer, r *http.Request)) *Recorder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Recorder{URL: "http://" + l.Addr().String(), Addr: l.Addr().String(), listener: l, answer: answer}
	r.wg.Go(r.accept)
	t.Cleanup(r.close)
	return r
}

func (r *Recorder) accept() {
	for {
		raw, err := r.listener.Accept()
		if err != nil {
			return
		}
		c := &connection{Conn: raw, owner: r}
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			raw.Close()
			return
		}
		r.connections = append(r.connections, c)
		r.mu.Unlock()
		r.wg.Go(func() { r.serve(c) })
	}
}

func (r *Recorder) serve(c *connection) {
	defer c.Close()
	reader := bufio.NewReader(c)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			// what is no request is recorded as well, to its end
			_, _ = io.Copy(io.Discard, reader)
			return
		}
		r.mu.Lock()
		r.requests++
		r.mu.Unlock()
		r.answer(c.Conn, request)
		if _, err := io.Copy(io.Discard, request.Body); err != nil || request.Close {
			return
		}
	}
}

func (r *Recorder) close() {
	r.listener.Close()
	r.mu.Lock()
	r.closed = true
	connections := slices.Clone(r.connections)
	r.mu.Unlock()
	for _, c := range connections {
		c.Close()
	}
	r.wg.Wait()
}

// Connections counts the connections that were opened, those without a byte included.
func (r *Recorder) Connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.connections)
}

// Requests counts the requests whose header was read.
func (r *Recorder) Requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests
}

// Bytes counts the bytes that arrived.
func (r *Recorder) Bytes() int { return len(r.Raw()) }

// Raw returns every byte that arrived, one connection after the other.
func (r *Recorder) Raw() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []byte
	for _, c := range r.connections {
		all = append(all, c.raw.Bytes()...)
	}
	return all
}

// Reset forgets what arrived so far; open connections stay.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.connections {
		c.raw.Reset()
	}
	r.requests = 0
}

// Untouched fails the test if a byte arrived, or a connection was opened, since the recorder started.
func (r *Recorder) Untouched(t testing.TB) {
	t.Helper()
	if n, c := r.Bytes(), r.Connections(); n != 0 || c != 0 {
		t.Errorf("the service saw %d connections and %d bytes: %s", c, n, excerpt(r.Raw()))
	}
}

func excerpt(b []byte) string {
	const most = 400
	if len(b) > most {
		return fmt.Sprintf("%q and more", b[:most])
	}
	return fmt.Sprintf("%q", b)
}
