package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probes are the attempts by name; nil means that it succeeded.
func probes() map[string]func(string) error {
	return map[string]func(string) error{
		"read":       func(path string) error { _, err := os.ReadFile(path); return err },
		"list":       func(path string) error { _, err := os.ReadDir(path); return err },
		"write":      func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) },
		"append":     func(path string) error { return appendTo(path) },
		"remove":     os.Remove,
		"link":       func(a string) error { from, to, _ := strings.Cut(a, " "); return os.Link(from, to) },
		"rename":     func(a string) error { from, to, _ := strings.Cut(a, " "); return os.Rename(from, to) },
		"readlinked": readThroughLink,
		"openat2":    func(path string) error { return closing(unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{})) },
		"mkdir":      func(path string) error { return os.Mkdir(path, 0o755) },
		"symlink":    func(path string) error { return os.Symlink("nowhere", path) },
		"truncate":   func(path string) error { return os.Truncate(path, 0) },
		"read-at":    readAt,
		"chdir-read": chdirRead,
		"tmpfile": func(folder string) error {
			return closing(unix.Open(folder, unix.O_TMPFILE|unix.O_RDWR, 0o600))
		},
		"run":          func(path string) error { return exec.Command(path, "probe").Run() },
		"run-copy":     runCopy,
		"run-memfd":    runMemfd,
		"run-unlinked": runUnlinked,
		"mknod":        func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, 0x103) },
		"bind":         func(a string) error { return bindListen(a, false) },
		"listen":       func(a string) error { return bindListen(a, true) },
		"autobind":     func(string) error { return closingListen(socket(unix.AF_INET, unix.SOCK_STREAM, 0)) },
		"relisten":     relisten,
		"backlog":      backlog,
		"rebind":       rebind,
		"udp":          bindUDP,
		"unix":         func(path string) error { return listenUnix("unix", path) },
		"unixpacket":   func(path string) error { return listenUnix("unixpacket", path) },
		"unixgram":     bindUnixgram,
		"interfaces":   func(string) error { _, err := net.InterfaceAddrs(); return err },
		"badaddr":      badAddress,
		"socket":       func(a string) error { n := numbers(a); return closing(socket(n[0], n[1], n[2])) },
		"fastopen":     func(string) error { return fastOpen() },
		"dial": func(a string) error {
			network, addr, _ := strings.Cut(a, " ")
			c, err := net.DialTimeout(network, addr, time.Second)
			if err == nil {
				c.Close()
			}
			return err
		},
		"kill": func(a string) error { return unix.Kill(numbers(a)[0], 0) },
		"parent": func(path string) error {
			_, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", os.Getppid(), path))
			return err
		},
		"kill-parent": func(string) error { return unix.Kill(os.Getppid(), unix.SIGKILL) },
		"limit-parent": func(string) error {
			var now unix.Rlimit
			return unix.Prlimit(os.Getppid(), unix.RLIMIT_FSIZE, &unix.Rlimit{}, &now)
		},
		"join-parent": joinParent,
		"group":       func(string) error { return unix.Setpgid(0, 0) },
		"ptrace": func(string) error {
			return errnoError(unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(os.Getppid()), 0, 0, 0, 0))
		},
		"tiocsti": func(string) error {
			return errnoError(unix.RawSyscall(unix.SYS_IOCTL, 0, 0xdead_0000_0000|unix.TIOCSTI, uintptr(unsafe.Pointer(&[]byte("x")[0]))))
		},
		"unshare": func(string) error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"uring": func(string) error {
			return errnoError(unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&[120]byte{})), 0))
		},
		"setuid": func(string) error { return errnoError(unix.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0)) },
		"env":    func(string) error { fmt.Println(strings.Join(os.Environ(), "\n")); return nil },
		"status": status,
		"fds":    fds,
		"cwd":    func(string) error { d, err := os.Getwd(); fmt.Println("cwd=" + d); return err },
		"exit":   func(a string) error { os.Exit(numbers(a)[0]); return nil },
		"die": func(a string) error {
			unix.Kill(os.Getpid(), unix.Signal(numbers(a)[0]))
			time.Sleep(time.Minute)
			return nil
		},
		"sleep": func(a string) error {
			d, err := time.ParseDuration(a)
			fmt.Println("sleeping")
			time.Sleep(d)
			return err
		},
		"orphans":      orphans,
		"race-address": raceAddress,
		"race-listen":  raceListen,
		"foreground":   foreground,
		"undumpable":   func(string) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) },
		"daemon":       daemon,
		"bind-at-usr1": bindAtSignal,
		"serve":        serve,
		"linger":       linger,
		"tostop":       tostop,
		"both":         both,
		"x32":          func(string) error { return errnoError(unix.RawSyscall(0x40000000|39, 0, 0, 0)) },
		"signalled":    signalled,
		"leave":        leave,
	}
}

