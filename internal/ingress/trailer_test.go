package ingress

import (
	"io"
	"net/http"
	"testing"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// What stands behind the body of an answer reaches the client, also where the answer comes in one piece. What only we say of an
// answer is not said there either.
func TestTrailersOfAnAnswer(t *testing.T) {
	for _, c := range []struct{ name, head, body string }{
		{"announced", "Trailer: X-Sum\r\n", "5\r\nhello\r\n"},
		{"not announced", "", "5\r\nhello\r\n"},
		{"announced, without a body", "Trailer: X-Sum\r\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, func(s *stage) {
				s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, _ *http.Request) {
					io.WriteString(w, "HTTP/1.1 200 OK\r\n"+c.head+"Transfer-Encoding: chunked\r\n\r\n"+c.body+
						"0\r\nX-Sum: 5\r\nX-Request-Id: forged\r\nAccess-Control-Allow-Origin: *\r\n\r\n")
				})
			})
			p := s.dial()
			for range 2 {
				p.send(get("/health"))
				if a := p.read("GET"); a.Trailer.Get("X-Sum") != "5" {
					t.Errorf("answered %v, and behind it %v", a.Header, a.Trailer)
				} else if len(a.Trailer) != 1 {
					t.Errorf("behind the answer stands %v", a.Trailer)
				}
			}
			old := s.dial()
			old.send("GET /health HTTP/1.0\r\nHost: api.example.com\r\n\r\n")
			if a := old.read("GET"); len(a.TransferEncoding) != 0 || len(a.body) > 5 {
				t.Errorf("to HTTP/1.0: %v %q", a.Header, a.body)
			}
		})
	}
}
