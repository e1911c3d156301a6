package wire

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A Head is what a request says before its body. Its strings are of one copy of the bytes that were read.
type Head struct {
	Method, Target, Host string
	Fields               []Field // in the order in which they came, Host among them
	Length               int64   // of the body; -1: it is chunked
	Old                  bool    // HTTP/1.0
	Expects              bool    // 100 Continue, before the body is sent
}

// A Field is a line of a head; its name is as it was sent.
type Field struct{ Name, Value string }

// fieldSpan is where a field stands in a head.
type fieldSpan struct{ name, value span }

// Buffers is what connections read into while they are not idle. The zero Buffers is ready.
type Buffers struct{ pool sync.Pool }

func (b *Buffers) get() []byte {
	if a, ok := b.pool.Get().(*[readAhead]byte); ok {
		return a[:]
	}
	return make([]byte, readAhead)
}

func (b *Buffers) put(s []byte) {
	if len(s) == readAhead {
		b.pool.Put((*[readAhead]byte)(s))
	}
}

// direct is what a Conn keeps that is read by Wait, ReadHead and ReadBody instead of Read.
type direct struct {
	buffers     *Buffers
	idle        time.Duration
	read, write Pace
	raw         syscall.RawConn // nil: there is none, and a buffer is held while it is idle
	first       func(fd uintptr) bool
	n           int   // that first has read
	err         error // that it met
}

// Direct has the connection read by Wait, ReadHead and ReadBody from now on. idle is how long a next request is waited for.
func (c *Conn) Direct(b *Buffers, idle time.Duration) {
	d := &direct{buffers: b, idle: idle}
	d.read.Set, d.write.Set = c.Conn.SetReadDeadline, c.Conn.SetWriteDeadline
	_, d.write.Exact = c.Conn.(*tls.Conn) // of which a write that timed out is the last
	switch below := c.Conn.(type) {
	case *net.TCPConn:
		d.raw, _ = below.SyscallConn()
	case *net.UnixConn:
		d.raw, _ = below.SyscallConn()
	}
	d.first = func(fd uintptr) bool { return d.readFirst(c, int(fd)) }
	c.direct, c.framer.keep = d, true
}

// readFirst reads what there is, and takes a buffer only if there is something.
func (d *direct) readFirst(c *Conn, fd int) bool {
	b := d.buffers.get()
	for {
		n, err := syscall.Read(fd, b)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			d.buffers.put(b)
			return false
		}
		c.buf, d.n, d.err = b, max(n, 0), err
		return true
	}
}

// Wait waits for the first bytes of a request. It holds no buffer meanwhile.
func (c *Conn) Wait() error {
	if c.r < c.w {
		return nil
	}
	d := c.direct
	if c.buf != nil {
		d.buffers.put(c.buf)
	}
	c.buf, c.r, c.ok, c.w = nil, 0, 0, 0
	until := c.until(time.Now())
	for {
		d.read.Arm(until)
		d.n, d.err = 0, nil
		var err error
		if d.raw != nil {
			err = d.raw.Read(d.first)
		} else {
			c.buf = d.buffers.get()
			d.n, err = c.Conn.Read(c.buf)
		}
		switch {
		case d.n > 0:
			c.w, c.begun = d.n, time.Time{}
			return nil
		case err != nil && d.read.Again(err, until):
		case err != nil:
			return err
		case d.err != nil:
			return os.NewSyscallError("read", d.err)
		default:
			return io.EOF
		}
	}
}

// ReadHead reads a request's head. In the place of one that is refused it returns a harmless one, for which Next returns the
// Refusal; behind it nothing can be read.
func (c *Conn) ReadHead(h *Head) error {
	for c.refused.Load() == nil {
		if c.r < c.w {
			n, code := c.framer.step(c.buf[c.r:c.w])
			if n > 0 && code == "" {
				code = c.ahead(n)
			}
			if code != "" {
				c.refuse(code)
				break
			}
			if n > 0 {
				c.passHead(h, n)
				return nil
			}
			if c.begun.IsZero() {
				c.begun = time.Now()
			}
		}
		if err := c.more(); err != nil {
			return err
		}
	}
	*h = Head{Method: "GET", Target: "/", Host: "refused", Fields: h.Fields[:0]}
	return nil
}

// ahead looks at what has come of a body behind the n bytes of its head: a request of which something is known to be wrong
// is refused whole.
func (c *Conn) ahead(n int) (code Code) {
	for f, b := c.framer, c.buf[c.r+n:c.w]; f.state != inHead && f.state != held && code == ""; b = b[n:] {
		if n, code = f.step(b); n == 0 {
			break
		}
	}
	return code
}

