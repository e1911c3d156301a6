package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// connectPassed sends a socket to itself through another one and connects what arrives.
func connectPassed(address string) error {
	family, sa := sockaddr(address)
	fd, err := socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fd), nil, 0); err != nil {
		return err
	}
	unix.Close(fd)
	arrived, err := receive(pair[1])
	if err != nil {
		return err
	}
	defer unix.Close(arrived)
	if err := unix.Connect(arrived, sa); err != nil {
		return err
	}
	return heard(arrived)
}

// connectReceived connects a socket that a process outside made and sent; the way there must be allowed.
func connectReceived(a string) error {
	path, address, _ := strings.Cut(a, " ")
	fd, err := socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return fmt.Errorf("reach who sends: %w", err)
	}
	arrived, err := receive(fd)
	if err != nil {
		return err
	}
	_, sa := sockaddr(address)
	return unix.Connect(arrived, sa)
}

func receive(fd int) (int, error) {
	b, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fd, b, control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) == 0 {
		return -1, fmt.Errorf("no descriptor arrived: %v", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// inChild runs a probe in a process of its own, or in one that has left everybody.
func inChild(do string, daemon bool) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	c := exec.Command(os.Args[0], "probe", do)
	c.Stdout = w
	if daemon {
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	if err := c.Start(); err != nil {
		return err
	}
	w.Close()
	b := make([]byte, 4096)
	n, _ := r.Read(b)
	c.Wait()
	if !strings.HasSuffix(strings.TrimSpace(string(b[:n])), ": ok") {
		return errors.New(strings.TrimSpace(string(b[:n])))
	}
	return nil
}
