package main

import (
	"bytes"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollPwait2 is epoll_pwait2(2): its timeout is in ns, and those of epoll_wait(2) are too coarse for a rate.
func epollPwait2(epoll int, events []unix.EpollEvent, timeout *unix.Timespec) (int, error) {
	n, _, errno := syscall.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(unsafe.Pointer(timeout)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// service is what gateways forward to: it answers each request with the same 200 bytes, on one thread.
type service struct {
	address string
	served  atomic.Int64 // requests
	epoll   int
	listen  int
	wake    [2]int
	ended   chan struct{}
	lanes   map[int32][]byte // what came on each connection and is no whole request
}

func newService() (_ *service, err error) {
	s := &service{ended: make(chan struct{}), lanes: map[int32][]byte{}}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	s.address = l.Addr().String()
	file, err := l.(*net.TCPListener).File() // another descriptor of the same socket
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if s.listen, err = unix.Dup(int(file.Fd())); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(s.listen, true); err != nil {
		return nil, err
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if err := unix.Pipe2(s.wake[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	for _, fd := range []int{s.listen, s.wake[0]} {
		if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return nil, err
		}
	}
	go s.run()
	return s, nil
}

// close ends it; its connections too.
func (s *service) close() {
	unix.Close(s.wake[1])
	<-s.ended
}

func (s *service) run() {
	runtime.LockOSThread()
	defer close(s.ended)
	defer func() {
		for fd := range s.lanes {
			unix.Close(int(fd))
		}
		for _, fd := range []int{s.listen, s.epoll, s.wake[0]} {
			unix.Close(fd)
		}
	}()
	said := serviceAnswer()
	events := make([]unix.EpollEvent, 256)
	buffer := make([]byte, 64<<10)
	for {
		n, err := unix.EpollWait(s.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		for _, e := range events[:max(n, 0)] {
			switch int(e.Fd) {
			case s.wake[0]:
				return
			case s.listen:
				s.accept()
			default:
				if !s.serve(e.Fd, buffer, said) {
					unix.Close(int(e.Fd))
					delete(s.lanes, e.Fd)
				}
			}
		}
	}
}

func (s *service) accept() {
	for {
		fd, _, err := unix.Accept4(s.listen, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}) != nil {
			unix.Close(fd)
			continue
		}
		s.lanes[int32(fd)] = nil
	}
}

// serve answers what came on a connection, and reports whether there may come more.
func (s *service) serve(fd int32, buffer, said []byte) bool {
	kept := s.lanes[fd]
	copy(buffer, kept)
	n, err := unix.Read(int(fd), buffer[len(kept):])
	if err == unix.EAGAIN || err == unix.EINTR {
		return true
	}
	if err != nil || n <= 0 {
		return false
	}
	b := buffer[:len(kept)+n]
	for {
		end := bytes.Index(b, []byte("\r\n\r\n"))
		if end < 0 {
			break
		}
		b = b[end+4:]
		s.served.Add(1)
		if _, err := unix.Write(int(fd), said); err != nil {
			return false
		}
	}
	if len(b) > 0 || len(kept) > 0 {
		s.lanes[fd] = bytes.Clone(b)
	}
	return len(b) < len(buffer)
}
