package sandbox

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dnsPort is the one port that a program's UDP sockets speak to.
const dnsPort = 53

// connect performs connect(2), on our copy of the socket and of the address, to where the hook says. now is false when
// the answer comes later.
func (b *broker) connect(n *notification) (errno unix.Errno, now bool) {
	o, errno := b.take(n)
	if errno == errListening {
		errno = unix.EISCONN
	}
	if errno != 0 {
		return errno, true
	}
	address, errno := b.readAddress(n, n.Data.Args[1], uint32(n.Data.Args[2]))
	if errno == 0 {
		switch o.domain {
		case unix.AF_INET, unix.AF_INET6:
			errno, now = b.connectInet(n, o, address)
		case unix.AF_UNIX:
			errno, now = b.connectUnix(n, o, address)
		case unix.AF_NETLINK:
			errno, now = rawConnect(o.fd, address), true
		default:
			errno = unix.EACCES
		}
	}
	if errno != 0 || now {
		b.put(o)
		return errno, true
	}
	return 0, false
}

func (b *broker) connectInet(n *notification, o *twin, address []byte) (errno unix.Errno, now bool) {
	if binary.NativeEndian.Uint16(address) == unix.AF_UNSPEC {
		return b.dissolve(o, address[:2:2]), true // it reaches nobody
	}
	asked, errno := parseInet(o.domain, address)
	if errno != 0 {
		return errno, true
	}
	to := destination(asked)
	network := "tcp"
	if o.kind == unix.SOCK_DGRAM {
		if network = "udp"; to.Port() != dnsPort {
			return unix.EACCES, true
		}
	}
	b.ask(Attempt{Process: int(n.TID), Network: network, To: to}, func(w Way) { b.lead(n, o, to, w) })
	return 0, false
}

// destination is the address that the kernel would connect to: an IPv4 address in IPv6's clothes is one, and "this
// host" is loopback.
func destination(asked netip.AddrPort) netip.AddrPort {
	a := asked.Addr().Unmap().WithZone("")
	switch {
	case a == netip.IPv4Unspecified():
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case a.IsUnspecified():
		a = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(a, asked.Port())
}

// ask puts an attempt to the hook, or to the self-test's.
func (b *broker) ask(a Attempt, done func(Way)) {
	b.mu.Lock()
	hook := b.hook
	if b.quiet {
		hook = b.trial
	}
	b.mu.Unlock()
	if hook == nil {
		done(Way{})
		return
	}
	hook(a, done)
}

// lead connects the program's socket to where the way leads, and answers.
func (b *broker) lead(n *notification, o *twin, to netip.AddrPort, w Way) {
	if !w.Via.IsValid() {
		if w.Errno == 0 {
			w.Errno = unix.EACCES
		}
		b.put(o)
		b.tell(n, w.Errno)
		return
	}
	sa, errno := b.sockaddr(o, w.Via)
	if errno != 0 {
		b.finish(n, o, w, errno)
		return
	}
	b.perform(n, o, w, w.Via.Addr().IsLoopback(), func() unix.Errno { return errnoOf(unix.Connect(o.fd, sa)) })
}

// soon is how long the thread that all wait for may wait for one connect(2): to a listener of our own on loopback, which
// takes microseconds unless its queue is full.
const soon = 2 * time.Millisecond

// perform connects at once if the socket does not block, or if near is true and it takes no time, else in a thread that
// may wait.
func (b *broker) perform(n *notification, o *twin, w Way, near bool, connect func() unix.Errno) {
	flags, err := unix.FcntlInt(uintptr(o.fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		b.finish(n, o, w, connect())
		return
	}
	begun := false
	if near {
		errno := within(soon, o.fd, connect)
		if errno != unix.EINPROGRESS && errno != unix.EALREADY && errno != unix.EINTR {
			b.finish(n, o, w, errno)
			return
		}
		begun = errno != unix.EALREADY // a signal of our runtime's (EINTR) does not end it: see below
	}
	if !b.block(n, o) {
		b.finish(n, o, w, unix.EAGAIN)
		return
	}
	go func() {
		errno := connect()
		for errno == unix.EINTR { // a signal of our runtime's; connecting goes on, and so does waiting for it
			begun = true
			errno = connect()
		}
		if errno == unix.EALREADY && begun {
			errno = unix.EINPROGRESS // the program's timeout (SO_SNDTIMEO) was over; to it this was one call
		}
		b.mu.Lock()
		delete(b.blocked, n)
		b.mu.Unlock()
		b.finish(n, o, w, errno)
	}()
}

// within connects a socket that blocks for at most d; then it is EINPROGRESS, and goes on. The program's own timeout is
// put back.
func within(d time.Duration, fd int, connect func() unix.Errno) unix.Errno {
	theirs, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO)
	if err != nil {
		return unix.EINPROGRESS
	}
	ours := unix.NsecToTimeval(d.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &ours); err != nil {
		return unix.EINPROGRESS
	}
	errno := connect()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, theirs); err != nil {
		return errnoOf(err)
	}
	return errno
}

