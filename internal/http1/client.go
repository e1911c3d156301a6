package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/wire"
)

// A Client keeps connections to one service.
type Client struct {
	Dial     func(context.Context) (net.Conn, error)
	Patience time.Duration // for each write, and for the head of an answer
	Idle     time.Duration // a connection that has been idle for longer is not used again
	MaxIdle  int
	MaxHead  int // bytes of the head of an answer

	big   sync.Pool // of *[bigBuffer]byte
	mu    sync.Mutex
	idle  []*Link
	timer *time.Timer // closes what is idle; nil: nothing is
}

const (
	smallBuffer = 4 << 10
	bigBuffer   = 64 << 10
)

// A Link is a connection to the service, on which one request is answered at a time.
type Link struct {
	net.Conn
	client      *Client
	read, write wire.Pace
	silent      func() bool // nothing has come, not even the end
	since       time.Time   // when it became idle
	reused      bool

	buf   []byte
	small []byte // buf, while that is a big one
	r, w  int

	body    framing
	left    int64 // in byLength
	chunks  wire.Chunks
	trailer http.Header // of an answer that has ended; nil: it had none
	heard   bool        // something of the answer to the request at hand
	spent   bool        // no further request may be sent
}

// framing is how the end of an answer's body is found.
type framing uint8

const (
	noBody framing = iota // or it has ended
	byLength
	byChunks
	byClose
)

// Reused takes a connection that is idle; nil: there is none that can be used.
func (c *Client) Reused() *Link {
	now := time.Now()
	for {
		c.mu.Lock()
		n := len(c.idle)
		if n == 0 {
			c.mu.Unlock()
			return nil
		}
		l := c.idle[n-1]
		c.idle[n-1], c.idle = nil, c.idle[:n-1]
		c.mu.Unlock()
		// What came while nothing was asked for would be taken for the answer to what is asked next.
		if now.Sub(l.since) < c.Idle && l.silent() {
			l.reused, l.heard, l.trailer = true, false, nil
			return l
		}
		l.Close()
	}
}

// Fresh dials a connection.
func (c *Client) Fresh(ctx context.Context) (*Link, error) {
	conn, err := c.Dial(ctx)
	if err != nil {
		return nil, err
	}
	raw := below(conn)
	if raw == nil {
		conn.Close()
		return nil, &net.OpError{Op: "dial", Err: errors.New("http1: the connection has no socket")}
	}
	l := &Link{Conn: conn, client: c, buf: make([]byte, smallBuffer), silent: silent(raw)}
	l.read.Set, l.write.Set = conn.SetReadDeadline, conn.SetWriteDeadline
	return l, nil
}

// Release keeps a connection for the next request, if its answer has been read to its end and nothing came behind that; else
// it closes it.
func (l *Link) Release() {
	c := l.client
	l.shrink()
	if l.spent || l.body != noBody || l.r < l.w || l.read.Cut() {
		l.Close()
		return
	}
	l.r, l.w, l.since = 0, 0, time.Now()
	c.mu.Lock()
	full := len(c.idle) >= c.MaxIdle
	if !full {
		c.idle = append(c.idle, l)
		if c.timer == nil {
			c.timer = time.AfterFunc(c.Idle, c.prune)
		}
	}
	c.mu.Unlock()
	if full {
		l.Close()
	}
}

// prune closes what has been idle for too long: the oldest stand first.
func (c *Client) prune() {
	c.mu.Lock()
	old := 0
	for old < len(c.idle) && time.Since(c.idle[old].since) >= c.Idle {
		old++
	}
	closing := append([]*Link(nil), c.idle[:old]...)
	left := copy(c.idle, c.idle[old:])
	clear(c.idle[left:])
	c.idle = c.idle[:left]
	c.timer = nil
	if left > 0 {
		c.timer = time.AfterFunc(c.Idle-time.Since(c.idle[0].since)+time.Millisecond, c.prune)
	}
	c.mu.Unlock()
	for _, l := range closing {
		l.Close()
	}
}

// CloseIdle closes what is idle.
func (c *Client) CloseIdle() {
	c.mu.Lock()
	closing := c.idle
	c.idle = nil
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.mu.Unlock()
	for _, l := range closing {
		l.Close()
	}
}

