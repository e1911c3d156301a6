package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// broker does for the program what decides whom it speaks with: socket(2), connect(2), bind(2) and listen(2).
//
// Each goes the same way: copy the address once, see that the caller still waits, judge the copy, and act on our own
// copy of the program's socket with our own copy of the address. Whatever another thread does to the address or the
// descriptor meanwhile, only what was judged happens. A socket that we have no copy of (inherited, received from
// another process) connects to nobody.
//
// A copy is given up as soon as it has done its work: a held one would keep the port open, and its peer waiting for FIN.
type broker struct {
	custody  custody
	ports    []uint16 // TCP ports that may be bound
	writable []string // folders where, or beneath which, unix sockets may be bound
	sockets  []string // real paths of unix sockets that may be connected to
	udp      bool     // there are UDP sockets, for name resolution
	most     int      // sockets may be held, and as many connecting
	hook     func(Attempt, func(Way))
	resolve  func(query []byte) []byte
	learner  *learner // nil: the profile is enforced, and not learnt
	sentry   *sentry  // nil: nobody hears what the walls refuse
	log      *slog.Logger

	aside sync.WaitGroup // copies that are being closed
	from  listener       // set before the first call is handled
	poll  int            // epoll: the listener, and sockets that are connecting

	mu      sync.Mutex
	serving bool // from is open
	quiet   bool // during the self-test
	trial   func(Attempt, func(Way))
	held    map[uint64]*twin        // by inode
	made    uint64                  // how many were ever held or waited for
	waiting map[int]*twin           // by descriptor: connecting, until poll says how it ended
	past    map[uint64]past         // by inode: what became of a socket whose copy was given up
	files   map[file]bool           // unix sockets that the program has bound itself
	led     map[uint16]bool         // with custodyBind: ports where a wildcard IPv4 socket was led to 127.0.0.1
	said    map[string]bool         // what was logged already
	blocked map[*notification]*twin // connects that wait in a thread of ours
	sweeps  *time.Timer
	queries int // datagrams that are being answered
	closed  bool
}

// custody is how we come by a copy of a program's socket.
type custody int

const (
	custodyMake  custody = iota // we make every socket and keep a copy: what works in a default container
	custodyFetch                // the kernel lets us fetch one when we need it (pidfd_getfd): nothing is kept
	custodyBind                 // network "ports": connect is not ours, so bind gives the program another socket of the same kind
)

// past is what is worth knowing of a socket that we gave up.
type past uint8

const (
	pastConnected past = iota + 1
	pastListening
)

// file is a socket's name in the file system, whatever path leads to it. The number alone is given out again when a file
// is removed.
type file struct {
	device, inode uint64
	born          unix.StatxTimestamp
}

func fileOf(st *unix.Statx_t) file {
	return file{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino, st.Btime}
}

const (
	maxHeld    = 1024 // a program makes and uses a socket in one breath; of more, and of more that wait, the oldest is forgotten
	maxPast    = 8192 // inodes, as numbers
	maxFiles   = 1024
	maxBlocked = 256 // threads of ours
	maxSaid    = 256
)

// twin is our copy of a socket of the program's: another descriptor of the same open file.
type twin struct {
	fd           int
	inode        uint64
	domain, kind int
	fresh        bool // with custodyBind: the program does not have it yet

	// Guarded by the broker's mu.
	number uint64 // of all that were held or waited for
	since  time.Time
	missed int  // sweeps in a row that did not find it with the program
	refs   int  // calls in progress that use it
	gone   bool // nobody will ask for it any more: it closes with the last call
	ended  func(error)
}

func older(x, y *twin) int { return cmp.Compare(x.number, y.number) }

func newBroker(s *spec, cmd Command, log *slog.Logger) (*broker, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("make the broker: %w", err)
	}
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the broker: %w", err)
	}
	b := &broker{
		// The descriptors are the gates' too.
		most:  int(min(maxHeld, files.Cur/8)),
		ports: s.Ports, sockets: s.Sockets, udp: s.UDP, hook: cmd.Connect, resolve: cmd.Resolve, log: log, poll: poll, quiet: true,
		held: map[uint64]*twin{}, waiting: map[int]*twin{}, past: map[uint64]past{}, files: map[file]bool{}, led: map[uint16]bool{}, said: map[string]bool{},
		blocked: map[*notification]*twin{},
	}
	if s.Learn {
		b.learner = newLearner(s.needs, s.Dir, variable(s.Env, "PATH"))
		b.writable = []string{"/"} // a socket's file is a file, and no rule holds on files
	}
	if s.Watch {
		b.sentry = newSentry(s.Rules, cmd.Denied)
	}
	for _, r := range s.Rules {
		if r.Access&accessWrite != 0 {
			b.writable = append(b.writable, r.Path)
		}
	}
	return b, nil
}

