package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sandbox"
)

func newRun(t *terminal) *cobra.Command {
	var path, learnTo string
	var level slog.Level
	var patience time.Duration
	c := &cobra.Command{
		Use:   "run [-c FILE] [--learn FILE] -- CMD [ARG...]",
		Short: "Run a service between the gates and inside the walls",
		Long: `Run CMD as a service that nobody reaches but through the gate in front, and that
reaches nobody but through the gate behind.

sallyport opens its listeners, gives up every privilege it does not need, builds
the walls of the sandbox section around CMD, proves from inside that they hold,
and only then lets CMD begin. CMD can listen on loopback only, on the port of
ingress.upstream; a service that asks for 0.0.0.0 is led to 127.0.0.1. CMD can
connect to what egress.destinations names, and to nothing else (sandbox.network).
What the kernel cannot enforce refuses to start, unless sandbox.accept_gaps names
it.

It does what PID 1 of a container has to do: it forwards signals, reaps orphans
and returns the service's exit code (128+n when signal n ended it).

The service finds in its environment what it needs to verify the assertion that
it receives in place of the token: SALLYPORT_ISSUER, SALLYPORT_AUDIENCE,
SALLYPORT_TRUST_DOMAIN, SALLYPORT_HEADER and SALLYPORT_JWKS_FILE; what it needs to
say which request it acts for, SALLYPORT_PROXY (a forward proxy: egress.listen, or
one of its own) and SALLYPORT_BACKGROUND (for what no request causes), which Node
does by itself (its NODE_OPTIONS name a file of ours; see sandbox.preload);
RES_OPTIONS=use-vc, so that names are looked up over TCP; and with
sandbox.network: ports HTTP_PROXY and its like.

Signals: SIGTERM and SIGINT stop accepting, drain (ingress.limits.drain_timeout)
and then end the service; a second one ends it at once. SIGHUP opens the audit
log and the access log anew and reloads the configuration, which is reloaded by
itself when the file changes (reload.watch). SIGUSR1, SIGUSR2 and SIGWINCH go to the
service. On a terminal the service has the foreground: Ctrl-C reaches it alone,
and when it ends so does sallyport.

--learn FILE finds out what sandbox and egress must say. The service runs behind
the gate, without privileges and on loopback as ever, but every file that its
user may open is open to it, and it may connect to whatever is not in the
registry of escape targets. Exercise every route, end it, and read FILE: it holds
the two sections, ready to be pasted, with what is dangerous left out and said.
Not for production: nothing that is worth something belongs into such a run.`,
		Example: `  sallyport run -- node dist/main.js
  sallyport run -c /etc/sallyport.yaml -- /app/server --port 3000
  sallyport run --learn learned.yaml -- node dist/main.js

  ENTRYPOINT ["sallyport", "run", "--", "node", "dist/main.js"]`,
		Args: func(c *cobra.Command, args []string) error {
			switch at := c.ArgsLenAtDash(); {
			case len(args) == 0:
				return &codeError{exitUsage, withHint(errors.New("run: which program?"), "sallyport run -- node dist/main.js")}
			case at != 0:
				// Without the dash a flag meant for the service would be taken by us, or the reverse.
				return &codeError{exitUsage, withHint(fmt.Errorf("run: unexpected argument %q before --", args[0]), "put -- before the program: sallyport run -- %s", strings.Join(args, " "))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			f, err := readConfig(t, path)
			if err != nil {
				return err
			}
			if f.Ingress.Upstream == nil {
				return withHint(errors.New("run: there is no ingress.upstream: proxies only ask, and nobody forwards to the service"),
					"write ingress.listen and ingress.upstream: what run starts is reached through its own gate alone; for a service elsewhere there is sallyport serve")
			}
			if len(f.Sandbox.Listen) == 0 {
				return withHint(fmt.Errorf("run: ingress.upstream %s is no address on this machine's loopback", f.Ingress.Upstream),
					"run starts the service itself, behind 127.0.0.1 or a unix socket; for a service elsewhere there is sallyport serve")
			}
			if patience <= 0 {
				return usage("--start-timeout must be positive, got %s", patience)
			}
			if c.Flags().Changed("learn") {
				if err := mayLearn(f, learnTo); err != nil {
					return err
				}
			}
			return run(c.Context(), t, f, args, t.logger(level), patience, learnTo)
		},
	}
	configFlag(c, &path)
	logLevelFlag(c, &level)
	c.Flags().StringVar(&learnTo, "learn", "", "do not confine: note what the service does, and write its profile to a new `FILE`")
	_ = c.MarkFlagFilename("learn", "yaml", "yml")
	c.Flags().DurationVar(&patience, "start-timeout", time.Minute, "how long the service may take until it listens")
	return c
}

// service is the program behind the gate.
type service struct {
	command []string
	process *sandbox.Process
	log     *slog.Logger
	ended   chan struct{} // closed once code is set
	code    int
	listens atomic.Bool // it has been seen to
	late    atomic.Bool // it was ended because it never listened
	lesson  *lesson     // nil: it is confined
}

// run is the whole life of a service, and of what is learned from it if learnTo is not empty.
func run(ctx context.Context, t *terminal, f *config.File, args []string, log *slog.Logger, patience time.Duration, learnTo string) (err error) {
	l, err := newLesson(f, learnTo, log)
	if err != nil {
		return err
	}
	defer func() { err = l.finish(err) }()
	f = l.open(f)
	var told attribution
	if l == nil { // what is learned is what the service does by itself
		if told, err = attribute(f, args[0], log); err != nil {
			return err
		}
	}
	s, err := start(f, log)
	if err != nil {
		return err
	}
	profile, err := profileFor(f, s.doors.proxy())
	if err == nil {
		err = s.doors.openProgram(profile, told.file != "" || asksForProxy(profile, args[0]))
	}
	if err != nil {
		s.doors.close()
		s.gate.close()
		return err
	}
	maps.Copy(profile.Env.Set, causes(s.doors, s.flight.Background())) // whatever the file says: it could not know
	told.tell(&profile)
	profile.Learn = l != nil
	svc := &service{command: args, log: log, ended: make(chan struct{}), lesson: l}
	s.service = svc
	if err := s.open(ctx); err != nil {
		return err
	}
	svc.process, err = sandbox.Launch(ctx, profile, sandbox.Command{
		Path: args[0], Args: args, Stdin: t.in, Stdout: apart(f, t.out), Stderr: apart(f, t.err), Logger: log,
		Connect: l.notes(s, connect(s.behind)), Resolve: resolve(context.WithoutCancel(ctx), s.behind), Denied: newRefusals(s.gate).hear,
	})
	if err != nil {
		s.abandon()
		return launchError(err)
	}
	l.watch(t, f, profile, svc)
	go svc.wait()
	go svc.awaitListening(ctx, f.Ingress.Upstream, patience)
	if err := s.serve(ctx); err != nil {
		return err
	}
	if svc.late.Load() {
		return withHint(fmt.Errorf("the service did not listen on %s within %s", f.Ingress.Upstream, patience),
			"it must listen on the address of ingress.upstream (a NestJS service: await app.listen(%s, '127.0.0.1'))", f.Ingress.Upstream.Port())
	}
	return exit(svc.code)
}

// apart is what the service gets for our output where that is the audit log too: a pipe of its own, which is copied. Of
// ours it could cut off the lines, if it is a file, or read them away, if it is a pipe; of a terminal neither.
func apart(f *config.File, w io.Writer) io.Writer {
	file, ok := w.(*os.File)
	if f.Audit.File != "-" || !ok || term.IsTerminal(int(file.Fd())) {
		return w
	}
	return struct{ io.Writer }{w}
}

// launchError adds what to do to what went wrong.
func launchError(err error) error {
	if gap, ok := errors.AsType[*sandbox.GapError](err); ok {
		names := make([]string, len(gap.Gaps))
		for i, g := range gap.Gaps {
			names[i] = g.Name
		}
		return withHint(fmt.Errorf("start the service: %w", err),
			"sallyport doctor shows each protection; to run without, write it down: sandbox.accept_gaps: [%s]", strings.Join(names, ", "))
	}
	return fmt.Errorf("start the service: %w", err)
}

// wait reaps until the program has ended.
func (s *service) wait() {
	code, err := s.process.Wait()
	if err != nil {
		s.log.Error("wait for the service", "error", err)
		code = exitFailure
	}
	s.code = code
	close(s.ended)
}

// awaitListening ends the service if it does not listen in time: a gate in front of nothing helps nobody, and an
// orchestrator should see it fail.
func (s *service) awaitListening(ctx context.Context, upstream *url.URL, patience time.Duration) {
	network, address := "tcp", upstream.Host
	if upstream.Host == "" {
		network, address = "unix", upstream.Path
	}
	began := time.Now()
	for time.Since(began) < patience {
		if c, err := net.DialTimeout(network, address, time.Second); err == nil {
			c.Close()
			s.listens.Store(true)
			s.log.Info("the service is listening", "upstream", upstream.String(), "after_ms", time.Since(began).Milliseconds())
			return
		}
		select {
		case <-s.ended:
			return
		case <-ctx.Done():
			return
		case <-time.After(25 * time.Millisecond):
		}
	}
	s.late.Store(true)
	s.kill()
}

// ready says why the program could not answer now, or nil. Nil too where somebody else runs it: then we do not know.
func (s *service) ready() error {
	switch {
	case s == nil || s.listens.Load():
		return nil
	default:
		return errors.New("the service does not listen yet")
	}
}

// learns tells whether its profile is being learned.
func (s *service) learns() bool { return s != nil && s.lesson != nil }

// done is closed when the program has ended; nil where there is none.
func (s *service) done() <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.ended
}

// stop asks the program to end, and makes it end if it does not.
func (s *service) stop(sig os.Signal) {
	const grace = 10 * time.Second
	if s == nil {
		return
	}
	s.forward(sig)
	go func() {
		select {
		case <-s.ended:
		case <-time.After(grace):
			s.log.Warn("the service did not end when asked: killing it", "after", grace.String())
			s.kill()
		}
	}()
}

func (s *service) kill() { s.forward(syscall.SIGKILL) }

// forward passes a signal on; to nobody where no program runs.
func (s *service) forward(sig os.Signal) {
	if s == nil {
		return
	}
	select {
	case <-s.ended:
		return
	default:
	}
	if err := s.process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.log.Warn("signal the service", "signal", sig.String(), "error", err)
	}
}

