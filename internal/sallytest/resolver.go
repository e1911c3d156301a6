package sallytest

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Resolver is a name server on loopback, over UDP and TCP at one port, that answers A and AAAA questions from a table
// and keeps what it was asked: it says "no packet went out". Names that it does not have do not exist.
type Resolver struct {
	Addr string // "127.0.0.1:port"

	udp net.PacketConn
	tcp net.Listener
	wg  sync.WaitGroup

	mu        sync.Mutex
	names     map[string][]netip.Addr
	questions []dnsmessage.Question
	open      map[net.Conn]bool
}

// NewResolver starts a name server. Names are without trailing dot.
func NewResolver(t testing.TB, names map[string][]string) *Resolver {
	t.Helper()
	r := &Resolver{names: map[string][]netip.Addr{}, open: map[net.Conn]bool{}}
	for name, addresses := range names {
		r.Set(name, addresses...)
	}
	for try := 0; ; try++ {
		var err error
		if r.udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		r.Addr = r.udp.LocalAddr().String()
		if r.tcp, err = net.Listen("tcp", r.Addr); err == nil {
			break
		}
		r.udp.Close()
		if try == 10 {
			t.Fatal(err)
		}
	}
	r.wg.Go(r.serveUDP)
	r.wg.Go(r.serveTCP)
	t.Cleanup(r.close)
	return r
}

// Set gives a name these addresses from now on; none: it exists and has no address.
func (r *Resolver) Set(name string, addresses ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []netip.Addr{}
	for _, a := range addresses {
		list = append(list, netip.MustParseAddr(a))
	}
	r.names[strings.ToLower(name)] = list
}

// Asked counts the questions for A records of a name; of any name if it is empty.
func (r *Resolver) Asked(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, q := range r.questions {
		if q.Type == dnsmessage.TypeA && (name == "" || strings.EqualFold(strings.TrimSuffix(q.Name.String(), "."), name)) {
			n++
		}
	}
	return n
}

func (r *Resolver) close() {
	r.udp.Close()
	r.tcp.Close()
	r.mu.Lock()
	for c := range r.open {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

func (r *Resolver) serveUDP() {
	buffer := make([]byte, 4096)
	for {
		n, peer, err := r.udp.ReadFrom(buffer)
		if err != nil {
			return
		}
		if answer := r.answer(buffer[:n]); answer != nil {
			r.udp.WriteTo(answer, peer)
		}
	}
}

func (r *Resolver) serveTCP() {
	for {
		c, err := r.tcp.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.open[c] = true
		r.mu.Unlock()
		r.wg.Go(func() {
			defer c.Close()
			var length [2]byte
			for {
				if _, err := io.ReadFull(c, length[:]); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(length[:]))
				if _, err := io.ReadFull(c, query); err != nil {
					return
				}
				answer := r.answer(query)
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
			}
		})
	}
}

func (r *Resolver) answer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
	r.mu.Lock()
	r.questions = append(r.questions, q)
	addresses, ok := r.names[strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))]
	r.mu.Unlock()
	if !ok {
		answer.RCode = dnsmessage.RCodeNameError
	}
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
	for _, a := range addresses {
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: a.As4()}})
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	packed, err := answer.Pack()
	if err != nil {
		return nil
	}
	return packed
}