// begin forgets what the self-test did.
func (b *broker) begin() {
	b.mu.Lock()
	last := b.forgetAll()
	clear(b.past)
	clear(b.led)
	clear(b.files)
	b.quiet, b.trial = false, nil
	b.mu.Unlock()
	for _, fd := range last {
		shut(fd)
	}
}

// forgetAll gives every copy up; mu is held. The caller must shut what is returned when it no longer is.
func (b *broker) forgetAll() (last []int) {
	for _, o := range b.waiting {
		b.unwatch(o)
		last = append(last, b.drop(o))
	}
	for _, o := range b.held {
		last = append(last, b.release(o))
	}
	return last
}

// close gives up every copy, which may take as long as shut. What is being answered is answered.
func (b *broker) close() {
	b.mu.Lock()
	b.closed = true
	if b.sweeps != nil {
		b.sweeps.Stop()
	}
	last := append(b.forgetAll(), b.poll)
	b.poll = nothing
	b.mu.Unlock()
	for _, fd := range last {
		shut(fd)
	}
	b.aside.Wait()
}

// handle decides one call. Unless now is true the answer is given later.
func (b *broker) handle(l listener, n *notification) (value int, errno unix.Errno, now bool) {
	switch n.Data.Nr {
	case unix.SYS_SOCKET:
		value, errno = b.socket(n)
		return value, errno, true
	case unix.SYS_BIND:
		return 0, b.bind(n), true
	case unix.SYS_LISTEN:
		return 0, b.listen(n), true
	case unix.SYS_CONNECT:
		errno, now = b.connect(n)
		return 0, errno, now
	case unix.SYS_SENDTO:
		value, errno = b.sendTo(n)
		return value, errno, true
	}
	return 0, unix.ENOSYS, true
}

// socket makes a socket for the program and keeps a copy. The arguments are numbers that the filter has judged.
func (b *broker) socket(n *notification) (int, unix.Errno) {
	domain, kind, protocol := int(int32(n.Data.Args[0])), int(int32(n.Data.Args[1])), int(int32(n.Data.Args[2]))
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return 0, errnoOf(err)
	}
	kind, flags := kind&sockType, kind&^sockType
	if kind == unix.SOCK_DGRAM {
		// Whatever is sent, by whatever call: only loopback hears it. An unprivileged process cannot undo this.
		if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"); err != nil {
			unix.Close(fd)
			return 0, unix.EACCES
		}
	}
	number, err := b.from.give(n, fd, flags&unix.SOCK_CLOEXEC != 0)
	if err != nil {
		unix.Close(fd)
		return 0, errnoOf(err)
	}
	if errno := b.hold(&twin{fd: fd, domain: domain, kind: kind}); errno != 0 {
		return 0, errno
	}
	return number, 0
}

// hold keeps a copy until it has done its work.
func (b *broker) hold(o *twin) unix.Errno {
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		unix.Close(o.fd)
		return unix.EIO
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		unix.Close(o.fd)
		return unix.ENOSYS
	}
	if len(b.held) >= b.most {
		b.shutAside(b.release(slices.MinFunc(slices.Collect(maps.Values(b.held)), older)))
	}
	b.made++
	o.inode, o.number, o.since = st.Ino, b.made, time.Now()
	delete(b.past, o.inode) // the number was another socket's
	b.held[o.inode] = o
	b.sweepLater()
	return 0
}