func errnoError(_, _ uintptr, errno unix.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

func closing(fd int, err error) error {
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func numbers(a string) (n []int) {
	for _, f := range strings.Fields(a) {
		i, _ := strconv.Atoi(f)
		n = append(n, i)
	}
	return n
}

func appendTo(path string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		f.Close()
	}
	return err
}

// readThroughLink makes a link in the first folder to the second path, and reads that.
func readThroughLink(a string) error {
	folder, target, _ := strings.Cut(a, " ")
	link := folder + "/link-to-it"
	if err := os.Symlink(target, link); err != nil {
		return errors.New("cannot make the link: " + err.Error())
	}
	defer os.Remove(link)
	_, err := os.ReadFile(link)
	return err
}

// readAt reads a name relative to the descriptor of a folder.
func readAt(a string) error {
	folder, name, _ := strings.Cut(a, " ")
	fd, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return closing(unix.Openat(fd, name, unix.O_RDONLY, 0))
}

// chdirRead reads a name relative to the working directory, and goes back.
func chdirRead(a string) error {
	folder, name, _ := strings.Cut(a, " ")
	if err := os.Chdir(folder); err != nil {
		return err
	}
	_, err := os.ReadFile(name)
	return err
}

func self() []byte {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b, err = os.ReadFile(os.Args[0])
	}
	if err != nil {
		panic(err)
	}
	return b
}

func runCopy(folder string) error {
	path := folder + "/copy"
	if err := os.WriteFile(path, self(), 0o700); err != nil {
		return err
	}
	defer os.Remove(path)
	return exec.Command(path, "probe").Run()
}

func runMemfd(string) error {
	fd, err := unix.MemfdCreate("x", 0)
	if err != nil {
		return err
	}
	os.NewFile(uintptr(fd), "x").Write(self())
	return exec.Command(fmt.Sprintf("/proc/self/fd/%d", fd), "probe").Run()
}

func runUnlinked(folder string) error {
	fd, err := unix.Open(folder, unix.O_TMPFILE|unix.O_RDWR, 0o700)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, self()); err != nil {
		return err
	}
	// Opened anew for reading, because a file that is open for writing cannot run.
	ro, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	unix.Close(fd)
	return exec.Command(fmt.Sprintf("/proc/self/fd/%d", ro), "probe").Run()
}

func status(string) error {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		for _, k := range []string{"Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn"} {
			if strings.HasPrefix(line, k) {
				fmt.Print(strings.Join(strings.Fields(line), " "), "\n")
			}
		}
	}
	return nil
}

// fds lists the descriptors that were inherited. The Go runtime's own carry close-on-exec.
func fds(string) error {
	var list []string
	for fd := range uintptr(4096) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			list = append(list, fmt.Sprint(fd))
		}
	}
	fmt.Println("fds=" + strings.Join(list, ","))
	return nil
}

// orphans leaves processes behind, by a child that ends before its own.
func orphans(string) error {
	for range 20 {
		if err := exec.Command(os.Args[0], "probe", "daemon").Run(); err != nil {
			return err
		}
	}
	// Whoever adopted them must have reaped them: no zombie may be our supervisor's child.
	deadline := time.Now().Add(10 * time.Second)
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", os.Getppid(), os.Getppid()))
		if err != nil {
			return err
		}
		if n := len(strings.Fields(string(b))); n <= 1 {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("%d children of the supervisor remain", n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func daemon(string) error {
	_, err := syscall.ForkExec(os.Args[0], []string{os.Args[0], "probe", "sleep 20ms"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true}})
	return err
}

// joinParent enters the supervisor's process group, where the kernel's own signals to a group would reach both.
func joinParent(string) error {
	group, err := unix.Getpgid(os.Getppid())
	if err == nil {
		err = unix.Setpgid(0, group)
	}
	return err
}

// tostop has the terminal stop whoever writes to it from the background.
func tostop(string) error {
	t, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Lflag |= unix.TOSTOP
	return unix.IoctlSetTermios(0, unix.TCSETS, t)
}

func foreground(string) error {
	group, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	if err != nil {
		return err
	}
	if group != unix.Getpgrp() {
		return fmt.Errorf("the terminal's foreground is %d and we are %d", group, unix.Getpgrp())
	}
	b := make([]byte, 16)
	n, err := os.Stdin.Read(b)
	fmt.Printf("typed=%s\n", bytes.TrimSpace(b[:n]))
	return err
}
