package http1

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// below finds the socket of a connection; nil: it has none.
func below(c net.Conn) syscall.RawConn {
	for {
		switch known := c.(type) {
		case syscall.Conn:
			raw, err := known.SyscallConn()
			if err != nil {
				return nil
			}
			return raw
		case interface{ NetConn() net.Conn }:
			c = known.NetConn()
		default:
			return nil
		}
	}
}

// gone reports whether a peer has ended its direction, or the connection. Nothing is read.
func gone(c net.Conn) (is bool) {
	raw := below(c)
	if raw == nil {
		return false
	}
	err := raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		is = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return err != nil || is
}

// silent makes a function that reports whether nothing has come on a connection, not even its end.
func silent(raw syscall.RawConn) func() bool {
	var nothing bool
	var b [1]byte
	look := func(fd uintptr) bool {
		for {
			_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if err != unix.EINTR {
				nothing = err == unix.EAGAIN
				return true
			}
		}
	}
	return func() bool { return raw.Read(look) == nil && nothing }
}
