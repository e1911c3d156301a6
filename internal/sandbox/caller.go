package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What the supervisor sees of a thread of the program that waits for an answer. Everything is looked at once, and is
// worth something only while listener.valid says that this thread still waits: afterwards its number may be another's.

// socketOf returns the inode of the socket that the caller's descriptor shows now.
func (b *broker) socketOf(tid uint32, fd int) (uint64, unix.Errno) {
	if tid == 0 || fd < 0 { // 0: in no process namespace that we see
		return 0, unix.EBADF
	}
	var room [64]byte // a socket's link is shorter
	size, err := unix.Readlink("/proc/"+strconv.Itoa(int(tid))+"/fd/"+strconv.Itoa(fd), room[:])
	if errno := b.unreadable(tid, err, unix.EBADF); errno != 0 {
		return 0, errno
	}
	inode, ok := socketLink(string(room[:size]))
	if !ok {
		return 0, unix.ENOTSOCK
	}
	return inode, 0
}

// socketLink reads what the link of a socket's descriptor says: "socket:[inode]".
func socketLink(link string) (inode uint64, ok bool) {
	number, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	return inode, err == nil
}

// descriptorFlags tells how the caller's descriptor was opened.
func (b *broker) descriptorFlags(tid uint32, fd int) (nonblock, closeOnExec bool, errno unix.Errno) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", tid, fd))
	if errno := b.unreadable(tid, err, unix.EBADF); errno != 0 {
		return false, false, errno
	}
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, _ := strconv.ParseUint(strings.TrimSpace(value), 8, 64)
			nonblock, closeOnExec = flags&unix.O_NONBLOCK != 0, flags&unix.O_CLOEXEC != 0
		}
	}
	return nonblock, closeOnExec, 0
}

// unreadable maps an error from the program's /proc entries; missing is the answer where there is nothing.
func (b *broker) unreadable(tid uint32, err error, missing unix.Errno) unix.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		program, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", tid))
		b.say("unreadable", "a process of the service asked for a socket and its supervisor may not look into it: refused",
			"process", strings.TrimSpace(string(program)), "hint", "its file must be readable by the user that runs it, and kernel.yama.ptrace_scope at most 1")
		return unix.EACCES
	}
	return missing
}

// readAddress copies the address out of the caller's memory, once.
func (b *broker) readAddress(n *notification, at uint64, size uint32) ([]byte, unix.Errno) {
	if size < 2 || size > 128 { // sizeof(struct sockaddr_storage)
		return nil, unix.EINVAL
	}
	return b.readMemory(n, at, int(size))
}

// readMemory copies out of the caller's memory what has to be decided on, and makes sure that it was the caller's.
// /proc and not process_vm_readv(2), which a default container refuses.
func (b *broker) readMemory(n *notification, at uint64, size int) ([]byte, unix.Errno) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(int(n.TID))+"/mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errno := b.unreadable(n.TID, err, unix.EFAULT); errno != 0 {
		return nil, errno
	}
	defer unix.Close(fd)
	copied := make([]byte, size)
	if got, err := unix.Pread(fd, copied, int64(at)); err != nil || got != size {
		return nil, unix.EFAULT
	}
	if !b.from.valid(n) {
		return nil, unix.EINTR // nobody reads it
	}
	return copied, 0
}
