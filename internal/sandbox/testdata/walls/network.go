package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func closingListen(fd int, err error) error {
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Listen(fd, 1)
}

func socket(family, kind, protocol int) (int, error) {
	return unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
}

func sockaddr(address string) (int, unix.Sockaddr) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		panic(err)
	}
	port, _ := strconv.Atoi(p)
	ip := net.ParseIP(host)
	if ip4 := ip.To4(); ip4 != nil && !strings.Contains(host, ":") {
		return unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte(ip4)}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: [16]byte(ip.To16())}
}

func name(fd int) string {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return err.Error()
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return net.JoinHostPort(net.IP(sa.Addr[:]).String(), strconv.Itoa(sa.Port))
	case *unix.SockaddrInet6:
		ip := net.IP(sa.Addr[:]).String()
		if bytes.HasPrefix(sa.Addr[:], []byte{10: 0xff, 11: 0xff}) {
			ip = "::ffff:" + ip
		}
		return net.JoinHostPort(ip, strconv.Itoa(sa.Port))
	}
	return fmt.Sprintf("%T", sa)
}

// bindListen binds, listens if asked, and prints the name that it got.
func bindListen(address string, listen bool) error {
	family, sa := sockaddr(address)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(fd, sa); err != nil {
		return err
	}
	if listen {
		if err := unix.Listen(fd, 16); err != nil {
			return err
		}
	}
	fmt.Println("name=" + name(fd))
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		return errors.New("the socket became blocking")
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		return errors.New("the socket would be inherited")
	}
	return nil
}

// relisten listens, closes and listens again on one port, and connects in between: nobody else may hold the socket.
func relisten(address string) error {
	for range 200 {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		s, err := l.Accept()
		if err != nil {
			return err
		}
		l.Close()
		s.Close()
		c.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("the end of the connection did not arrive: %v", err)
		}
		c.Close()
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			c.Close()
			return errors.New("the port is still open after close")
		}
	}
	return nil
}

// backlog listens twice on one socket, which changes its backlog.
func backlog(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return errors.Join(unix.Bind(fd, sa), unix.Listen(fd, 1), unix.Listen(fd, 100))
}

// rebind binds a socket a second time, and leaves more bound sockets behind than the supervisor keeps.
func rebind(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, sa); err != nil {
		return err
	}
	if err := unix.Bind(fd, sa); err != unix.EINVAL {
		return fmt.Errorf("second bind: %v", err)
	}
	for range 1500 {
		more, err := socket(family, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		err = unix.Bind(more, sa)
		unix.Close(more)
		if err != nil {
			return err
		}
	}
	last, err := socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(last)
	return errors.Join(unix.Bind(last, sa), unix.Listen(last, 1))
}

func bindUDP(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, sa); err != nil {
		return err
	}
	fmt.Println("name=" + name(fd))
	return nil
}

func listenUnix(network, path string) error {
	l, err := net.Listen(network, path)
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Write([]byte("hello"))
			c.Close()
		}
	}()
	if strings.HasPrefix(path, "@") {
		return nil
	}
	c, err := net.Dial(network, path)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 8))
	return err
}

func bindUnixgram(path string) error {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		c.Close()
		os.Remove(path)
	}
	return err
}

// badAddress hands bind what is no address.
func badAddress(string) error {
	fd, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	file, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	good := []byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	at := uintptr(unsafe.Pointer(&good[0]))
	for _, c := range []struct {
		name string
		fd   int
		at   uintptr
		size uintptr
		want unix.Errno
	}{
		{"null pointer", fd, 0, 16, unix.EFAULT},
		{"kernel pointer", fd, ^uintptr(0) - 4096, 16, unix.EFAULT},
		{"short", fd, at, 1, unix.EINVAL},
		{"shorter than an address", fd, at, 8, unix.EINVAL},
		{"long", fd, at, 4096, unix.EINVAL},
		{"negative", fd, at, ^uintptr(0), unix.EINVAL},
		{"no descriptor", 999, at, 16, unix.EBADF},
		{"negative descriptor", -1, at, 16, unix.EBADF},
		{"a file", file, at, 16, unix.ENOTSOCK},
	} {
		_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(c.fd), c.at, c.size)
		if errno != c.want {
			return fmt.Errorf("%s: %v, want %v", c.name, errno, c.want)
		}
	}
	for f, want := range map[int]unix.Errno{999: unix.EBADF, file: unix.ENOTSOCK} {
		if err := unix.Listen(f, 1); err != want {
			return fmt.Errorf("listen: %v, want %v", err, want)
		}
	}
	return nil
}

func fastOpen() error {
	l, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(l)
	return unix.Sendto(l, []byte("x"), unix.MSG_FASTOPEN, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
}
