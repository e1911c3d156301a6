package h2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testLimits() Limits {
	return Limits{HeaderBytes: 1000, HeaderTimeout: time.Minute, BodyTimeout: time.Minute}
}

// frames writes "type flags length" in turn, each with a payload of zeros.
func frames(of ...byte) []byte {
	var b []byte
	for i := 0; i < len(of); i += 3 {
		b = append(b, 0, 0, of[i+2], of[i], of[i+1], 0, 0, 0, 1)
		b = append(b, make([]byte, of[i+2])...)
	}
	return b
}

// What there is a budget for may be done burst times, and again when time has passed; nothing else spends it.
func TestBudgets(t *testing.T) {
	for _, c := range []struct {
		frame []byte
		kind  Kind // empty: there is none
	}{
		{frames(typeReset, 0, 4), Reset},
		{frames(typeSettings, 0, 0), Settings},
		{frames(typeSettings, 1, 0), Settings},
		{frames(typePing, 0, 8), Ping},
		{frames(0x2, 0, 5), Other},
		{frames(0x10, 0, 5), Other},
		{frames(typeData, 0, 0), Empty},
		{append(frames(typeData, flagPadded, 3)[:headerLength], 2, 0, 0), Empty},
		{append(frames(typeData, flagPadded, 3)[:headerLength], 1, 0, 0), ""}, // a byte of content
		{frames(typeData, flagEndStream, 0), ""},
		{frames(typeData, 0, 1), ""},
		{frames(typeWindowUpdate, 0, 4), ""},
		{frames(typeHeaders, flagEndHeaders, 10), ""},
	} {
		now := time.Now()
		m := newInward(testLimits(), now)
		m.feed([]byte(Preface), now)
		n, kind := 0, Kind("")
		for ; n <= 2*burst && kind == ""; n++ {
			kind = m.feed(c.frame, now)
		}
		if kind != c.kind || kind != "" && n != burst+1 {
			t.Errorf("%q: ended as %q after %d", c.frame, kind, n)
		}
		if kind == "" {
			continue
		}
		m.frame = frame{} // what is behind the frame in question was not read
		now = now.Add(10 * time.Second)
		for n = 0; m.feed(c.frame, now) == ""; n++ {
		}
		if n != 10*perSecond && n != 10*perSecond-1 {
			t.Errorf("%q: %d more after ten seconds", c.frame, n)
		}
	}
}

// A client may measure by a ping each frame that it is sent.
func TestPingsAreEarned(t *testing.T) {
	now := time.Now()
	m, out := newInward(testLimits(), now), outward{}
	m.feed([]byte(Preface), now)
	for range 10 * burst {
		out.feed(frames(typeData, 0, 10), &m, now)
		if kind := m.feed(frames(typePing, 0, 8), now); kind != "" {
			t.Fatal(kind)
		}
	}
}

// What we reset counts, but for a stream that is only not read to its end.
func TestResetsOfOurs(t *testing.T) {
	for code, want := range map[byte]Kind{0: "", 1: Reset, 2: Reset} {
		now := time.Now()
		m, out := newInward(testLimits(), now), outward{}
		var kind Kind
		for range 2 * burst {
			b := append(frames(typeReset, 0, 4)[:headerLength], 0, 0, 0, code)
			for _, c := range [][]byte{b[:5], b[5:11], b[11:]} { // however it is cut
				if k := out.feed(c, &m, now); k != "" {
					kind = k
				}
			}
		}
		if kind != want || !out.whole() {
			t.Errorf("code %d: %q", code, kind)
		}
	}
}

func TestHeaderBlocks(t *testing.T) {
	for _, c := range []struct {
		name string
		b    []byte
		kind Kind
	}{
		{"whole", frames(typeHeaders, flagEndHeaders, 200, typeHeaders, flagEndHeaders, 200), ""},
		{"in parts", frames(typeHeaders, 0, 200, typeContinuation, 0, 200, typeContinuation, flagEndHeaders, 200, typeHeaders, 0, 200), ""},
		{"too large", bytes.Repeat(frames(typeContinuation, 0, 200), 6), Continuation},
		{"too many parts", bytes.Repeat(frames(typeContinuation, 0, 1), maxContinuations+1), Continuation},
	} {
		now := time.Now()
		m := newInward(testLimits(), now)
		if kind := m.feed(append([]byte(Preface), c.b...), now); kind != c.kind {
			t.Errorf("%s: %q", c.name, kind)
		}
	}
}

// A Conn passes what it may, tells a client that it ends why, between two frames, and closes once.
func TestConn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var ended []Kind
	closes := 0
	c := New(server, []byte(Preface[:10]), testLimits(), func(k Kind) { ended = append(ended, k) }, func() { closes++ })
	go io.WriteString(client, Preface[10:]+strings.Repeat(string(frames(typePing, 0, 8)), 2000))
	c.Write(frames(typeSettings, 0, 0))
	passed, err := io.ReadAll(c)
	if !errors.Is(err, errEnded) || !bytes.HasPrefix(passed, []byte(Preface)) || len(passed) > len(Preface)+burst*17 {
		t.Errorf("%d bytes passed, %v", len(passed), err)
	}
	if _, err := c.Write(frames(typeSettings, 0, 0)); err == nil {
		t.Error("it writes still")
	}
	c.Close()
	c.Close()
	if len(ended) != 1 || ended[0] != Ping || closes != 1 {
		t.Errorf("ended for %v, closed %d times", ended, closes)
	}
	if b, _ := io.ReadAll(client); string(b) != string(frames(typeSettings, 0, 0))+goAway {
		t.Errorf("the client was told %q", b)
	}
}

// However a stream is cut, it is judged the same.
func FuzzFrames(f *testing.F) {
	f.Add(frames(typeHeaders, 0, 20, typeContinuation, flagEndHeaders, 3, typeData, flagPadded, 9, typePing, 0, 8), uint8(3))
	f.Add(bytes.Repeat(frames(typeContinuation, 0, 1), maxContinuations+1), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		now := time.Now()
		read := func(step int) (*inward, Kind) {
			m := newInward(testLimits(), now)
			m.feed([]byte(Preface), now)
			for at := 0; at < len(b); at += step {
				if kind := m.feed(b[at:min(at+step, len(b))], now); kind != "" {
					return &m, kind
				}
			}
			return &m, ""
		}
		whole, kind := read(len(b) + 1)
		parts, same := read(int(cut)%16 + 1)
		if kind != same || kind == "" && (whole.between() != parts.between() || whole.left != parts.left || whole.block != parts.block || whole.deadline != parts.deadline) {
			t.Fatalf("%q and %q: %+v, %+v", kind, same, whole, parts)
		}
		if idle := whole.between() && whole.block < 0; kind == "" && idle != whole.deadline.IsZero() {
			t.Errorf("between two frames: %t, and the deadline is %v", idle, whole.deadline)
		}
	})
}
