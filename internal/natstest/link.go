package natstest

import (
	"fmt"
	"io"
	"net"
	"sync"
)

// Link passes TCP connections on to an address, until it is cut.
type Link struct {
	listener net.Listener
	to       string
	done     sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

// NewLink makes one. The caller must Close it.
func NewLink(to string) (*Link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("make a link: %w", err)
	}
	k := &Link{listener: l, to: to, conns: make(map[net.Conn]bool)}
	k.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			k.done.Go(func() { k.pass(c) })
		}
	})
	return k, nil
}

// Close cuts it for good.
func (k *Link) Close() {
	_ = k.listener.Close() // it is ours, and open
	k.Cut(true)
	k.done.Wait()
}

func (k *Link) close() {
	if k != nil {
		k.Close()
	}
}

// Address is where it listens.
func (k *Link) Address() string { return k.listener.Addr().String() }

func (k *Link) pass(in net.Conn) {
	defer in.Close()
	if !k.keep(in) {
		return
	}
	defer k.forget(in)
	out, err := net.Dial("tcp", k.to)
	if err != nil {
		return
	}
	defer out.Close()
	if !k.keep(out) {
		return
	}
	defer k.forget(out)
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(out, in); out.Close(); in.Close() })
	both.Go(func() { _, _ = io.Copy(in, out); in.Close(); out.Close() })
	both.Wait()
}

func (k *Link) keep(c net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.cut {
		k.conns[c] = true
	}
	return !k.cut
}

func (k *Link) forget(c net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
}

// Cut cuts it, what passes through it now too, or mends it.
func (k *Link) Cut(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut = cut
	if cut {
		for c := range k.conns {
			c.Close()
		}
	}
}
