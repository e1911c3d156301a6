package wire

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A house is a server of net/http behind Conns, as the package comment has it. Its handler reads the body.
type house struct {
	addr string

	mu     sync.Mutex
	seen   []string // "METHOD path", or "refused CODE METHOD path host", or "broken CODE"
	closed int      // calls of onClose
}

type gated struct {
	net.Listener
	h *house
	l Limits
}

func (g gated) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return New(c, g.l, func() { g.h.mu.Lock(); g.h.closed++; g.h.mu.Unlock() }), nil
}

func (h *house) note(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = append(h.seen, s)
}

func (h *house) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := Of(r)
	if refusal := c.Next(); refusal != nil {
		h.note("refused " + string(refusal.Code) + " " + refusal.Method + " " + refusal.Path + " " + refusal.Host)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	h.note(r.Method + " " + r.URL.Path)
	if r.URL.Path == "/denied" {
		w.Header().Set("Connection", "close")
		c.HangUp("denied")
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if c.Peer().String() != "127.0.0.1" || c.TLS() {
		h.note("peer " + c.Peer().String())
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		h.note("broken " + string(c.Broken()))
		w.WriteHeader(http.StatusBadRequest)
	}
}

func serve(t *testing.T, l Limits) *house {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{addr: listener.Addr().String()}
	server := &http.Server{Handler: h, ConnContext: ConnContext, MaxHeaderBytes: l.MaxHeaderBytes()}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(gated{listener, h, l}) }()
	t.Cleanup(func() {
		server.Shutdown(context.Background())
		<-ended
	})
	return h
}

// Behind a server, a refusal finds its request among those of its connection, a body that breaks says why, and the
// connection ends behind either, once.
func TestBehindServer(t *testing.T) {
	const good = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
	const chunked = " HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	impatient := testLimits()
	impatient.HeaderTimeout, impatient.BodyTimeout = 100*time.Millisecond, 100*time.Millisecond
	for _, c := range []struct {
		name, first, then string // then is sent when the first request has been seen
		limits            Limits
		status            []int
		seen              []string
	}{
		{"third of four is refused", good + good + "GET /bad?secret HTTP/1.1\r\nHost: b\r\nX: 1\n\r\n" + good, "", testLimits(),
			[]int{200, 200, 400}, []string{"GET /good", "GET /good", "refused bare_lf GET /bad b"}},
		{"body breaks later", "POST /good" + chunked, "0x5\r\n", testLimits(), []int{400}, []string{"POST /good", "broken chunk_malformed"}},
		{"body breaks at once", "POST /good" + chunked + "0x5\r\n", "", testLimits(), []int{400}, []string{"refused chunk_malformed POST /good a"}},
		{"denied with a body", "POST /denied" + chunked + "5\r\nhello\r\n", "", testLimits(), []int{403}, []string{"POST /denied"}},
		{"slow head", "GET /slow HTTP/1.1\r\nHo", "", impatient, []int{400}, []string{"refused header_timeout GET /slow "}},
		{"slow body", "POST /slow" + chunked + "5\r\nhe", "", impatient, []int{400}, []string{"POST /slow", "broken body_timeout"}},
		{"body of a byte at a time", "POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", dribble, impatient,
			[]int{400}, []string{"POST /slow", "broken body_timeout"}},
		{"chunks of a byte at a time", "POST /slow" + chunked, dribble, impatient, []int{400}, []string{"POST /slow", "broken body_timeout"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := serve(t, c.limits)
			conn, err := net.Dial("tcp", h.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, c.first)
			if c.then != "" {
				eventually(t, func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.seen) == 1 })
				if c.then == dribble {
					go drip(conn, strings.Contains(c.first, "chunked"))
				} else {
					io.WriteString(conn, c.then)
				}
			}
			b := bufio.NewReader(conn)
			for _, want := range c.status {
				res, err := http.ReadResponse(b, nil)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				if res.StatusCode != want {
					t.Errorf("answered %d, want %d", res.StatusCode, want)
				}
			}
			if rest, err := io.ReadAll(b); err != nil || len(rest) > 0 {
				t.Errorf("behind the last answer: %q, %v", rest, err)
			}
			conn.Close()
			eventually(t, func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.closed == 1 })
			if !slices.Equal(h.seen, c.seen) {
				t.Errorf("the handler saw %q, want %q", h.seen, c.seen)
			}
		})
	}
}

const dribble = "a byte at a time"

// drip sends a body that always makes progress, until the connection ends.
func drip(conn net.Conn, chunked bool) {
	piece := "x"
	if chunked {
		piece = "1\r\nx\r\n"
	}
	for {
		if _, err := io.WriteString(conn, piece); err != nil {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
}

func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for range 2000 {
		if is() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("it did not happen")
}

// Of a request that came by another connection there is no Conn.
func TestOfNothing(t *testing.T) {
	r, err := http.NewRequest("GET", "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c := Of(r); c != nil {
		t.Errorf("got %v", c)
	}
}