// passHead makes a Head of the n bytes at c.r.
func (c *Conn) passHead(h *Head, n int) {
	f := &c.framer
	text := string(c.buf[c.r : c.r+n])
	of := func(s span) string { return text[s.from:s.to] }
	fields := h.Fields[:0]
	for _, s := range f.spans {
		fields = append(fields, Field{of(s.name), of(s.value)})
	}
	*h = Head{
		Method: of(f.head.method), Target: of(f.head.target), Host: of(f.head.host), Fields: fields,
		Length: max(f.head.length, 0), Old: f.head.old, Expects: f.head.expects,
	}
	if f.head.chunked {
		h.Length = -1
	}
	c.r += n
	c.heads++
	c.taken, c.waited, c.begun = 0, 0, time.Time{}
}

// ReadBody reads of the body of the request whose head was read last, without the framing of its chunks; io.EOF is its end.
func (c *Conn) ReadBody(p []byte) (int, error) {
	for c.broken.Load() == nil {
		switch {
		case c.framer.state == inHead, c.framer.state == held:
			return 0, io.EOF
		case c.framer.state == inData && c.r < c.w:
			n := copy(p[:min(int64(len(p)), c.framer.data)], c.buf[c.r:c.w])
			c.framer.pass(n)
			c.r += n
			c.taken += int64(n)
			return n, c.finish()
		case c.framer.state == inData:
			return c.readData(p)
		}
		if c.finish() == io.EOF {
			return 0, io.EOF
		}
		if c.framer.state != inData && c.broken.Load() == nil {
			if err := c.more(); err != nil {
				return 0, unexpected(err)
			}
		}
	}
	return 0, errBroken
}

// finish takes the framing that is there. It returns io.EOF if the body has ended, nil if data follow or may.
func (c *Conn) finish() error {
	for c.framer.state != inData && c.framer.state != inHead {
		n, code := c.framer.step(c.buf[c.r:c.w])
		switch {
		case code != "":
			c.breaks(code)
			return nil
		case n == 0:
			return nil
		}
		c.r += n
	}
	if c.framer.state == inHead {
		return io.EOF
	}
	return nil
}

// readData reads body bytes past the buffer.
func (c *Conn) readData(p []byte) (int, error) {
	n, err := c.readPaced(p[:min(int64(len(p)), c.framer.data)])
	c.framer.pass(n)
	if n > 0 {
		return n, c.finish()
	}
	return 0, unexpected(c.late(err))
}

// more reads once, behind what is there.
func (c *Conn) more() error {
	if c.r > 0 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r, c.ok = 0, 0
	}
	if c.buf == nil {
		c.buf = c.direct.buffers.get()
	}
	if c.w == len(c.buf) {
		c.buf = append(c.buf, make([]byte, len(c.buf))...)
	}
	n, err := c.readPaced(c.buf[c.w:])
	if c.w += n; n > 0 {
		return nil
	}
	return c.late(err)
}

func (c *Conn) readPaced(p []byte) (int, error) {
	now := time.Now()
	until := c.until(now)
	for {
		c.direct.read.Arm(until)
		n, err := c.Conn.Read(p)
		if n == 0 && err != nil && c.direct.read.Again(err, until) {
			continue
		}
		c.account(n, now)
		return n, err
	}
}

// until is when the wait for the next bytes ends.
func (c *Conn) until(now time.Time) time.Time {
	switch {
	case c.framer.state != inHead:
		return now.Add(c.patience())
	case c.r < c.w:
		return c.begun.Add(c.headerTimeout)
	case c.heads == 0:
		return c.accepted.Add(c.headerTimeout)
	}
	return now.Add(c.direct.idle)
}

// late turns the end of our patience into a refusal: of the head, or of the rest of the body.
func (c *Conn) late(err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) || c.direct.read.Cut() {
		return err
	}
	switch {
	case c.framer.state != inHead:
		c.breaks(BodyTimeout)
	case c.r < c.w:
		c.refuse(HeaderTimeout)
		return nil
	}
	return err
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// InHand reports whether all of the body has been received.
func (c *Conn) InHand() bool {
	return c.framer.state == inHead || c.framer.state == inData && !c.framer.chunked && int64(c.w-c.r) >= c.framer.data
}

// Rested reports whether a next request can follow: the one before has been read to its end, nothing was wrong with it, and
// nobody has ended the reading.
func (c *Conn) Rested() bool {
	return c.framer.state == inHead && c.refused.Load() == nil && c.broken.Load() == nil && !c.tunnel && !c.direct.read.Cut()
}

// Interrupt ends the reading and the writing at hand, and keeps them from beginning again.
func (c *Conn) Interrupt() {
	c.direct.read.Interrupt()
	c.direct.write.Interrupt()
}

// InterruptRead ends the reading alone.
func (c *Conn) InterruptRead() { c.direct.read.Interrupt() }

// ResumeRead undoes InterruptRead.
func (c *Conn) ResumeRead() { c.direct.read.Resume() }

// Resume allows writing again.
func (c *Conn) Resume() { c.direct.write.Resume() }

// writePaced gives the client bodyTimeout to take p, or as much for each 32 KiB of it: one that takes a byte at a time would
// hold a request for ever.
func (c *Conn) writePaced(p []byte) (int, error) {
	return c.direct.write.Write(c.Conn, p, c.bodyTimeout)
}