// profileFor completes the profile with what the gates themselves make necessary: what the service verifies assertions
// with it must be able to read, and it must find its way out. proxy is where the forward proxy listens.
func profileFor(f *config.File, proxy netip.AddrPort) (sandbox.Profile, error) {
	p := f.Sandbox
	p.Proxy = proxy.Port()
	env := outgoing(p, proxy)
	for k, v := range p.Env.Set {
		env[k] = v
	}
	if a := f.Ingress.Assertion; a != nil {
		for k, v := range map[string]string{
			"SALLYPORT_ISSUER":       assertionIssuer(a),
			"SALLYPORT_AUDIENCE":     a.Audience,
			"SALLYPORT_TRUST_DOMAIN": trustDomain(a),
			"SALLYPORT_HEADER":       a.Header,
			"SALLYPORT_JWKS_FILE":    f.Keys.Publish,
		} {
			if _, said := env[k]; !said {
				env[k] = v
			}
		}
		// The folder and not the file: the file is replaced by rename whenever a key changes, and a rule on the
		// old inode would not follow.
		p.Read = append(append([]string(nil), p.Read...), filepath.Dir(f.Keys.Publish))
	}
	p.Env.Set = env
	// What the configuration itself names is denied already; what rotation has made of the audit log is not in it.
	if f.Audit.File != "-" {
		rotated, err := filepath.Glob(f.Audit.File + "?*")
		if err != nil {
			return sandbox.Profile{}, fmt.Errorf("find the audit log's files: %w", err)
		}
		p.Deny = append(append([]string(nil), p.Deny...), rotated...)
	}
	return p, nil
}

// sinceStart is how long this process has lived, as the kernel counts it.
func sinceStart() time.Duration {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	// proc(5): the 22nd field is the start time in clock ticks after boot; the second may hold spaces and ends
	// with the last parenthesis.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return 0
	}
	const ticksPerSecond = 100 // USER_HZ, fixed by the kernel's interface
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return 0
	}
	up, err := strconv.ParseFloat(strings.Fields(string(uptime))[0], 64)
	if err != nil {
		return 0
	}
	return time.Duration((up - float64(ticks)/ticksPerSecond) * float64(time.Second))
}
