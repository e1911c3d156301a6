package sandbox

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bind performs bind(2) on our copy of the socket, to what was judged.
func (b *broker) bind(n *notification) unix.Errno {
	fd := int(int32(n.Data.Args[0]))
	o, errno := b.take(n)
	if errno == unix.EACCES && b.custody == custodyBind {
		o, errno = b.likeTheirs(n.TID, fd)
	}
	if errno == errListening || errno == unix.EISCONN {
		return unix.EINVAL // as the kernel answers
	}
	if errno != 0 {
		return errno
	}
	defer b.put(o)
	address, errno := b.readAddress(n, n.Data.Args[1], uint32(n.Data.Args[2]))
	if errno != 0 {
		return errno
	}
	switch o.domain {
	case unix.AF_INET, unix.AF_INET6:
		errno = b.bindInet(o, address)
	case unix.AF_UNIX:
		errno = b.bindUnix(n.TID, o, address)
	case unix.AF_NETLINK:
		errno = bindNetlink(o, address)
	default:
		errno = unix.EACCES
	}
	if errno != 0 || !o.fresh {
		return errno
	}
	return b.handIn(n, o, fd)
}

// likeTheirs makes a socket of the kind that the caller's descriptor shows (custodyBind). What the program set on its
// own is lost.
func (b *broker) likeTheirs(tid uint32, fd int) (*twin, unix.Errno) {
	protocol, errno := b.protocolOf(tid, fd)
	if errno != 0 {
		return nil, errno
	}
	o := &twin{fresh: true, refs: 1, gone: true}
	switch protocol {
	case "TCP":
		o.domain, o.kind = unix.AF_INET, unix.SOCK_STREAM
	case "TCPv6":
		o.domain, o.kind = unix.AF_INET6, unix.SOCK_STREAM
	case "UNIX", "UNIX-STREAM":
		o.domain = unix.AF_UNIX
		o.kind, errno = b.unixKind(tid, fd, protocol)
	case "NETLINK":
		o.domain, o.kind = unix.AF_NETLINK, unix.SOCK_RAW
	default:
		errno = unix.EACCES
	}
	if errno != 0 {
		return nil, errno
	}
	nonblock, _, errno := b.descriptorFlags(tid, fd)
	if errno != 0 {
		return nil, errno
	}
	kind := o.kind | unix.SOCK_CLOEXEC
	if nonblock {
		kind |= unix.SOCK_NONBLOCK // it belongs to the open file, not to the descriptor
	}
	var err error
	if o.fd, err = unix.Socket(o.domain, kind, 0); err != nil {
		return nil, errnoOf(err)
	}
	return o, 0
}

// handIn puts the bound socket over the program's, and keeps a copy if it may listen.
func (b *broker) handIn(n *notification, o *twin, fd int) unix.Errno {
	_, closeOnExec, errno := b.descriptorFlags(n.TID, fd)
	if errno != 0 {
		return errno
	}
	if err := b.from.replace(n, o.fd, fd, closeOnExec); err != nil {
		return unix.EBADF
	}
	if o.domain == unix.AF_NETLINK {
		return 0
	}
	copied, err := unix.FcntlInt(uintptr(o.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return errnoOf(err)
	}
	return b.hold(&twin{fd: copied, domain: o.domain, kind: o.kind})
}

// protocolOf names the protocol of the caller's socket, as in /proc/net/protocols.
func (b *broker) protocolOf(tid uint32, fd int) (string, unix.Errno) {
	if _, errno := b.socketOf(tid, fd); errno != 0 {
		return "", errno
	}
	name := make([]byte, 32)
	size, err := unix.Getxattr(fmt.Sprintf("/proc/%d/fd/%d", tid, fd), "system.sockprotoname", name)
	if errno := b.unreadable(tid, err, unix.EBADF); errno != 0 {
		return "", errno
	}
	return string(bytes.TrimRight(name[:size], "\x00")), 0
}

// bindInet is the decision on a TCP or UDP address; judge has the rules.
func (b *broker) bindInet(o *twin, address []byte) unix.Errno {
	asked, errno := parseInet(o.domain, address)
	if errno != 0 {
		return errno
	}
	v := b.judge(o.kind == unix.SOCK_STREAM, b.only6(o), asked)
	if v.errno != 0 {
		if b.learner != nil && o.kind == unix.SOCK_STREAM && !b.silent() {
			b.learner.refusedListen(asked.String())
		}
		b.say(fmt.Sprint(o.kind, asked), v.why, "asked", asked.String(), "hint", v.hint)
		return v.errno
	}
	given := v.to
	errno = bindTo(o, given)
	if errno == unix.EADDRINUSE && b.custody == custodyMake {
		// Perhaps by a socket that the program has closed and we have not.
		for range 2 {
			b.sweep(time.Now())
		}
		errno = bindTo(o, given)
	}
	if errno == unix.EADDRINUSE && v.otherwise.IsValid() {
		given = v.otherwise
		errno = bindTo(o, given)
	}
	if errno != 0 {
		return errno
	}
	if v.listen && o.domain == unix.AF_INET && b.custody == custodyBind {
		b.led[asked.Port()] = true
	}
	if v.why != "" {
		b.say(fmt.Sprint("led", asked), v.why, "asked", asked.String(), "given", given.String(), "hint", v.hint)
	}
	return 0
}

// only6 tells whether the program wants IPv6 alone. A socket that we made in the place of its own does not say.
func (b *broker) only6(o *twin) bool {
	if o.domain != unix.AF_INET6 || o.fresh {
		return false
	}
	only, err := unix.GetsockoptInt(o.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	return err == nil && only != 0
}

func bindTo(o *twin, to netip.AddrPort) unix.Errno {
	if o.kind == unix.SOCK_STREAM {
		// Every server sets it, so that it can be started again at once; and the port of a socket that the program has
		// closed and we have not yet is not in its way.
		if err := unix.SetsockoptInt(o.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return errnoOf(err)
		}
	}
	if o.domain == unix.AF_INET {
		return errnoOf(unix.Bind(o.fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}))
	}
	if o.fresh {
		v6only := 0
		if plain := to.Addr().Unmap(); plain.Is6() && plain.IsLoopback() {
			v6only = 1
		}
		if err := unix.SetsockoptInt(o.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only); err != nil {
			return errnoOf(err)
		}
	}
	return errnoOf(unix.Bind(o.fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}))
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
	otherwise netip.AddrPort // where to is taken by the program's own IPv4 socket
	listen    bool           // it may listen
	why, hint string         // for the log; empty if there is nothing to say
}

