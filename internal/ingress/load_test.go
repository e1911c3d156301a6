package ingress

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// A client that sends all of a body before it reads gets its denial all the same, not a reset.
func TestDeniedUpload(t *testing.T) {
	s := open(t, nil)
	for _, size := range []int{1, 100 << 10, 4 << 20} {
		s.denied(request("POST", "/upload", strings.Repeat("a", size)), 401, "missing_token")
	}
}

// A client that does not take its answer is left after Limits.BodyTimeout.
func TestClientThatDoesNotRead(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		b := make([]byte, 1<<20)
		for {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}))
	t.Cleanup(service.Close)
	s := open(t, func(s *stage) {
		s.config.Upstream = mustURL(t, service.URL)
		s.config.Limits.BodyTimeout = 500 * time.Millisecond
	})
	s.dial().send(get("/health"))
	_, o := s.settled(1)
	if o[0].Error != "client_gone" || o[0].Status != 200 {
		t.Errorf("outcome %+v", o[0])
	}
}

// A service that does not take an upload is given up after Limits.UpstreamTimeout.
func TestUpstreamThatDoesNotRead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := open(t, func(s *stage) {
		s.config.Upstream = mustURL(t, "http://"+l.Addr().String())
		s.config.Limits.UpstreamTimeout = 500 * time.Millisecond
		s.config.Limits.BodyBytes = 1 << 30
	})
	p := s.dial()
	p.send(s.uploadHead("Content-Length: 1000000000"))
	go io.Copy(p, io.LimitReader(zeroes{}, 1000000000)) // ends with the connection
	if a := p.read("POST"); a.StatusCode != 504 || a.code != "upstream_timeout" {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
	_, o := s.settled(1)
	if o[0].Error != "upstream_timeout" || o[0].BytesIn == 0 {
		t.Errorf("outcome %+v", o[0])
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { return len(p), nil }

// Good and bad requests at once, clients that leave at any point: every decision has one outcome, every allow reaches
// the service once and no denial does, and nothing is left behind.
func TestMixedLoad(t *testing.T) {
	service := sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", n, strings.Repeat("x", int(n)))
		}
	})
	s := open(t, func(s *stage) { s.service = service })
	token := bearerHeader(s.token("orders:read"))
	upload := request("POST", "/upload", strings.Repeat("a", 3000), token)
	good := []string{get("/orders/1", token), get("/health"), upload,
		strings.Replace(upload, "Content-Length: 3000\r\n\r\n"+strings.Repeat("a", 3000), "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 1)}
	bad := []string{get("/orders/1"), get("/admin", token), get("/nothing"), get("/a/../b"), get("/socket", token, "Upgrade: h2c"),
		"GET / HTTP/1.1\nHost: a\n\n", request("POST", "/upload", "x"), strings.Replace(upload, "Content-Length", "Content-Length: 1\r\nContent-Length", 1)}
	before := descriptors(t)
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			dice := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 25 {
				oneConnection(t, s.addr, dice, good, bad)
			}
		})
	}
	wg.Wait()
	eventually(t, "no request is in flight", func() bool { return s.gateway.inFlight.Load() == 0 })
	decisions, outcomes := s.audit.entries(t)
	if len(decisions) == 0 || len(decisions) != len(outcomes) {
		t.Fatalf("%d decisions, %d outcomes", len(decisions), len(outcomes))
	}
	ended := map[string]bool{}
	for _, o := range outcomes {
		if ended[o.ID] {
			t.Errorf("%s has two outcomes", o.ID)
		}
		ended[o.ID] = true
	}
	allowed := 0
	for _, d := range decisions {
		if d.Decision == "allow" {
			allowed++
		}
		if !ended[d.ID] {
			t.Errorf("%s has no outcome", d.ID)
		}
	}
	// Of a client that leaves early, the request may end before it reaches the service.
	if n := service.Requests(); n > allowed || n == 0 {
		t.Errorf("%d requests reached the service, %d were allowed", n, allowed)
	}
	s.stop()
	eventually(t, "descriptors are closed", func() bool { return descriptors(t) <= before })
}

// oneConnection sends some requests, reads the answers of some, and leaves at some point.
func oneConnection(t *testing.T, addr string, dice *rand.Rand, good, bad []string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	reader := newReader("")
	reader.Reset(c)
	for range 1 + dice.IntN(5) {
		list := good
		if dice.IntN(2) == 0 {
			list = bad
		}
		raw := list[dice.IntN(len(list))]
		switch dice.IntN(8) {
		case 0: // leaves in the middle
			io.WriteString(c, raw[:dice.IntN(len(raw))])
			return
		case 1: // does not wait for the answer
			io.WriteString(c, raw)
			return
		}
		if _, err := io.WriteString(c, raw); err != nil {
			t.Errorf("send: %v", err)
			return
		}
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Errorf("no answer to %.60q: %v", raw, err)
			return
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Errorf("half an answer to %.60q: %v", raw, err)
		}
		if isGood := &list[0] == &good[0]; isGood != (res.StatusCode == 200) {
			t.Errorf("%.60q was answered %d", raw, res.StatusCode)
		}
		if res.Close {
			return
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("descriptors cannot be counted here: %v", err)
	}
	return len(entries)
}
