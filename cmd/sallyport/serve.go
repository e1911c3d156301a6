package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sandbox"
)

func newServe(t *terminal) *cobra.Command {
	var path string
	var level slog.Level
	c := &cobra.Command{
		Use:   "serve [-c FILE]",
		Short: "Run the gates alone, for a service that runs elsewhere",
		Long: `Run the gate in front of a service that somebody else starts: as a sidecar, or as
a gateway on the same host. With egress.listen the gate behind is there too, for
what the service sends to that proxy by itself. No walls are built around the
service; use "run" for those.

Started as root, sallyport becomes sandbox.user (65532:65532 when unset) before
it reads a single byte of traffic.

Signals: SIGTERM and SIGINT stop accepting, drain both gates
(ingress.limits.drain_timeout) and end with 0; SIGHUP opens the audit log and the
access log anew and reloads the configuration, which is reloaded by itself when the
file changes (reload.watch).`,
		Example: `  sallyport serve -c sallyport.yaml
  sallyport serve --log-level debug`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := readConfig(t, path)
			if err != nil {
				return err
			}
			s, err := start(f, t.logger(level))
			if err != nil {
				return err
			}
			if err := s.open(c.Context()); err != nil {
				return err
			}
			return s.serve(c.Context())
		},
	}
	configFlag(c, &path)
	logLevelFlag(c, &level)
	return c
}

const settling = 200 * time.Millisecond

// server is a started gate with its listeners. serve and run share it.
type server struct {
	*gate
	admin   *admin
	signals chan os.Signal

	// Set by open. The channels get each gate's end.
	closeGate, closeBehind context.CancelFunc
	gateDone, behindDone   chan error
}

// start opens the listeners while ports and folders can still be had, gives up what is not needed, and then opens
// the rest as the user it has become: what works now will work at a reload.
func start(f *config.File, log *slog.Logger) (*server, error) {
	d, err := openDoors(f)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*server, error) {
		d.close()
		return nil, err
	}
	if err := handOver(f); err != nil {
		return fail(err)
	}
	was := os.Getuid()
	if err := sandbox.Drop(f.Sandbox); err != nil {
		return fail(fmt.Errorf("give up privileges: %w", err))
	}
	if os.Getuid() != was {
		// The home of who we were; the service would look there for files that it may not read.
		if err := os.Setenv("HOME", "/"); err != nil {
			return fail(err)
		}
	}
	g, err := assemble(f, log, d)
	if err != nil {
		return fail(err)
	}
	s := &server{gate: g, signals: make(chan os.Signal, 8)}
	// Before a service is started: a signal in between must not end us and leave it behind.
	signal.Notify(s.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	if d.admin != nil {
		s.admin = newAdmin(g, d.admin)
	}
	return s, nil
}

// open records that a run begins, and opens the gate: what it forwards to may come later, and is 502 until then.
func (s *server) open(ctx context.Context) error {
	if err := s.recordRun("starting"); err != nil {
		s.doors.close()
		s.gate.close()
		return fmt.Errorf("record the start: %w", err)
	}
	// The gates outlive ctx by the time that draining takes.
	ctx = context.WithoutCancel(ctx)
	behindCtx, closeBehind := context.WithCancel(ctx)
	ctx, s.closeGate = context.WithCancel(ctx)
	s.closeBehind = closeBehind
	s.gateDone, s.behindDone = make(chan error, 1), make(chan error, 1)
	go func() { s.gateDone <- s.front(ctx) }()
	go func() { s.behindDone <- s.guard(behindCtx) }()
	go s.maintain(ctx)
	s.log.Info("listening", append(s.doors.front(s.configuration().Ingress.Upstream),
		"routes", len(s.configuration().Ingress.Routes), "since_start_ms", sinceStart().Milliseconds())...)
	return nil
}

// abandon ends an opened gate behind which nothing came to be.
func (s *server) abandon() {
	s.closeBoth()
	s.gate.close()
}

// closeBoth waits until both gates have ended: the one in front first, for requests in flight may need the other.
func (s *server) closeBoth() {
	s.closeGate()
	<-s.gateDone
	s.closeBehind()
	<-s.behindDone
}

