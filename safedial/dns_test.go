package safedial

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// resolver is a DNS server on loopback that answers from a table and counts.
type resolver struct {
	names  map[string][]string
	rotate bool // the first answer only, then the next one
	conn   net.PacketConn

	mu        sync.Mutex
	questions []dnsmessage.Question
}

func newResolver(t *testing.T, names map[string][]string) *resolver {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &resolver{names: names, conn: conn}
	done := make(chan struct{})
	go func() { defer close(done); r.serve() }()
	t.Cleanup(func() { conn.Close(); <-done })
	return r
}

func (r *resolver) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", r.conn.LocalAddr().String())
	}}
}

func (r *resolver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.questions)
}

func (r *resolver) asked(name string, kind dnsmessage.Type) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, q := range r.questions {
		if q.Name.String() == name && q.Type == kind {
			n++
		}
	}
	return n
}

func (r *resolver) serve() {
	buffer := make([]byte, 1500)
	for {
		n, peer, err := r.conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buffer[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
		r.mu.Lock()
		addresses := r.names[strings.ToLower(q.Name.String())]
		if r.rotate && len(addresses) > 0 {
			if q.Type == dnsmessage.TypeA {
				r.names[q.Name.String()] = addresses[1:]
			}
			addresses = addresses[:1]
		}
		r.questions = append(r.questions, q)
		r.mu.Unlock()
		for _, a := range addresses {
			address := netip.MustParseAddr(a)
			header := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
			switch {
			case q.Type == dnsmessage.TypeA && address.Is4():
				answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: address.As4()}})
			case q.Type == dnsmessage.TypeAAAA && address.Is6():
				answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: address.As16()}})
			}
		}
		if packed, err := answer.Pack(); err == nil {
			r.conn.WriteTo(packed, peer)
		}
	}
}
