package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
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
		Short: "Run the gate alone, for a service that runs elsewhere",
		Long: `Run the gate in front of a service that somebody else starts: as a sidecar, or as
a gateway on the same host. No walls are built around the service; use "run" for
those.

Started as root, sallyport becomes sandbox.user (65532:65532 when unset) before
it reads a single byte of traffic.

Signals: SIGTERM and SIGINT stop accepting, drain (ingress.limits.drain_timeout)
and end with 0; SIGHUP opens the audit log anew and reloads the configuration.`,
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

// server is a started gate with its listeners. serve and run share it.
type server struct {
	*gate
	admin     *admin
	signals   chan os.Signal
	closeGate context.CancelFunc // set by open
	gateDone  chan error         // set by open; gets the gate's end
}

// start opens the listeners while ports and folders can still be had, gives up what is not needed, and then opens
// the rest as the user it has become: what works now will work at a reload.
func start(f *config.File, log *slog.Logger) (*server, error) {
	data, err := listen(f.Ingress.Listen, 0o666)
	if err != nil {
		return nil, err
	}
	var adminListener net.Listener
	if f.Admin.Listen != "" {
		if adminListener, err = listen(f.Admin.Listen, 0o600); err != nil {
			data.Close()
			return nil, err
		}
	}
	fail := func(err error) (*server, error) {
		data.Close()
		if adminListener != nil {
			adminListener.Close()
		}
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
	g, err := assemble(f, log, data)
	if err != nil {
		return fail(err)
	}
	s := &server{gate: g, signals: make(chan os.Signal, 8)}
	// Before a service is started: a signal in between must not end us and leave it behind.
	signal.Notify(s.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	if adminListener != nil {
		s.admin = newAdmin(g, adminListener)
	}
	return s, nil
}

// open records that a run begins, and opens the gate: what it forwards to may come later, and is 502 until then.
func (s *server) open(ctx context.Context) error {
	if err := s.recordRun("starting"); err != nil {
		s.listener.Close()
		s.gate.close()
		return fmt.Errorf("record the start: %w", err)
	}
	// The gate outlives ctx by the time that draining takes.
	ctx, s.closeGate = context.WithCancel(context.WithoutCancel(ctx))
	s.gateDone = make(chan error, 1)
	go func() { s.gateDone <- s.gateway.Serve(ctx, s.listener) }()
	go s.maintain(ctx)
	s.log.Info("listening", "address", s.listener.Addr().String(), "upstream", s.configuration().Ingress.Upstream.String(),
		"routes", len(s.configuration().Ingress.Routes), "since_start_ms", sinceStart().Milliseconds())
	return nil
}

// abandon ends an opened gate behind which nothing came to be.
func (s *server) abandon() {
	s.closeGate()
	<-s.gateDone
	s.gate.close()
}

// serve runs until a signal or the service ends it, and returns after everything has ended. The order of the end: no new
// requests, those in flight are answered, then the service goes, then the operator's listener, and the book is closed
// last. The caller has opened the gate.
func (s *server) serve(ctx context.Context) error {
	defer s.gate.close()
	defer signal.Stop(s.signals)
	defer s.closeGate()
	adminCtx, closeAdmin := context.WithCancel(context.WithoutCancel(ctx))
	defer closeAdmin()

	if err := s.recordRun("started"); err != nil {
		s.service.kill()
		s.closeGate()
		<-s.gateDone
		return fmt.Errorf("record the start: %w", err)
	}
	adminDone := make(chan error, 1)
	go func() { adminDone <- s.admin.serve(adminCtx) }()

	var errs []error
	draining := false
	drain := func(why string) {
		if !draining {
			draining = true
			s.log.Info("draining", "because", why)
			s.admin.drain()
			s.closeGate()
		}
	}
	gateDone, ended, canceled := s.gateDone, s.service.done(), ctx.Done()
	for gateDone != nil || ended != nil {
		select {
		case err := <-gateDone:
			gateDone = nil
			errs = append(errs, err)
			drain("the gate has ended")
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
				if draining {
					s.service.kill() // asked twice
				}
				drain(sig.String())
			default:
				s.service.forward(sig)
			}
		}
	}
	closeAdmin()
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
	if err := s.reload(ctx); err != nil {
		s.log.Error("reload", "error", err)
	}
}

// recordRun writes into the book when a run begins and ends, and what holds around the service.
func (s *server) recordRun(what string) error {
	d := map[string]any{"event": what, "version": readVersion().Version, "config": s.configuration().Path}
	if service := s.service; service != nil {
		d["command"] = service.command
		switch what {
		case "started":
			d["enforced"] = service.process.Enforced().Protections
		case "stopped":
			d["code"] = service.code
		}
	}
	now := time.Now()
	return s.audit.Record(audit.Record{ID: rand.Text(), Time: now, Point: "run", Decision: policy.Decision{Code: policy.Code(what)}, Detail: d})
}
