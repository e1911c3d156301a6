package ingress

import (
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// mutate changes a stream where parsers are split: by what they read differently, at any place.
func mutate(dice *rand.Rand, stream string) string {
	splitters := []string{"\r", "\n", "\r\n", " ", "\t", "\x00", ":", ",", ";", "0", "1", "f", "chunked", "Transfer-Encoding: chunked\r\n",
		"Content-Length: 5\r\n", "Host: b\r\n", "Expect: 100-continue\r\n", "Connection: close\r\n", "\r\n\r\n", "GET /public/in HTTP/1.1\r\nHost: a\r\n\r\n",
		"HTTP/1.0", "0\r\n\r\n", "\x0b", "\xff", "Authorization: Bearer x\r\n", "Upgrade: websocket\r\n"}
	for range 1 + dice.IntN(3) {
		at := dice.IntN(len(stream) + 1)
		with := splitters[dice.IntN(len(splitters))]
		gone := 0
		if dice.IntN(2) == 0 {
			gone = min(dice.IntN(3), len(stream)-at)
		}
		stream = stream[:at] + with + stream[at+gone:]
	}
	return stream
}

// Whatever a client sends, a real Node.js service reads a request only where one was allowed: by its id, with its method
// and path, once, and without a credential. What we write it can always read.
func TestNodeReadsWhatWasDecided(t *testing.T) {
	node := sallytest.NewNode(t)
	s := open(t, func(s *stage) {
		s.config.Upstream, s.config.Logger = mustURL(t, "http://"+node.Addr), nil
		s.config.Limits.HeaderTimeout = 2 * time.Second
	})
	var streams []string
	dice := rand.New(rand.NewPCG(1, 2))
	for _, v := range smuggledStreams(t) {
		whole := strings.Join(v.pieces, "")
		streams = append(streams, whole)
		for range 12 {
			streams = append(streams, mutate(dice, whole))
		}
	}
	for _, stream := range streams {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, stream)
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}
	eventually(t, "no request is in flight", func() bool { return s.gateway.inFlight.Load() == 0 })
	decisions, _ := s.audit.entries(t)
	allowed := map[string]entry{}
	for _, d := range decisions {
		if d.Decision == "allow" {
			allowed[d.ID] = d
		}
	}
	read := 0
	for _, r := range node.Requests(t, 0) {
		if strings.HasPrefix(r.Error, "HPE_") && r.Error != "HPE_INVALID_EOF_STATE" { // which is a body that we ended
			t.Errorf("Node cannot read what we wrote: %+v", r)
		}
		if r.Method == "" {
			continue
		}
		d, ok := allowed[r.ID]
		path, _, _ := strings.Cut(r.URL, "?")
		if !ok || d.Method != r.Method || d.Path != path || len(r.Authorization) > 0 {
			t.Errorf("Node read %+v, decided was %+v", r, d)
		}
		delete(allowed, r.ID)
		read++
	}
	if read < len(streams)/20 {
		t.Errorf("of %d streams only %d requests arrived: that proves nothing", len(streams), read)
	}
}
