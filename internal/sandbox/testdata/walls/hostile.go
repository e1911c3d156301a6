package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hostile are the probes of a program that knows how its supervisor works; main adds them to the others.
func hostile() map[string]func(string) error {
	return map[string]func(string) error{
		"option":       setOption,
		"swapped-bind": swappedBind,
		"recycled":     recycled,
		"abandon":      abandon,
		"slow-parent":  slowParent,
		"killed":       killedWaiting,
		"patience":     patience,
		"hoard":        hoard,
		"headless":     headless,
		"join":         join,
		"hide":         hide,

		"connect-patiently": connectPatiently,
	}
}

// setOption sets an option of a TCP socket: "level name".
func setOption(a string) error {
	n := numbers(a)
	fd, err := socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := [4]byte{'l', 'o'}
	return errnoError(unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(n[0]), uintptr(n[1]), uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0))
}

// swappedBind binds unix sockets in the first folder, on a way that another thread leads to the second one and back.
func swappedBind(a string) error {
	mine, other, _ := strings.Cut(a, " ")
	way, link := filepath.Join(mine, "way"), filepath.Join(mine, "link")
	if err := errors.Join(os.Mkdir(way, 0o755), os.Symlink(filepath.Join(other, "in"), link)); err != nil {
		return err
	}
	var stop atomic.Bool
	done := make(chan bool)
	go func() {
		runtime.LockOSThread()
		for !stop.Load() {
			unix.Renameat2(unix.AT_FDCWD, way, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
		}
		close(done)
	}()
	defer func() { stop.Store(true); <-done }()
	inside := 0
	for i := range 3000 {
		fd, err := socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("s%d", i)
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: way + "/../" + name})
		unix.Close(fd)
		if _, e := os.Lstat(filepath.Join(other, name)); e == nil {
			return fmt.Errorf("bound outside after %d tries", i+1)
		}
		if err == nil {
			inside++
			os.Remove(filepath.Join(mine, name))
		}
	}
	if inside == 0 {
		return errors.New("the race never ran")
	}
	return nil
}

// recycled binds a socket, removes it, waits until somebody else has one at path, and connects to that.
func recycled(path string) error {
	mine := filepath.Join(filepath.Dir(path), "mine")
	fd, err := socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: mine}); err != nil {
		return err
	}
	var was, is unix.Stat_t
	if err := unix.Stat(mine, &was); err != nil {
		return err
	}
	unix.Close(fd)
	time.Sleep(100 * time.Millisecond)
	if err := os.Remove(mine); err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Second); unix.Stat(path, &is) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("nobody came")
		}
	}
	time.Sleep(100 * time.Millisecond)
	if was.Ino != is.Ino {
		return errors.New("another inode")
	}
	return unixConnect(path)
}

// abandon begins connections that nobody answers, patient ones, and closes them: "address count".
func abandon(a string) error {
	address, count, _ := strings.Cut(a, " ")
	n := numbers(count)[0]
	family, sa := sockaddr(address)
	begun := 0
	for range n {
		fd, err := socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 100)
		if err := unix.Connect(fd, sa); err == unix.EINPROGRESS {
			begun++
		}
		unix.Close(fd)
	}
	fmt.Printf("begun=%d\n", begun)
	return nil
}

// slowParent takes processor time from the supervisor.
func slowParent(how string) error {
	parent := uintptr(os.Getppid())
	var mask [16]uint64
	mask[0] = 1
	var zero [16]uint32
	switch how {
	case "affinity":
		return errnoError(unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, parent, 128, uintptr(unsafe.Pointer(&mask))))
	case "idle":
		return errnoError(unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, parent, 5, uintptr(unsafe.Pointer(&zero))))
	case "parameters":
		return errnoError(unix.RawSyscall(unix.SYS_SCHED_SETPARAM, parent, uintptr(unsafe.Pointer(&zero)), 0))
	case "attributes":
		a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: 5}
		return errnoError(unix.RawSyscall(unix.SYS_SCHED_SETATTR, parent, uintptr(unsafe.Pointer(&a)), 0))
	case "nice":
		return unix.Setpriority(unix.PRIO_PROCESS, int(parent), 19)
	case "own":
		return errors.Join(unix.Setpriority(unix.PRIO_PROCESS, 0, 1), unix.Setpriority(unix.PRIO_PGRP, 0, 2),
			errnoError(unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, 128, uintptr(unsafe.Pointer(&mask)))))
	case "nice-user":
		return unix.Setpriority(unix.PRIO_USER, 0, 19)
	case "io":
		return errnoError(unix.RawSyscall(unix.SYS_IOPRIO_SET, 1, parent, 3<<13))
	}
	return errors.New("how?")
}

