package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/wire"
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
	defer g.transport.http.CloseIdleConnections()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler:                      g,
		ConnContext:                  wire.ConnContext,
		BaseContext:                  func(net.Listener) context.Context { return base },
		IdleTimeout:                  g.config.Limits.IdleTimeout,
		MaxHeaderBytes:               g.config.Limits.wire().MaxHeaderBytes(),
		DisableGeneralOptionsHandler: true,
		Protocols:                    protocols,
		ErrorLog:                     slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	limited := newListener(l, g)
	watching, unwatch := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() { g.watch(watching) })
	defer watch.Wait()
	defer unwatch()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(limited) }()
	select {
	case err := <-ended:
		server.Close()
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	g.drain(server, end)
	limited.wait()
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// drain waits for requests in flight, tunnels too, then ends them.
func (g *Gateway) drain(server *http.Server, end context.CancelCauseFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), g.config.Limits.DrainTimeout)
	defer cancel()
	err := server.Shutdown(ctx)
	if err == nil {
		err = g.quiet(ctx) // Shutdown knows nothing of hijacked connections
	}
	if err != nil {
		g.log.Warn("draining took too long: requests in flight are ended", "requests", g.inFlight.Load())
	}
	end(errDraining)
	ctx, cancel = context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	g.quiet(ctx)
	server.Close()
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

// listener hands out wires, and no more at once than may be open.
type listener struct {
	net.Listener
	g      *Gateway
	tls    *tls.Config
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
	open   sync.WaitGroup
}

func newListener(l net.Listener, g *Gateway) *listener {
	made := &listener{Listener: l, g: g, slots: make(chan struct{}, g.config.Limits.Connections), closed: make(chan struct{})}
	if c := g.config.TLS; c != nil {
		made.tls = c.Clone()
		made.tls.NextProtos = []string{"http/1.1"}
		if made.tls.ClientAuth != tls.NoClientCert {
			made.tls.SessionTicketsDisabled = true // a certificate is shown on each connection, or not at all
		}
	}
	return made
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	if l.tls != nil {
		c = tls.Server(c, l.tls)
	}
	l.open.Add(1)
	return wire.New(c, l.g.config.Limits.wire(), func() {
		<-l.slots
		l.open.Done()
	}), nil
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// wait waits until every connection has been closed.
func (l *listener) wait() { l.open.Wait() }
