package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpguts"
)

func testLimits() Limits {
	return Limits{HeaderBytes: 32 << 10, HeaderFields: 100, HeaderTimeout: 10 * time.Second, BodyTimeout: time.Minute}
}

// sample is a stream and what the first thing wrong with it must be called; "" if nothing is.
type sample struct {
	name string
	code Code
	raw  string
}

// corpus is testdata/requests.txt, and what is too long to be written there.
func corpus(t testing.TB) []sample {
	t.Helper()
	const (
		get = "GET / HTTP/1.1\r\nHost: a\r\n"
		te  = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	)
	samples := []sample{
		{"chunk line too long", ChunkMalformed, te + "5;" + strings.Repeat("a", 300) + "\r\nhello\r\n0\r\n\r\n"},
		{"chunk extensions too many", ChunkMalformed, te + strings.Repeat("1;"+strings.Repeat("a", 200)+"\r\nx\r\n", 30) + "0\r\n\r\n"},
		{"trailer too long", TrailerMalformed, te + "0\r\n" + strings.Repeat("X: aaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 100) + "\r\n"},
		{"too many fields", HeaderTooLarge, get + strings.Repeat("X: 1\r\n", 100) + "\r\n"},
		{"too long", HeaderTooLarge, get + "X: " + strings.Repeat("a", 33<<10) + "\r\n\r\n"},
		{"too long without end", HeaderTooLarge, get + "X: " + strings.Repeat("a", 33<<10)},
	}
	b, err := os.ReadFile("testdata/requests.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if line == "\n" || line[0] == '#' {
			continue
		}
		cells := strings.SplitN(strings.TrimSuffix(line, "\n"), " | ", 3)
		if len(cells) != 3 {
			t.Fatalf("testdata/requests.txt: %q is not three cells", line)
		}
		raw, err := strconv.Unquote(cells[2])
		if err != nil {
			t.Fatalf("testdata/requests.txt: %q: %v", line, err)
		}
		code := strings.TrimSpace(cells[0])
		if code == "-" {
			code = ""
		}
		samples = append(samples, sample{strings.TrimSpace(cells[1]), Code(code), raw})
	}
	return samples
}

// parsed is a request as one parser read it.
type parsed struct {
	method, target, host, body string
	whole                      bool
}

// byFramer reads a stream as the framer does.
func byFramer(stream []byte, l Limits) (requests []parsed, code Code) {
	f := framer{maxBytes: l.HeaderBytes, maxFields: l.HeaderFields}
	for {
		before := f.state
		n, code := f.step(stream)
		if code != "" || n == 0 {
			return requests, code
		}
		element := stream[:n]
		switch before {
		case inHead:
			h := f.head
			requests = append(requests, parsed{method: string(h.method.of(element)), target: string(h.target.of(element)), host: string(h.host.of(element))})
		case inData:
			requests[len(requests)-1].body += string(element)
		}
		requests[len(requests)-1].whole = f.state == inHead || f.state == held
		stream = stream[n:]
	}
}

// byNetHTTP reads a stream as the server of net/http does.
func byNetHTTP(stream []byte) (requests []parsed, err error) {
	b := bufio.NewReader(bytes.NewReader(stream))
	for {
		r, err := http.ReadRequest(b)
		if err != nil {
			if (err == io.EOF || err == io.ErrUnexpectedEOF) && b.Buffered() == 0 {
				err = nil
			}
			return requests, err
		}
		if !httpguts.ValidHostHeader(r.Host) {
			return requests, errors.New("net/http would refuse the Host")
		}
		for name, values := range r.Header {
			for _, v := range values {
				if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(v) {
					return requests, errors.New("net/http would refuse a header")
				}
			}
		}
		body, err := io.ReadAll(r.Body)
		requests = append(requests, parsed{r.Method, r.RequestURI, r.Host, string(body), err == nil})
		if err != nil {
			return requests, nil
		}
	}
}

// A script is a client that sends its bytes in pieces and then is silent for ever, as far as a reader can tell.
type script struct {
	net.Conn
	pieces [][]byte
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}

func (s *script) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
func (s *script) Close() error                     { return nil }

func inPieces(b []byte, size int) (pieces [][]byte) {
	for len(b) > size {
		pieces, b = append(pieces, b[:size]), b[size:]
	}
	if len(b) > 0 {
		pieces = append(pieces, b)
	}
	return pieces
}

// through sends a stream through a Conn, in pieces of a size, and returns what came out before the substitute.
func through(t testing.TB, stream []byte, size int, l Limits) (out []byte, w *Conn) {
	w = New(&script{pieces: inPieces(stream, size)}, l, nil)
	p := make([]byte, 100+size%7)
	for {
		n, err := w.Read(p)
		out = append(out, p[:n]...)
		if err != nil {
			break
		}
		if len(out) > len(stream)+len(substitute) {
			t.Fatalf("more came out than went in: %q", out)
		}
	}
	if w.refused.Load() != nil {
		cut, ok := bytes.CutSuffix(out, []byte(substitute))
		if !ok {
			t.Fatalf("refused without a substitute: %q", out)
		}
		out = cut
	}
	return out, w
}

func checkStream(t testing.TB, stream []byte, size int) Code {
	t.Helper()
	l := testLimits()
	out, w := through(t, stream, size, l)
	if !bytes.HasPrefix(stream, out) {
		t.Fatalf("in pieces of %d: %q came out of %q", size, out, stream)
	}
	ours, code := byFramer(out, l)
	if code != "" {
		t.Fatalf("in pieces of %d: what passed is refused when read again: %s: %q", size, code, out)
	}
	theirs, err := byNetHTTP(out)
	if err != nil {
		t.Fatalf("in pieces of %d: net/http refuses what passed: %v: %q", size, err, out)
	}
	if len(ours) != len(theirs) {
		t.Fatalf("in pieces of %d: we read %d requests, net/http %d: %q", size, len(ours), len(theirs), out)
	}
	for i := range ours {
		if ours[i] != theirs[i] {
			t.Fatalf("in pieces of %d: request %d: we read %+v, net/http %+v", size, i, ours[i], theirs[i])
		}
	}
	switch refused, broken := w.refused.Load(), w.broken.Load(); {
	case refused != nil:
		if refused.number != int64(len(ours)+1) || w.heads != refused.number {
			t.Fatalf("request %d is refused, behind %d requests", refused.number, len(ours))
		}
		return refused.Code
	case broken != nil:
		if broken.number != int64(len(ours)) {
			t.Fatalf("the body of request %d is broken, of %d requests", broken.number, len(ours))
		}
		return broken.code
	}
	if w.heads != int64(len(ours)) {
		t.Fatalf("counted %d heads, there are %d", w.heads, len(ours))
	}
	return ""
}

// Whatever is known to split parsers is refused, by its name, in whatever pieces it comes; and what is left reads the
// same to us and to net/http.
func TestWireRefuses(t *testing.T) {
	for _, c := range corpus(t) {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 3, 7, 64, 1 << 20} {
				if code := checkStream(t, []byte(c.raw), size); code != c.code {
					t.Errorf("in pieces of %d: code %q, want %q", size, code, c.code)
				}
				if c.code == "" {
					if out, _ := through(t, []byte(c.raw), size, testLimits()); string(out) != c.raw {
						t.Errorf("in pieces of %d: %q came out", size, out)
					}
				}
			}
		})
	}
}

// FuzzWire: a Conn neither panics nor hangs, and what it lets through is, to net/http, the same sequence of requests
// with the same methods, targets, hosts and bodies as to us.
func FuzzWire(f *testing.F) {
	for _, c := range corpus(f) {
		f.Add([]byte(c.raw), uint16(5))
		f.Add([]byte("POST /x HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n\r\nabc"+c.raw), uint16(4000))
	}
	f.Fuzz(func(t *testing.T, stream []byte, size uint16) {
		checkStream(t, stream, int(size)+1)
	})
}

func BenchmarkWire(b *testing.B) {
	request := []byte("GET /orders/42?expand=lines HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: bench/1\r\nAccept: */*\r\n" +
		"Accept-Encoding: gzip\r\nAuthorization: Bearer " + strings.Repeat("a", 400) + "\r\n\r\n")
	c := &script{}
	w := New(c, testLimits(), nil)
	p := make([]byte, 4096)
	b.ReportAllocs()
	b.SetBytes(int64(len(request)))
	pieces := make([][]byte, 1)
	for b.Loop() {
		pieces[0] = request
		c.pieces = pieces
		if n, err := w.Read(p); err != nil || n != len(request) {
			b.Fatal(n, err)
		}
	}
}