// killedWaiting has processes wait for a connection that nobody answers, and kills them: "address count".
func killedWaiting(a string) error {
	address, count, _ := strings.Cut(a, " ")
	for range numbers(count)[0] {
		c := exec.Command(os.Args[0], "probe", "connect-patiently "+address)
		if err := c.Start(); err != nil {
			return err
		}
		defer c.Wait()
		defer c.Process.Kill()
	}
	time.Sleep(2 * time.Second)
	return nil
}

func connectPatiently(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 100)
	return unix.Connect(fd, sa)
}

// patience connects to where nobody answers, for as long as SO_SNDTIMEO allows, and once more.
func patience(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 300000}); err != nil {
		return err
	}
	for _, want := range []unix.Errno{unix.EINPROGRESS, unix.EALREADY} {
		began := time.Now()
		if err := unix.Connect(fd, sa); err != want {
			return fmt.Errorf("%v, and not %v", err, want)
		}
		if d := time.Since(began); d < 250*time.Millisecond || d > 5*time.Second {
			return fmt.Errorf("%v after %v", want, d)
		}
	}
	return nil
}

// hoard makes sockets and keeps them.
func hoard(a string) error {
	for range numbers(a)[0] {
		if _, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != nil {
			return err
		}
	}
	return nil
}

// headless binds, a while after it has made the socket, in a process whose first thread has ended, as pthread_exit in main
// leaves one. main runs on the first thread.
func headless(address string) error {
	family, sa := sockaddr(address)
	go func() {
		fd, err := socket(family, unix.SOCK_STREAM, 0)
		if err == nil {
			time.Sleep(4 * time.Second)
			err = unix.Bind(fd, sa)
		}
		if err == nil {
			fmt.Printf("headless %s: ok\n", address)
		} else {
			fmt.Printf("headless %s: %v\n", address, err)
		}
		os.Exit(0)
	}()
	unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
	return nil
}

// join has the kernel tell the network of a multicast group, whose address the program chooses, past the loopback device.
func join(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if sa, ok := sa.(*unix.SockaddrInet6); ok {
		return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: sa.Addr, Interface: 1})
	}
	return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: sa.(*unix.SockaddrInet4).Addr, Ifindex: 1})
}

// hide says its word as soon as it is connected, and at once undoes the connection, by shutdown or connect(AF_UNSPEC): "how
// address". Other threads keep the supervisor busy.
func hide(a string) error {
	how, address, _ := strings.Cut(a, " ")
	family, sa := sockaddr(address)
	var stop atomic.Bool
	defer stop.Store(true)
	for range 4 {
		go func() {
			for !stop.Load() {
				if fd, err := socket(family, unix.SOCK_STREAM, 0); err == nil {
					unix.Close(fd)
				}
			}
		}()
	}
	for range 50 {
		fd, err := socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, sa); err != unix.EINPROGRESS {
			return fmt.Errorf("connect: %v", err)
		}
		for err = unix.EAGAIN; err == unix.EAGAIN || err == unix.ENOTCONN; {
			_, err = unix.Write(fd, []byte("word"))
		}
		if err != nil {
			return err
		}
		if how == "shutdown" {
			err = unix.Shutdown(fd, unix.SHUT_RDWR)
		} else {
			var nobody [16]byte
			err = errnoError(unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&nobody)), 16))
		}
		unix.Close(fd)
		if err != nil && err != unix.ENOTCONN && err != unix.EISCONN {
			return err
		}
	}
	return nil
}
