package ingress

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// streamingRecorder is a service that answers with some bytes once it has read the request.
func streamingRecorder(t testing.TB) *sallytest.Recorder {
	return sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n")
		if r.Method != http.MethodHead {
			io.WriteString(w, strings.Repeat("0123456789abcdef", 4))
		}
	})
}

// openH2 is open, with HTTP/2 on a plain listener beside HTTP/1.
func openH2(t testing.TB, change func(*stage)) *stage {
	t.Helper()
	return open(t, func(s *stage) {
		s.config.Protocols = []string{"http/1.1", "h2c"}
		if change != nil {
			change(s)
		}
	})
}

// An h2peer is a raw HTTP/2 client, which can say what it wants.
type h2peer struct {
	net.Conn
	t       testing.TB
	framer  *http2.Framer
	encoder *hpack.Encoder
	decoder *hpack.Decoder
	block   bytes.Buffer
	next    uint32 // stream
	broken  atomic.Bool
	silent  bool // somebody else writes
}

// Write notes that nobody takes any more, of which the Framer's methods would have to be asked one by one.
func (p *h2peer) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(b)
	if err != nil {
		p.broken.Store(true)
	}
	return n, err
}

// an h2reply is what became of a stream.
type h2reply struct {
	status  string
	header  http.Header // the trailers too
	body    []byte
	reset   http2.ErrCode
	away    http2.ErrCode // of a GOAWAY
	ended   bool          // by END_STREAM
	wasAway bool
	closed  bool // the connection
	code    string
}

func (s *stage) dialH2() *h2peer {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	return newH2Peer(s.t, c)
}

func newH2Peer(t testing.TB, c net.Conn) *h2peer {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	p := &h2peer{Conn: c, t: t, next: 1}
	p.framer = http2.NewFramer(p, c)
	p.framer.AllowIllegalWrites = true
	p.encoder = hpack.NewEncoder(&p.block)
	p.decoder = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := p.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return p
}

// encode compresses fields: names and values in turn.
func (p *h2peer) encode(fields ...string) []byte {
	p.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.block.Bytes())
}

// pseudo are the fields that each request begins with.
func pseudo(method, path string) []string {
	return []string{":method", method, ":scheme", "http", ":authority", "api.example.com", ":path", path}
}

// ask begins a stream, and ends it unless more is to come.
func (p *h2peer) ask(end bool, fields ...string) (stream uint32) {
	p.t.Helper()
	stream = p.next
	p.next += 2
	p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: p.encode(fields...), EndStream: end, EndHeaders: true})
	return stream
}

// read reads until the stream or the connection ends, or until enough says so.
func (p *h2peer) read(stream uint32, enough func(h2reply) bool) h2reply {
	p.t.Helper()
	r := h2reply{header: http.Header{}}
	for {
		f, err := p.framer.ReadFrame()
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				p.t.Fatalf("stream %d has no end: %+v", stream, r)
			}
			r.closed = true
			return r
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() && !p.silent {
				p.framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() && !p.silent {
				p.framer.WritePing(true, f.Data)
			}
		case *http2.GoAwayFrame:
			r.wasAway, r.away = true, f.ErrCode
		case *http2.RSTStreamFrame:
			if f.StreamID == stream {
				r.reset = f.ErrCode
				return r
			}
		case *http2.HeadersFrame:
			fields, err := p.decoder.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				p.t.Fatal(err)
			}
			if f.StreamID != stream {
				continue
			}
			for _, f := range fields {
				if f.Name == ":status" {
					r.status = f.Value
				} else {
					r.header.Add(f.Name, f.Value)
				}
			}
			r.ended = f.StreamEnded()
		case *http2.DataFrame:
			if f.StreamID == stream {
				r.body = append(r.body, f.Data()...)
				r.ended = f.StreamEnded()
			}
		}
		if r.ended || enough != nil && enough(r) {
			var problem struct{ Code string }
			if strings.HasPrefix(r.header.Get("Content-Type"), "application/problem") && json.Unmarshal(r.body, &problem) == nil {
				r.code = problem.Code
			}
			return r
		}
	}
}

// gone reads until the gate has closed the connection, and returns what it said.
func (p *h2peer) gone() h2reply {
	p.t.Helper()
	return p.read(0, nil)
}

