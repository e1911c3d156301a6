package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process is a started program.
type Process struct {
	pid      int
	enforced Enforced
	broker   *broker

	listeners chan int      // the filter's listener, on its way to the supervising thread
	ended     chan struct{} // closed when there is nothing left to supervise
	wake      [2]int        // a pipe; closing its writing end ends the broker's thread
	retire    sync.Once
	over      chan struct{} // closed when that thread has ended

	output *output
	tty    int // the terminal that was lent to the program, or -1

	mu   sync.Mutex
	done bool // reaped: pid may be somebody else's
}

// Enforced says what holds.
func (p *Process) Enforced() Enforced { return p.enforced }

// Learned says what the program was seen to do so far, with Profile.Learn. It may be asked for after Wait.
func (p *Process) Learned() Learned {
	if p.broker.learner == nil {
		return Learned{}
	}
	return p.broker.learner.result()
}

// Noted is how many paths there are to learn from so far.
func (p *Process) Noted() int {
	if p.broker.learner == nil {
		return 0
	}
	return p.broker.learner.count()
}

// Signal forwards a signal to the program. After the program has ended it returns os.ErrProcessDone.
func (p *Process) Signal(sig os.Signal) error {
	s, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal %v: not a signal of this system", sig)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return os.ErrProcessDone
	}
	if err := unix.Kill(p.pid, s); err != nil {
		return fmt.Errorf("signal %v: %w", sig, err)
	}
	return nil
}

// Wait reaps every child until the program has ended, and returns the code that run must exit with (128+n for a
// signal). Processes of the program's own group end with it; a daemon that left the group stays walled in, and can
// bind no more. As it reaps whatever child of ours ends, orphans of the program among them, no exec.Cmd and no
// other Process may be waited for meanwhile.
func (p *Process) Wait() (int, error) {
	defer p.close()
	for {
		pid, err := nextEnded()
		if err != nil {
			return 0, fmt.Errorf("wait for the program: %w", err)
		}
		status, main, err := p.reap(pid)
		if err != nil {
			return 0, fmt.Errorf("reap process %d: %w", pid, err)
		}
		if !main {
			continue
		}
		for reaped := true; reaped; { // what ended at the same time; the rest is for whoever is PID 1 after us
			n, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			reaped = err == nil && n > 0
		}
		return exitCode(status), nil
	}
}

func exitCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// nextEnded waits for a child to end and leaves it unreaped, so that its number stays its own until reap has the lock.
func nextEnded() (int, error) {
	for {
		// siginfo_t: si_pid stands after three ints and, on 64-bit machines, four bytes of padding.
		var info struct {
			signo, errno, code, _ int32
			pid                   int32
			_                     [108]byte
		}
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, 0, 0)
		if errno == 0 {
			return int(info.pid), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

func (p *Process) reap(pid int) (s unix.WaitStatus, main bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if main = pid == p.pid; main {
		// Before its number is free. Nobody may be left in the group: then there is nobody to tell.
		_ = unix.Kill(-pid, unix.SIGKILL)
		p.done = true
	}
	_, err = unix.Wait4(pid, &s, 0, nil)
	return s, main, err
}

// kill ends a program that did not get as far as to be waited for by Wait.
func (p *Process) kill() unix.WaitStatus {
	_ = unix.Kill(p.pid, unix.SIGKILL) // it may have ended by itself
	s, _, _ := p.reap(p.pid)
	p.close()
	return s
}

// close ends the broker and gives the terminal back.
func (p *Process) close() {
	p.retire.Do(func() {
		close(p.ended)
		unix.Close(p.wake[1])
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			<-p.over
			unix.Close(p.wake[0])
			p.broker.close()
		}()
		// Our copy of a socket that the program bound may be its last, and with SO_LINGER closing it lasts as long as the
		// program chose: that must not keep us from ending.
		select {
		case <-closed:
		case <-time.After(time.Second):
			p.broker.log.Warn("a socket that the service left lingers: ending without it")
		}
		p.output.wait()
		p.returnTerminal()
	})
}

// supervise is the thread that starts the child and answers for its sockets. One thread for both: the child is killed when
// the thread that started it ends (PR_SET_PDEATHSIG), so this one must last as long as the child.
func (p *Process) supervise(start func() (int, error), started chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with this function, its blocked signals with it
	defer close(p.over)
	pid, err := start()
	p.pid = pid
	started <- err
	if err != nil {
		return
	}
	select {
	case fd := <-p.listeners:
		if err := p.broker.serve(listener{fd}, p.wake[0]); err != nil {
			p.broker.log.Error("serve the program's sockets: from now on they are refused", "error", err)
		}
		// Whoever still waits, and whoever comes, gets ENOSYS: closed.
		p.broker.hangUp(fd)
	case <-p.ended:
	}
	<-p.ended
}

// lendTerminal makes the program the foreground of the terminal on our standard input, if we are that now: Ctrl-C then
// reaches the program and not us, and it can read. Typing into it by force (TIOCSTI) is in the filter's table.
func (p *Process) lendTerminal(stdin *os.File) {
	p.tty = -1
	if stdin == nil {
		return
	}
	fd := int(stdin.Fd())
	front, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if err != nil || front != unix.Getpgrp() {
		return
	}
	if unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, p.pid) == nil {
		p.tty = fd
		// We are in the background now. The program may make the terminal stop whoever writes from there (TOSTOP), and
		// taking the terminal back would stop us anyway, unless this signal is ignored.
		signal.Ignore(unix.SIGTTOU)
	}
}

func (p *Process) returnTerminal() {
	if p.tty < 0 {
		return
	}
	_ = unix.IoctlSetPointerInt(p.tty, unix.TIOCSPGRP, unix.Getpgrp()) // the terminal may be gone
	signal.Reset(unix.SIGTTOU)
}

// output copies what the program writes where the destination is not a file.
type output struct {
	files   []*os.File // the program's ends; ours close after the start
	reading []*os.File
	mu      sync.Mutex // standard output and error may be one writer
	done    sync.WaitGroup
}

func (o *output) to(w io.Writer) (*os.File, error) {
	if f, ok := w.(*os.File); ok && f != nil {
		return f, nil
	}
	if w == nil {
		f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err == nil {
			o.files = append(o.files, f)
		}
		return f, err
	}
	r, f, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	o.files = append(o.files, f)
	o.reading = append(o.reading, r)
	o.done.Go(func() {
		defer r.Close()
		// An error of the writer's must not stop the reading: the program would get SIGPIPE for it.
		if _, err := io.Copy(lockedWriter{&o.mu, w}, r); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			_, _ = io.Copy(io.Discard, r)
		}
	})
	return f, nil
}

func (o *output) started() {
	for _, f := range o.files {
		f.Close()
	}
}

// wait gives the rest of the output a moment: a daemon that the program left behind may hold the pipe for ever.
func (o *output) wait() {
	for _, r := range o.reading {
		_ = r.SetReadDeadline(time.Now().Add(time.Second)) // a pipe takes deadlines; if not, the end of it is near anyway
	}
	o.done.Wait()
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
