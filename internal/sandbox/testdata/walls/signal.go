package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bindAtSignal leaves the supervisor's process group and its parent's care, and binds when its supervisor is gone.
func bindAtSignal(file string) error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	fmt.Println("ready")
	select {
	case <-c:
	case <-time.After(30 * time.Second):
	}
	err := bindListen("127.0.0.1:61999", true)
	return os.WriteFile(file, []byte(fmt.Sprint(err)), 0o600)
}

// connectAtSignal is bindAtSignal with a connect.
func connectAtSignal(a string) error {
	file, address, _ := strings.Cut(a, " ")
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM, 0)
	fmt.Println("ready")
	select {
	case <-c:
	case <-time.After(30 * time.Second):
	}
	// The signal may come before the kernel has closed the listener of a process that is being killed.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err == nil {
			err = unix.Connect(fd, sa)
		}
		if err == nil || err == unix.ENOSYS || time.Now().After(deadline) {
			break
		}
		err = nil
	}
	return os.WriteFile(file, []byte(fmt.Sprint(err)), 0o600)
}

// leave starts a process that no group signal reaches, and says who is who. It runs a probe, or the one that binds.
func leave(a string) error {
	do := a
	if !strings.Contains(a, " ") {
		do = "bind-at-usr1 " + a
	}
	ready, w, err := os.Pipe()
	if err != nil {
		return err
	}
	pid, err := syscall.ForkExec(os.Args[0], []string{os.Args[0], "probe", do},
		&syscall.ProcAttr{Files: []uintptr{0, w.Fd(), 2}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return err
	}
	if _, err := ready.Read(make([]byte, 16)); err != nil {
		return err
	}
	fmt.Printf("pid=%d\nleft=%d\n", os.Getpid(), pid)
	return nil
}

// linger leaves the supervisor the last copy of a connection whose close would wait for an hour, and a process that keeps
// its other end open.
func linger(a string) error {
	port := numbers(a)[0]
	l, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	at := &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	if err := errors.Join(unix.Bind(l, at), unix.Listen(l, 1)); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0) // our own output ends when nobody holds it
	if err != nil {
		return err
	}
	pid, err := syscall.ForkExec(os.Args[0], []string{os.Args[0], "probe", "sleep 1m"}, &syscall.ProcAttr{
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(l)}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return err
	}
	fmt.Printf("left=%d\n", pid)
	s, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	err = errors.Join(
		unix.Bind(s, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 2}}),
		unix.Connect(s, at),
		unix.SetsockoptLinger(s, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600}),
		unix.SetNonblock(s, true),
	)
	if err != nil {
		return err
	}
	for err == nil {
		_, err = unix.Write(s, make([]byte, 1<<16))
	}
	if err != unix.EAGAIN {
		return err
	}
	return nil
}

// signalled ends with 40 when the signal comes.
func signalled(a string) error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.Signal(numbers(a)[0]))
	fmt.Println("ready")
	select {
	case <-c:
		os.Exit(40)
	case <-time.After(30 * time.Second):
	}
	return fmt.Errorf("no signal came")
}

// serve listens with a plain socket, as C programs do, until it is killed.
func serve(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return err
	}
	if err := unix.Listen(fd, 16); err != nil {
		return err
	}
	for {
		if c, _, err := unix.Accept(fd); err == nil {
			unix.Close(c)
		}
	}
}

// both listens on 0.0.0.0 and on :: for IPv6 alone.
func both(port string) error {
	a, err := net.Listen("tcp4", "0.0.0.0:"+port)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := net.Listen("tcp6", "[::]:"+port)
	if err != nil {
		return err
	}
	defer b.Close()
	fmt.Println(a.Addr(), b.Addr())
	return nil
}

// listened becomes args with a filter that allows everything and a listener that nobody serves.
func listened(args []string) {
	runtime.LockOSThread()
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	program := unix.SockFprog{Len: 1, Filter: &allow}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
		err = errno
		if errno == 0 {
			unix.FcntlInt(fd, unix.F_SETFD, 0) // the listener lasts as long as its descriptor
			err = syscall.Exec(args[0], args, os.Environ())
		}
	}
	fmt.Fprintln(os.Stderr, "listened:", err)
	os.Exit(77)
}

// contained becomes args where the kernel refuses pidfd_getfd, as Docker's default filter does.
func contained(args []string) {
	refuse := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_PIDFD_GETFD, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	runtime.LockOSThread()
	program := unix.SockFprog{Len: uint16(len(refuse)), Filter: &refuse[0]}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program)))
		err = errno
		if errno == 0 {
			err = syscall.Exec(args[0], args, os.Environ())
		}
	}
	fmt.Fprintln(os.Stderr, "contained:", err)
	os.Exit(77)
}
