// Package h2 watches the frames of an HTTP/2 connection on their way to the server, and ends a connection whose frames are
// cheap to send and dear to take.
//
// net/http reads HTTP/2 strictly, and bounds what one stream may hold. What it lets pass is a connection that works it for
// nothing: streams that are begun and reset, settings and pings without end, frames without content, a header that never
// ends. A Conn stands between the connection and the server, reads the nine bytes in front of each frame in both directions,
// and nothing else:
//
//	server := &http.Server{Handler: handler, ConnContext: h2.ConnContext, Protocols: unencryptedHTTP2}
//	err := server.Serve(listener) // whose Accept returns h2.New(conn, held, limits, onFlood, onClose)
//
// TLS is below it, so that to the server each connection is one of prior knowledge; Of(r).TLSState has what the handshake
// left.
//
// # What it ends
//
// The Kind constants are the whole list. A client may do each of these things Burst times, and then perSecond times a second; a
// ping for each frame of ours that carries something besides, since clients measure by pings how fast they are sent to. Streams that we
// end because of a fault of the client count like those that it resets: what they cost is the same. Where a connection is
// ended, the client is told by GOAWAY with ENHANCE_YOUR_CALM (RFC 9113, section 7), if it takes that.
//
// # Limits
//
// It does not read what is in a frame: header fields, flow control, and the order of frames are the server's. WINDOW_UPDATE
// is not counted: it makes nobody hold anything.
package h2

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Preface is what a client that speaks HTTP/2 sends first (RFC 9113, section 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	readAhead  = 4 << 10
	lingerTime = 500 * time.Millisecond // for a client to read why it was ended
)

// Limits bound what a client can make a connection hold. Zero allows nothing: every field must be set.
type Limits struct {
	HeaderBytes   int           // of a header block as it is sent, compressed
	HeaderTimeout time.Duration // from the first byte of a header block, and of any frame but DATA, to its end; from New for the preface
	BodyTimeout   time.Duration // from the first byte of a DATA frame to its end, and for the client to take what is written
}

// A Kind is what a connection was ended for.
type Kind string

// Every kind.
const (
	Reset        Kind = "reset"        // streams reset, by the client or for a fault of it (CVE-2023-44487, CVE-2025-8671)
	Settings     Kind = "settings"     // SETTINGS, and their acknowledgements
	Ping         Kind = "ping"         // PING, and answers to none of ours
	Empty        Kind = "empty"        // DATA that neither carries nor ends anything
	Other        Kind = "other"        // PRIORITY and frames that mean nothing to us
	Continuation Kind = "continuation" // a header block of too many bytes or frames
	Slow         Kind = "slow"         // a frame, or a header block, that does not end
	NotHTTP2     Kind = "not_http2"    // something else than the preface
)

// A Conn is a client's connection. Reads come from one goroutine at a time, and so do writes.
type Conn struct {
	net.Conn
	limits  Limits
	state   *tls.ConnectionState
	onFlood func(Kind)
	onClose func()
	closed  sync.Once

	reader *bufio.Reader
	ended  atomic.Pointer[Kind]

	mu     sync.Mutex // of the meters: what is written counts where it is read
	in     inward
	out    outward
	writes sync.Mutex // a frame of ours is not put into another's
}

// errEnded ends a connection.
var errEnded = errors.New("h2: the connection was ended")

// New puts a Conn before c, which may be a *tls.Conn whose handshake is over. held is what was read from c already. onFlood
// is called once if the Conn ends the connection, onClose once when c has been closed; either may be nil.
func New(c net.Conn, held []byte, l Limits, onFlood func(Kind), onClose func()) *Conn {
	now := time.Now()
	made := &Conn{Conn: c, limits: l, onFlood: onFlood, onClose: onClose}
	made.reader = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(held), c), readAhead)
	if len(held) == 0 {
		made.reader = bufio.NewReaderSize(c, readAhead)
	}
	made.in = newInward(l, now)
	if t, ok := c.(*tls.Conn); ok {
		state := t.ConnectionState()
		made.state = &state
	}
	return made
}

type contextKey struct{}

// ConnContext is http.Server's: it lets Of find the connection.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, contextKey{}, c)
}

// Of returns the connection that a request came by, nil if it did not come by a Conn.
func Of(r *http.Request) *Conn {
	c, _ := r.Context().Value(contextKey{}).(*Conn)
	return c
}

// TLSState is what the handshake left; nil if the connection is not one of TLS.
func (c *Conn) TLSState() *tls.ConnectionState { return c.state }

// NetConn is the connection below.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Read passes what a client may send.
func (c *Conn) Read(p []byte) (int, error) {
	if c.ended.Load() != nil {
		return 0, errEnded
	}
	c.mu.Lock()
	deadline := c.in.deadline
	c.mu.Unlock()
	if err := c.Conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	if c.ended.Load() != nil { // end has set a deadline of its own, before ours
		return 0, errEnded
	}
	n, err := c.reader.Read(p)
	if n > 0 {
		c.mu.Lock()
		kind := c.in.feed(p[:n], time.Now())
		c.mu.Unlock()
		if kind != "" {
			return 0, c.end(kind)
		}
		return n, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, c.end(Slow)
	}
	return 0, err
}

// Write gives the client BodyTimeout to take p.
func (c *Conn) Write(p []byte) (int, error) {
	c.writes.Lock()
	defer c.writes.Unlock()
	if c.ended.Load() != nil {
		return 0, errEnded
	}
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.limits.BodyTimeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	c.mu.Lock()
	kind := c.out.feed(p[:n], &c.in, time.Now())
	c.mu.Unlock()
	if kind != "" {
		go c.end(kind) // which waits for this Write
	}
	return n, err
}

// end tells the client, and lets nothing pass any more.
func (c *Conn) end(kind Kind) error {
	if !c.ended.CompareAndSwap(nil, &kind) {
		return errEnded
	}
	if c.onFlood != nil {
		c.onFlood(kind)
	}
	if c.writes.TryLock() { // else the client does not take what it is being sent
		c.mu.Lock()
		whole := c.out.whole()
		c.mu.Unlock()
		if whole && kind != NotHTTP2 {
			c.Conn.SetWriteDeadline(time.Now().Add(lingerTime))
			io.WriteString(c.Conn, goAway)
		}
		c.writes.Unlock()
	}
	c.Conn.SetReadDeadline(time.Now()) // whoever reads is let go
	return errEnded
}

// Close closes the connection. Where it was ended, the client's bytes are read away for a moment first: a close with unread
// bytes is a reset, and a reset takes the GOAWAY with it.
func (c *Conn) Close() error {
	var err error
	c.closed.Do(func() {
		if c.ended.Load() != nil && c.closeWrite() == nil {
			c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
			io.Copy(io.Discard, c.Conn)
		}
		err = c.Conn.Close()
		if c.onClose != nil {
			c.onClose()
		}
	})
	return err
}

func (c *Conn) closeWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SetReadDeadline does nothing: the deadlines of a connection are its Limits.
func (c *Conn) SetReadDeadline(time.Time) error { return nil }

// SetDeadline does nothing, as SetReadDeadline.
func (c *Conn) SetDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing, as SetReadDeadline.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