// finish is what follows connect(2): the copy is given up, or kept until it is known how connecting ends.
func (b *broker) finish(n *notification, o *twin, w Way, errno unix.Errno) {
	if (errno == 0 || errno == unix.EINPROGRESS) && w.Begun != nil {
		if from, err := localAddress(o.fd); err == nil {
			w.Begun(from)
		}
	}
	outcome := errno
	if errno == unix.EINPROGRESS && connected(o.fd) {
		outcome = 0
	}
	switch { // a UDP socket may be connected again, and is kept
	case outcome == 0 && o.kind != unix.SOCK_DGRAM:
		b.retire(o, pastConnected)
	case outcome == unix.EINPROGRESS && b.watch(o, w.Ended):
		w.Ended = nil
	}
	b.put(o)
	b.tell(n, errno)
	if w.Ended != nil { // after the answer: the program need not wait until it is written down
		w.Ended(failed(outcome))
	}
}

// connected tells whether a socket that does not wait is connected already, as to loopback it is before connect(2) has
// said that it is in progress. Its error, if it has one, stays.
func connected(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents == unix.POLLOUT
}

// tell answers from wherever it is called.
func (b *broker) tell(n *notification, errno unix.Errno) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.serving {
		return // the kernel has answered
	}
	if err := b.from.answer(n, 0, errno); err != nil {
		b.log.Error("answer the program's connect: it waits until it is killed", "error", err)
	}
}

// sockaddr writes an address for a socket of o's family.
func (b *broker) sockaddr(o *twin, to netip.AddrPort) (unix.Sockaddr, unix.Errno) {
	a := to.Addr()
	if o.domain == unix.AF_INET {
		if !a.Is4() {
			return nil, unix.ENETUNREACH
		}
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}, 0
	}
	if a.Is4() {
		// A socket for IPv6 alone is led to us all the same: its peer is not whom it asked for anyway.
		if only, err := unix.GetsockoptInt(o.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); err == nil && only != 0 {
			if unix.SetsockoptInt(o.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0) != nil {
				return nil, unix.ENETUNREACH // it is bound
			}
		}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: a.As16()}, 0
}

// rawConnect hands the kernel our copy of an address as it is.
func rawConnect(fd int, address []byte) unix.Errno {
	room := make([]byte, max(len(address), 16)) // the kernel looks at the family's whole structure
	copy(room, address)
	for {
		errno := connectBytes(fd, room)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// connectBytes is connect(2) with the bytes of a struct sockaddr.
func connectBytes(fd int, address []byte) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&address[0])), uintptr(len(address)))
	return errno
}

// sendTo is sendto(2) with the bytes of a struct sockaddr. It does not wait.
func sendTo(fd int, payload []byte, flags int, address []byte) (int, unix.Errno) {
	payload = append(payload, 0) // so that it has an address even if it is empty
	n, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&payload[0])), uintptr(len(payload)-1),
		uintptr(flags|unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT), uintptr(unsafe.Pointer(&address[0])), uintptr(len(address)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
