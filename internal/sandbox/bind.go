package sandbox

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (b *broker) bind(l listener, n *notification, s callerSocket, address []byte) unix.Errno {
	if _, again := b.bound[s.inode]; again || b.listening[s.inode] {
		return unix.EINVAL // as the kernel answers to a second bind
	}
	switch s.protocol {
	case "TCP", "TCPv6", "UDP", "UDPv6":
		return b.bindInet(l, n, s, address)
	case "UNIX", "UNIX-STREAM":
		return b.bindUnix(l, n, s, address)
	case "NETLINK":
		return b.bindNetlink(l, n, s, address)
	}
	return unix.EACCES
}

// grant gives the caller our bound socket, and keeps a copy if it may listen.
func (b *broker) grant(l listener, n *notification, s callerSocket, fd int, keep bool) unix.Errno {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return unix.EIO
	}
	if err := l.replace(n, fd, s.fd, s.closeOnExec); err != nil {
		unix.Close(fd)
		return unix.EBADF
	}
	if !keep {
		unix.Close(fd)
		return 0
	}
	if len(b.order) == maxBound {
		unix.Close(b.bound[b.order[0]].fd)
		delete(b.bound, b.order[0])
		b.order = b.order[1:]
	}
	b.bound[st.Ino] = bound{fd}
	b.order = append(b.order, st.Ino)
	return 0
}

func (b *broker) socket(family, kind int, s callerSocket) (int, unix.Errno) {
	if s.nonblock {
		kind |= unix.SOCK_NONBLOCK // it belongs to the open file, not to the descriptor
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	return fd, errnoOf(err)
}

// bindInet is the decision on a TCP or UDP address; judge has the rules.
func (b *broker) bindInet(l listener, n *notification, s callerSocket, address []byte) unix.Errno {
	family := unix.AF_INET
	if strings.HasSuffix(s.protocol, "v6") {
		family = unix.AF_INET6
	}
	asked, errno := parseInet(family, address)
	if errno != 0 {
		return errno
	}
	tcp := strings.HasPrefix(s.protocol, "TCP")
	v := b.judge(tcp, asked)
	if v.errno != 0 {
		b.say(fmt.Sprint(s.protocol, asked), v.why, "asked", asked.String(), "hint", v.hint)
		return v.errno
	}
	kind := unix.SOCK_DGRAM
	if tcp {
		kind = unix.SOCK_STREAM
	}
	given := v.to
	fd, errno := b.bindNew(family, kind, s, given, v.only6)
	if errno == unix.EADDRINUSE && v.otherwise.IsValid() {
		given = v.otherwise
		fd, errno = b.bindNew(family, kind, s, given, true)
	}
	if errno != 0 {
		return errno
	}
	if errno := b.grant(l, n, s, fd, v.listen); errno != 0 {
		return errno
	}
	if v.listen && family == unix.AF_INET {
		b.led[asked.Port()] = true
	}
	if v.why != "" {
		b.say(fmt.Sprint("led", asked), v.why, "asked", asked.String(), "given", given.String(), "hint", v.hint)
	}
	return 0
}

func (b *broker) bindNew(family, kind int, s callerSocket, to netip.AddrPort, only6 bool) (int, unix.Errno) {
	fd, errno := b.socket(family, kind, s)
	if errno != 0 {
		return -1, errno
	}
	err := func() error {
		if kind == unix.SOCK_STREAM {
			// Every server sets it, so that it can be started again at once; the program's own setting was on a
			// socket that is gone.
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
				return err
			}
		}
		if family == unix.AF_INET {
			return unix.Bind(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		}
		v6only := 0
		if only6 {
			v6only = 1
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	}()
	if err != nil {
		unix.Close(fd)
		return -1, errnoOf(err)
	}
	return fd, 0
}

// parseInet reads struct sockaddr_in or sockaddr_in6 as the kernel would for a socket of the family.
func parseInet(family int, a []byte) (netip.AddrPort, unix.Errno) {
	got := int(binary.NativeEndian.Uint16(a))
	if family == unix.AF_INET {
		if len(a) < 16 {
			return netip.AddrPort{}, unix.EINVAL
		}
		addr := netip.AddrFrom4([4]byte(a[4:8]))
		// ip(7): AF_UNSPEC with the wildcard is taken for AF_INET, for old programs.
		if got != unix.AF_INET && (got != unix.AF_UNSPEC || !addr.IsUnspecified()) {
			return netip.AddrPort{}, unix.EAFNOSUPPORT
		}
		return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(a[2:])), 0
	}
	if len(a) < 24 { // SIN6_LEN_RFC2133
		return netip.AddrPort{}, unix.EINVAL
	}
	if got != unix.AF_INET6 {
		return netip.AddrPort{}, unix.EAFNOSUPPORT
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(a[8:24])), binary.BigEndian.Uint16(a[2:])), 0
}

// verdict on one address.
type verdict struct {
	errno     unix.Errno     // not 0: refused
	to        netip.AddrPort // what is bound instead
	only6     bool           // IPV6_V6ONLY
	otherwise netip.AddrPort // where to is taken by the program's own IPv4 socket
	listen    bool           // it may listen
	why, hint string         // for the log; empty if there is nothing to say
}

