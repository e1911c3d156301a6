package sandbox

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// With Profile.UDP "dns" a program has UDP sockets that reach a name server, ours, and nobody else. They are bound to
// the loopback device when they are made, which an unprivileged process cannot undo; connect(2) leads them to the hook's
// name server; and a datagram with an address (sendto(2), as musl's resolver sends) is taken out of the program's memory
// and answered from here. sendmsg(2) and sendmmsg(2), whose address no filter sees, are refused altogether.

const (
	maxQuery   = 4096 // bytes; no resolver asks more
	maxQueries = 64   // at the same time
)

// sendTo performs sendto(2) with an address.
func (b *broker) sendTo(n *notification) (int, unix.Errno) {
	o, errno := b.take(n)
	if errno == errListening || errno == unix.EISCONN {
		return 0, unix.EISCONN
	}
	if errno != 0 {
		return 0, errno
	}
	defer b.put(o)
	size := n.Data.Args[2]
	if size > maxQuery {
		return 0, unix.EMSGSIZE
	}
	payload, errno := b.readMemory(n, n.Data.Args[1], int(size))
	if errno != 0 {
		return 0, errno
	}
	address, errno := b.readAddress(n, n.Data.Args[4], uint32(n.Data.Args[5]))
	if errno != 0 {
		return 0, errno
	}
	switch {
	case o.domain == unix.AF_NETLINK: // to the kernel: the filter leaves no other protocol than that of routes
		return sendTo(o.fd, payload, int(n.Data.Args[3]), address)
	case o.kind != unix.SOCK_DGRAM || (o.domain != unix.AF_INET && o.domain != unix.AF_INET6):
		return 0, unix.EACCES
	}
	asked, errno := parseInet(o.domain, address)
	if errno != 0 {
		return 0, errno
	}
	to := destination(asked)
	if to.Port() != dnsPort {
		return 0, unix.EACCES
	}
	return len(payload), b.query(o, to, payload)
}

// query answers in the name of the server that was asked. A query too many is lost, as datagrams are.
func (b *broker) query(o *twin, server netip.AddrPort, payload []byte) unix.Errno {
	at, err := localAddress(o.fd)
	if err == nil && at.Port() == 0 {
		// As the kernel does before the first datagram.
		if err = bindAny(o); err == nil {
			at, err = localAddress(o.fd)
		}
	}
	if err != nil {
		return errnoOf(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.resolve == nil || b.queries >= maxQueries {
		return 0
	}
	b.queries++
	go func() {
		answer := b.resolve(payload)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.queries--
		if answer != nil && !b.closed {
			b.aside.Go(func() { b.reply(server, destination(at), answer) })
		}
	}()
	return 0
}

func bindAny(o *twin) error {
	if o.domain == unix.AF_INET {
		return unix.Bind(o.fd, &unix.SockaddrInet4{})
	}
	return unix.Bind(o.fd, &unix.SockaddrInet6{})
}

// reply sends from the server's address, since resolvers drop an answer from elsewhere. That address must be one of this
// machine's, and loopback for a socket that is bound there.
func (b *broker) reply(server, to netip.AddrPort, answer []byte) {
	domain, from, dest := sockaddrs(server, to)
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		err = unix.Bind(fd, from)
	}
	if err != nil {
		b.say("name server", "the service's resolver asks a name server in whose name it cannot be answered", "server", server.String(), "error", err,
			"hint", "its /etc/resolv.conf must name a loopback address: docker run --dns 127.0.0.1, and the real one in egress.resolvers")
		return
	}
	_ = unix.Sendto(fd, answer, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, dest) // a datagram that is lost is asked for again
}

func sockaddrs(server, to netip.AddrPort) (domain int, from, dest unix.Sockaddr) {
	if server.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()},
			&unix.SockaddrInet4{Port: int(to.Port()), Addr: [4]byte{127, 0, 0, 1}}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(server.Port()), Addr: server.Addr().As16()},
		&unix.SockaddrInet6{Port: int(to.Port()), Addr: netip.IPv6Loopback().As16()}
}