// Reused reports whether the connection had a request before.
func (l *Link) Reused() bool { return l.reused }

// Heard reports whether something of an answer has come.
func (l *Link) Heard() bool { return l.heard }

// Trailer is what stood behind the body of an answer that has ended.
func (l *Link) Trailer() http.Header { return l.trailer }

// Interrupt ends all waiting for the service.
func (l *Link) Interrupt() {
	l.read.Interrupt()
	l.write.Interrupt()
}

// Interrupted reports whether that has happened.
func (l *Link) Interrupted() bool { return l.read.Cut() }

// Write gives the service Patience to take p.
func (l *Link) Write(p []byte) (int, error) {
	n, err := l.write.Write(l.Conn, p, l.client.Patience)
	if err != nil {
		l.spent = true
	}
	return n, err
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// fill reads once, behind what is there.
func (l *Link) fill(until time.Time) error {
	if l.r == l.w {
		l.r, l.w = 0, 0
	} else if l.w == len(l.buf) {
		l.w = copy(l.buf, l.buf[l.r:l.w])
		l.r = 0
	}
	if l.w == len(l.buf) {
		l.grow()
	}
	for {
		l.read.Arm(until)
		n, err := l.Conn.Read(l.buf[l.w:])
		if n > 0 {
			l.w += n
			l.heard = true
			return nil
		}
		if err == nil || l.read.Again(err, until) {
			continue
		}
		if !isTimeout(err) || l.read.Cut() {
			l.spent = true
		}
		return err
	}
}

// grow has more room to read into, until shrink.
func (l *Link) grow() {
	if l.small != nil {
		return
	}
	big, ok := l.client.big.Get().(*[bigBuffer]byte)
	if !ok {
		big = new([bigBuffer]byte)
	}
	copy(big[:], l.buf[:l.w])
	l.small, l.buf = l.buf, big[:]
}

func (l *Link) shrink() {
	if l.small != nil {
		l.client.big.Put((*[bigBuffer]byte)(l.buf))
		l.buf, l.small = l.small, nil
		if l.r < l.w {
			l.spent = true
		}
		l.r, l.w = 0, 0
	}
}

// Next returns what has come of the body of the answer, to be used before Fill; nothing: there is nothing yet. io.EOF is the
// end.
func (l *Link) Next() ([]byte, error) {
	switch l.body {
	case noBody:
		return nil, io.EOF
	case byChunks:
		skip, n, err := l.chunks.Step(l.buf[l.r:l.w])
		l.r += skip + n
		if err == io.EOF {
			l.body = noBody
			return nil, io.EOF
		}
		if err != nil {
			return nil, l.refuse()
		}
		return l.buf[l.r-n : l.r], nil
	}
	return l.take(), nil
}

// Fill waits for more of the body.
func (l *Link) Fill() error {
	l.roomy()
	switch err := l.fill(time.Time{}); {
	case err == io.EOF && l.body == byClose:
		l.body = noBody
		return nil
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	default:
		return err
	}
}

// roomy has what is long read into a big buffer.
func (l *Link) roomy() {
	if l.w == len(l.buf) || l.body == byLength && l.left > smallBuffer {
		l.grow()
	}
}

// take takes what there is of a body that nothing stands in.
func (l *Link) take() []byte {
	p := l.buf[l.r:l.w]
	if l.body == byLength {
		p = p[:min(int64(len(p)), l.left)]
		if l.left -= int64(len(p)); l.left == 0 {
			l.body = noBody
		}
	}
	l.r += len(p)
	return p
}

// Tunnel makes of the connection what it is behind an upgrade.
func (l *Link) Tunnel() { l.body, l.spent = byClose, true }

// Read reads what follows an upgrade.
func (l *Link) Read(p []byte) (int, error) {
	if l.r < l.w {
		n := copy(p, l.buf[l.r:l.w])
		l.r += n
		return n, nil
	}
	for {
		n, err := l.Conn.Read(p)
		if n > 0 || err == nil || !l.read.Again(err, time.Time{}) {
			return n, err
		}
	}
}

// CloseWrite ends one direction of a tunnel.
func (l *Link) CloseWrite() error {
	if h, ok := l.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}