// serve runs until a signal or the service ends it, and returns after everything has ended. The order of the end: no new
// requests, those in flight are answered, then the service goes, then the gate behind it, which it needed until then, then
// the operator's listener, and the book is closed last. The caller has opened the gates.
func (s *server) serve(ctx context.Context) error {
	defer s.gate.close()
	defer signal.Stop(s.signals)
	defer s.closeBehind()
	defer s.closeGate()
	adminCtx, closeAdmin := context.WithCancel(context.WithoutCancel(ctx))
	defer closeAdmin()

	if err := s.recordRun("started"); err != nil {
		s.service.kill()
		s.closeBoth()
		return fmt.Errorf("record the start: %w", err)
	}
	// What reading the configuration took is needed no more: the kernel gets it back, when the first requests have their answers.
	defer time.AfterFunc(settling, debug.FreeOSMemory).Stop()
	adminDone := make(chan error, 1)
	go func() { adminDone <- s.admin.serve(adminCtx) }()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.watchFiles(adminCtx)
	}()

	var errs []error
	draining := false
	drain := func(why string) {
		if !draining {
			draining = true
			s.log.Info("draining", "because", why)
			s.admin.drain()
			s.closeGate()
			if s.service == nil {
				go s.drainBehind()
			}
		}
	}
	gateDone, behindDone, ended, canceled := s.gateDone, s.behindDone, s.service.done(), ctx.Done()
	// Where the service is ours the gate behind ends with it, below; where it is not, by itself.
	for gateDone != nil || ended != nil || s.service == nil && behindDone != nil {
		select {
		case err := <-gateDone:
			gateDone = nil
			errs = append(errs, err)
			drain("the gate has ended")
			s.service.stop(syscall.SIGTERM)
		case err := <-behindDone:
			behindDone = nil
			errs = append(errs, err)
			drain("the gate behind has ended")
			s.service.stop(syscall.SIGTERM)
		case err := <-adminDone:
			adminDone = nil
			errs = append(errs, err)
			drain("the admin listener has ended")
		case <-ended:
			ended = nil
			drain("the service has ended")
		case <-canceled:
			canceled = nil
			drain(ctx.Err().Error())
		case sig := <-s.signals:
			switch sig {
			case syscall.SIGHUP:
				// Beside the loop: a reload may wait for an issuer, and a signal to end must not wait for that.
				go s.hangup(adminCtx)
			case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
				if draining { // asked twice
					s.service.kill()
					if s.service == nil {
						s.closeBehind()
					}
				}
				drain(sig.String())
			default:
				s.service.forward(sig)
			}
		}
	}
	s.closeBehind()
	if behindDone != nil {
		errs = append(errs, <-behindDone)
	}
	closeAdmin()
	<-watched
	if adminDone != nil {
		errs = append(errs, <-adminDone)
	}
	return errors.Join(append(errs, s.recordRun("stopped"))...)
}

// hangup is what log rotation and operators ask for with SIGHUP.
func (s *server) hangup(ctx context.Context) {
	if err := s.audit.Reopen(); err != nil {
		s.log.Error("reopen the audit log: the old file stays", "error", err)
	}
	if err := s.gate.access.Reopen(); err != nil {
		s.log.Error("reopen the access log: the old file stays", "error", err)
	}
	_ = s.reload(ctx, bySignal) // it has said why
}

// recordRun writes into the book when a run begins and ends, and what holds around the service.
func (s *server) recordRun(what string) error {
	d := map[string]any{"event": what, "version": readVersion().Version, "config": s.configuration().Path, "config_digest": s.configuration().Digest.String()}
	if service := s.service; service != nil {
		d["command"] = service.command
		if l := service.lesson; l != nil {
			d["learning"] = l.path // nothing that the profile says of files and connections holds
		}
		switch what {
		case "started":
			enforced := service.process.Enforced()
			d["enforced"], d["network"] = enforced.Protections, level(sandbox.Plan(enforced))
		case "stopped":
			d["code"] = service.code
		}
	}
	now := time.Now()
	return s.audit.Record(audit.Record{ID: rand.Text(), Time: now, Point: "run", Decision: policy.Decision{Code: policy.Code(what)}, Detail: d})
}
