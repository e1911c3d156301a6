package wire

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// lingerTime is how long a refused client's bytes are read away, so that it gets its answer.
const lingerTime = 500 * time.Millisecond

// Write gives the client bodyTimeout to take some of p.
func (c *Conn) Write(p []byte) (int, error) {
	if c.direct != nil {
		return c.writePaced(p)
	}
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.bodyTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// CloseWrite lets net/http, and Close, end our direction first.
func (c *Conn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// Close closes the connection. Where the client was still sending, its bytes are read away for a moment first: a
// close with unread bytes is a reset, and a reset takes our answer with it.
func (c *Conn) Close() error {
	var err error
	c.closed.Do(func() {
		if c.lingers.Load() && c.CloseWrite() == nil {
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

// Abort ends the connection by a reset, where the client could take an end for the end of an answer: one whose length
// nothing else tells. Close remains to be called.
func (c *Conn) Abort() {
	below := c.Conn
	for {
		t, ok := below.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		below = t.NetConn() // of TLS: without a close_notify, which would say that all is well
	}
	if t, ok := below.(*net.TCPConn); ok {
		t.SetLinger(0)
		t.Close()
	}
}

// SetReadDeadline sets net/http's deadline; ours stays.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.deadline.theirs(t) }

// SetDeadline sets both of net/http's deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.deadline.theirs(t), c.Conn.SetWriteDeadline(t))
}

// deadlines keeps two read deadlines on a connection that has one.
type deadlines struct {
	conn net.Conn
	mu   sync.Mutex
	a, b time.Time // theirs, ours
}

func (d *deadlines) theirs(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.a = t
	return d.apply()
}

// own sets our deadline. An error of the connection shows at the next read.
func (d *deadlines) own(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.b.Equal(t) {
		d.b = t
		d.apply()
	}
}

func (d *deadlines) apply() error {
	t := d.a
	if t.IsZero() || !d.b.IsZero() && d.b.Before(t) {
		t = d.b
	}
	return d.conn.SetReadDeadline(t)
}

// passed reports whether our deadline has.
func (d *deadlines) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.b.IsZero() && !time.Now().Before(d.b)
}
