package ingress

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/frames"
)

// closePatience bounds what ending a WebSocket takes: the frame at hand, the two close frames, and the client's answer.
const closePatience = 500 * time.Millisecond

// Hijack makes the connection a tunnel, for an upgrade that the service has granted.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, b, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if w.wire != nil {
		w.wire.Open()
	}
	w.status = http.StatusSwitchingProtocols
	w.tunnel.client(c)
	return w.tunnel, b, nil
}

// tunnel is a WebSocket between client and service: the client's hijacked connection, and the service's. It changes no byte
// of what either sends, and can end both directions between two frames.
type tunnel struct {
	net.Conn // the client's
	w        *writer
	service  io.ReadWriteCloser

	toClient, toService *frames.Writer
	began, gone         chan struct{} // the client is read; there is nothing more to read of it
	begin, end, closed  sync.Once
}

// newTunnel is one whose client is not known yet.
func newTunnel(w *writer, service io.ReadWriteCloser) *tunnel {
	return &tunnel{
		w: w, service: service, toService: frames.NewWriter(service, true), began: make(chan struct{}), gone: make(chan struct{}),
	}
}

func (t *tunnel) client(c net.Conn) {
	t.Conn = c
	t.toClient = frames.NewWriter(meter{c, t.w}, false)
}

// meter counts what the client is sent.
type meter struct {
	io.Writer
	w *writer
}

func (c meter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.w.tunnelOut.Add(int64(n))
	return n, err
}

// Read reads from the client. The first Read says that the client has the answer to its handshake.
func (t *tunnel) Read(p []byte) (int, error) {
	t.begin.Do(func() { close(t.began) })
	n, err := t.Conn.Read(p)
	t.w.tunnelIn.Add(int64(n))
	if err != nil {
		t.end.Do(func() { close(t.gone) })
	}
	return n, err
}

func (t *tunnel) Write(p []byte) (int, error) { return t.toClient.Write(p) }

// CloseWrite ends one direction.
func (t *tunnel) CloseWrite() error {
	if h, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// bye sends both sides a close frame, each where a frame may begin, and waits for the client to go. It takes closePatience at
// most, after which the client's connection is closed: whoever does not read is not waited for.
func (t *tunnel) bye(code uint16, reason string) {
	patience := time.NewTimer(closePatience)
	defer patience.Stop()
	defer t.Conn.Close()
	select {
	case <-t.began:
	case <-patience.C:
		return
	}
	over := make(chan struct{})
	defer close(over)
	var said sync.WaitGroup
	for _, w := range []*frames.Writer{t.toClient, t.toService} {
		said.Go(func() {
			if done, err := w.Close(code, reason); err == nil {
				select {
				case <-done:
				case <-over:
				}
			}
		})
	}
	both := make(chan struct{})
	go func() { said.Wait(); close(both) }()
	select {
	case <-both:
	case <-patience.C:
		return
	}
	select {
	case <-t.gone:
	case <-patience.C:
	}
}

// upgraded is the service's side of a tunnel, as ReverseProxy sees it. ReverseProxy closes it when the request's context ends,
// which is where the two sides are told.
type upgraded struct {
	*tunnel
	x *exchange
}

func (u *upgraded) Read(p []byte) (int, error)  { return u.service.Read(p) }
func (u *upgraded) Write(p []byte) (int, error) { return u.toService.Write(p) }

// CloseWrite ends one direction.
func (u *upgraded) CloseWrite() error {
	if h, ok := u.service.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported // then there is no half: all ends
}

func (u *upgraded) Close() (err error) {
	u.closed.Do(func() {
		switch code := u.x.ended(); {
		case code == "" || u.Conn == nil:
		case code == codeStreamEnded:
			u.bye(frames.GoingAway, "going away")
		default:
			u.bye(frames.PolicyViolation, string(code))
		}
		err = u.service.Close()
	})
	return err
}
