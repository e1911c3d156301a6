package egress

import (
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/sallyport/sallyport/internal/audit"
)

// quietly keeps the log out of a benchmark's memory.
func quietly(c *Config) {
	c.Audit = audit.New(io.Discard, audit.Config{})
	c.Logger = nil
}

// BenchmarkTunnel compares a connection through CONNECT with a direct one.
func BenchmarkTunnel(b *testing.B) {
	sink := serve(b, nil, func(c net.Conn) { io.Copy(io.Discard, c) })
	s := newStage(b, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("a.com", sink.port)}, Protocol: "tcp"}}}, quietly)
	block := make([]byte, 256<<10)
	for name, c := range map[string]net.Conn{"direct": dial(b, sink.Addr().String(), ""), "tunnel": s.connect(host("a.com", sink.port))} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				if _, err := c.Write(block); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkForward compares requests through the proxy with requests without it.
func BenchmarkForward(b *testing.B) {
	server := serve(b, nil, answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	s := newStage(b, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("127.0.0.1", server.port)}, Protocol: "http"}}}, quietly)
	direct := &http.Client{Transport: &http.Transport{}}
	defer direct.CloseIdleConnections()
	for name, client := range map[string]*http.Client{"direct": direct, "proxy": s.client(nil)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				res, err := client.Get("http://127.0.0.1:" + server.port + "/")
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
}

// BenchmarkConnectDecision is what a brokered connect waits for.
func BenchmarkConnectDecision(b *testing.B) {
	s := newStage(b, Rules{Destinations: []Destination{
		{Name: "a", For: anyone(), Hosts: []string{"a.com:443", "b.com:443", "c.com:443"}},
		{Name: "d", For: anyone(), Hosts: []string{"198.51.100.8:443"}, Protocol: "tcp", Direct: true},
	}}, quietly)
	s.proxy.names.learn("b.com", at("198.51.100.7:1").Addr())
	for name, to := range map[string]string{"led": "198.51.100.7:443", "direct": "198.51.100.8:443", "refused": "198.51.100.9:443"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			ways := make(chan Way, 1)
			for b.Loop() {
				s.proxy.Connect(Attempt{Network: "tcp", To: at(to)}, func(w Way) { ways <- w })
				<-ways
			}
		})
	}
}
