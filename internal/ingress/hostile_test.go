package ingress

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// A client may send a thousand requests before it reads: each is answered once, in order.
func TestThousandInOnePiece(t *testing.T) {
	s := open(t, func(s *stage) {
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
			fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(r.RequestURI), r.RequestURI)
		})
	})
	const requests = 1000
	p := s.dial()
	var all strings.Builder
	for n := range requests {
		all.WriteString(get(fmt.Sprintf("/public/%d", n)))
	}
	go io.WriteString(p, all.String())
	for n := range requests {
		if a := p.read("GET"); a.StatusCode != 200 || a.body != fmt.Sprintf("/public/%d", n) {
			t.Fatalf("answer %d is %d %q", n, a.StatusCode, a.body)
		}
	}
}

// Clients that send a head a byte at a time, all at once, end at a fixed bound, and nobody else waits for them.
func TestSlowlorises(t *testing.T) {
	s := open(t, func(s *stage) { s.config.Limits.HeaderTimeout = time.Second })
	const slow = 50
	began := time.Now()
	var all sync.WaitGroup
	for range slow {
		p := s.dial()
		all.Go(func() {
			for _, c := range "GET /health HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 1000) {
				if _, err := io.WriteString(p, string(c)); err != nil {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			io.Copy(io.Discard, p)
		})
	}
	for range 20 {
		if a, _ := s.ask(get("/health")); a.StatusCode != 200 {
			t.Errorf("somebody else is answered %d", a.StatusCode)
		}
	}
	all.Wait()
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("they stayed for %s", took)
	}
	d, _ := s.settled(slow + 20)
	late := 0
	for _, d := range d {
		if d.Code == "header_timeout" {
			late++
		}
	}
	if late != slow {
		t.Errorf("%d of %d are on record", late, slow)
	}
}

// A client that takes its leave by a reset while its answer is written, or while the service thinks, costs its own request.
func TestResets(t *testing.T) {
	gone := make(chan struct{}, 64)
	s := open(t, func(s *stage) {
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
			if r.URL.Path == "/health" {
				io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				return
			}
			io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			for {
				if _, err := io.WriteString(w, "1000\r\n"+strings.Repeat("x", 4096)+"\r\n"); err != nil {
					gone <- struct{}{}
					return
				}
			}
		})
	})
	const resets = 10
	for range resets {
		p := s.dial()
		p.send(get("/public/flood"))
		if _, err := io.ReadFull(p.r, make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
		p.Conn.(*net.TCPConn).SetLinger(0)
		p.Close()
	}
	for range resets {
		<-gone // the service is rid of it
	}
	if a, _ := s.ask(get("/health")); a.StatusCode != 200 {
		t.Errorf("somebody else is answered %d", a.StatusCode)
	}
	_, o := s.settled(resets + 1)
	left := 0
	for _, o := range o {
		if o.Error == "client_gone" {
			left++
		}
	}
	if left != resets {
		t.Errorf("%d of %d outcomes say that the client has gone", left, resets)
	}
}

// A client that ends its own direction behind a request has its answer, if that does not take long.
func TestHalfClosed(t *testing.T) {
	s := open(t, nil)
	if engine == engineStandard {
		return // net/http takes it for gone, or does not: as it happens
	}
	p := s.dial()
	p.send(get("/health") + get("/health"))
	p.Conn.(*net.TCPConn).CloseWrite()
	for range 2 {
		if a := p.read("GET"); a.StatusCode != 200 {
			t.Errorf("answered %d", a.StatusCode)
		}
	}
	if !p.closed() {
		t.Error("the connection is open still")
	}
}

// Ten thousand connections that ask once and then are silent cost little, and are served still.
func TestIdleConnections(t *testing.T) {
	const sockets = 10_000
	connections := min(sockets, (openFiles(t)-200)/2)
	if underRace() {
		connections = min(connections, 500)
	}
	s := open(t, func(s *stage) {
		s.config.Limits.Connections = connections + 10
		s.config.Logger = nil
	})
	before := resident(t)
	conns := make([]net.Conn, connections)
	answer := make([]byte, 4096)
	ask := func(c net.Conn) {
		t.Helper()
		c.SetDeadline(time.Now().Add(60 * time.Second))
		io.WriteString(c, get("/health"))
		if n, err := c.Read(answer); err != nil || !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200 ")) {
			t.Fatalf("answered %q, %v", answer[:n], err)
		}
	}
	for i := range conns {
		var err error
		if conns[i], err = net.Dial("tcp", s.addr); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
		ask(conns[i])
	}
	each := (resident(t) - before) / connections
	t.Logf("%s: %d bytes for each of %d idle connections, the client's and the records' among them", engine, each, connections)
	if limit := 24 << 10; engine == engineOwn && each > limit && !underRace() {
		t.Errorf("an idle connection costs %d bytes, more than %d", each, limit)
	}
	for i := 0; i < len(conns); i += 100 {
		ask(conns[i])
	}
}

// openFiles is how many there may be, once that has been raised as far as it goes.
func openFiles(t *testing.T) int {
	t.Helper()
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	return int(min(l.Cur, 1<<20))
}

// underRace reports whether the race detector's shadow is in what is measured.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" && s.Value == "true" })
}

// resident is how many bytes of this process are in memory, without what can be collected.
func resident(t *testing.T) int {
	t.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// Requests come and go on kept connections while the rules are swapped: what is judged again is never another's request.
func TestSwapUnderLoad(t *testing.T) {
	s := open(t, nil)
	token := bearerHeader(s.token("orders:read"))
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		p := s.dial()
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				p.send(get("/orders/1", token, "X-A: 1", "X-B: 2"))
				res, err := http.ReadResponse(p.r, nil)
				if err != nil || res.StatusCode != 200 {
					t.Errorf("answered %v, %v", res, err)
					return
				}
				io.Copy(io.Discard, res.Body)
			}
		})
	}
	for range 200 {
		if err := s.gateway.Swap(s.config.Rules); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	clients.Wait()
}
