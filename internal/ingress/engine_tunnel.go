package ingress

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/sallyport/sallyport/internal/http1"
)

// forwardUpgrade is forward by the engine for a request that asks for another protocol on its connection.
func (x *exchange) forwardUpgrade(c *http1.Conn) {
	ctx, cancel := x.lifetime()
	defer cancel()
	x.ctx = ctx
	number := c.Number()
	defer context.AfterFunc(ctx, func() { c.Interrupt(number) })() // a tunnel ends itself
	x.g.fly(x)
	f := &flow{x: x, c: c, client: x.g.client, upgrade: x.r.Header["Upgrade"][0]}
	defer f.settle(false)
	if err := f.ask(); err != nil {
		f.fail(err)
		return
	}
	if f.answer.Status != http.StatusSwitchingProtocols {
		f.answerClient()
		return
	}
	if to := x.w.Header()["Upgrade"]; len(to) != 1 || !strings.EqualFold(to[0], f.upgrade) {
		f.fail(errSwitched)
		return
	}
	f.tunnel(ctx)
}

// tunnel tells the client that it has what it asked for, and passes on what both sides say until one of them fails or both
// have ended.
func (f *flow) tunnel(ctx context.Context) {
	x := f.x
	f.c.Waits(false)
	f.c.Attach(nil)
	h := x.w.Header()
	f.withoutHops(h)
	x.filter(h)
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{f.upgrade}
	head := f.c.SwitchingHead(f.answer.Names)
	f.link.Tunnel()
	x.w.tunnel = newTunnel(&x.w, f.link)
	service := &upgraded{x.w.tunnel, x}
	defer service.Close()
	client, _, err := x.w.Hijack()
	if err != nil {
		x.failure = x.reason(err)
		panic(http.ErrAbortHandler)
	}
	defer client.Close()
	defer context.AfterFunc(ctx, func() { service.Close() })()
	if _, err := x.wire.Write(head); err != nil {
		x.w.err = err
		return
	}
	ended := make(chan error, 2)
	for _, way := range []struct {
		to   io.Writer
		from io.Reader
	}{{service, client}, {client, service}} {
		go func() {
			defer func() {
				if p := recover(); p != nil {
					x.fault(p)
					ended <- errPanicked
				}
			}()
			_, err := io.Copy(way.to, way.from)
			if err == nil {
				err = errors.ErrUnsupported
				if half, ok := way.to.(interface{ CloseWrite() error }); ok {
					err = half.CloseWrite()
				}
			}
			ended <- err
		}()
	}
	if err := <-ended; err == nil {
		<-ended
	}
}
