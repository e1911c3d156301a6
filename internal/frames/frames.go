// Package frames ends a WebSocket that somebody else speaks (RFC 6455): it follows where one frame ends, changes no byte, and
// puts a close frame behind the last whole one.
//
// A Writer stands before one direction of the connection. It passes on what is written, and reads of it the frames' headers
// alone: some bytes of each frame, whatever its length. Close asks it to write no more than the frame at hand and then a
// close frame. What is written after that is taken and thrown away, so that the peer is read until it has closed too.
//
// Limits: what a frame holds is not looked at. A direction that is no WebSocket is followed to nowhere: it gets no close
// frame, and its caller closes the connection without.
package frames

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

// The codes of a close frame (RFC 6455, section 7.4.1).
const (
	GoingAway       = 1001
	PolicyViolation = 1008
)

const (
	opClose    = 0x8
	maxHeader  = 14
	maxControl = 125 // bytes of a close frame's payload
)

// ErrLost says that a direction is not made of frames.
var ErrLost = errors.New("not made of WebSocket frames")

// position is where in a stream of frames it is.
type position struct {
	header [maxHeader]byte
	n      int    // bytes of header that are there
	left   uint64 // bytes of the payload that are to come
	inside bool   // of a payload
	closed bool   // a close frame has passed: none may follow
	lost   bool
}

// boundary reports whether a frame may begin here.
func (p *position) boundary() bool { return p.n == 0 && !p.inside && !p.lost }

// next takes the bytes up to the end of the frame at hand, and returns how many they are: all, if it does not end in b.
func (p *position) next(b []byte) int {
	if p.lost {
		return len(b)
	}
	taken := 0
	for !p.inside {
		if taken == len(b) {
			return taken
		}
		p.header[p.n] = b[taken]
		p.n++
		taken++
		if p.n < headerLength(p.header[:p.n]) {
			continue
		}
		length, ok := payloadLength(p.header[:p.n])
		if !ok {
			p.lost = true
			return len(b)
		}
		p.left, p.inside = length, true
	}
	if rest := uint64(len(b) - taken); rest < p.left {
		p.left -= rest
		return len(b)
	}
	taken += int(p.left)
	p.closed = p.closed || p.header[0]&0x0f == opClose
	p.n, p.left, p.inside = 0, 0, false
	return taken
}

// headerLength is how long a header is that begins so, as far as that can be seen (RFC 6455, section 5.2).
func headerLength(h []byte) int {
	if len(h) < 2 {
		return 2
	}
	n := 2
	switch h[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if h[1]&0x80 != 0 {
		n += 4
	}
	return n
}

// payloadLength reads a whole header. A length of 64 bits has its highest bit clear.
func payloadLength(h []byte) (length uint64, ok bool) {
	switch n := h[1] & 0x7f; n {
	case 126:
		return uint64(binary.BigEndian.Uint16(h[2:])), true
	case 127:
		length = binary.BigEndian.Uint64(h[2:])
		return length, length>>63 == 0
	default:
		return uint64(n), true
	}
}

// Writer is one direction. Write comes from one goroutine, Close from any.
type Writer struct {
	w      io.Writer
	masked bool

	mu   sync.Mutex
	at   position
	end  []byte        // the close frame that is to be written; nil: none
	over bool          // nothing more is passed on
	done chan struct{} // closed when over
}

// NewWriter follows what is written to w from the beginning of a frame. masked says that it is the client's direction.
func NewWriter(w io.Writer, masked bool) *Writer {
	return &Writer{w: w, masked: masked, done: make(chan struct{})}
}

// Write passes p on. When a Close waits it passes on the rest of the frame at hand, and the close frame.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return len(p), nil
	}
	passed := 0
	for passed < len(p) && w.end == nil {
		passed += w.at.next(p[passed:])
	}
	if w.end != nil {
		passed = w.at.next(p)
	}
	if n, err := w.w.Write(p[:passed]); err != nil {
		return n, err
	}
	if w.end != nil && w.at.boundary() {
		if err := w.finish(); err != nil {
			return passed, err
		}
	}
	return len(p), nil
}

// Close ends the direction with a close frame of the code and reason: now, if it is between two frames, else when the frame
// at hand has passed. It waits for a Write that is under way. The channel that it returns is closed when it is done; if the
// direction is lost, the error says that this will not be.
func (w *Writer) Close(code uint16, reason string) (done <-chan struct{}, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over || w.end != nil {
		return w.done, nil
	}
	if w.at.lost {
		return w.done, ErrLost
	}
	w.end = closeFrame(code, reason, w.masked)
	if w.at.boundary() {
		return w.done, w.finish()
	}
	return w.done, nil
}

// finish writes the close frame, unless the peer's own has passed already.
func (w *Writer) finish() error {
	w.over = true
	defer close(w.done)
	if w.at.closed {
		return nil
	}
	_, err := w.w.Write(w.end)
	return err
}

// closeFrame is a whole frame (RFC 6455, section 5.5.1).
func closeFrame(code uint16, reason string, masked bool) []byte {
	payload := binary.BigEndian.AppendUint16(nil, code)
	payload = append(payload, reason[:min(len(reason), maxControl-2)]...)
	frame := []byte{0x80 | opClose, byte(len(payload))}
	if masked {
		var key [4]byte
		rand.Read(key[:])
		frame[1] |= 0x80
		frame = append(frame, key[:]...)
		for i := range payload {
			payload[i] ^= key[i%4]
		}
	}
	return append(frame, payload...)
}
