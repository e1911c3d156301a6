package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Launch is the straight line: profile, plan, start child, supervise, report. A gap that the profile does not accept is
// a *GapError. ctx ends the start, not the program. Drop must have been called.
func Launch(ctx context.Context, p Profile, cmd Command) (*Process, error) {
	if cmd.Path == "" || len(cmd.Args) == 0 {
		return nil, errors.New("launch: no program")
	}
	if err := checkDropped(p); err != nil {
		return nil, err
	}
	r, err := resolve(p, cmd)
	if err != nil {
		return nil, err
	}
	k := probeKernel()
	if r.learn && (!k.notify || !k.filter) {
		return nil, errors.New("learn: this kernel has no seccomp user notification, by which is noted what the program opens")
	}
	plan := r.plan(k)
	if err := unaccepted(plan.Protections, r.accept); err != nil {
		return nil, err
	}
	spec := r.spec(k, plan)
	spec.Watch = cmd.Denied != nil && !p.Learn && k.notify && k.filter && k.landlock > 0 && !slices.Contains(r.accept, protFiles)
	process, err := start(ctx, spec, cmd)
	if err != nil {
		return nil, err
	}
	for _, q := range process.enforced.Protections {
		if q.gap() && !(p.Learn && slices.Contains(learnGaps(), q.Name)) {
			process.broker.log.Warn("a protection is missing, as the profile accepts", "protection", q.Name, "asked", q.Asked, "why", q.Detail)
		}
	}
	return process, nil
}

// Try makes the plan by trying each protection in a child process; nothing of the program begins. Gaps are in the plan
// and no error. cmd.Path may be empty: then the profile is tried by itself. It needs no Drop and leaves this process
// as it is, because a child of its own drops and supervises.
func Try(ctx context.Context, p Profile, cmd Command) (Plan, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Plan{}, fmt.Errorf("try the walls: %w", err)
	}
	ours, theirs := channel{pair[0]}, os.NewFile(uintptr(pair[1]), "channel")
	defer unix.Close(ours.fd)
	c := exec.CommandContext(ctx, "/proc/self/exe")
	c.Args = []string{trialName}
	c.ExtraFiles = []*os.File{theirs}
	c.Stderr = os.Stderr
	err = c.Start()
	theirs.Close()
	if err != nil {
		return Plan{}, startError(err)
	}
	var answer trialAnswer
	err = ours.send(trialRequest{p, cmd.Path, cmd.Args}, -1)
	if err == nil {
		_, err = ours.receive(&answer)
	}
	werr := c.Wait()
	switch {
	case ctx.Err() != nil:
		return Plan{}, ctx.Err()
	case err != nil:
		return Plan{}, fmt.Errorf("try the walls: %w", cmp.Or(werr, err))
	case answer.Error != "":
		return Plan{}, errors.New(answer.Error)
	}
	return answer.Plan, nil
}

type trialRequest struct {
	Profile Profile
	Path    string
	Args    []string
}

type trialAnswer struct {
	Plan  Plan
	Error string
}

// runTrial is a supervisor's whole life in a process of its own, up to where the program would begin.
func runTrial(c channel) {
	var request trialRequest
	var answer trialAnswer
	err := func() error {
		if _, err := c.receive(&request); err != nil {
			return fmt.Errorf("read what to try: %w", err)
		}
		if err := Drop(request.Profile); err != nil {
			return err
		}
		r, err := resolve(request.Profile, Command{Path: request.Path, Args: request.Args})
		if err != nil {
			return err
		}
		k := probeKernel()
		s := r.spec(k, r.plan(k))
		s.Trial = true
		process, err := start(context.Background(), s, Command{Stderr: os.Stderr})
		if err != nil {
			return err
		}
		answer.Plan = Plan(process.enforced)
		return nil
	}()
	if err != nil {
		answer.Error = err.Error()
	}
	// Nobody is left to tell if this fails; the parent sees the stream end.
	_ = c.send(answer, -1)
}

// checkDropped holds that we are what Drop made us: a supervisor that could regain root, or that the program could
// read, would be a hole in the walls.
func checkDropped(p Profile) error {
	uid, gid, err := Identity(p)
	if err != nil {
		return err
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		return errors.New("launch: Drop was not called")
	}
	if err := dropped(uid, gid); err != nil {
		return fmt.Errorf("launch: %w", err)
	}
	return nil
}

func (r *resolved) spec(k kernel, plan Plan) *spec {
	return &spec{
		Path: r.path, Args: r.args, Env: r.env, Dir: r.dir, UID: r.uid, GID: r.gid, Supervisor: os.Getpid(), Groups: groupsOutside(),
		Rules: r.rules, Denied: r.denied, Ports: r.ports, Connect: r.connect, Sockets: r.sockets, Unix: r.unix, UDP: r.udp,
		Network: r.network, Limits: r.limits, Accept: r.accept,
		Landlock: k.landlock, Filter: k.filter, Notify: k.notify, Plan: plan.Protections, Learn: r.learn, needs: r.needs,
	}
}

