package ingress

import (
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// What is cheap to send and dear to take ends the connection (H21), the service sees next to nothing of it, and the memory that
// it takes is bounded.
func TestHTTP2Floods(t *testing.T) {
	token := ""
	var block []byte
	request := func(p *h2peer) uint32 { return p.ask(true, pseudo("GET", "/orders/1")...) } // denied: the cheaper for both
	for _, c := range []struct {
		name, kind string
		away       http2.ErrCode
		first      func(p *h2peer)
		flood      func(p *h2peer) // once of many times
	}{
		{"rapid reset, CVE-2023-44487", "reset", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) {
			p.framer.WriteRSTStream(p.ask(true, append(pseudo("GET", "/orders/1"), "authorization", token)...), http2.ErrCodeCancel)
		}},
		{"MadeYouReset by a window of zero, CVE-2025-8671", "reset", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) {
			p.framer.WriteRawFrame(http2.FrameWindowUpdate, 0, request(p), make([]byte, 4))
		}},
		{"MadeYouReset by a window that overflows", "reset", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) {
			p.framer.WriteWindowUpdate(request(p), 1<<31-1)
		}},
		{"MadeYouReset by DATA behind the end", "reset", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) {
			p.framer.WriteData(request(p), true, nil)
		}},
		{"MadeYouReset by a stream that depends on itself", "", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) { // as a reset, or for the frame: whichever is first
			n := request(p)
			p.framer.WritePriority(n, http2.PriorityParam{StreamDep: n})
		}},
		{"malformed requests", "reset", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) {
			p.ask(true, ":method", "GET", ":scheme", "http")
		}},
		{"settings", "settings", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) { p.framer.WriteSettings() }},
		{"settings acknowledged", "", 0, nil, func(p *h2peer) { p.framer.WriteSettingsAck() }}, // net/http: ack_mystery
		{"pings", "ping", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) { p.framer.WritePing(false, [8]byte{}) }},
		{"pongs", "ping", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) { p.framer.WritePing(true, [8]byte{}) }},
		{"priorities", "other", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) {
			p.framer.WritePriority(3, http2.PriorityParam{StreamDep: 1})
		}},
		{"frames that mean nothing", "other", http2.ErrCodeEnhanceYourCalm, nil, func(p *h2peer) { p.framer.WriteRawFrame(0xbe, 0, 0, nil) }},
		{"empty DATA", "empty", http2.ErrCodeEnhanceYourCalm, func(p *h2peer) {
			p.ask(false, append(pseudo("POST", "/upload"), "authorization", token)...)
		}, func(p *h2peer) { p.framer.WriteData(1, false, nil) }},
		{"DATA that is padding", "empty", http2.ErrCodeEnhanceYourCalm, func(p *h2peer) {
			p.ask(false, append(pseudo("POST", "/upload"), "authorization", token)...)
		}, func(p *h2peer) { p.framer.WriteDataPadded(1, false, nil, make([]byte, 10)) }},
		{"100k CONTINUATION", "continuation", http2.ErrCodeEnhanceYourCalm, func(p *h2peer) {
			p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(pseudo("GET", "/orders/1")...)})
		}, func(p *h2peer) { p.framer.WriteContinuation(1, false, p.encode("x-a", "b")) }},
		{"CONTINUATION without content", "continuation", http2.ErrCodeEnhanceYourCalm, func(p *h2peer) {
			p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(pseudo("GET", "/orders/1")...)})
		}, func(p *h2peer) { p.framer.WriteContinuation(1, false, nil) }},
		{"large CONTINUATION", "", 0, func(p *h2peer) { // net/http or we, whoever is first
			block = p.encode("x-long", strings.Repeat("~", 15<<10))
			p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(pseudo("GET", "/orders/1")...)})
		}, func(p *h2peer) { p.framer.WriteContinuation(1, false, block) }},
		{"HPACK bomb", "reset", http2.ErrCodeEnhanceYourCalm, func(p *h2peer) {
			block = p.encode("x-bomb", strings.Repeat("~", 4000)) // is in the table from now on: a byte
		}, func(p *h2peer) {
			bomb := append(p.encode(pseudo("GET", "/orders/1")...), block...)
			if p.next > 1 {
				bomb = append(p.encode(pseudo("GET", "/orders/1")...), []byte(strings.Repeat("\xbe", 10_000))...)
			}
			p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: p.next, BlockFragment: bomb, EndHeaders: true, EndStream: true})
			p.framer.WriteRSTStream(p.next, http2.ErrCodeCancel)
			p.next += 2
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openH2(t, func(s *stage) {
				s.config.Limits.Streams = 100
				s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					time.Sleep(5 * time.Millisecond)
					io.WriteString(w, "HTTP/1.1 204 No Content\r\n\r\n")
				})
			})
			token = "Bearer " + s.token("orders:read")
			p := s.dialH2()
			p.SetDeadline(time.Now().Add(3 * time.Minute))
			p.silent = true
			if c.first != nil {
				c.first(p)
			}
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			done := make(chan struct{})
			go func() {
				for n := 0; n < 100_000 && !p.broken.Load(); n++ {
					c.flood(p)
				}
				close(done)
			}()
			r := p.gone()
			p.Close()
			<-done
			runtime.GC()
			runtime.ReadMemStats(&after)
			if c.away != 0 && r.wasAway && r.away != c.away {
				t.Errorf("told %v", r.away)
			}
			if c.kind != "" && s.metric("sallyport_ingress_http2_floods_total", c.kind) != 1 {
				t.Errorf("not counted as %s (said %+v)", c.kind, r)
			}
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
				t.Errorf("the heap has grown by %d MiB", grown>>20)
			}
			if n := s.service.Requests(); n > 2500 {
				t.Errorf("the service saw %d requests", n)
			}
			eventually(t, "the connection is gone", func() bool { return s.metric("sallyport_ingress_connections_open", "h2c") == 0 })
			eventually(t, "nothing is in flight", func() bool { return s.gateway.inFlight.Load() == 0 })
		})
	}
}

