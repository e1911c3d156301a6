package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// broker does bind(2) and listen(2) for the program.
//
// bind: copy the address once, see that the caller still waits, judge the copy, make a socket of the same kind, bind
// it to what was judged, and put it over the caller's descriptor. Whatever another thread does to the address or to
// the descriptor meanwhile, the only socket that gets a port is ours. listen: find our own copy of the socket that the
// descriptor shows, and listen on that; a socket that we did not bind gets none. Our copy is given up then, since a
// held one would keep the port open and its peer waiting for FIN.
type broker struct {
	ports    []uint16 // TCP ports that may be bound
	writable []string // folders where, or beneath which, unix sockets may be bound
	log      *slog.Logger

	mu        sync.Mutex
	quiet     bool             // during the self-test
	bound     map[uint64]bound // by inode: bound and not yet listening
	order     []uint64         // of bound, oldest first
	listening map[uint64]bool  // by inode; so that a second listen, which changes the backlog, is no error
	led       map[uint16]bool  // ports where a wildcard IPv4 socket was led to 127.0.0.1
	said      map[string]bool  // what was logged already
}

// bound is our copy of a socket that the program has.
type bound struct{ fd int }

const (
	maxBound  = 64   // a program binds and listens in one breath; more are leaked, and the oldest is forgotten
	maxListen = 4096 // inodes, as numbers
	maxSaid   = 256
)

func newBroker(ports []uint16, rules []rule, log *slog.Logger) *broker {
	b := &broker{ports: ports, log: log, quiet: true, bound: map[uint64]bound{}, listening: map[uint64]bool{}, led: map[uint16]bool{}, said: map[string]bool{}}
	for _, r := range rules {
		if r.Access&accessWrite != 0 {
			b.writable = append(b.writable, r.Path)
		}
	}
	return b
}

// begin forgets what the self-test did.
func (b *broker) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forgetAll()
	clear(b.listening)
	clear(b.led)
	b.quiet = false
}

func (b *broker) forgetAll() {
	for _, s := range b.bound {
		unix.Close(s.fd)
	}
	clear(b.bound)
	b.order = nil
}

// close gives up every copy.
func (b *broker) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forgetAll()
}

// handle returns the error number for one call, 0 for done.
func (b *broker) handle(l listener, n *notification) unix.Errno {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, errno := b.inspect(int(n.TID), int(int32(n.Data.Args[0])))
	if errno != 0 {
		return errno
	}
	switch n.Data.Nr {
	case unix.SYS_BIND:
		address, errno := b.readAddress(n.TID, n.Data.Args[1], uint32(n.Data.Args[2]))
		if errno != 0 {
			return errno
		}
		if !l.valid(n) {
			return unix.EINTR // nobody reads it
		}
		return b.bind(l, n, s, address)
	case unix.SYS_LISTEN:
		return b.listen(s, int(int32(n.Data.Args[1])))
	}
	return unix.ENOSYS
}

// callerSocket is what can be seen of the program's socket from outside.
type callerSocket struct {
	tid, fd     int
	inode       uint64
	protocol    string // system.sockprotoname
	nonblock    bool
	closeOnExec bool
}

func (b *broker) inspect(tid, fd int) (s callerSocket, errno unix.Errno) {
	if tid == 0 || fd < 0 { // 0: in no process namespace that we see
		return s, unix.EBADF
	}
	s = callerSocket{tid: tid, fd: fd}
	path := fmt.Sprintf("/proc/%d/fd/%d", tid, fd)
	link, err := os.Readlink(path)
	if errno := b.unreadable(tid, err, unix.EBADF); errno != 0 {
		return s, errno
	}
	number, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return s, unix.ENOTSOCK
	}
	if s.inode, err = strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64); err != nil {
		return s, unix.ENOTSOCK
	}
	name := make([]byte, 32)
	size, err := unix.Getxattr(path, "system.sockprotoname", name)
	if errno := b.unreadable(tid, err, unix.EBADF); errno != 0 {
		return s, errno
	}
	s.protocol = string(bytes.TrimRight(name[:size], "\x00"))
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", tid, fd))
	if errno := b.unreadable(tid, err, unix.EBADF); errno != 0 {
		return s, errno
	}
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, _ := strconv.ParseUint(strings.TrimSpace(value), 8, 64)
			s.nonblock, s.closeOnExec = flags&unix.O_NONBLOCK != 0, flags&unix.O_CLOEXEC != 0
		}
	}
	return s, 0
}

// unreadable maps an error from the program's /proc entries; missing is the answer where there is nothing.
func (b *broker) unreadable(tid int, err error, missing unix.Errno) unix.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		program, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", tid))
		b.say("unreadable", "a process of the service tried to bind and its supervisor may not look into it: refused",
			"process", strings.TrimSpace(string(program)), "hint", "its file must be readable by the user that runs it, and kernel.yama.ptrace_scope at most 1")
		return unix.EACCES
	}
	return missing
}

// readAddress copies the address out of the caller's memory, once.
func (b *broker) readAddress(tid uint32, at uint64, size uint32) ([]byte, unix.Errno) {
	if size < 2 || size > 128 { // sizeof(struct sockaddr_storage)
		return nil, unix.EINVAL
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
	if errno := b.unreadable(int(tid), err, unix.EFAULT); errno != 0 {
		return nil, errno
	}
	defer memory.Close()
	address := make([]byte, size)
	if n, _ := memory.ReadAt(address, int64(at)); n != int(size) {
		return nil, unix.EFAULT
	}
	return address, 0
}

func (b *broker) listen(s callerSocket, backlog int) unix.Errno {
	own, ok := b.bound[s.inode]
	if ok {
		errno := errnoOf(unix.Listen(own.fd, backlog))
		if errno != 0 {
			return errno
		}
		unix.Close(own.fd)
		delete(b.bound, s.inode)
		b.order = slices.DeleteFunc(b.order, func(i uint64) bool { return i == s.inode })
		if len(b.listening) == maxListen {
			clear(b.listening)
		}
		b.listening[s.inode] = true
		return 0
	}
	switch {
	case b.listening[s.inode]:
		return 0
	case s.protocol == "TCP" || s.protocol == "TCPv6":
		b.say("unbound", "the service tried to listen on a TCP socket that it had not bound to an allowed port: refused", "hint", b.hint())
		return unix.EACCES
	case s.protocol == "UNIX-STREAM" || s.protocol == "UNIX":
		return unix.EINVAL // as the kernel answers without bind
	}
	return unix.EOPNOTSUPP
}

// say logs a thing once.
func (b *broker) say(key, message string, attributes ...any) {
	if b.quiet || b.said[key] || len(b.said) >= maxSaid {
		return
	}
	b.said[key] = true
	b.log.Warn(message, attributes...)
}

// hint is the line to change.
func (b *broker) hint() string {
	if len(b.ports) == 0 {
		return "no TCP port is allowed here: listen on the unix socket, or name a port in ingress.upstream"
	}
	return fmt.Sprintf("in NestJS: await app.listen(%d, '127.0.0.1'); %d is the port of ingress.upstream", b.ports[0], b.ports[0])
}

func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return unix.EIO
}
