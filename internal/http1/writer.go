package http1

import (
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Header is that of the answer. It implements http.ResponseWriter.
func (c *Conn) Header() http.Header { return c.work.answer }

// WriteHeader begins the answer, or sends an informational one.
func (c *Conn) WriteHeader(status int) {
	w := c.work
	switch {
	case w.hijacked || w.status != 0:
	case status >= 100 && status < 200 && status != http.StatusSwitchingProtocols:
		if !w.head.Old {
			c.inform(status)
		}
	default:
		w.status = status
		w.bodyless = w.head.Method == http.MethodHead || !bodyAllowed(status)
		if v := w.answer["Content-Length"]; len(v) == 1 {
			if n, err := strconv.ParseInt(v[0], 10, 64); err == nil && n >= 0 {
				w.left = n
			}
		}
	}
}

// bodyAllowed is RFC 9110, section 6.4.1.
func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// inform sends an informational answer, with the fields that the header has.
func (c *Conn) inform(status int) {
	b := appendStatus(nil, status)
	for _, name := range sortedNames(c.work.answer) {
		b = appendField(b, name, c.work.answer[name])
	}
	if _, err := c.wire.Write(append(b, "\r\n"...)); err != nil {
		c.work.err = err
	}
}

// Write implements http.ResponseWriter.
func (c *Conn) Write(p []byte) (int, error) {
	w := c.work
	if w.status == 0 {
		c.WriteHeader(http.StatusOK)
	}
	switch {
	case w.hijacked:
		return 0, http.ErrHijacked
	case w.err != nil:
		return 0, w.err
	case w.head.Method == http.MethodHead:
		w.eaten += len(p)
		return len(p), nil
	case w.bodyless && len(p) > 0:
		return 0, http.ErrBodyNotAllowed
	case w.left >= 0 && int64(len(p)) > w.left:
		return 0, http.ErrContentLength
	}
	if w.left >= 0 {
		w.left -= int64(len(p))
	}
	written := 0
	for {
		n := copy(w.room[w.stop:len(w.room)-tailroom], p[written:])
		w.stop += n
		written += n
		if written == len(p) {
			return written, nil
		}
		if err := c.emit(nil, false); err != nil {
			return written, err
		}
		if rest := p[written:]; !w.chunked && len(rest) >= roomSize/2 {
			return written + len(rest), c.emit(rest, false)
		}
	}
}

// Pending reports whether something of the answer waits to be sent.
func (c *Conn) Pending() bool { return c.work.status != 0 && (!c.work.sent || c.work.stop > headroom) }

// FlushError is what http.ResponseController looks for.
func (c *Conn) FlushError() error {
	if c.work.status == 0 {
		c.WriteHeader(http.StatusOK)
	}
	return c.emit(nil, false)
}

// Flush implements http.Flusher.
func (c *Conn) Flush() { c.FlushError() }

// emit sends what waits: the head, if it has not been sent, what of the body there is, then more. final says that the answer
// ends here.
func (c *Conn) emit(more []byte, final bool) error {
	w := c.work
	if w.err != nil || w.hijacked {
		return w.err
	}
	if w.status == 0 {
		c.WriteHeader(http.StatusOK)
	}
	if final && w.left > 0 && !w.bodyless {
		w.err = io.ErrShortWrite // the answer was to be longer
		return w.err
	}
	data := w.room[headroom:w.stop]
	before := w.room[:0:headroom]
	if !w.sent {
		before = c.appendHead(before, final, len(data)+w.eaten)
	}
	if w.chunked && len(data) > 0 {
		before = append(strconv.AppendInt(before, int64(len(data)), 16), "\r\n"...)
		w.stop += copy(w.room[w.stop:], "\r\n")
	}
	if w.chunked && final {
		w.stop += copy(w.room[w.stop:], "0\r\n")
		more = c.trailer()
		if len(more) <= len(w.room)-w.stop {
			w.stop += copy(w.room[w.stop:], more)
			more = nil
		}
	}
	return c.send(before, more)
}

// send writes before, what is in the room, and more.
func (c *Conn) send(before, more []byte) error {
	w := c.work
	all := w.room[headroom:w.stop]
	if cap(before) == headroom { // it is in the room, and moves to right before what follows
		from := headroom - len(before)
		copy(w.room[from:], before)
		all, before = w.room[from:w.stop], nil
	}
	w.sent, w.stop = true, headroom
	for _, b := range [][]byte{before, all, more} {
		if len(b) > 0 && w.err == nil {
			_, w.err = c.wire.Write(b)
		}
	}
	return w.err
}

// appendHead decides how the body is framed.
func (c *Conn) appendHead(b []byte, final bool, n int) []byte {
	w := c.work
	h := w.answer
	if c.server.draining.Load() || len(h["Connection"]) > 0 && hasToken(h["Connection"][0], "close") {
		w.close = true
	}
	delete(h, "Connection")
	delete(h, "Transfer-Encoding")
	switch {
	case !bodyAllowed(w.status) && w.status != http.StatusNotModified:
		delete(h, "Content-Length")
	case w.left >= 0, w.bodyless && n == 0:
	case final && (w.head.Old || !trails(h)):
		w.left = 0
		h["Content-Length"] = []string{strconv.Itoa(n)}
	case w.head.Old:
		w.close = true
	default:
		w.chunked = true
	}
	b = appendStatus(b, w.status)
	for _, name := range w.order {
		if values := h[name]; values != nil {
			b = appendField(b, name, values)
			delete(h, name)
		}
	}
	for _, name := range sortedNames(h) {
		if !strings.HasPrefix(name, http.TrailerPrefix) {
			b = appendField(b, name, h[name])
		}
	}
	if len(h["Date"]) == 0 && !slices.Contains(w.order, "Date") {
		b = append(append(append(b, "Date: "...), c.server.now()...), "\r\n"...)
	}
	if w.chunked {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if w.close {
		b = append(b, "Connection: close\r\n"...)
	}
	return append(b, "\r\n"...)
}

// trailer is what stands behind the last chunk: the fields whose names have http.TrailerPrefix, and the empty line.
func (c *Conn) trailer() (b []byte) {
	for _, name := range sortedNames(c.work.answer) {
		if field, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			b = appendField(b, field, c.work.answer[name])
		}
	}
	return append(b, "\r\n"...)
}

// trails reports whether something stands behind the body.
func trails(h http.Header) bool {
	for name := range h {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

func sortedNames(h http.Header) []string {
	if len(h) == 0 {
		return nil
	}
	names := make([]string, 0, 16)
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func appendStatus(b []byte, status int) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	return append(b, "\r\n"...)
}

// appendField writes a field. A line end in a value, which would begin another field, becomes a space.
func appendField(b []byte, name string, values []string) []byte {
	for _, v := range values {
		b = append(append(b, name...), ": "...)
		from := len(b)
		b = append(b, v...)
		for i, c := range b[from:] {
			if c == '\r' || c == '\n' {
				b[from+i] = ' '
			}
		}
		b = append(b, "\r\n"...)
	}
	return b
}

// SwitchingHead is the head of an answer 101, with the fields that the header has, those of the names first.
func (c *Conn) SwitchingHead(names []string) []byte {
	h := c.work.answer
	b := appendStatus(nil, http.StatusSwitchingProtocols)
	for _, name := range append(slices.Clone(names), sortedNames(h)...) {
		b = appendField(b, name, h[name])
		delete(h, name)
	}
	return append(b, "\r\n"...)
}