// A frame, a header block or a preface that does not end does not hold a connection (H24).
func TestHTTP2Slow(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(p *h2peer)
		kind string
	}{
		{"a header block", func(p *h2peer) {
			p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(pseudo("GET", "/health")...)})
		}, "slow"},
		{"a header block in which a CONTINUATION comes now and then", func(p *h2peer) {
			p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(pseudo("GET", "/health")...)})
			go func() {
				for !p.broken.Load() {
					time.Sleep(100 * time.Millisecond)
					p.framer.WriteContinuation(1, false, nil)
				}
			}()
		}, "slow"},
		{"a frame's header", func(p *h2peer) { io.WriteString(p, "\x00\x00\x05") }, "slow"},
		{"a frame", func(p *h2peer) { io.WriteString(p, "\x00\x00\x08\x06\x00\x00\x00\x00\x00abc") }, "slow"},
		{"DATA", func(p *h2peer) {
			p.ask(false, pseudo("POST", "/hook")...)
			io.WriteString(p, "\x00\x00\x08\x00\x00\x00\x00\x00\x01abc")
		}, "slow"},
		{"nothing", func(p *h2peer) {}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openH2(t, func(s *stage) {
				l := &s.config.Limits
				l.HeaderTimeout, l.BodyTimeout = time.Second, time.Second
				if c.kind == "" {
					l.IdleTimeout = time.Second
				}
			})
			p := s.dialH2()
			p.silent = true
			began := time.Now()
			c.send(p)
			r := p.gone()
			if !r.wasAway {
				t.Errorf("told %+v", r)
			}
			if took := time.Since(began); took < 500*time.Millisecond || took > 6*time.Second {
				t.Errorf("it took %s", took)
			}
			if c.kind != "" && s.metric("sallyport_ingress_http2_floods_total", c.kind) != 1 {
				t.Errorf("not counted as %s: %+v %s", c.kind, r, s.log)
			}
		})
	}
	t.Run("a preface", func(t *testing.T) {
		s := openH2(t, func(s *stage) { s.config.Limits.HeaderTimeout = 300 * time.Millisecond })
		p := s.dial()
		p.send("PRI * HTTP/2.0\r\n")
		if b, err := io.ReadAll(p.r); err != nil || len(b) > 0 {
			t.Errorf("%q, %v", b, err)
		}
		if s.metric("sallyport_ingress_connections_total", "none") != 1 {
			t.Error("not counted")
		}
	})
}
