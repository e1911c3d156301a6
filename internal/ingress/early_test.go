package ingress

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// A service that answers before it has the whole body leaves bytes that net/http does not always find the end of. They are
// never a request: one answer, one record, and the connection ends, however the rest comes.
func TestEarlyAnswer(t *testing.T) {
	s := open(t, func(s *stage) {
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, _ *http.Request) { // which does not read the body
			io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")
		})
	})
	inside := "GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
	lenient := "GET /health HTTP/1.1\nHost: a\nX_Forwarded_User: root\n\n" // what the wire would refuse as a head
	chunked := s.uploadHead("Transfer-Encoding: chunked")
	size := func(text string) string { return fmt.Sprintf("%x\r\n", len(text)) }
	const end = "\r\n0\r\n\r\n"
	for _, c := range []struct {
		name   string
		pieces []string // the first is sent before the answer, the others behind it
	}{
		{"a chunk's size, then its data", []string{chunked + size(inside), inside + end}},
		{"data that the wire would refuse", []string{chunked + size(lenient), lenient + end}},
		{"a byte of data, then the rest", []string{chunked + size("x"+inside) + "x", inside + end}},
		{"a chunk, then another", []string{chunked + "1\r\nx\r\n", size(inside), inside + end}},
		{"half of a size", []string{chunked + "2", "2\r\n", inside + end}},
		{"nothing, then a chunk", []string{chunked, size(inside) + inside + end}},
		{"nothing, then a chunk that is none", []string{chunked, "5\r\nhelloX\r\n"}},
		{"a length, then a request in it", []string{s.uploadHead(fmt.Sprintf("Content-Length: %d", len(inside))), inside}},
		{"a length, then a request behind it", []string{s.uploadHead("Content-Length: 1000"), string(make([]byte, 1000)), inside}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			s.service.Reset()
			before, _ := s.audit.entries(t)
			p := s.dial()
			p.send(c.pieces[0])
			if a := p.read("POST"); a.StatusCode != 200 || a.body != "early" || !a.Close {
				t.Errorf("answered %d %q %v", a.StatusCode, a.body, a.Header)
			}
			for _, piece := range c.pieces[1:] {
				io.WriteString(p, piece) // an error says that the connection has ended already
			}
			if !p.closed() {
				t.Error("the connection is open still")
			}
			d, o := s.settled(len(before) + 1)
			if d, o := d[len(d)-1], o[len(o)-1]; d.Route != "upload" || o.Status != 200 || o.Error != "" {
				t.Errorf("recorded %+v, %+v", d, o)
			}
			if n := s.service.Requests(); n != 1 {
				t.Errorf("%d requests reached the service", n)
			}
		})
	}
}

// A body that breaks while the request before it is being answered is the fault of its own request only.
func TestPipelinedBodyThatBreaks(t *testing.T) {
	release := make(chan struct{})
	s := open(t, func(s *stage) {
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
			if r.URL.Path == "/health" {
				<-release
			} else if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		})
	})
	p := s.dial()
	p.send(get("/health") + s.uploadHead("Transfer-Encoding: chunked"))
	eventually(t, "the first request is forwarded", func() bool { return s.service.Requests() == 1 })
	p.send("0x5\r\nhello\r\n0\r\n\r\n")
	close(release)
	if a := p.read("GET"); a.StatusCode != 200 || a.body != "ok" {
		t.Errorf("the first was answered %d %s", a.StatusCode, a.code)
	}
	if a := p.read("POST"); a.StatusCode != 400 || a.code != "chunk_malformed" || !p.closed() {
		t.Errorf("the second was answered %d %s", a.StatusCode, a.code)
	}
	d, o := s.settled(2)
	if d[0].Route != "health" || o[0].Error != "" || o[0].Status != 200 || d[1].Route != "upload" || o[1].Error != "chunk_malformed" {
		t.Errorf("recorded %+v, %+v", d, o)
	}
}
