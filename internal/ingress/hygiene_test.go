package ingress

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/sallyport/sallyport/internal/limit"
)

// What only we may say is dropped on each way through: of HTTP/1 or HTTP/2 in front, of HTTP/1 or HTTP/2 behind, as a field
// and as a trailer. (TestHeaderHygiene is the way that has HTTP/1 at both ends.)
func TestHygieneOnEachWay(t *testing.T) {
	var spoofs []string // names in lower case
	for _, o := range ours() {
		if o.name != "Authorization" && o.name != "Te" && o.name != "Keep-Alive" { // HTTP/2 has no Keep-Alive
			spoofs = append(spoofs, strings.ToLower(strings.Replace(o.name, "*", "spoof", 1)))
		}
	}
	spoofs = append(spoofs, "traceparent", "tracestate")
	for _, behind := range []string{"http", "h2c"} {
		var mu sync.Mutex
		var seen []string
		service := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			mu.Lock()
			defer mu.Unlock()
			for _, h := range []http.Header{r.Header, r.Trailer} {
				for name, values := range h {
					seen = append(seen, name+": "+strings.Join(values, "|"))
				}
			}
		}))
		service.Config.Protocols = new(http.Protocols)
		service.Config.Protocols.SetHTTP1(behind == "http")
		service.Config.Protocols.SetUnencryptedHTTP2(behind == "h2c")
		service.Start()
		t.Cleanup(service.Close)
		s := openH2(t, func(s *stage) {
			s.config.Upstream = mustURL(t, strings.Replace(service.URL, "http:", behind+":", 1))
		})
		token := s.token("")
		ask := map[string]func(names []string){
			"HTTP/1": func(names []string) {
				var b strings.Builder
				for _, name := range names {
					fmt.Fprintf(&b, "%s: spoofed\r\n", name)
				}
				a, _ := s.ask("POST /upload HTTP/1.1\r\nHost: a\r\nX-Kept: kept\r\n" + bearerHeader(token) + "\r\n" + b.String() +
					"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sallyport-Capability: spoofed\r\nTracestate: spoofed\r\n\r\n")
				if a.StatusCode != 200 {
					t.Fatalf("answered %d %s", a.StatusCode, a.code)
				}
			},
			"HTTP/2": func(names []string) {
				p := s.dialH2()
				fields := append(pseudo("POST", "/upload"), "authorization", "Bearer "+token, "x-kept", "kept", "trailer", "x-sallyport-capability, tracestate")
				for _, name := range names {
					fields = append(fields, name, "spoofed")
				}
				stream := p.ask(false, fields...)
				p.framer.WriteData(stream, false, []byte("hi"))
				p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: p.encode("x-sallyport-capability", "spoofed", "tracestate", "spoofed"), EndHeaders: true, EndStream: true})
				if r := p.read(stream, nil); r.status != "200" {
					t.Fatalf("answered %+v", r)
				}
			},
		}
		for front, ask := range ask {
			t.Run(front+" to "+behind, func(t *testing.T) {
				mu.Lock()
				seen = nil
				mu.Unlock()
				for part := range slices.Chunk(spoofs, 40) {
					ask(part)
				}
				mu.Lock()
				defer mu.Unlock()
				all := strings.Join(seen, "\n")
				if strings.Contains(all, "spoofed") {
					t.Errorf("the service saw\n%s", all)
				}
				for _, want := range []string{"X-Kept: kept", "X-Forwarded-For: 127.0.0.1", "X-Request-Id: ", "Txn-Token: ey", "Traceparent: 00-", "X-Sallyport-Capability: "} {
					if !strings.Contains(all, want) {
						t.Errorf("the service did not see %q:\n%s", want, all)
					}
				}
			})
		}
	}
}

// A call that meets a limit is told so in its own words, and when to come again.
func TestGRPCLimited(t *testing.T) {
	s := openH2(t, func(s *stage) {
		s.config.Rules.RateLimits.Source = limit.Rate{Requests: 1, Per: 60e9, Burst: 1}
	})
	p := s.dialH2()
	fields := append(pseudo("POST", "/grpc.testing.TestService/EmptyCall"), "content-type", "application/grpc", "te", "trailers")
	p.read(p.ask(true, fields...), nil)
	r := p.read(p.ask(true, fields...), nil)
	if r.status != "200" || r.header.Get("Grpc-Status") != "8" || r.header.Get("X-Sallyport-Code") != "rate_limited" || r.header.Get("Retry-After") == "" {
		t.Errorf("answered %+v", r)
	}
	// what has not been read yet is on record as it was sent, escaped
	fields[7] = "/a/../\u202e\xff b"
	if r := p.read(p.ask(true, fields...), nil); r.header.Get("Grpc-Status") != "8" {
		t.Errorf("answered %+v", r)
	}
	d, o := s.settled(3)
	if o[2].Status != 429 || d[2].Code != "rate_limited" || !strings.HasPrefix(d[2].Path, "/a/../") {
		t.Errorf("recorded %+v, %+v", d[2], o[2])
	}
	for _, c := range s.audit.String() + s.log.String() {
		if c < ' ' && c != '\n' || c == 0x202e || c == 0x7f {
			t.Fatalf("a control character is written out: %q", s.audit.String())
		}
	}
}
