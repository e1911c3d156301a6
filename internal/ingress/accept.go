package ingress

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/h2"
	"github.com/sallyport/sallyport/internal/wire"
)

// What a connection speaks, as the metrics have it.
const (
	speaksHTTP1   = "http/1.1"
	speaksHTTP2   = "h2"
	speaksH2C     = "h2c"
	speaksNothing = "none" // that we do: it was closed
)

const partTime = 500 * time.Millisecond // to read away what a client still sends

// doors lets connections in, no more at once than may be open, and hands each to the server of the protocol that it speaks.
type doors struct {
	g        *Gateway
	listener net.Listener
	tls      *tls.Config // nil: plain
	slots    chan struct{}
	http1    *handoff
	http2    *handoff
	open     sync.WaitGroup // connections, and whoever greets them

	mu      sync.Mutex
	closed  bool
	greeted map[net.Conn]struct{} // of which it is not known yet what they speak
}

func newDoors(l net.Listener, g *Gateway) *doors {
	d := &doors{
		g: g, listener: l, slots: make(chan struct{}, g.config.Limits.Connections),
		http1: newHandoff(l.Addr()), http2: newHandoff(l.Addr()), greeted: map[net.Conn]struct{}{},
	}
	if c := g.config.TLS; c != nil {
		d.tls = c.Clone()
		d.tls.NextProtos = g.speaks.alpn()
		if d.tls.ClientAuth != tls.NoClientCert {
			d.tls.SessionTicketsDisabled = true // a certificate is shown on each connection, or not at all
		}
	}
	return d
}

// accept lets connections in until the doors are closed.
func (d *doors) accept() error {
	pause := 5 * time.Millisecond
	for {
		select {
		case d.slots <- struct{}{}:
		case <-d.http1.closed:
			return net.ErrClosed
		}
		c, err := d.listener.Accept()
		if err != nil {
			<-d.slots
			if !passes(err) {
				return err
			}
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		d.letIn(c)
	}
}

// passes reports whether an error of Accept is one of the moment: there are no more files, or the client is gone already.
func passes(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// letIn takes one connection, which holds a slot until it is closed.
func (d *doors) letIn(c net.Conn) {
	d.open.Add(1)
	if d.tls == nil && !d.g.speaks.http2 {
		d.serveHTTP1(c, nil)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		c.Close()
		d.left(speaksNothing)
		return
	}
	d.greeted[c] = struct{}{}
	go d.greet(c) // not here: a client takes its time
}

// left gives back what a connection held.
func (d *doors) left(protocol string) {
	d.g.metrics.left(protocol)
	<-d.slots
	d.open.Done()
}

// greet finds out what a client speaks, in HeaderTimeout at most, and hands its connection on.
func (d *doors) greet(c net.Conn) {
	c.SetDeadline(time.Now().Add(d.g.config.Limits.HeaderTimeout))
	speaks, made, held := d.ask(c)
	d.mu.Lock()
	delete(d.greeted, c)
	if d.closed {
		speaks = speaksNothing
	}
	d.mu.Unlock()
	c.SetDeadline(time.Time{})
	switch speaks {
	case speaksHTTP1:
		d.serveHTTP1(made, held)
	case speaksHTTP2, speaksH2C:
		d.serveHTTP2(made, held, speaks)
	default:
		d.g.metrics.arrived(speaksNothing)
		part(c)
		d.left(speaksNothing)
	}
}

// part closes a connection so that the client sees an end and no reset, if it reads.
func part(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
		c.SetReadDeadline(time.Now().Add(partTime))
		io.Copy(io.Discard, c)
	}
	c.Close()
}

// ask shakes hands where there is TLS, and reads as much as it takes to know the protocol where there is none. made is what
// the client speaks it on, held what was read.
func (d *doors) ask(c net.Conn) (speaks string, made net.Conn, held []byte) {
	if d.tls != nil {
		t := tls.Server(c, d.tls)
		if err := t.Handshake(); err != nil {
			d.g.log.Debug("shake hands", "peer", c.RemoteAddr().String(), "error", err)
			return speaksNothing, nil, nil
		}
		if t.ConnectionState().NegotiatedProtocol == speaksHTTP2 {
			return speaksHTTP2, t, nil
		}
		return d.g.speaks.orNothing(), t, nil
	}
	buf := make([]byte, len(h2.Preface))
	for n := 0; n < len(buf); {
		more, err := c.Read(buf[n:])
		n += more
		switch {
		case !bytes.HasPrefix([]byte(h2.Preface), buf[:n]):
			return d.g.speaks.orNothing(), c, buf[:n]
		case err != nil:
			return speaksNothing, nil, nil
		}
	}
	return speaksH2C, c, buf
}

// serveHTTP1 hands a connection to the server of HTTP/1. held is what was read from it already. It is the one place to do so.
func (d *doors) serveHTTP1(c net.Conn, held []byte) {
	d.g.metrics.arrived(speaksHTTP1)
	w := wire.New(c, d.g.config.Limits.wire(), func() { d.left(speaksHTTP1) })
	w.Feed(held)
	d.http1.hand(w)
}

// serveHTTP2 hands a connection to the server of HTTP/2.
func (d *doors) serveHTTP2(c net.Conn, held []byte, speaks string) {
	d.g.metrics.arrived(speaks)
	d.http2.hand(h2.New(c, held, d.g.config.Limits.h2(), d.g.metrics.flooded, func() { d.left(speaks) }))
}

// close lets nobody in any more, and closes the connections of which it is not known what they speak.
func (d *doors) close() {
	d.listener.Close()
	d.mu.Lock()
	d.closed = true
	for c := range d.greeted {
		c.Close()
	}
	d.mu.Unlock()
	d.http1.Close()
	d.http2.Close()
}

// wait waits until every connection has been closed.
func (d *doors) wait() { d.open.Wait() }

// handoff is the net.Listener of a server that is handed its connections.
type handoff struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// hand gives the server a connection, and closes it if the server takes no more.
func (h *handoff) hand(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		c.Close()
	}
}

// Accept is the server's.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr is the address that clients connect to.
func (h *handoff) Addr() net.Addr { return h.addr }
