package frames

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// boundaries are the offsets at which a frame may begin, read once more and as simply as RFC 6455, section 5.2, says it, and
// whether a close frame ends at each or before. The list ends where data is no frame any more.
func boundaries(data []byte) (at []int, closed []bool) {
	at, closed = []int{0}, []bool{false}
	for begin := 0; ; {
		rest := data[begin:]
		if len(rest) < 2 {
			return at, closed
		}
		size, length := 2, uint64(rest[1]&0x7f)
		if length == 126 {
			size += 2
		} else if length == 127 {
			size += 8
		}
		if len(rest) < size {
			return at, closed
		}
		switch length {
		case 126:
			length = uint64(rest[2])<<8 | uint64(rest[3])
		case 127:
			length = binary.BigEndian.Uint64(rest[2:])
		}
		if rest[1]&0x80 != 0 {
			size += 4
		}
		if length > uint64(len(data)) || len(rest) < size+int(length) {
			return at, closed
		}
		begin += size + int(length)
		at = append(at, begin)
		closed = append(closed, closed[len(closed)-1] || rest[0]&0x0f == 8)
	}
}

func frame(opcode byte, masked bool, payload string) []byte {
	f := []byte{0x80 | opcode, 0}
	switch n := len(payload); {
	case n < 126:
		f[1] = byte(n)
	case n < 1<<16:
		f[1] = 126
		f = binary.BigEndian.AppendUint16(f, uint16(n))
	default:
		f[1] = 127
		f = binary.BigEndian.AppendUint64(f, uint64(n))
	}
	if masked {
		f[1] |= 0x80
		f = append(f, 0, 0, 0, 0)
	}
	return append(f, payload...)
}

// readClose takes a close frame apart.
func readClose(t *testing.T, f []byte, masked bool) (code uint16, reason string) {
	t.Helper()
	if len(f) < 4 || f[0] != 0x88 || f[1]&0x80 != 0 != masked {
		t.Fatalf("not a close frame: %x", f)
	}
	n := int(f[1] & 0x7f)
	payload := slices.Clone(f[2:])
	if masked {
		key := payload[:4]
		payload = payload[4:]
		for i := range payload {
			payload[i] ^= key[i%4]
		}
	}
	if len(payload) != n {
		t.Fatalf("a close frame of %d bytes holds %d: %x", n, len(payload), f)
	}
	return binary.BigEndian.Uint16(payload), string(payload[2:])
}

func TestCloseBetweenFrames(t *testing.T) {
	for _, masked := range []bool{false, true} {
		var out bytes.Buffer
		w := NewWriter(&out, masked)
		sent := frame(1, masked, "hello")
		w.Write(sent)
		done, err := w.Close(PolicyViolation, "revoked")
		if err != nil {
			t.Fatal(err)
		}
		<-done
		if !bytes.HasPrefix(out.Bytes(), sent) {
			t.Fatalf("%x", out.Bytes())
		}
		if code, reason := readClose(t, out.Bytes()[len(sent):], masked); code != 1008 || reason != "revoked" {
			t.Errorf("%d %q", code, reason)
		}
		size := out.Len()
		if n, err := w.Write(sent); n != len(sent) || err != nil || out.Len() != size {
			t.Errorf("a write after the end: %d, %v, and %d bytes more", n, err, out.Len()-size)
		}
		if _, err := w.Close(PolicyViolation, "again"); err != nil || out.Len() != size {
			t.Error("closed twice")
		}
	}
}

func TestCloseInsideAFrame(t *testing.T) {
	long := frame(2, false, strings.Repeat("x", 70_000))
	for _, cut := range []int{1, 2, 5, 9, 10, 11, 60_000, len(long) - 1} {
		var out bytes.Buffer
		w := NewWriter(&out, false)
		w.Write(long[:cut])
		done, err := w.Close(PolicyViolation, "expired")
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
			t.Fatalf("cut at %d: closed inside a frame", cut)
		default:
		}
		w.Write(append(slices.Clone(long[cut:]), frame(1, false, "not this")...))
		<-done
		if !bytes.HasPrefix(out.Bytes(), long) {
			t.Fatalf("cut at %d: the frame is not whole", cut)
		}
		if code, _ := readClose(t, out.Bytes()[len(long):], false); code != 1008 {
			t.Errorf("cut at %d: %d", cut, code)
		}
	}
}

