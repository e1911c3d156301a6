package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fetch copies the caller's descriptor, where the kernel lets us (custodyFetch).
func (b *broker) fetch(tid uint32, fd int) (*twin, unix.Errno) {
	if tid == 0 || fd < 0 {
		return nil, unix.EBADF
	}
	process, err := pidfd(int(tid))
	if err != nil {
		return nil, unix.EACCES
	}
	defer unix.Close(process)
	copied, err := unix.PidfdGetfd(process, fd, 0)
	if errno := b.unreadable(tid, err, unix.EBADF); errno != 0 {
		return nil, errno
	}
	o := &twin{fd: copied, refs: 1, gone: true}
	if o.domain, err = unix.GetsockoptInt(copied, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil {
		o.kind, err = unix.GetsockoptInt(copied, unix.SOL_SOCKET, unix.SO_TYPE)
	}
	if err != nil {
		unix.Close(copied)
		return nil, unix.ENOTSOCK
	}
	return o, 0
}

// pidfd opens the caller's process. A thread may have a descriptor table of its own since Linux 6.9; before, the
// process is named by its first thread, and so is its table: a thread that left it is refused or connects another
// socket of the same program, to the same judged address.
func pidfd(tid int) (int, error) {
	const thread = unix.O_EXCL // PIDFD_THREAD
	if fd, err := unix.PidfdOpen(tid, thread); err == nil {
		return fd, nil
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return -1, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Tgid:"); ok {
			if tgid, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
				return unix.PidfdOpen(tgid, 0)
			}
		}
	}
	return -1, unix.ESRCH
}

// canFetch tries on a real child, which has the program's uid and has given up what the program will not have:
// whatever stands in the way of ours (the container's own filter, Yama) stands in the way now. On ourselves it always
// works, and proves nothing.
func canFetch(child int) bool {
	process, err := unix.PidfdOpen(child, 0)
	if err != nil {
		return false
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, channelFD, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}
