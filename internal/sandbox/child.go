package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// The inner halves are known by their argv[0] and by the channel on descriptor 3.
const (
	childName = "sallyport: child" // becomes the program
	trialName = "sallyport: trial" // a supervisor that only tries
	channelFD = 3
)

// Child is the other half: main calls it first of all. It returns at once unless this process was started by Launch or
// Try; then it never returns.
func Child() {
	if len(os.Args) != 1 || (os.Args[0] != childName && os.Args[0] != trialName) {
		return
	}
	c := channel{channelFD}
	// Whoever types this name by hand has no such channel: a socket pair that our parent made.
	if cred, err := unix.GetsockoptUcred(c.fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || int(cred.Pid) != os.Getppid() {
		fmt.Fprintf(os.Stderr, "%q is the inside of sallyport run and starts nothing by itself: use sallyport run -- CMD\n", os.Args[0])
		os.Exit(2)
	}
	// The program must not inherit the channel, nor the program's threads a collector that stops them half-confined.
	unix.CloseOnExec(c.fd)
	if os.Args[0] == trialName {
		runTrial(c)
		os.Exit(0)
	}
	debug.SetGCPercent(-1)
	// Everything from here on belongs to this one thread, which execve makes the program.
	runtime.LockOSThread()
	err := child(c)
	r := report{Missing: errors.Is(err, fs.ErrNotExist)}
	if err != nil {
		r.Error = err.Error()
		// A failure to say so changes nothing: the parent sees that the stream ended early.
		_ = c.send(r, -1)
	}
	os.Exit(1)
}

// child is the line: drop, confine, self-test, exec. It returns nil when it has reported what the parent will refuse,
// or when all was only a trial.
func child(c channel) error {
	var s spec
	if _, err := c.receive(&s); err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	if err := settle(&s); err != nil {
		return err
	}
	// Only now can the parent learn how it may come by our sockets, and the filter depends on it.
	if err := c.send(report{Dropped: true}, -1); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if _, err := c.receive(&s.Custody); err != nil {
		return fmt.Errorf("read how sockets are had: %w", err)
	}
	if err := wallIn(c, &s); err != nil {
		return err
	}
	found := selfTest(&s)
	if err := c.send(report{Protections: found}, -1); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if s.Trial || unaccepted(found, s.Accept) != nil {
		return nil
	}
	// The parent clears away what the self-test left with it, and says go.
	if _, err := c.receive(&struct{}{}); err != nil {
		return fmt.Errorf("wait for the supervisor: %w", err)
	}
	if err := syscall.Exec(s.Path, s.Args, s.Env); err != nil {
		return fmt.Errorf("execute %s as uid %d: %w", s.Path, s.UID, err)
	}
	return nil
}

// settle is the first step, drop: the process has the program's identity, limits and descriptors, and dies with its
// supervisor.
func settle(s *spec) error {
	// The supervisor has dropped already and we inherited it. Once more costs nothing, and does not depend on it.
	if err := dropPrivileges(s.UID, s.GID); err != nil {
		return err
	}
	// After dropping, because a change of credentials clears it; and then the parent may already be gone.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("tie the program's life to ours: %w", err)
	}
	if os.Getppid() != s.Supervisor {
		return errors.New("the supervisor is gone")
	}
	// A binary that its user cannot read starts non-dumpable, and then the supervisor could not read the self-test's
	// addresses. Nothing secret is in this process but the program's own environment.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become dumpable: %w", err)
	}
	// A mask is inherited by execve, and a program that never sees SIGTERM cannot be stopped gently.
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil); err != nil {
		return fmt.Errorf("unblock signals: %w", err)
	}
	var err error
	if s.descriptors, err = os.Open("/proc/self/fd"); err != nil {
		return fmt.Errorf("look at our descriptors: %w", err)
	}
	if err := closeOnExec(s.descriptors); err != nil {
		return err
	}
	if err := os.Chdir(s.Dir); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	for _, l := range []struct {
		name  string
		what  int
		value uint64
	}{
		{"core", unix.RLIMIT_CORE, 0},
		{"nofile", unix.RLIMIT_NOFILE, s.Limits.NoFile},
		// Last, because with it even a thread of ours may be refused.
		{"nproc", unix.RLIMIT_NPROC, s.Limits.NProc},
	} {
		if err := limit(l.what, l.value); err != nil {
			return fmt.Errorf("limit %s to %d: %w", l.name, l.value, err)
		}
	}
	return nil
}

