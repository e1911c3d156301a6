package sandbox

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// connectUnix connects to a socket that has a path: it is opened first, the path that it then really has is judged, and
// what was opened is connected to. Nobody can make it mean another socket in between.
func (b *broker) connectUnix(n *notification, o *twin, address []byte) (errno unix.Errno, now bool) {
	switch binary.NativeEndian.Uint16(address) {
	case unix.AF_UNSPEC:
		return rawConnect(o.fd, address[:2:2]), true
	case unix.AF_UNIX:
	default:
		return unix.EINVAL, true
	}
	path, _, _ := strings.Cut(string(address[2:]), "\x00")
	if path == "" {
		b.say("abstract connect", "the service tried to connect to an abstract unix socket: refused", "hint", "let it use a socket with a path, named in sandbox.sockets")
		return unix.EACCES, true
	}
	fd, err := unix.Open(asSeenBy(n.TID, path), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return errnoOf(err), true
	}
	real, id, errno := socketFile(fd)
	if errno != 0 {
		unix.Close(fd)
		return errno, true
	}
	connect := func(w Way) {
		if !w.Allow {
			unix.Close(fd)
			b.lead(n, o, netip.AddrPort{}, Way{Errno: w.Errno})
			return
		}
		sa := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", fd)}
		ended := w.Ended
		w.Begun, w.Ended = nil, func(err error) {
			unix.Close(fd)
			if ended != nil {
				ended(err)
			}
		}
		b.perform(n, o, w, false, func() unix.Errno { return errnoOf(unix.Connect(o.fd, sa)) })
	}
	b.mu.Lock()
	theirs := b.files[id] && slices.ContainsFunc(b.writable, func(w string) bool { return beneath(real, w) })
	b.mu.Unlock()
	if theirs { // it speaks to itself
		connect(Way{Allow: true})
		return 0, false
	}
	given := slices.Contains(b.sockets, real)
	if !given && b.learner == nil {
		b.say("unix "+real, "the service tried to connect to a unix socket that it was not given: refused", "path", real, "hint", "if it was meant: sandbox.sockets: ["+real+"]")
	}
	b.ask(Attempt{Process: int(n.TID), Network: "unix", Path: real, Given: given}, func(w Way) {
		w.Allow = w.Allow && (given || b.learner != nil)
		connect(w)
	})
	return 0, false
}

// asSeenBy writes a path of the caller's as we have to open it: "self" and "." are others to us.
func asSeenBy(tid uint32, path string) string {
	for _, self := range []string{"/proc/self/", "/proc/thread-self/"} {
		if rest, ok := strings.CutPrefix(path, self); ok {
			return fmt.Sprintf("/proc/%d/%s", tid, rest)
		}
	}
	if strings.HasPrefix(path, "/") {
		return path
	}
	return fmt.Sprintf("/proc/%d/cwd/%s", tid, path)
}

// socketFile tells what an O_PATH descriptor has opened: its real path, which no link is part of, and its identity.
func socketFile(fd int) (real string, id file, errno unix.Errno) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return "", id, errnoOf(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return "", id, unix.ECONNREFUSED // as the kernel answers
	}
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", id, unix.EACCES
	}
	return real, fileOf(&st), 0
}
