package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probe is the program inside the walls, or outside of them. It does what each line of its input says, and answers each
// with a line, "ok" and numbers or "failed" and why:
//
//	connect ADDRESS COUNT            medians in µs of socket and connect, and until the first byte that the other side sends
//	rate ADDRESS WORKERS DURATION    connections a second, of which each has received its byte
//	sink ADDRESS                     a connection that takes what comes, see sink
//
// It listens where $PORT says, as a service that sallyport runs is expected to.
func probe(in io.Reader, out io.Writer) error {
	if port := os.Getenv("PORT"); port != "" {
		l, err := net.Listen("tcp4", "127.0.0.1:"+port)
		if err != nil {
			return err
		}
		defer l.Close()
		go acceptAndClose(l)
	}
	for s := bufio.NewScanner(in); s.Scan(); {
		answer, err := probeDo(strings.Fields(s.Text()))
		if err != nil {
			answer = "failed " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		if _, err := fmt.Fprintln(out, answer); err != nil {
			return err
		}
	}
	return nil
}

func acceptAndClose(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Close()
	}
}

func probeDo(words []string) (string, error) {
	switch {
	case len(words) == 3 && words[0] == "connect":
		count, err := strconv.Atoi(words[2])
		if err != nil || count < 1 {
			return "", errors.New("a count is a positive number")
		}
		connected, answered, err := connectTimes(words[1], count)
		return fmt.Sprintf("ok %.3f %.3f", connected, answered), err
	case len(words) == 4 && words[0] == "rate":
		workers, err := strconv.Atoi(words[2])
		if err != nil {
			return "", err
		}
		d, err := time.ParseDuration(words[3])
		if err != nil {
			return "", err
		}
		n, err := connectRate(words[1], workers, d)
		return fmt.Sprintf("ok %.1f", n), err
	case len(words) == 2 && words[0] == "sink":
		c, err := net.Dial("tcp4", words[1])
		if err == nil {
			go sink(c)
		}
		return "ok", err
	}
	return "", fmt.Errorf("no such order: %q", words)
}

// connectTimes connects as the kernel's interface has it: one thread that waits, so that nothing of Go's is measured.
func connectTimes(address string, count int) (connected, answered float64, err error) {
	to, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return 0, 0, err
	}
	sa := &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var first, second []time.Duration
	for range count {
		began := time.Now()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, 0, fmt.Errorf("socket: %w", err)
		}
		err = unix.Connect(fd, sa)
		first = append(first, time.Since(began))
		var n int
		if err == nil {
			n, err = unix.Read(fd, make([]byte, 1))
		}
		second = append(second, time.Since(began))
		// Reset, or the ports that wait would be what is measured.
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(fd)
		if err != nil || n != 1 {
			return 0, 0, fmt.Errorf("connect to %s: %d bytes, %w", address, n, err)
		}
	}
	return medianOf(first), medianOf(second), nil
}

func medianOf(list []time.Duration) float64 {
	slices.Sort(list)
	return float64(list[len(list)/2]) / float64(time.Microsecond)
}

// connectRate connects as programs do, without waiting in the kernel, several at once.
func connectRate(address string, workers int, d time.Duration) (float64, error) {
	var count atomic.Int64
	var failure atomic.Pointer[error]
	var all sync.WaitGroup
	began := time.Now()
	for range workers {
		all.Go(func() {
			for b := make([]byte, 1); time.Since(began) < d && failure.Load() == nil; {
				c, err := net.DialTimeout("tcp4", address, 10*time.Second)
				if err == nil {
					_, err = c.Read(b)
					c.(*net.TCPConn).SetLinger(0)
					c.Close()
				}
				if err != nil {
					failure.Store(&err)
					return
				}
				count.Add(1)
			}
		})
	}
	all.Wait()
	if err := failure.Load(); err != nil {
		return 0, *err
	}
	return float64(count.Load()) / time.Since(began).Seconds(), nil
}

const segment = 4 << 20 // bytes of a stream that are acknowledged together

// sink takes what pour and pingPong send: a length of eight bytes and as many bytes, for which it sends back one.
func sink(c net.Conn) error {
	defer c.Close()
	buffer := make([]byte, 256<<10)
	for {
		if _, err := io.ReadFull(c, buffer[:8]); err != nil {
			return err
		}
		for left := int(binary.BigEndian.Uint64(buffer[:8])); left > 0; {
			n, err := c.Read(buffer[:min(left, len(buffer))])
			if err != nil {
				return err
			}
			left -= n
		}
		if _, err := c.Write(buffer[:1]); err != nil {
			return err
		}
	}
}

// pour sends to a sink for a while: MB a second.
func pour(c net.Conn, d time.Duration) (float64, error) {
	c.SetDeadline(time.Now().Add(d + 30*time.Second))
	data := make([]byte, 8+256<<10)
	binary.BigEndian.PutUint64(data, segment)
	segments := 0
	began := time.Now()
	for ; segments == 0 || time.Since(began) < d; segments++ {
		from := data
		for left := 8 + segment; left > 0; from = data[8:] {
			n, err := c.Write(from[:min(left, len(from))])
			if err != nil {
				return 0, err
			}
			left -= n
		}
	}
	if _, err := io.ReadFull(c, make([]byte, segments)); err != nil {
		return 0, err
	}
	return float64(segments) * segment / 1e6 / time.Since(began).Seconds(), nil
}

// pingPong sends a sink nothing, and waits for its byte, for a while: round trips a second.
func pingPong(c net.Conn, d time.Duration) (float64, error) {
	c.SetDeadline(time.Now().Add(d + 30*time.Second))
	var zero [8]byte
	count := 0
	began := time.Now()
	for ; count == 0 || time.Since(began) < d; count++ {
		if _, err := c.Write(zero[:]); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(c, zero[7:]); err != nil {
			return 0, err
		}
		zero[7] = 0
	}
	return float64(count) / time.Since(began).Seconds(), nil
}

// contained becomes another program where the kernel refuses pidfd_getfd, as the default filter of container engines
// does: then the broker has to make each socket itself.
func contained(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: bench contained PROGRAM [ARG...]")
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	refuse := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_PIDFD_GETFD, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(refuse)), Filter: &refuse[0]}
	runtime.LockOSThread() // a filter is the thread's until execve
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("install the filter: %w", errno)
	}
	return syscall.Exec(path, args, os.Environ())
}
