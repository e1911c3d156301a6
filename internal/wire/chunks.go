package wire

import "io"

// Chunks reads the chunked framing of an answer, as strictly as that of a request. The zero Chunks is ready.
type Chunks struct {
	framer framer
	begun  bool
	Field  func(line []byte) bool // takes each line of the trailer section; false: it must not stand there
}

// Step takes the framing from the front of b, and returns how many bytes it is and how many of body, n, follow it: at most
// what is there. io.EOF says that the body has ended; n is 0 while more must be read.
func (c *Chunks) Step(b []byte) (framing, n int, err error) {
	f := &c.framer
	if !c.begun {
		c.begun, f.state = true, inChunkSize
	}
	for f.state != inData {
		before := f.state
		k, code := f.step(b[framing:])
		switch {
		case code != "":
			return framing, 0, errBroken
		case k == 0:
			return framing, 0, nil
		}
		line := b[framing : framing+k]
		framing += k
		if before != inTrailer {
			continue
		}
		if f.state == inHead {
			return framing, 0, io.EOF
		}
		if !c.Field(line[:len(line)-2]) {
			return framing, 0, errBroken
		}
	}
	return framing, f.pass(len(b) - framing), nil
}