// custody chooses how the supervisor comes by the program's sockets; child is the child, which has dropped already. A UDP
// socket must be made by us, because of what is done to it then.
func (s *spec) custody(child int) custody {
	switch {
	case !s.UDP && canFetch(child):
		return custodyFetch
	case s.Network == networkPorts:
		return custodyBind
	}
	return custodyMake
}

// enforced is what the self-test found.
func (s *spec) enforced(found []Protection) Enforced {
	p := Plan{Asked: s.Network, Protections: found}
	p.judge()
	return Enforced(p)
}

// groupsOutside are the process groups of our session that are not the program's: ours, and the one of the session's
// leader, a shell perhaps. A group of an outer process namespace has no number here (0), and so cannot be joined.
func groupsOutside() []uint32 {
	groups := []uint32{uint32(unix.Getpgrp())}
	if session, err := unix.Getsid(0); err == nil && !slices.Contains(groups, uint32(session)) {
		groups = append(groups, uint32(session)) // a leader never leaves the group of its own number
	}
	return slices.DeleteFunc(groups, func(g uint32) bool { return g == 0 })
}

// start is the parent's half from starting the child to its last word.
func start(ctx context.Context, s *spec, cmd Command) (*Process, error) {
	logger := cmd.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.Trials, err = newTrials(s); err != nil {
		return nil, err
	}
	defer s.Trials.close()
	p := &Process{
		listeners: make(chan int, 1), ended: make(chan struct{}), over: make(chan struct{}), output: &output{}, tty: -1,
	}
	if p.broker, err = newBroker(s, cmd, logger); err != nil {
		return nil, err
	}
	c, err := p.fork(s, cmd)
	if err != nil {
		return nil, err
	}
	defer unix.Close(c.fd)
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(unix.SIGKILL) })
	defer stop()
	p.broker.trial = s.Trials.hook
	err = p.converse(c, s)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		status := p.kill()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the child ended before its walls stood (exit code %d)", exitCode(status))
		}
		return nil, err
	}
	if s.Trial {
		p.kill()
	}
	return p, nil
}

// fork starts this binary as the child, with an empty environment, its standard descriptors and the channel.
func (p *Process) fork(s *spec, cmd Command) (channel, error) {
	stdin := cmd.Stdin
	if stdin == nil {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return channel{}, fmt.Errorf("open standard input: %w", err)
		}
		defer f.Close()
		stdin = f
	}
	defer p.output.started()
	stdout, err := p.output.to(cmd.Stdout)
	if err != nil {
		return channel{}, fmt.Errorf("open standard output: %w", err)
	}
	stderr, err := p.output.to(cmd.Stderr)
	if err != nil {
		return channel{}, fmt.Errorf("open standard error: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return channel{}, fmt.Errorf("start the child: %w", err)
	}
	defer unix.Close(pair[1])
	if err := unix.Pipe2(p.wake[:], unix.O_CLOEXEC); err != nil {
		unix.Close(pair[0])
		return channel{}, fmt.Errorf("start the child: %w", err)
	}
	started := make(chan error)
	go p.supervise(func() (int, error) {
		return syscall.ForkExec("/proc/self/exe", []string{childName}, &syscall.ProcAttr{
			Env:   []string{},
			Files: []uintptr{stdin.Fd(), stdout.Fd(), stderr.Fd(), uintptr(pair[1])},
			// A group of its own, so that Ctrl-C and kill(0) are the program's or ours, not both's.
			Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
		})
	}, started)
	if err := <-started; err != nil {
		unix.Close(pair[0])
		unix.Close(p.wake[0])
		unix.Close(p.wake[1])
		return channel{}, startError(err)
	}
	if !s.Trial {
		p.lendTerminal(cmd.Stdin)
	}
	return channel{pair[0]}, nil
}

func startError(err error) error {
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("start the child: %w: the sallyport binary itself must be executable by uid %d (chmod 0755)", err, os.Getuid())
	}
	return fmt.Errorf("start the child: %w", err)
}

// converse tells the child what to do and follows its reports until it has become the program.
func (p *Process) converse(c channel, s *spec) error {
	if err := c.send(s, -1); err != nil {
		return fmt.Errorf("tell the child what to do: %w", err)
	}
	for {
		var r report
		fd, err := c.receive(&r)
		switch {
		case errors.Is(err, io.EOF) && p.enforced.Protections != nil:
			return nil // the channel closed on exec: the program has begun
		case err != nil:
			return err
		case r.Missing:
			return fmt.Errorf("%s: %w", r.Error, fs.ErrNotExist)
		case r.Error != "":
			return errors.New(r.Error)
		case r.Dropped:
			if s.Custody = s.custody(p.pid); s.Notify {
				p.broker.custody = s.Custody
			}
			err = c.send(s.Custody, -1)
		case r.Listener:
			p.listeners <- fd
			err = c.send(struct{}{}, -1)
		case r.Protections != nil:
			p.enforced = s.enforced(r.Protections)
			if s.Trial {
				return nil
			}
			if err := unaccepted(r.Protections, s.Accept); err != nil {
				return err
			}
			p.broker.begin()
			err = c.send(struct{}{}, -1)
		}
		if err != nil {
			return fmt.Errorf("answer the child: %w", err)
		}
	}
}
