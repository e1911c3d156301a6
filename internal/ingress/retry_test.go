package ingress

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// fickle is a service that answers the first request of each connection and keeps the connection; the second it reads
// whole, acts on for all that we know, and closes without an answer. seen returns the method, path and idempotency key
// of every request since its last call.
func fickle(t *testing.T) (service *sallytest.Recorder, seen func() []string) {
	t.Helper()
	var mu sync.Mutex
	var requests []string
	used := map[io.Writer]bool{}
	service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		key := r.Header.Get("Idempotency-Key") + r.Header.Get("X-Idempotency-Key")
		requests = append(requests, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+key))
		if used[w] {
			w.(io.Closer).Close()
			return
		}
		used[w] = true
		io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	return service, func() []string {
		mu.Lock()
		defer mu.Unlock()
		was := requests
		requests = nil
		return was
	}
}

// A kept connection that breaks behind a request leaves open whether the service has acted on it. http.Transport sends
// a request again that it takes for idempotent: for a safe method it may (RFC 9110, section 9.2.2); for another it must
// not, whatever key a client claims that the service knows it by.
func TestNothingUnsafeIsRepeated(t *testing.T) {
	service, seen := fickle(t)
	s := open(t, func(s *stage) { s.service = service })
	auth := bearerHeader(s.token("orders:write"))
	const empty = "Content-Length: 0"
	for n, c := range []struct {
		name, raw string
		status    int
		seen      []string
	}{
		{"GET", get("/health"), 200, []string{"GET /health", "GET /health"}}, // or the others prove nothing
		{"POST", request("POST", "/orders", "{}", auth), 502, []string{"POST /orders"}},
		{"POST with a key", request("POST", "/orders", "{}", auth, "Idempotency-Key: k"), 502, []string{"POST /orders k"}},
		{"POST of nothing", request("POST", "/orders", "", auth, empty), 502, []string{"POST /orders"}},
		{"POST of nothing with a key", request("POST", "/orders", "", auth, empty, "Idempotency-Key: k"), 502, []string{"POST /orders k"}},
		{"POST without length, with a key", request("POST", "/orders", "", auth, "idempotency-key: k"), 502, []string{"POST /orders k"}},
		{"POST with the other key", request("POST", "/orders", "", auth, "X-IDEMPOTENCY-KEY: k"), 502, []string{"POST /orders k"}},
		{"POST with an empty key", request("POST", "/orders", "", auth, "Idempotency-Key:"), 502, []string{"POST /orders"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			s.gateway.closeIdle()
			if a, _ := s.ask(get("/health")); a.StatusCode != 200 {
				t.Fatalf("the connection's first request was answered %d", a.StatusCode)
			}
			seen()
			if a, _ := s.ask(c.raw); a.StatusCode != c.status {
				t.Errorf("answered %d, want %d", a.StatusCode, c.status)
			}
			if got := seen(); !slices.Equal(got, c.seen) {
				t.Errorf("the service saw %q, want %q", got, c.seen)
			}
			s.settled(2*n + 2)
		})
	}
}