// HTTP/2 in, HTTP/1.1 out: the service cannot tell how a request came.
func TestHTTP2ToHTTP1(t *testing.T) {
	s := openH2(t, func(s *stage) { s.service = streamingRecorder(t) })
	p := s.dialH2()
	stream := p.ask(true, append(pseudo("GET", "/orders/7?a=b"), "authorization", "Bearer "+s.token("orders:read"),
		"cookie", "a=1", "cookie", "b=2", "x-forwarded-user", "root", "te", "trailers", "accept", "*/*")...)
	if r := p.read(stream, nil); r.status != "200" || len(r.body) != 64 || r.header.Get("X-Request-Id") == "" || r.header.Get("Connection") != "" {
		t.Fatalf("answered %+v", r)
	}
	raw := string(s.service.Raw())
	for _, want := range []string{"GET /orders/7?a=b HTTP/1.1\r\n", "\r\nHost: api.example.com\r\n", "\r\nCookie: a=1; b=2\r\n", "\r\nTxn-Token: ", "\r\nX-Forwarded-For: 127.0.0.1\r\n", "\r\nX-Forwarded-Proto: http\r\n"} {
		if !strings.Contains(raw, want) {
			t.Errorf("forwarded without %q: %q", want, raw)
		}
	}
	for _, not := range []string{"Authorization", "X-Forwarded-User", "Te:", "Upgrade", "HTTP2"} {
		if strings.Contains(raw, not) {
			t.Errorf("forwarded with %q: %q", not, raw)
		}
	}
	s.service.Reset()
	// a body, its trailers, and an expectation; on the same connection
	stream = p.ask(false, append(pseudo("POST", "/upload"), "authorization", "Bearer "+s.token(""), "expect", "100-continue", "trailer", "x-forwarded-user")...)
	if r := p.read(stream, func(r h2reply) bool { return r.status != "" }); r.status != "100" {
		t.Fatalf("the body was not asked for: %+v", r)
	}
	p.framer.WriteData(stream, false, []byte("hello"))
	p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: p.encode("x-forwarded-user", "root"), EndHeaders: true, EndStream: true})
	if r := p.read(stream, nil); r.status != "200" {
		t.Fatalf("answered %+v", r)
	}
	if raw := string(s.service.Raw()); !strings.Contains(raw, "5\r\nhello\r\n0\r\n") || strings.Contains(raw, "root") {
		t.Errorf("forwarded %q", raw)
	}
	// and HTTP/1 at the same door, however slowly its first letters come
	q := s.dial()
	for _, b := range "PUT" {
		q.send(string(b))
		time.Sleep(20 * time.Millisecond)
	}
	q.send(strings.TrimPrefix(request("PUT", "/orders", "x"), "PUT"))
	if a := q.read("PUT"); a.code != "missing_token" && a.code != "method_not_allowed" {
		t.Errorf("HTTP/1 answered %d %s", a.StatusCode, a.code)
	}
	for _, raw := range []string{"PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n\r\n", "PRI / HTTP/1.1\r\nHost: a\r\n\r\n", "G\n", "GET / HTTP/1.0\r\n\r\n"} {
		q := s.dial()
		q.send(raw)
		if a := q.read("GET"); a.StatusCode < 400 || a.StatusCode > 405 {
			t.Errorf("%q answered %d", raw, a.StatusCode)
		}
	}
	eventually(t, "the connections are counted", func() bool {
		return s.metric("sallyport_ingress_connections_total", "h2c") == 1 && s.metric("sallyport_ingress_connections_total", "http/1.1") == 5
	})
}

