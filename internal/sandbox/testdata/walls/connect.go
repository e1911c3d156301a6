package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connects are the probes of the connection broker; main adds them to the others.
func connects() map[string]func(string) error {
	return map[string]func(string) error{
		"connect-at-usr1": connectAtSignal,
		"connect":         func(a string) error { return connectPlain(a, 0) },
		"connect-only":    connectOnly6,
		"hello":           hello,
		"epoll":           connectEpoll,
		"again":           connectAgain,
		"errors":          connectErrors,
		"fin":             connectFIN,
		"connect-times":   connectTimes,
		"options":         connectOptions,
		"many":            connectMany,
		"race-connect":    raceConnect,
		"race-socket":     raceSocket,
		"passed":          connectPassed,
		"received":        connectReceived,
		"forked":          func(a string) error { return inChild(a, false) },
		"daemonised":      func(a string) error { return inChild(a, true) },
		"unix-connect":    unixConnect,
		"unix-chdir": func(a string) error {
			dir, rest, _ := strings.Cut(a, " ")
			return errors.Join(os.Chdir(dir), unixConnect(rest))
		},
		"leak":        leakSockets,
		"sendto":      sendTo,
		"sendmsg":     sendMsg,
		"dns-connect": func(a string) error { return dnsBy(a, true) },
		"dns-sendto":  func(a string) error { return dnsBy(a, false) },
	}
}

// greeting is what a server of the tests says first.
const greeting = "hello"

func connectPlain(address string, flags int) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM|flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, sa)
}

// connectOnly6 connects an IPv6 socket that wants no IPv4.
func connectOnly6(address string) error {
	_, sa := sockaddr(address)
	fd, err := socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
		return err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return err
	}
	return heard(fd)
}

// hello connects, waiting, and hears the server.
func hello(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sa); err != nil {
		return err
	}
	return heard(fd)
}

func heard(fd int) error {
	b := make([]byte, len(greeting))
	for got := 0; got < len(b); {
		n, err := unix.Read(fd, b[got:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("nobody speaks")
		}
		got += n
	}
	if string(b) != greeting {
		return fmt.Errorf("heard %q", b)
	}
	return nil
}

// connectEpoll is how nginx and Netty do it: the socket is registered before it is connected, edge-triggered.
func connectEpoll(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(poll)
	const edge = 1 << 31 // EPOLLET
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | edge, Fd: int32(fd)}); err != nil {
		return err
	}
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		return err
	}
	got := ""
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline) && got != greeting; {
		var events [4]unix.EpollEvent
		n, err := unix.EpollWait(poll, events[:], 1000)
		if err != nil && err != unix.EINTR {
			return err
		}
		for range events[:max(n, 0)] {
			if e, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); e != 0 {
				return unix.Errno(e)
			}
			b := make([]byte, 16)
			if n, err := unix.Read(fd, b); err == nil {
				got += string(b[:n])
			}
		}
	}
	if got != greeting {
		return fmt.Errorf("heard %q", got)
	}
	return nil
}

// connectAgain connects a connected socket, and one that is being connected, again.
func connectAgain(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sa); err != nil {
		return err
	}
	if err := unix.Connect(fd, sa); err != unix.EISCONN {
		return fmt.Errorf("connected again: %v", err)
	}
	nb, err := socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(nb)
	first := unix.Connect(nb, sa)
	if first != nil && first != unix.EINPROGRESS {
		return first
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		switch err := unix.Connect(nb, sa); {
		case err == unix.EISCONN:
			return nil
		case err != unix.EALREADY && err != nil || time.Now().After(deadline):
			return fmt.Errorf("while connecting: %v", err)
		}
	}
}

// connectErrors are those that a kernel gives.
func connectErrors(address string) error {
	_, sa := sockaddr(address)
	good := sa.(*unix.SockaddrInet4)
	raw := [16]byte{0: unix.AF_INET, 2: byte(good.Port >> 8), 3: byte(good.Port), 4: good.Addr[0], 5: good.Addr[1], 6: good.Addr[2], 7: good.Addr[3]}
	at := uintptr(unsafe.Pointer(&raw))
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
	wrong := raw
	wrong[0] = 77
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
		{"no descriptor", 999, at, 16, unix.EBADF},
		{"negative descriptor", -1, at, 16, unix.EBADF},
		{"a file", file, at, 16, unix.ENOTSOCK},
		{"a family of nobody's", fd, uintptr(unsafe.Pointer(&wrong)), 16, unix.EAFNOSUPPORT},
	} {
		_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(c.fd), c.at, c.size)
		if errno != c.want {
			return fmt.Errorf("%s: %v, want %v", c.name, errno, c.want)
		}
	}
	runtime.KeepAlive(&raw)
	// After all that the socket is as good as new; and undone, it can be connected once more.
	if err := unix.Connect(fd, sa); err != nil {
		return err
	}
	return heard(fd)
}

