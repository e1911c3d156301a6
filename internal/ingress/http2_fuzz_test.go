package ingress

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Whatever frames a client sends: the connection ends, and each request that the service sees is one that the gate reads as
// the service does: one spelling of the path, one host, plain names, no credential.
func FuzzHTTP2(f *testing.F) {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	seed := func(write func(*http2.Framer, func(...string) []byte)) {
		var b bytes.Buffer
		framer := http2.NewFramer(&b, nil)
		framer.AllowIllegalWrites = true
		write(framer, func(fields ...string) []byte {
			block.Reset()
			for i := 0; i < len(fields); i += 2 {
				encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true}) // not from the table: a seed stands alone
			}
			return bytes.Clone(block.Bytes())
		})
		f.Add(b.Bytes())
	}
	whole := func(stream uint32, block []byte) http2.HeadersFrameParam {
		return http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndHeaders: true, EndStream: true}
	}
	for _, path := range []string{"/health", "/public/a%20b?c=d", "/public/../admin", "/public/%2e%2e/admin", "//", "*", "public/a"} {
		seed(func(fr *http2.Framer, fields func(...string) []byte) {
			fr.WriteHeaders(whole(1, fields(pseudo("GET", path)...)))
		})
	}
	for _, more := range [][]string{{"host", "b"}, {"x_y", "z"}, {"content-length", "5"}, {"cookie", "a=b", "cookie", "c=d"}, {"transfer-encoding", "chunked"}, {"authorization", "Bearer a.b.c"}, {":path", "/b"}} {
		seed(func(fr *http2.Framer, fields func(...string) []byte) {
			fr.WriteHeaders(whole(1, fields(append(pseudo("GET", "/public/a"), more...)...)))
		})
	}
	seed(func(fr *http2.Framer, fields func(...string) []byte) {
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields(pseudo("POST", "/hook")...), EndHeaders: true})
		fr.WriteData(1, false, []byte("hello"))
		fr.WriteHeaders(whole(1, fields("x-trailer", "a")))
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: fields(pseudo("GET", "/health")...), EndStream: true})
		fr.WriteContinuation(3, true, fields("a", "b"))
		fr.WritePing(false, [8]byte{})
		fr.WriteRSTStream(3, http2.ErrCodeCancel)
		fr.WriteWindowUpdate(0, 1<<20)
		fr.WriteGoAway(1, http2.ErrCodeNo, nil)
	})
	var fault atomic.Pointer[string]
	bad := func(s string) { fault.Store(&s) }
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := canonicalise(r.RequestURI); err != nil || c.Target() != r.RequestURI {
			bad("target " + r.RequestURI)
		}
		if h, err := canonicaliseHost(r.Host, false); err != nil || h.String() != r.Host {
			bad("host " + r.Host)
		}
		if !isMethod(r.Method) || r.Header.Get("Authorization") != "" || len(r.Header["X-Request-Id"]) != 1 {
			bad("head " + r.Method)
		}
		for name := range r.Header {
			if strings.Trim(name, "-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
				bad("name " + name)
			}
		}
		io.Copy(w, r.Body)
	}))
	f.Cleanup(service.Close)
	s := openH2(f, func(s *stage) {
		s.config.Upstream = mustURL(f, service.URL)
		s.config.Limits.HeaderTimeout, s.config.Limits.BodyTimeout, s.config.Limits.IdleTimeout = 100*time.Millisecond, 100*time.Millisecond, 500*time.Millisecond
	})
	f.Fuzz(func(t *testing.T, frames []byte) {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(c, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		c.Write(frames)
		io.WriteString(c, "\x00\x00\x08\x06\x00\x00\x00\x00\x00the end!") // answered, or taken into a frame before: then that is waited for, or the next one
		framer := http2.NewFramer(nil, c)
		for over := false; !over; {
			frame, err := framer.ReadFrame()
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Fatal("the connection has no end")
			}
			ping, ok := frame.(*http2.PingFrame)
			_, away := frame.(*http2.GoAwayFrame)
			over = err != nil || away || ok && ping.IsAck() && string(ping.Data[:]) == "the end!"
		}
		c.Close()
		eventually(t, "nothing is in flight", func() bool { return s.gateway.inFlight.Load() == 0 })
		if p := fault.Load(); p != nil {
			t.Errorf("the service saw %s", *p)
		}
	})
}

// However its bytes are cut, a body is read as the same messages: none is larger than the limit, and where it may rest is where
// one ends.
func FuzzMessages(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x03abc\x01\x00\x00\x00\x00"), uint8(3))
	f.Add([]byte("\x02"), uint8(1))
	f.Add([]byte("\x00\xff\xff\xff\xff"), uint8(9))
	f.Fuzz(func(t *testing.T, body []byte, cut uint8) {
		read := func(step int) (m messages, at int, err error) {
			m.limit = 100
			for at = 0; at < len(body) && err == nil; at += step {
				err = m.feed(body[at:min(at+step, len(body))])
			}
			return m, at, err
		}
		slow, at, slowly := read(1)
		fast, _, quickly := read(int(cut)%16 + 1)
		if slowly != quickly || slowly == nil && (slow.between() != fast.between() || slow.left != fast.left) {
			t.Fatalf("%v byte by byte, %v in pieces", slowly, quickly)
		}
		// the same by hand
		rest := body[:min(at, len(body))]
		for len(rest) >= prefixLength && rest[0] <= 1 {
			n := int(rest[1])<<24 | int(rest[2])<<16 | int(rest[3])<<8 | int(rest[4])
			if n > 100 {
				if slowly != errTooLarge {
					t.Fatalf("a message of %d bytes: %v", n, slowly)
				}
				return
			}
			if len(rest) < prefixLength+n {
				break
			}
			rest = rest[prefixLength+n:]
		}
		if bad := len(rest) > 0 && rest[0] > 1; bad != (slowly == errMessage) {
			t.Fatalf("%q is left: %v", rest, slowly)
		}
		if slowly == nil && slow.between() != (len(rest) == 0) {
			t.Fatalf("rests: %t, with %d bytes left", slow.between(), len(rest))
		}
	})
}