// judge decides on an address that TCP or UDP is to be bound to.
//
//	TCP  loopback        an allowed port  as asked
//	TCP  every address   an allowed port  led to 127.0.0.1, an IPv6 socket to ::ffff:127.0.0.1, where the gate calls
//	TCP  any             port 0           as asked, but listen will be refused: a client chooses its source address
//	                                      so, and Go finds out whether there is IPv6
//	UDP  loopback        any port         as asked: nobody outside reaches it
//	UDP  every address   port 0           as asked: it is what the first send does without bind
//	     all else                         EACCES
func (b *broker) judge(tcp bool, asked netip.AddrPort) verdict {
	plain := asked.Addr().Unmap()
	port := asked.Port()
	allowed := slices.Contains(b.ports, port) && tcp
	as := verdict{to: asked, only6: plain.Is6() && plain.IsLoopback(), listen: allowed}
	switch {
	case port == 0 && (tcp || plain.IsUnspecified()):
		return as
	case plain.IsLoopback() && (allowed || !tcp):
		return as
	case !tcp:
		return verdict{errno: unix.EACCES, why: "the service tried to receive UDP where others reach it: refused",
			hint: "UDP can be bound on loopback, or without a port"}
	case !allowed:
		return verdict{errno: unix.EACCES, why: "the service tried to listen on a port that it was not given: refused", hint: b.hint()}
	case !plain.IsUnspecified():
		return verdict{errno: unix.EACCES, why: "the service tried to listen on an address that others reach: refused", hint: b.hint()}
	}
	v := verdict{listen: true, why: "the service asked to listen on every address and was led to loopback", hint: b.hint()}
	v4 := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if asked.Addr().Is4() {
		v.to = netip.AddrPortFrom(v4, port)
		return v
	}
	// A dual-stack socket, as far as can be seen from here, and it must be found at 127.0.0.1; unless the program
	// has another one there already, and so means this one for IPv6 alone.
	v.to = netip.AddrPortFrom(netip.AddrFrom16(v4.As16()), port)
	if b.led[port] && !asked.Addr().Is4In6() {
		v.otherwise = netip.AddrPortFrom(netip.IPv6Loopback(), port)
	}
	return v
}

// bindNetlink allows the one protocol that the filter lets a program have. The multicast groups of NETLINK_ROUTE carry
// news of addresses and links.
func (b *broker) bindNetlink(l listener, n *notification, s callerSocket, address []byte) unix.Errno {
	if len(address) < 12 || binary.NativeEndian.Uint16(address) != unix.AF_NETLINK {
		return unix.EINVAL
	}
	fd, errno := b.socket(unix.AF_NETLINK, unix.SOCK_RAW, s)
	if errno != 0 {
		return errno
	}
	sa := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: binary.NativeEndian.Uint32(address[4:]), Groups: binary.NativeEndian.Uint32(address[8:])}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		return errnoOf(err)
	}
	return b.grant(l, n, s, fd, false)
}

// bindUnix binds in the folders where the program may write. Ours is not the program's Landlock domain, so the folder
// is opened first, its real path is judged, and the name is made in the folder that was opened. Abstract names are
// refused: made by us, the socket would stand outside the program's domain, and the program could not connect to it.
func (b *broker) bindUnix(l listener, n *notification, s callerSocket, address []byte) unix.Errno {
	if binary.NativeEndian.Uint16(address) != unix.AF_UNIX {
		return unix.EINVAL
	}
	path, _, _ := strings.Cut(string(address[2:]), "\x00")
	if path == "" {
		b.say("abstract", "the service tried to bind an abstract unix socket: refused", "hint", "use a path in a folder of sandbox.write")
		return unix.EACCES
	}
	folder, name := filepath.Split(path)
	if name == "" || name == "." || name == ".." {
		return unix.EINVAL
	}
	if !filepath.IsAbs(folder) {
		folder = fmt.Sprintf("/proc/%d/cwd/%s", s.tid, folder)
	}
	dir, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errnoOf(err)
	}
	defer unix.Close(dir)
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir))
	if err != nil || !slices.ContainsFunc(b.writable, func(w string) bool { return beneath(real, w) }) {
		b.say("unix "+path, "the service tried to bind a unix socket outside the folders where it may write: refused", "path", path)
		return unix.EACCES
	}
	kind, errno := unixKind(s)
	if errno != 0 {
		return errno
	}
	fd, errno := b.socket(unix.AF_UNIX, kind, s)
	if errno != 0 {
		return errno
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: b.unixName(path, dir)}); err != nil {
		unix.Close(fd)
		return errnoOf(err)
	}
	return b.grant(l, n, s, fd, kind != unix.SOCK_DGRAM)
}

// unixName is the name to bind, which getsockname shows and by which some programs remove their socket. It is the one
// that was asked for where nobody can make it mean another folder than the one that was judged: directly in a writable
// folder that is not within another one. Elsewhere the program could rename what the path passes through.
func (b *broker) unixName(path string, dir int) string {
	folder := filepath.Dir(path)
	if slices.Contains(b.writable, folder) && !slices.ContainsFunc(b.writable, func(w string) bool { return w != folder && beneath(folder, w) }) {
		return path
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
}

// unixKind finds the socket's type: datagram and sequenced sockets have one protocol name.
func unixKind(s callerSocket) (int, unix.Errno) {
	if s.protocol == "UNIX-STREAM" {
		return unix.SOCK_STREAM, 0
	}
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/unix", s.tid))
	if err != nil {
		return 0, unix.EACCES
	}
	for line := range strings.Lines(string(list)) {
		// Num RefCount Protocol Flags Type St Inode Path
		if f := strings.Fields(line); len(f) >= 7 && f[6] == strconv.FormatUint(s.inode, 10) {
			if kind, err := strconv.ParseUint(f[4], 16, 16); err == nil {
				return int(kind), 0
			}
		}
	}
	return 0, unix.EACCES
}
