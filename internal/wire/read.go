package wire

import (
	"bytes"
	"errors"
	"os"
	"time"
)

const (
	readAhead = 4 << 10  // bytes read ahead on a connection with small heads
	maxHeld   = 64 << 10 // bytes a client may send before its upgrade is settled

	// minBodyRate is how many bytes of a body a client must send for each second that it is waited for, BodyTimeout given
	// beforehand. Without it a byte a minute would hold a connection, and a place among the requests in flight, for ever.
	// 500 is what Apache's mod_reqtimeout asks for.
	minBodyRate = 500
)

// substitute is what the server reads in the place of a refused request.
const substitute = "GET / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n"

// Read passes what has been understood.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		if c.tunnel {
			c.ok = c.w
		}
		if c.r < c.ok {
			n := copy(p, c.buf[c.r:c.ok])
			c.r += n
			c.settle()
			return n, nil
		}
		switch {
		case c.tunnel:
			return c.Conn.Read(p)
		case c.refused.Load() != nil, c.breaksLater():
			return 0, c.swallow()
		case c.broken.Load() != nil:
			return 0, errBroken
		case c.framer.state == inData && c.r == c.w:
			return c.readBody(p)
		}
		if !c.fed {
			if err := c.fill(); err != nil {
				return 0, err
			}
		}
		c.fed = false
		c.advance()
	}
}

// readBody reads body bytes past the buffer, since there is nothing in them to understand.
func (c *Conn) readBody(p []byte) (int, error) {
	if int64(len(p)) > c.framer.data {
		p = p[:c.framer.data]
	}
	now := time.Now()
	c.deadline.own(now.Add(c.patience()))
	n, err := c.Conn.Read(p)
	c.framer.pass(n)
	c.account(n, now)
	if err != nil {
		err = c.stalled(err)
	}
	if c.framer.state == inHead {
		c.deadline.own(time.Time{})
	}
	return n, err
}

// settle keeps buf small and its offsets low once everything that may pass has passed.
func (c *Conn) settle() {
	if c.at < c.r {
		c.at = -1
	}
	if c.r < c.w {
		return
	}
	c.r, c.ok, c.w = 0, 0, 0
	if len(c.buf) > readAhead {
		c.buf = make([]byte, readAhead)
	}
}

// fill reads once from the client, behind what is there.
func (c *Conn) fill() error {
	if c.r > 0 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r, c.ok, c.at = 0, 0, -1
	}
	if c.buf == nil {
		c.buf = make([]byte, readAhead)
	}
	if c.w == len(c.buf) {
		if c.framer.state == held && c.w >= maxHeld {
			return errBroken
		}
		c.buf = append(c.buf, make([]byte, len(c.buf))...)
	}
	now := time.Now()
	c.arm(now)
	n, err := c.Conn.Read(c.buf[c.w:])
	c.account(n, now)
	if n > 0 {
		if c.ok == c.w {
			c.begun = time.Now()
		}
		c.w += n
		return nil
	}
	return c.stalled(err)
}

// arm sets our deadline for the next read. net/http's stays beside it: whichever is first ends the read.
func (c *Conn) arm(now time.Time) {
	var t time.Time
	switch {
	case c.framer.state == held:
	case c.framer.state != inHead:
		t = now.Add(c.patience())
	case c.w > 0:
		t = c.begun.Add(c.headerTimeout)
	case c.heads == 0:
		t = c.accepted.Add(c.headerTimeout)
	}
	c.deadline.own(t)
}

// patience is how long the next bytes of a body are waited for.
func (c *Conn) patience() time.Duration {
	earned := time.Duration(c.taken/minBodyRate) * time.Second
	return min(c.bodyTimeout, c.bodyTimeout+earned-c.waited)
}

// account notes what came since a read began. Only time in which we wait for the client counts, none in which the
// service does not take what came.
func (c *Conn) account(n int, since time.Time) {
	c.taken += int64(n)
	c.waited += time.Since(since)
}

// stalled turns the end of our own patience into a refusal: of the head, or of the rest of the body. Other errors
// are net/http's to see, its own deadline among them, which it uses to get a reading goroutine back.
func (c *Conn) stalled(err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) || !c.deadline.passed() {
		return err
	}
	switch {
	case c.framer.state != inHead:
		c.breaks(BodyTimeout)
	case c.w > 0:
		c.refuse(HeaderTimeout)
		return nil
	}
	return err
}

// advance understands as much as is there.
func (c *Conn) advance() {
	for c.refused.Load() == nil && c.framer.state != held {
		state := c.framer.state
		n, code := c.framer.step(c.buf[c.ok:c.w])
		switch {
		case code != "" && state == inHead:
			c.refuse(code)
			return
		case code != "" && c.at >= 0:
			// The head that this body belongs to has not passed yet: the request is refused whole.
			c.ok = c.at
			c.heads--
			c.refuse(code)
			return
		case code != "":
			c.breaks(code)
			return
		case n == 0:
			if c.ok > 0 {
				c.begun = time.Now() // what is left came with what has just been understood
			}
			return
		}
		if state == inHead {
			c.at = c.ok
			c.heads++
			c.taken, c.waited = 0, 0
			c.deadline.own(time.Time{})
		}
		c.ok += n
	}
}

// refuse puts the substitute in the place of everything from buf[ok] on.
func (c *Conn) refuse(code Code) {
	c.heads++
	if c.direct != nil {
		c.ok = c.r
	}
	b, h := c.buf[c.ok:c.w], &c.framer.head
	r := &Refusal{number: c.heads, Code: code, Method: string(h.method.of(b)), Host: string(h.host.of(b))}
	path, _, _ := bytes.Cut(h.target.of(b), []byte{'?'})
	r.Path = string(path)
	if c.direct == nil {
		c.buf = append(c.buf[:c.ok:c.ok], substitute...)
		c.ok, c.w, c.at = len(c.buf), len(c.buf), -1
	}
	c.lingers.Store(true)
	c.deadline.own(time.Time{})
	c.refused.Store(r)
}

// breaksLater reports whether the body that broke is of a request that still waits behind the one being answered. What
// reads then only watches over that one, for which an error would mean that its client is gone.
func (c *Conn) breaksLater() bool {
	b := c.broken.Load()
	return b != nil && b.number > c.served.Load()
}

// breaks ends the body at hand: what of it was understood passes, then an error.
func (c *Conn) breaks(code Code) {
	c.lingers.Store(true)
	c.deadline.own(time.Time{})
	c.broken.Store(&breach{code, c.heads})
}

// swallow reads away what a refused client still sends, until net/http has written the answer and wants no more.
func (c *Conn) swallow() error {
	for {
		if _, err := c.Conn.Read(c.buf[:cap(c.buf)]); err != nil {
			return err
		}
	}
}
