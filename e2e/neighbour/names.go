package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// zone is what the DNS server knows.
type zone struct {
	mu    sync.Mutex
	names map[string][]netip.Addr
	asked map[string]bool // names with two addresses whose first has been given out
}

// newZone reads NAME=ADDRESS.
func newZone(args []string) (*zone, error) {
	z := &zone{names: map[string][]netip.Addr{}, asked: map[string]bool{}}
	for _, arg := range args {
		name, address, _ := strings.Cut(arg, "=")
		a, err := netip.ParseAddr(address)
		if err != nil || !a.Is4() {
			return nil, fmt.Errorf("%s: not NAME=IPV4", arg)
		}
		z.names[name+"."] = append(z.names[name+"."], a)
	}
	return z, nil
}

func names(args []string) error {
	z, err := newZone(args)
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", ":53")
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":53")
	if err != nil {
		return err
	}
	ended := make(chan error)
	go func() { ended <- z.udp(packets) }()
	go func() { ended <- accept(l, z.tcp) }()
	return <-ended
}

func (z *zone) udp(c net.PacketConn) error {
	b := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		if a, err := z.answer(b[:n]); err == nil {
			_, _ = c.WriteTo(a, from)
		}
	}
}

func (z *zone) tcp(c net.Conn) {
	for {
		var size uint16
		if binary.Read(c, binary.BigEndian, &size) != nil {
			return
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		a, err := z.answer(b)
		if err != nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
			return
		}
	}
}

// answer answers one question. Nothing may be kept by whoever asks: the time to live is zero.
func (z *zone) answer(query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	known, address := z.look(strings.ToLower(q.Name.String()), q.Type)
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	if address.IsValid() {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
			Body:   &dnsmessage.AResource{A: address.As4()},
		}}
	}
	return m.Pack()
}

func (z *zone) look(name string, t dnsmessage.Type) (known bool, a netip.Addr) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if name == "reset.lab." {
		clear(z.asked)
	}
	addresses := z.names[name]
	switch {
	case len(addresses) == 0:
		return false, a
	case t != dnsmessage.TypeA:
		return true, a
	case len(addresses) == 2 && z.asked[name]:
		return true, addresses[1]
	}
	z.asked[name] = true
	return true, addresses[0]
}