// connectFIN closes at once, and the peer (which answers with a line when it has seen the end) must see it: its word
// arrives through the shut half.
func connectFIN(address string) error {
	for range 50 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		began := time.Now()
		c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		b := make([]byte, 64)
		for {
			n, err := c.Read(b)
			if err != nil {
				break
			}
			_ = n
		}
		c.Close()
		if d := time.Since(began); d > time.Second {
			return fmt.Errorf("the peer saw the end after %v", d)
		}
	}
	return nil
}

// connectOptions sets options before it connects and finds them after.
func connectOptions(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1))
	if err == nil {
		err = unix.Connect(fd, sa)
	}
	if err != nil {
		return err
	}
	nodelay, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
	if err != nil || nodelay == 0 {
		return fmt.Errorf("TCP_NODELAY is lost (%v)", err)
	}
	return nil
}

// connectMany connects from many threads and goroutines at the same time.
func connectMany(a string) error {
	address, count, _ := strings.Cut(a, " ")
	n, _ := strconv.Atoi(count)
	errs := make(chan error, n)
	var wait sync.WaitGroup
	for i := range n {
		wait.Add(1)
		go func() {
			defer wait.Done()
			if i%2 == 0 {
				errs <- hello(address)
				return
			}
			c, err := net.Dial("tcp", address)
			if err == nil {
				b := make([]byte, len(greeting))
				_, err = c.Read(b)
				c.Close()
			}
			errs <- err
		}()
	}
	wait.Wait()
	close(errs)
	failed := 0
	var last error
	for err := range errs {
		if err != nil {
			failed++
			last = err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d: %w", failed, n, last)
	}
	return nil
}

func unixConnect(path string) error {
	fd, err := socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	return heard(fd)
}

// leakSockets makes sockets, binds some, and closes them unused, for longer than the supervisor keeps them.
func leakSockets(a string) error {
	n, _ := strconv.Atoi(a)
	for range n {
		fd, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		unix.Close(fd)
	}
	return nil
}

func sendTo(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte("x"), 0, sa)
}

func sendMsg(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendmsg(fd, []byte("x"), nil, sa, 0)
}

// dnsBy asks a name server by a connected socket, as Go's resolver does, or by sendto, as musl's does; the answer must
// come from the server's address.
func dnsBy(address string, connected bool) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return err
	}
	if connected {
		if err := unix.Connect(fd, sa); err != nil {
			return err
		}
		if _, err := unix.Write(fd, []byte("who?")); err != nil {
			return err
		}
	} else if err := unix.Sendto(fd, []byte("who?"), 0, sa); err != nil {
		return err
	}
	b := make([]byte, 512)
	n, from, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return err
	}
	if string(b[:n]) != greeting {
		return fmt.Errorf("heard %q", b[:n])
	}
	if got, ok := from.(*unix.SockaddrInet4); ok && !connected {
		if want := sa.(*unix.SockaddrInet4); got.Addr != want.Addr || got.Port != want.Port {
			return fmt.Errorf("answered by %v:%d", got.Addr, got.Port)
		}
	}
	return nil
}

// connectTimes prints the median of connecting, waiting and not, and connections a second, in a form for a benchmark.
func connectTimes(a string) error {
	address, count, _ := strings.Cut(a, " ")
	n, _ := strconv.Atoi(count)
	family, sa := sockaddr(address)
	for _, how := range []struct {
		name  string
		flags int
	}{{"waiting", 0}, {"polling", unix.SOCK_NONBLOCK}} {
		times := make([]time.Duration, 0, n)
		began := time.Now()
		for range n {
			start := time.Now()
			fd, err := socket(family, unix.SOCK_STREAM|how.flags, 0)
			if err != nil {
				return err
			}
			if err := unix.Connect(fd, sa); err == unix.EINPROGRESS {
				unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 1000)
			} else if err != nil {
				return err
			}
			times = append(times, time.Since(start))
			// Reset, or the ports that wait would be what is measured.
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			unix.Close(fd)
		}
		total := time.Since(began)
		slices.Sort(times)
		fmt.Printf("%s p50=%d p99=%d rate=%d\n", how.name, times[n/2].Nanoseconds(), times[n*99/100].Nanoseconds(), int(float64(n)/total.Seconds()))
	}
	return nil
}