func TestCloseAfterTheirs(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out, false)
	theirs := frame(8, false, "\x03\xe8bye")
	w.Write(theirs)
	done, err := w.Close(PolicyViolation, "revoked")
	if <-done; err != nil || !bytes.Equal(out.Bytes(), theirs) {
		t.Errorf("a second close frame: %x, %v", out.Bytes(), err)
	}
}

func TestLost(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out, false)
	nothing := append([]byte{0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0}, "whatever"...) // a length with its highest bit
	w.Write(nothing)
	if _, err := w.Close(PolicyViolation, ""); !errors.Is(err, ErrLost) || !bytes.Equal(out.Bytes(), nothing) {
		t.Errorf("%x, %v", out.Bytes(), err)
	}
}

func TestLongReason(t *testing.T) {
	if f := closeFrame(PolicyViolation, strings.Repeat("r", 500), false); len(f) != 2+125 {
		t.Errorf("a close frame of %d bytes", len(f))
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWriteFails(t *testing.T) {
	w := NewWriter(failing{}, false)
	if _, err := w.Write(frame(1, false, "a")); err == nil {
		t.Error("the error is kept from the writer")
	}
	w = NewWriter(failing{}, false)
	if done, err := w.Close(PolicyViolation, ""); err == nil {
		t.Error("the error is kept from who closes")
	} else {
		<-done
	}
}

// FuzzWriter: whatever is written, in whatever pieces, what comes out is its beginning up to a boundary, and there the close
// frame, unless the peer's own came before or nothing was a boundary any more.
func FuzzWriter(f *testing.F) {
	f.Add(slices.Concat(frame(1, true, "hello"), frame(2, false, strings.Repeat("x", 300)), frame(8, false, "\x03\xe8")), []byte{3, 4, 100}, uint8(2))
	f.Add(frame(2, false, strings.Repeat("x", 70_000)), []byte{1, 1, 1, 7, 255}, uint8(3))
	f.Add([]byte{0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 1}, []byte{2}, uint8(1))
	f.Add([]byte{}, []byte{}, uint8(0))
	f.Fuzz(func(t *testing.T, data, sizes []byte, when uint8) {
		var out bytes.Buffer
		w := NewWriter(&out, false)
		var done <-chan struct{}
		var lost error
		before := 0
		end := func() {
			if done == nil {
				before = out.Len()
				done, lost = w.Close(PolicyViolation, "revoked")
			}
		}
		for i, rest := 0, data; len(rest) > 0; i++ {
			if i == int(when) {
				end()
			}
			size := len(rest)
			if i < len(sizes) {
				size = min(size, int(sizes[i])+1)
			}
			if n, err := w.Write(rest[:size]); n != size || err != nil {
				t.Fatalf("write: %d, %v", n, err)
			}
			rest = rest[size:]
		}
		end()
		at, closed := boundaries(data)
		i := slices.IndexFunc(at, func(b int) bool { return b >= before })
		if i < 0 {
			if !bytes.Equal(out.Bytes(), data) {
				t.Fatalf("no boundary, and %x became %x", data, out.Bytes())
			}
			select {
			case <-done:
				t.Fatal("done without a boundary")
			default:
			}
			return
		}
		if lost != nil {
			t.Fatalf("lost, but there is a boundary at %d behind %d", at[i], before)
		}
		<-done
		if !bytes.HasPrefix(out.Bytes(), data[:at[i]]) {
			t.Fatalf("%x became %x", data, out.Bytes())
		}
		rest := out.Bytes()[at[i]:]
		if closed[i] {
			if len(rest) > 0 {
				t.Fatalf("a second close frame: %x", rest)
			}
		} else if code, reason := readClose(t, rest, false); code != 1008 || reason != "revoked" {
			t.Fatalf("%d %q", code, reason)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	p := bytes.Repeat(frame(2, false, strings.Repeat("x", 200)), 160)
	w := NewWriter(io.Discard, false)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		w.Write(p)
	}
}
