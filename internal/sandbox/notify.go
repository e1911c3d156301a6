package sandbox

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The structures of seccomp_unotify(2).
type (
	notification struct { // struct seccomp_notif
		ID    uint64
		TID   uint32
		Flags uint32
		Data  struct { // struct seccomp_data
			Nr   int32
			Arch uint32
			IP   uint64
			Args [6]uint64
		}
	}
	notificationAnswer struct { // struct seccomp_notif_resp
		ID    uint64
		Value int64
		Error int32
		Flags uint32
	}
	addFD struct { // struct seccomp_notif_addfd
		ID    uint64
		Flags uint32
		From  uint32
		To    uint32
		Bits  uint32
	}
)

// listener is the supervisor's end of the filter.
type listener struct{ fd int }

// ioctl begins again when a signal came first. The kernel then has done nothing yet, for none of the requests used here
// is both done and interrupted: that would be true of ADDFD with FLAG_SEND, which answers the call with 0 and no
// descriptor if a signal comes at the wrong moment, and which is therefore not used.
func (l listener) ioctl(request uintptr, p unsafe.Pointer) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), request, uintptr(p))
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// wakeTogether asks the kernel to wake whoever answers on the caller's own processor (Linux 6.6): the two never run at
// the same time, and a switch on one processor costs less than waking another. Older kernels do without.
func (l listener) wakeTogether() {
	const syncWakeUp = 1 // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, syncWakeUp)
}

// receive waits for no one: call it when there is something. ENOENT means that the caller was killed in the meantime.
func (l listener) receive() (*notification, error) {
	// The kernel refuses memory that is not zero, and a newer one may write more than we know.
	var room struct {
		n    notification
		more [256]byte
	}
	if _, err := l.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&room)); err != nil {
		return nil, err
	}
	return &room.n, nil
}

// valid tells whether the caller still waits: only then was what we read from its memory its own.
func (l listener) valid(n *notification) bool {
	_, err := l.ioctl(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&n.ID))
	return err == nil
}

// answer returns value, or an error number if there is one, from the call. It does not let the call go on: the kernel
// would read arguments again that another thread of the program can change. See pass for the one exception.
func (l listener) answer(n *notification, value int, errno unix.Errno) error {
	a := notificationAnswer{ID: n.ID, Value: int64(value), Error: -int32(errno)}
	if errno != 0 {
		a.Value = 0 // the kernel refuses both
	}
	if _, err := l.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// pass has the kernel go on with a call as if nobody had been asked (SECCOMP_USER_NOTIF_FLAG_CONTINUE). It then reads the
// call's arguments again, and what a pointer leads to: another thread of the program may have changed that since we looked,
// so whoever allows something for what was read must not let the call go on. Here nothing is allowed: a learner notes what
// the kernel allows anyway, and a sentry leaves to the walls what it has not refused. See broker.next, the only caller.
func (l listener) pass(n *notification) error {
	a := notificationAnswer{ID: n.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if _, err := l.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// give puts our descriptor from into the caller's table and returns its number there.
func (l listener) give(n *notification, from int, closeOnExec bool) (int, error) {
	a := addFD{ID: n.ID, From: uint32(from), Bits: closeBit(closeOnExec)}
	return l.ioctl(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a))
}

// replace puts our descriptor from over the caller's descriptor to.
func (l listener) replace(n *notification, from, to int, closeOnExec bool) error {
	a := addFD{ID: n.ID, Flags: unix.SECCOMP_ADDFD_FLAG_SETFD, From: uint32(from), To: uint32(to), Bits: closeBit(closeOnExec)}
	_, err := l.ioctl(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a))
	return err
}

func closeBit(closeOnExec bool) uint32 {
	if closeOnExec {
		return unix.O_CLOEXEC
	}
	return 0
}

// serve answers until nobody is left behind the filter, or wake becomes readable. The thread must be locked: its
// signals are blocked, because the runtime's own (SIGURG, to preempt) would interrupt the requests for nothing.
func (b *broker) serve(l listener, wake int) error {
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	all.Val[0] &^= 0b11 << 31 // but not 32 and 33, by which syscall.AllThreadsSyscall reaches a thread
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return err
	}
	l.wakeTogether()
	b.mu.Lock()
	b.from, b.serving = l, true
	b.mu.Unlock()
	// poll(2), because epoll forgets on which processor wakeTogether wants us to be woken.
	look := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}, {Fd: int32(b.poll), Events: unix.POLLIN}}
	var events [32]unix.EpollEvent
	for {
		if _, err := unix.Poll(look, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return err
		}
		if look[1].Revents != 0 {
			return nil
		}
		if look[2].Revents != 0 {
			n, err := unix.EpollWait(b.poll, events[:], 0)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			for _, e := range events[:max(n, 0)] {
				b.settled(int(e.Fd), e.Events)
			}
		}
		switch {
		case look[0].Revents == 0:
		case look[0].Revents&unix.POLLIN == 0:
			return nil // nobody is left
		default:
			if err := b.next(l); err != nil {
				return err
			}
		}
	}
}

// next answers one call, or begins to.
func (b *broker) next(l listener) error {
	n, err := l.receive()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	seen := b.look(n)
	if seen == lookedRefuse {
		return l.answer(n, 0, unix.EACCES)
	}
	if seen == lookedPass || b.learn(n) {
		return l.pass(n)
	}
	if value, errno, now := b.handle(l, n); now {
		return l.answer(n, value, errno)
	}
	return nil
}

// hangUp closes the listener, which answers whoever waits. What is being decided elsewhere is answered to nobody.
func (b *broker) hangUp(fd int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serving = false
	unix.Close(fd)
}
