// Command names is for the tests of name resolution: a program with Go's own resolver, and a name server to start others
// beside, in a container that reaches none.
//
//	names lookup NAME           the IPv4 addresses of NAME, by Go's resolver
//	names beside CMD [ARG...]   CMD, with a name server at 127.0.0.1:5353 that knows allowed.test; what it was asked goes to
//	                            standard error at the end
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

func main() {
	if len(os.Args) < 3 {
		os.Exit(2)
	}
	switch os.Args[1] {
	case "lookup":
		addresses, err := (&net.Resolver{PreferGo: true}).LookupIP(context.Background(), "ip4", os.Args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(addresses)
	case "beside":
		s, err := serve()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		c := exec.Command(os.Args[2], os.Args[3:]...)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		_ = c.Run() // its code is ours
		s.mu.Lock()
		fmt.Fprintln(os.Stderr, "asked:", strings.Join(s.asked, " "))
		os.Exit(c.ProcessState.ExitCode())
	}
}

type server struct {
	mu    sync.Mutex
	asked []string
}

func serve() (*server, error) {
	s := &server{}
	c, err := net.ListenPacket("udp", "127.0.0.1:5353")
	if err != nil {
		return nil, err
	}
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if answer := s.answer(b[:n]); answer != nil {
				c.WriteTo(answer, from)
			}
		}
	}()
	return s, nil
}

func (s *server) answer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	s.mu.Lock()
	s.asked = append(s.asked, q.Name.String())
	s.mu.Unlock()
	a := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
	switch {
	case q.Name.String() != "allowed.test.":
		a.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		a.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte{93, 184, 216, 34}}}}
	}
	packed, err := a.Pack()
	if err != nil {
		return nil
	}
	return packed
}
