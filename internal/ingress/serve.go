package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/h2"
)

// closeGrace is how long ended streams have, after the drain, to write their outcome.
const closeGrace = 2 * time.Second

// Serve accepts connections until ctx ends, then drains.
//
// Draining, it accepts nothing, lets requests in flight end, and after Limits.DrainTimeout ends those that have not.
// It returns when the requests that it ended have had their time to record an outcome; nil if ctx was why it ended.
func (g *Gateway) Serve(ctx context.Context, l net.Listener) error {
	base, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	defer g.closeIdle()
	s := g.newServer(base, l)
	watching, unwatch := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { g.watch(watching) })
	work.Go(func() { g.share(watching) })
	work.Go(func() { g.reask(watching, reaskEvery) })
	defer work.Wait()
	defer unwatch()
	ended := make(chan error, 3)
	for _, serve := range []func() error{
		func() error { return s.one.Serve(s.doors.http1) },
		func() error { return s.two.Serve(s.doors.http2) },
		s.doors.accept,
	} {
		work.Go(func() { ended <- serve() })
	}
	select {
	case err := <-ended:
		s.close()
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	g.drain(s, end)
	var failed error
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			failed = fmt.Errorf("serve: %w", err)
		}
	}
	s.doors.wait() // now that nobody is let in any more
	return failed
}

// server is what serves while Serve runs: the doors, and behind them a server for each protocol.
type server struct {
	one   serverHTTP1
	two   *http.Server
	doors *doors
}

func (g *Gateway) newServer(base context.Context, l net.Listener) *server {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true) // TLS is below what it sees
	two := g.standard(base, protocols, h2.ConnContext)
	two.HTTP2 = g.http2Config()
	s := &server{one: g.newHTTP1(base), two: two, doors: newDoors(g.doorway(l), g)}
	return s
}

// standard is a server of net/http, of whose connections of lets the gate find its own.
func (g *Gateway) standard(base context.Context, protocols *http.Protocols, of func(context.Context, net.Conn) context.Context) *http.Server {
	return &http.Server{
		Handler:                      g,
		ConnContext:                  of,
		BaseContext:                  func(net.Listener) context.Context { return base },
		IdleTimeout:                  g.config.Limits.IdleTimeout,
		MaxHeaderBytes:               g.config.Limits.wire().MaxHeaderBytes(),
		DisableGeneralOptionsHandler: true,
		Protocols:                    protocols,
		ErrorLog:                     slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
}

// close ends everything at once.
func (s *server) close() {
	s.doors.close()
	s.one.Close()
	s.two.Close()
}

// shutdown lets requests in flight end.
func (s *server) shutdown(ctx context.Context) error {
	s.doors.close()
	var both [2]error
	var wait sync.WaitGroup
	wait.Go(func() { both[0] = s.one.Shutdown(ctx) })
	wait.Go(func() { both[1] = s.two.Shutdown(ctx) }) // says GOAWAY
	wait.Wait()
	return errors.Join(both[:]...)
}

// drain waits for requests in flight, tunnels too, then ends them.
func (g *Gateway) drain(s *server, end context.CancelCauseFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), g.config.Limits.DrainTimeout)
	defer cancel()
	err := s.shutdown(ctx)
	if err == nil {
		err = g.quiet(ctx) // Shutdown knows nothing of hijacked connections
	}
	if err != nil {
		g.log.Warn("draining took too long: requests in flight are ended", "requests", g.inFlight.Load())
	}
	end(errDraining)
	interruptHTTP1(s.one)
	ctx, cancel = context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	g.quiet(ctx)
	if err != nil {
		s.two.Shutdown(ctx) // what the ended streams were told is still on its way
	}
	s.close()
}

// quiet waits until no request is in flight.
func (g *Gateway) quiet(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for g.inFlight.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