// judge decides on an address that TCP or UDP is to be bound to.
//
//	TCP  loopback        an allowed port  as asked
//	TCP  every address   an allowed port  led to 127.0.0.1, an IPv6 socket to ::ffff:127.0.0.1, where the gate calls,
//	                                      one for IPv6 alone to ::1
//	TCP  any             port 0           as asked, but listen will be refused: a client chooses its source address
//	                                      so, and Go finds out whether there is IPv6
//	UDP  loopback        any port         as asked: nobody outside reaches it
//	UDP  every address   port 0           as asked: it is what the first send does without bind
//	     all else                         EACCES
func (b *broker) judge(tcp, only6 bool, asked netip.AddrPort) verdict {
	plain := asked.Addr().Unmap()
	port := asked.Port()
	allowed := slices.Contains(b.ports, port) && tcp
	as := verdict{to: asked, listen: allowed}
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
	if only6 && !asked.Addr().Is4In6() {
		v.to = netip.AddrPortFrom(netip.IPv6Loopback(), port)
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
func bindNetlink(o *twin, address []byte) unix.Errno {
	if len(address) < 12 || binary.NativeEndian.Uint16(address) != unix.AF_NETLINK {
		return unix.EINVAL
	}
	return errnoOf(unix.Bind(o.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK,
		Pid: binary.NativeEndian.Uint32(address[4:]), Groups: binary.NativeEndian.Uint32(address[8:])}))
}

// bindUnix binds in the folders where the program may write. Ours is not the program's Landlock domain, so the folder
// is opened first, its real path is judged, and the name is made in the folder that was opened. Abstract names are
// refused: made by us, the socket would stand outside the program's domain, and the program could not connect to it.
func (b *broker) bindUnix(tid uint32, o *twin, address []byte) unix.Errno {
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
		folder = fmt.Sprintf("/proc/%d/cwd/%s", tid, folder)
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
	began := time.Now()
	if err := unix.Bind(o.fd, &unix.SockaddrUnix{Name: b.unixName(path, dir)}); err != nil {
		return errnoOf(err)
	}
	b.remember(dir, name, began)
	if b.learner != nil && !b.silent() {
		b.learner.at(caller{tid}, real, accessWrite)
	}
	return 0
}

// remember notes that a socket's file is the program's own, which it may connect to. The file must have been born by this
// bind: in a folder where it may write, the program could put another one's socket in its place before we look.
func (b *broker) remember(dir int, name string, began time.Time) {
	const grain = 50 * time.Millisecond // file systems tell the time by the last tick
	var st unix.Statx_t
	err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	if err != nil || st.Mask&unix.STATX_BTIME == 0 || time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)).Before(began.Add(-grain)) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.files) >= maxFiles {
		clear(b.files)
	}
	b.files[fileOf(&st)] = true
}

// unixName is the name to bind, which getsockname shows and by which some programs remove their socket. It is the one
// that was asked for where nobody can make it mean another folder than the one that was judged: directly in a writable
// folder that is not within another one. Elsewhere, and on a way back ("x/.."), the program could rename what the path
// passes through.
func (b *broker) unixName(path string, dir int) string {
	folder := filepath.Dir(path)
	if path == filepath.Clean(path) && slices.Contains(b.writable, folder) && !slices.ContainsFunc(b.writable, func(w string) bool { return w != folder && beneath(folder, w) }) {
		return path
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
}

// unixKind finds the type of the caller's socket: datagram and sequenced sockets have one protocol name.
func (b *broker) unixKind(tid uint32, fd int, protocol string) (int, unix.Errno) {
	if protocol == "UNIX-STREAM" {
		return unix.SOCK_STREAM, 0
	}
	inode, errno := b.socketOf(tid, fd)
	if errno != 0 {
		return 0, errno
	}
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/unix", tid))
	if err != nil {
		return 0, unix.EACCES
	}
	for line := range strings.Lines(string(list)) {
		// Num RefCount Protocol Flags Type St Inode Path
		if f := strings.Fields(line); len(f) >= 7 && f[6] == strconv.FormatUint(inode, 10) {
			if kind, err := strconv.ParseUint(f[4], 16, 16); err == nil {
				return int(kind), 0
			}
		}
	}
	return 0, unix.EACCES
}
