package http1

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/wire"
)

// sweepEvery is how often it is looked for clients that have gone. Who is answered sooner is not looked for.
const sweepEvery = 100 * time.Millisecond

// A Server serves HTTP/1 on connections that it is given.
type Server struct {
	Handler http.Handler
	Base    context.Context // of every request
	Idle    time.Duration   // until a next request
	Log     *slog.Logger

	buffers wire.Buffers
	works   sync.Pool
	date    atomic.Pointer[date]

	draining atomic.Bool
	mu       sync.Mutex
	conns    map[*Conn]struct{}
	watching chan struct{} // closed when the watch is to end; nil: there is none
}

// Serve serves the connections of a listener, each a *wire.Conn, until Accept fails.
func (s *Server) Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		w, ok := c.(*wire.Conn)
		if !ok {
			c.Close()
			return errors.New("http1: a connection is not one of wire")
		}
		go s.serve(w)
	}
}

// serve serves a connection to its end, and closes it.
func (s *Server) serve(w *wire.Conn) {
	w.Direct(&s.buffers, s.Idle)
	ctx, end := context.WithCancel(wire.ConnContext(s.Base, w))
	whole := true
	defer s.rescue(&whole) // of what reads a head: one client's request ends no other's
	c := &Conn{server: s, wire: w, remote: w.RemoteAddr().String(), ctx: ctx, end: end}
	s.add(c)
	defer s.remove(c)
	defer w.Close()
	defer end()
	defer c.drop()
	for c.wait() && c.serve() {
	}
}

func (s *Server) add(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = map[*Conn]struct{}{}
	}
	s.conns[c] = struct{}{}
	if s.watching == nil {
		s.watching = make(chan struct{})
		go s.watch(s.watching)
	}
}

func (s *Server) remove(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if len(s.conns) == 0 {
		close(s.watching)
		s.watching = nil
	}
}

// all returns the connections that are open.
func (s *Server) all() []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	made := make([]*Conn, 0, len(s.conns))
	for c := range s.conns {
		made = append(made, c)
	}
	return made
}

// watch ends the requests of clients that have gone.
func (s *Server) watch(ended chan struct{}) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var waiting []*Conn
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		now := time.Now().UnixNano()
		waiting = waiting[:0]
		s.mu.Lock()
		for c := range s.conns {
			if c.look(now) {
				waiting = append(waiting, c)
			}
		}
		s.mu.Unlock()
		for _, c := range waiting {
			if gone(c.wire.Conn) {
				c.end()
				c.Interrupt(c.number.Load())
			}
		}
	}
}

// Shutdown has every connection end behind the answer at hand, those without one at once, and waits for that until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	for _, c := range s.all() {
		c.retire()
	}
	return s.wait(ctx)
}

func (s *Server) wait(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		left := len(s.conns)
		s.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Interrupt ends every request at hand. Why is the cause of the end of Base.
func (s *Server) Interrupt() {
	for _, c := range s.all() {
		c.Interrupt(c.number.Load())
	}
}

// Close closes every connection, and waits for those who serve them.
func (s *Server) Close() error {
	s.draining.Store(true)
	for _, c := range s.all() {
		c.wire.Interrupt()
		c.wire.Conn.Close()
	}
	return s.wait(context.Background())
}

// date is the value of a Date field, for a second.
type date struct {
	second int64
	text   string
}

func (s *Server) now() string {
	now := time.Now()
	if d := s.date.Load(); d != nil && d.second == now.Unix() {
		return d.text
	}
	d := &date{now.Unix(), now.UTC().Format(http.TimeFormat)}
	s.date.Store(d)
	return d.text
}

// rescue reports a panic of the handler. http.ErrAbortHandler only says that an answer is not whole.
func (s *Server) rescue(whole *bool) {
	p := recover()
	if p == nil {
		return
	}
	*whole = false
	if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
		s.Log.Error("panic in a request", "stack", string(debug.Stack()))
	}
}
