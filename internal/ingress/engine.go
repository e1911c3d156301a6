package ingress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/sallyport/sallyport/internal/http1"
	"github.com/sallyport/sallyport/internal/wire"
)

// The engines: what reads HTTP/1 from clients, behind wire, and speaks it to the service.
const (
	engineStandard = "net/http"
	engineOwn      = "http1"
)

// checkEngine reads the name of an engine; empty: the one of the standard library.
func checkEngine(name string) (own bool, err error) {
	switch name {
	case "", engineStandard:
		return false, nil
	case engineOwn:
		return true, nil
	}
	return false, fmt.Errorf("engine: %q is neither %s nor %s", name, engineStandard, engineOwn)
}

// serverHTTP1 is what Serve asks of the server of HTTP/1.
type serverHTTP1 interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
	Close() error
}

func (g *Gateway) newHTTP1(base context.Context) serverHTTP1 {
	if g.client != nil {
		return &http1.Server{Handler: g, Base: base, Idle: g.config.Limits.IdleTimeout, Log: g.log}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return g.standard(base, protocols, wire.ConnContext)
}

// newClient is the engine's way to the service; nil if the engine is not asked for, there is no service, or it does not
// speak what the service does.
func newClient(c *Config) (*http1.Client, error) {
	own, err := checkEngine(c.Engine)
	if err != nil || !own || c.AskOnly && c.Upstream == nil {
		return nil, err
	}
	to, err := dialTarget(c.Upstream)
	if err != nil || to.http2 {
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	return &http1.Client{
		Dial:     func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, to.network, to.address) },
		Patience: c.Limits.UpstreamTimeout,
		Idle:     idleUpstream,
		MaxIdle:  c.Limits.Requests,
		MaxHead:  maxAnswerBytes,
	}, nil
}

// interruptHTTP1 ends what the engine has at hand; net/http ends it by the context.
func interruptHTTP1(s serverHTTP1) {
	if own, ok := s.(*http1.Server); ok {
		own.Interrupt()
	}
}

var (
	errInterrupted = errors.New("the request was ended")
	errPanicked    = errors.New("a step panicked; the log has the stack")
)

// dialing is a dial that can be interrupted.
type dialing struct{ cancel context.CancelFunc }

// Interrupt ends it.
func (d dialing) Interrupt() { d.cancel() }

// closeIdle lets go of connections to the service that nobody uses.
func (g *Gateway) closeIdle() {
	g.transport.close()
	if g.client != nil {
		g.client.CloseIdle()
	}
}