// take returns our copy of the socket that the caller's descriptor shows, for the time of one call; put gives it back.
func (b *broker) take(n *notification) (*twin, unix.Errno) {
	fd := int(int32(n.Data.Args[0]))
	if b.custody == custodyFetch {
		return b.fetch(n.TID, fd)
	}
	inode, errno := b.socketOf(n.TID, fd)
	if errno != 0 {
		return nil, errno
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.held[inode]
	switch {
	case o != nil:
		o.refs++
		return o, 0
	case b.past[inode] == pastConnected:
		return nil, unix.EISCONN
	case b.past[inode] == pastListening:
		return nil, errListening
	}
	return nil, unix.EACCES
}

// errListening is no error number of the kernel's: the socket listens already.
const errListening = unix.Errno(4095)

// put ends the use of a copy. It may wait: should ours be the last, the program may have chosen (SO_LINGER) that closing
// takes an hour.
func (b *broker) put(o *twin) {
	b.mu.Lock()
	last := b.drop(o)
	b.mu.Unlock()
	shut(last)
}

// nothing is the descriptor of no file.
const nothing = -1

// drop is put for those who hold mu, and returns the descriptor that they must shut when they no longer do.
func (b *broker) drop(o *twin) (last int) {
	if o.refs--; o.gone && o.refs == 0 {
		return o.fd
	}
	return nothing
}

// release gives a copy up, and is like drop.
func (b *broker) release(o *twin) (last int) {
	if o.gone {
		return nothing
	}
	o.gone = true
	delete(b.held, o.inode)
	if o.refs == 0 {
		return o.fd
	}
	return nothing
}

func shut(fd int) {
	if fd != nothing {
		unix.Close(fd)
	}
}

// shutAside is shut where others wait.
func (b *broker) shutAside(fd int) {
	if fd != nothing {
		b.aside.Go(func() { unix.Close(fd) })
	}
}

// retire gives a copy that is in use up, and remembers what became of the socket.
func (b *broker) retire(o *twin, as past) {
	b.mu.Lock()
	if b.custody != custodyFetch {
		if len(b.past) >= maxPast {
			// A socket may be told to listen again long after: by a worker that begins anew.
			maps.DeleteFunc(b.past, func(_ uint64, p past) bool { return p == pastConnected })
			if len(b.past) > maxPast/2 { // more listeners than any program has
				clear(b.past)
			}
		}
		b.past[o.inode] = as
	}
	last := b.release(o)
	b.mu.Unlock()
	shut(last)
}

// listen performs listen(2) where bind has put the socket on an allowed place, and nowhere else.
func (b *broker) listen(n *notification) unix.Errno {
	o, errno := b.take(n)
	switch {
	case errno == errListening:
		return 0 // a second listen changes the backlog, which is not worth a copy
	case errno == unix.EACCES && b.custody == custodyBind:
		return b.unbound(n)
	case errno != 0:
		return errno
	}
	defer b.put(o)
	if !b.from.valid(n) { // what we took may be another process's
		return unix.EINTR // nobody reads it
	}
	if o.domain == unix.AF_INET || o.domain == unix.AF_INET6 {
		if o.kind != unix.SOCK_STREAM {
			return unix.EOPNOTSUPP
		}
		at, err := localAddress(o.fd)
		if err != nil || !at.Addr().IsLoopback() || !slices.Contains(b.ports, at.Port()) {
			b.say("unbound", "the service tried to listen on a TCP socket that it had not bound to an allowed port: refused", "hint", b.hint())
			return unix.EACCES
		}
	}
	if errno := errnoOf(unix.Listen(o.fd, int(int32(n.Data.Args[1])))); errno != 0 {
		return errno
	}
	b.retire(o, pastListening)
	return 0
}

// unbound is the answer to listen on a socket that we did not bind.
func (b *broker) unbound(n *notification) unix.Errno {
	switch protocol, errno := b.protocolOf(n.TID, int(int32(n.Data.Args[0]))); {
	case errno != 0:
		return errno
	case protocol == "UNIX-STREAM" || protocol == "UNIX":
		return unix.EINVAL // as the kernel answers without bind
	case protocol != "TCP" && protocol != "TCPv6":
		return unix.EOPNOTSUPP
	}
	b.say("unbound", "the service tried to listen on a TCP socket that it had not bound to an allowed port: refused", "hint", b.hint())
	return unix.EACCES
}

// localAddress is a socket's own address, an IPv4 address in IPv6's clothes as an IPv4 address.
func localAddress(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, unix.EAFNOSUPPORT
}

// say logs a thing once.
func (b *broker) say(key, message string, attributes ...any) {
	b.mu.Lock()
	if b.quiet || b.said[key] || len(b.said) >= maxSaid {
		b.mu.Unlock()
		return
	}
	b.said[key] = true
	b.mu.Unlock()
	b.log.Warn(message, attributes...)
}

// silent tells whether it is the self-test that asks.
func (b *broker) silent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.quiet
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