// metric is the value of a counter or gauge with one label.
func (s *stage) metric(name, label string) float64 {
	families, err := s.registry.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if len(m.GetLabel()) == 0 || m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

// What a request of HTTP/2 says is held to the rules of HTTP/1 (H12, H20, H21): refused with a record where net/http lets it
// through, by net/http where it does not; never forwarded.
func TestHTTP2Refused(t *testing.T) {
	s := openH2(t, func(s *stage) { s.config.Limits.HeaderFields, s.config.Limits.HeaderBytes = 20, 8<<10 })
	token := "Bearer " + s.token("orders:read orders:write")
	get := func(more ...string) []string {
		return append(append(pseudo("GET", "/orders/1"), "authorization", token), more...)
	}
	without := func(name string) []string {
		var fields []string
		for i, f := range pseudo("GET", "/orders/1") {
			if i%2 == 0 && f != name {
				fields = append(fields, f, pseudo("GET", "/orders/1")[i+1])
			}
		}
		return append(fields, "authorization", token)
	}
	with := func(name, value string) []string {
		fields := get()
		for i := 0; i < len(fields); i += 2 {
			if fields[i] == name {
				fields[i+1] = value
			}
		}
		return fields
	}
	const unrecorded = "-"
	many := get()
	for range 20 {
		many = append(many, "x-many", "1")
	}
	for _, c := range []struct {
		name   string
		fields []string
		status string // empty: the stream is reset
		code   string
	}{
		{"H12 underscore", get("x_forwarded_user", "root"), "400", "header_name"},
		{"H12 dot", get("x.forwarded.user", "root"), "400", "header_name"},
		{"H21 upper case", get("X-Upper", "1"), "", unrecorded},
		{"a space in a name", get("x upper", "1"), "", unrecorded},
		{"an empty name", get("", "1"), "", unrecorded},
		{"H21 two :path", append(pseudo("GET", "/orders/1"), ":path", "/admin", "authorization", token), "", unrecorded},
		{"two :authority", append(pseudo("GET", "/orders/1"), ":authority", "b", "authorization", token), "", unrecorded},
		{"H21 pseudo-header after regular", get(":path", "/admin"), "", unrecorded},
		{"an unknown pseudo-header", append(pseudo("GET", "/orders/1"), ":path2", "/admin", "authorization", token), "", unrecorded},
		{"a response's pseudo-header", append(pseudo("GET", "/orders/1"), ":status", "200", "authorization", token), "", unrecorded},
		{"H21 :authority is not host", get("host", "admin.example.com"), "400", "host_invalid"},
		{"two hosts", get("host", "api.example.com", "host", "api.example.com"), "400", "host_invalid"},
		{"no host", without(":authority"), "400", "host_invalid"},
		{"user in :authority", with(":authority", "root@api.example.com"), "", unrecorded},
		{"space in :authority", with(":authority", "api.example.com admin"), "400", "host_invalid"},
		{"H21 te", get("te", "gzip"), "400", unrecorded},
		{"te twice", get("te", "trailers", "te", "trailers"), "400", unrecorded},
		{"connection", get("connection", "x-version"), "400", unrecorded},
		{"proxy-connection", get("proxy-connection", "close"), "400", unrecorded},
		{"keep-alive", get("keep-alive", "1"), "400", unrecorded},
		{"transfer-encoding", get("transfer-encoding", "chunked"), "400", unrecorded},
		{"H22 upgrade", get("upgrade", "websocket"), "400", unrecorded},
		{"H21 LF in a value", get("x-v", "a\nb: c"), "", unrecorded},
		{"H21 CR in a value", get("x-v", "a\rb"), "", unrecorded},
		{"NUL in a value", get("x-v", "a\x00b"), "", unrecorded},
		{"CRLF in :path", with(":path", "/orders/1\r\nX: y"), "", unrecorded},
		{"H20 no slash", with(":path", "orders/1"), "", unrecorded},
		{"H20 Service/Method", with(":path", "a.B/c"), "", unrecorded},
		{"an absolute :path", with(":path", "http://admin/orders/1"), "400", "target_form"},
		{"an empty :path", with(":path", ""), "", unrecorded},
		{"no :path", without(":path"), "", unrecorded},
		{"no :method", without(":method"), "", unrecorded},
		{"no :scheme", without(":scheme"), "", unrecorded},
		{":scheme is none", with(":scheme", "file"), "", unrecorded},
		{"H01 dot segments", with(":path", "/public/../admin"), "400", "path_noncanonical"},
		{"H01 escaped", with(":path", "/public/%2e%2e/admin"), "400", "path_noncanonical"},
		{"H20 dot segments of gRPC", with(":path", "/a.B/../c.D"), "400", "path_noncanonical"},
		{"H02 two slashes", with(":path", "//admin"), "400", "path_noncanonical"},
		{"a fragment", with(":path", "/orders/1#x"), "400", "path_noncanonical"},
		{"*", with(":path", "*"), "400", "target_form"},
		{"H10 a method in lower case", with(":method", "get"), "400", "method_invalid"},
		{"H10 a method that is none", with(":method", "GET /admin HTTP/1.1"), "400", "method_invalid"},
		{"H10 TRACE", with(":method", "TRACE"), "405", "method_refused"},
		{"H10 CONNECT", []string{":method", "CONNECT", ":authority", "h:443"}, "400", "target_form"},
		{"CONNECT with a path", with(":method", "CONNECT"), "", unrecorded},
		{"H22 extended CONNECT", append(with(":method", "CONNECT")[:8:8], ":protocol", "websocket", "authorization", token), "", unrecorded},
		{":protocol", append(pseudo("GET", "/orders/1"), ":protocol", "websocket", "authorization", token), "", unrecorded},
		{"content-length twice", get("content-length", "0", "content-length", "0"), "400", "content_length"},
		{"content-length is no number", get("content-length", "abc"), "400", "content_length"},
		{"content-length has a sign", get("content-length", "+0"), "400", "content_length"},
		{"content-length and no body", get("content-length", "5"), "400", "content_length"},
		{"expect", get("expect", "the unexpected"), "417", "expectation_unknown"},
		{"too many fields", many, "431", "header_too_large"},
		{"too many bytes", get("x-long", strings.Repeat("~", 9<<10)), "431", "header_too_large"},
		{"H08 another case", with(":path", "/ORDERS/1"), "404", "no_route"},
		{"no token", pseudo("GET", "/orders/1"), "401", "missing_token"},
		{"a token in the query", with(":path", "/orders/1?access_token=a"), "400", "multiple_credentials"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			before, _ := s.audit.entries(t)
			p := s.dialH2()
			r := p.read(p.ask(true, c.fields...), nil)
			if r.status != c.status || c.code != unrecorded && r.code != c.code {
				t.Errorf("answered %+v", r)
			}
			if c.status == "" && r.reset == 0 && r.away == 0 {
				t.Errorf("neither the stream nor the connection was ended: %+v", r)
			}
			n := len(before)
			if c.code != unrecorded {
				n++
			}
			decisions, _ := s.settled(n)
			if c.code != unrecorded && decisions[n-1].Code != c.code {
				t.Errorf("recorded %+v", decisions[n-1])
			}
			s.service.Untouched(t)
		})
	}
}
