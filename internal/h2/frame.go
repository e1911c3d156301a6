package h2

import (
	"time"
)

// The types of frames, and the flags, that are looked at (RFC 9113, section 6).
const (
	typeData         = 0x0
	typeHeaders      = 0x1
	typeReset        = 0x3
	typeSettings     = 0x4
	typePing         = 0x6
	typeWindowUpdate = 0x8
	typeContinuation = 0x9

	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8

	noError = "\x00\x00\x00\x00"
)

const (
	headerLength = 9 // of a frame

	// burst and perSecond are nghttp2's for streams that are reset.
	burst     = 1000
	perSecond = 33

	maxContinuations = 64 // frames of one header block
)

// goAway is a whole frame with ENHANCE_YOUR_CALM. Its last stream is any, since the connection is closed behind it.
const goAway = "\x00\x00\x08\x07\x00\x00\x00\x00\x00" + "\x7f\xff\xff\xff" + "\x00\x00\x00\x0b"

// budget is how often something may still be done.
type budget struct {
	spent float64
	at    time.Time
}

// spend reports whether it may be done once more.
func (b *budget) spend(now time.Time) bool {
	if b.spent > 0 {
		b.spent = max(0, b.spent-now.Sub(b.at).Seconds()*perSecond)
	}
	b.spent++
	b.at = now
	return b.spent <= burst
}

// earn lets it be done once more.
func (b *budget) earn() { b.spent = max(-burst, b.spent-1) }

// frame finds frames in a stream of bytes.
type frame struct {
	header  [headerLength]byte
	have    int // of header
	left    int // of the payload
	payload int // bytes of it so far
}

func (f *frame) length() int     { return int(f.header[0])<<16 | int(f.header[1])<<8 | int(f.header[2]) }
func (f *frame) kind() byte      { return f.header[3] }
func (f *frame) has(b byte) bool { return f.header[4]&b != 0 }

// between reports whether the next byte begins a frame.
func (f *frame) between() bool { return f.have == 0 }

// take consumes the rest of the frame's header or of its payload from b. began is true once the header is whole; p is what
// of the payload was taken.
func (f *frame) take(b []byte) (n int, began bool, p []byte) {
	if f.have < headerLength {
		n = copy(f.header[f.have:], b)
		f.have += n
		if began = f.have == headerLength; began {
			f.left, f.payload = f.length(), 0
			f.settle()
		}
		return n, began, nil
	}
	n = min(f.left, len(b))
	f.left -= n
	f.payload += n
	f.settle()
	return n, false, b[:n]
}

// settle ends a frame whose payload is complete.
func (f *frame) settle() {
	if f.left == 0 {
		f.have = 0
	}
}

// inward is what a client sends.
type inward struct {
	frame
	limits   Limits
	preface  string    // what of it is still to come
	block    int       // bytes of the header block at hand; -1: there is none
	parts    int       // frames of it
	began    time.Time // the header block at hand, or else the frame
	deadline time.Time // for the next byte; zero: none

	resets, settings, pings, empty, other budget
}

func newInward(l Limits, now time.Time) inward {
	return inward{limits: l, preface: Preface, block: -1, deadline: now.Add(l.HeaderTimeout)}
}

// feed reads on, and returns what the connection is to be ended for, if anything.
func (m *inward) feed(b []byte, now time.Time) Kind {
	for len(b) > 0 {
		if m.preface != "" {
			n := min(len(b), len(m.preface))
			if string(b[:n]) != m.preface[:n] {
				return NotHTTP2
			}
			m.preface, b = m.preface[n:], b[n:]
			if m.preface == "" {
				m.deadline = time.Time{}
			}
			continue
		}
		if m.between() && m.block < 0 {
			m.began = now
		}
		n, began, p := m.take(b)
		b = b[n:]
		if began {
			if kind := m.judge(now); kind != "" {
				return kind
			}
		}
		if len(p) > 0 && m.payload == len(p) && m.paddedAway(p[0]) && !m.empty.spend(now) {
			return Empty
		}
		m.arm()
	}
	return ""
}

// arm sets the deadline for what has begun.
func (m *inward) arm() {
	switch {
	case m.between() && m.block < 0:
		m.deadline = time.Time{}
	case m.block < 0 && m.have == headerLength && m.kind() == typeData:
		m.deadline = m.began.Add(m.limits.BodyTimeout)
	default:
		m.deadline = m.began.Add(m.limits.HeaderTimeout)
	}
}

// judge counts a frame whose header is whole.
func (m *inward) judge(now time.Time) Kind {
	within := true
	kind := Other
	switch m.kind() {
	case typeData:
		kind = Empty
		within = m.length() > 0 || m.has(flagEndStream) || m.empty.spend(now)
	case typeHeaders:
		return m.open(now)
	case typeContinuation:
		return m.join()
	case typeReset:
		kind, within = Reset, m.resets.spend(now)
	case typeSettings:
		kind, within = Settings, m.settings.spend(now)
	case typePing:
		kind, within = Ping, m.pings.spend(now)
	case typeWindowUpdate:
	default:
		within = m.other.spend(now)
	}
	if !within {
		return kind
	}
	return ""
}

// paddedAway reports whether a DATA frame is padding and nothing else; first is the first byte of its payload.
func (m *inward) paddedAway(first byte) bool {
	return m.kind() == typeData && m.has(flagPadded) && !m.has(flagEndStream) && m.length() <= int(first)+1
}

// open begins a header block.
func (m *inward) open(now time.Time) Kind {
	m.block, m.parts = 0, 0
	return m.join()
}

// join takes one more frame into the header block. That a CONTINUATION has one the server sees to.
func (m *inward) join() Kind {
	m.block = max(m.block, 0) + m.length()
	m.parts++
	if m.block > m.limits.HeaderBytes || m.parts > maxContinuations {
		return Continuation
	}
	if m.has(flagEndHeaders) {
		m.block = -1 // what is left of the frame has the deadline that the block had
	}
	return ""
}

// outward is what the server sends.
type outward struct {
	frame
	code [4]byte // of a RST_STREAM
}

// whole reports whether another frame may follow.
func (m *outward) whole() bool { return m.between() }

// feed reads what has been written, and counts it on the client's account.
func (m *outward) feed(b []byte, in *inward, now time.Time) Kind {
	for len(b) > 0 {
		n, began, p := m.take(b)
		b = b[n:]
		if began && (m.kind() == typeData || m.kind() == typeHeaders) {
			in.pings.earn()
		}
		if m.kind() != typeReset || len(p) == 0 {
			continue
		}
		copy(m.code[m.payload-len(p):], p)
		if m.payload == len(m.code) && string(m.code[:]) != noError && !in.resets.spend(now) {
			return Reset
		}
	}
	return ""
}
