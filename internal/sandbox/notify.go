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

func (l listener) ioctl(request uintptr, p unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), request, uintptr(p)); errno != 0 {
		return errno
	}
	return nil
}

// receive waits for no one: call it when poll says that there is something. ENOENT means that the caller was killed
// in the meantime.
func (l listener) receive() (*notification, error) {
	// The kernel refuses memory that is not zero, and a newer one may write more than we know.
	var room struct {
		n    notification
		more [256]byte
	}
	if err := l.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&room)); err != nil {
		return nil, err
	}
	return &room.n, nil
}

// valid tells whether the caller still waits: only then was what we read from its memory its own.
func (l listener) valid(n *notification) bool {
	return l.ioctl(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&n.ID)) == nil
}

// answer returns 0 or an error number from the call. There is no way here to answer "continue": the kernel would read
// arguments again that another thread of the program can change.
func (l listener) answer(n *notification, errno unix.Errno) error {
	a := notificationAnswer{ID: n.ID, Error: -int32(errno)}
	if err := l.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// replace puts our descriptor from over the caller's descriptor to. Without ADDFD_FLAG_SEND: interrupted by a signal at
// the wrong moment, that would answer the call with 0 and no descriptor.
func (l listener) replace(n *notification, from, to int, closeOnExec bool) error {
	a := addFD{ID: n.ID, Flags: unix.SECCOMP_ADDFD_FLAG_SETFD, From: uint32(from), To: uint32(to)}
	if closeOnExec {
		a.Bits = unix.O_CLOEXEC
	}
	return l.ioctl(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a))
}

// serve answers until nobody is left behind the filter, or wake becomes readable. The thread must be locked: its
// signals are blocked, because the runtime's own (SIGURG, to preempt) would interrupt the requests.
func (b *broker) serve(l listener, wake int) error {
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	all.Val[0] &^= 0b11 << 31 // but not 32 and 33, by which syscall.AllThreadsSyscall reaches a thread
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return err
	}
	for {
		fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if fds[1].Revents != 0 || (fds[0].Revents != 0 && fds[0].Revents&unix.POLLIN == 0) {
			return nil
		}
		if fds[0].Revents == 0 {
			continue
		}
		n, err := l.receive()
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if err := l.answer(n, b.handle(l, n)); err != nil {
			return err
		}
	}
}