// limit lowers soft and hard limit alike, and raises neither above the hard limit that there is.
func limit(what int, value uint64) error {
	var now unix.Rlimit
	if err := unix.Getrlimit(what, &now); err != nil {
		return err
	}
	value = min(value, now.Max)
	return unix.Setrlimit(what, &unix.Rlimit{Cur: value, Max: value})
}

// closeOnExec marks every descriptor above 2. Marking and not closing, because the Go runtime still needs its own.
func closeOnExec(all *os.File) error {
	err := unix.CloseRange(3, ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	// Before Linux 5.11, or where an outer filter does not know the call.
	names, rerr := all.Readdirnames(-1)
	if rerr != nil {
		return fmt.Errorf("close inherited descriptors: %w", errors.Join(err, rerr))
	}
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	_, err = all.Seek(0, io.SeekStart)
	return err
}

// wallIn is the second step, confine: first the filter, because only when it is installed is it known who binds, and
// Landlock's rules on ports depend on that.
func wallIn(c channel, s *spec) error {
	if s.Filter {
		if s.Notify {
			why, err := installBroker(c, s)
			if err != nil {
				return err
			}
			if why != "" && s.Learn {
				return fmt.Errorf("learn: %s", why)
			}
			if why != "" {
				s.Notify = false
				if err := c.send(report{NoListener: why}, -1); err != nil {
					return err
				}
				s.withoutListener(why)
			}
		}
		if !s.Notify {
			if _, err := installFilter(table(s.shape()), false); err != nil {
				return err
			}
		}
	}
	if s.Landlock == 0 {
		return nil
	}
	// No port at all where the supervisor binds: a bind that the program managed to make by itself is denied.
	ports := s.Ports
	if s.Notify {
		ports = nil
	}
	var connect []uint16
	if s.shape().level == networkPorts {
		connect = s.Connect
	}
	return confine(handled(s.Landlock, s.Learn), s.Rules, ports, connect)
}

// withoutListener corrects the plan where the kernel knows notification and gives us none.
func (s *spec) withoutListener(why string) {
	p := Plan{Protections: s.Plan}
	missing := func(q *Protection) { q.InForce, q.Detail = false, why }
	p.set(protLoopback, missing)
	if s.Network == networkBroker {
		p.set(protBroker, missing)
		landlock := ""
		if s.Landlock < 4 {
			landlock = "needs Landlock ABI 4"
		}
		p.withoutBroker(landlock)
	}
	if s.Unix && s.Landlock < 9 {
		p.set(protUnixSockets, missing)
	}
	if s.UDP {
		p.set(protUDP, missing)
	}
}

// installBroker installs the filter with notification and hands the listener over. why is not empty where this kernel,
// or a listener that somebody installed before us (EBUSY), leaves no room for ours.
func installBroker(c channel, s *spec) (why string, err error) {
	listeners, handedOver := make(chan int), make(chan error)
	ready := make(chan struct{})
	// A thread that exists before the filter does not have it, and can send.
	go func() {
		runtime.LockOSThread()
		close(ready)
		fd, ok := <-listeners
		if !ok {
			return
		}
		err := c.send(report{Listener: true}, fd)
		unix.Close(fd)
		if err == nil {
			_, err = c.receive(&struct{}{})
		}
		handedOver <- err
	}()
	<-ready
	fd, err := installFilter(table(s.shape()), true)
	switch {
	case errors.Is(err, unix.EBUSY):
		close(listeners)
		return "a seccomp listener is already installed around this container (a nested sallyport, or a runtime's agent), and the kernel allows one", nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		close(listeners)
		return "this kernel has no seccomp user notification: " + err.Error(), nil
	case err != nil:
		close(listeners)
		return "", err
	}
	listeners <- fd
	if err := <-handedOver; err != nil {
		return "", fmt.Errorf("hand the seccomp listener over: %w", err)
	}
	return "", nil
}
