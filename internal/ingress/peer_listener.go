package ingress

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/proxyproto"
)

// proxyPatience is how long a PROXY header may take, all of it: a proxy sends it in one piece, which may have to be sent again.
const proxyPatience = 3 * time.Second

// doorway stands before all else that is done with a listener's connections: it settles who is at the other end, and closes those
// of whom that cannot be settled.
func (g *Gateway) doorway(l net.Listener) net.Listener {
	onUnix := l.Addr().Network() == "unix"
	switch {
	case g.config.ProxyProtocol == nil && onUnix && g.config.Peers == nil:
		return named{l}
	case g.config.ProxyProtocol == nil && !onUnix:
		return l
	}
	d := &doorway{
		Listener: l, g: g, onUnix: onUnix,
		ready: make(chan net.Conn), failed: make(chan error), closed: make(chan struct{}),
		slots: make(chan struct{}, g.config.Limits.Connections), waiting: map[net.Conn]struct{}{},
	}
	d.running.Go(d.run)
	return d
}

// named is a unix socket to which everybody may connect, and whose peers are known all the same.
type named struct{ net.Listener }

func (l named) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	who, err := processOf(c)
	if err != nil {
		return c, nil // nothing depends on it
	}
	return &peerConn{c, who}, nil
}

// A doorway hands out connections once it is settled who is at the other end. Each is waited for apart from the others.
type doorway struct {
	net.Listener
	g       *Gateway
	onUnix  bool
	ready   chan net.Conn
	failed  chan error
	closed  chan struct{}
	once    sync.Once
	slots   chan struct{} // those that are waited for
	running sync.WaitGroup
	logged  atomic.Int64 // when a refusal was last logged
	unsaid  atomic.Int64 // refusals since then

	mu      sync.Mutex
	waiting map[net.Conn]struct{} // nil when it is closed
}

func (d *doorway) Accept() (net.Conn, error) {
	select {
	case c := <-d.ready:
		return c, nil
	case err := <-d.failed:
		return nil, err
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

// Close ends it, with all that it waits for.
func (d *doorway) Close() error {
	d.once.Do(func() { close(d.closed) })
	err := d.Listener.Close()
	d.mu.Lock()
	for c := range d.waiting {
		c.Close()
	}
	d.waiting = nil
	d.mu.Unlock()
	d.running.Wait()
	return err
}

// run accepts until the listener is closed.
func (d *doorway) run() {
	for {
		select {
		case d.slots <- struct{}{}:
		case <-d.closed:
			return
		}
		c, err := d.Listener.Accept()
		if err == nil && d.wait(c) {
			d.running.Go(func() {
				defer func() { <-d.slots }()
				d.settle(c)
			})
			continue
		}
		<-d.slots
		if err == nil {
			c.Close()
			return
		}
		select {
		case d.failed <- err: // whoever serves decides whether to go on
		case <-d.closed:
			return
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// wait notes a connection that Close is to close; false: it has already.
func (d *doorway) wait(c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting == nil {
		return false
	}
	d.waiting[c] = struct{}{}
	return true
}

// settle finds out who is at the other end, and hands the connection on or closes it.
func (d *doorway) settle(c net.Conn) {
	made, code, reason := d.admit(c)
	d.mu.Lock()
	delete(d.waiting, c)
	d.mu.Unlock()
	if made == nil {
		select {
		case <-d.closed: // it was we who ended it
		default:
			d.refuse(c, code, reason)
		}
		c.Close()
		return
	}
	select {
	case d.ready <- made:
	case <-d.closed:
		made.Close()
	}
}

// admit returns the connection under the name of whoever is at the other end; nil: it is refused.
func (d *doorway) admit(c net.Conn) (made net.Conn, code policy.Code, reason string) {
	must := false
	if d.onUnix {
		who, err := processOf(c)
		if err != nil {
			return nil, codePeerRefused, "it is not known which process has connected: " + err.Error()
		}
		if !d.g.config.Peers.may(who) {
			return nil, codePeerRefused, "a process that peers does not name: " + who.String()
		}
		made, must = &peerConn{c, who}, d.g.config.ProxyProtocol != nil && d.g.config.Peers != nil
	} else {
		made, must = c, isTrusted(addressOf(c), d.g.config.ProxyProtocol.From)
	}
	if !must {
		return made, "", ""
	}
	c.SetReadDeadline(time.Now().Add(min(proxyPatience, d.g.config.Limits.HeaderTimeout)))
	header, err := proxyproto.Read(c)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, codeProxyTimeout, "the PROXY header did not come in time"
	case errors.Is(err, proxyproto.ErrMissing):
		return nil, codeProxyMissing, err.Error()
	case err != nil:
		return nil, codeProxyInvalid, err.Error()
	}
	c.SetReadDeadline(time.Time{})
	if header.Source.IsValid() {
		made = &peerConn{c, net.TCPAddrFromAddrPort(header.Source)}
	}
	return made, "", ""
}

// refuse records, counts and logs a connection that is then closed.
func (d *doorway) refuse(c net.Conn, code policy.Code, reason string) {
	now := d.g.now()
	d.g.metrics.closed.WithLabelValues(string(code)).Inc()
	id := audit.NewID(now)
	record := audit.Record{ID: id, Time: now, Point: "ingress", Decision: policy.Deny(code, reason), Source: addressOf(c)}
	if who, err := processOf(c); err == nil {
		record.Detail = map[string]any{"peer_uid": who.uid, "peer_gid": who.gid, "peer_pid": who.pid}
	}
	err := d.g.config.Audit.Record(record)
	if err == nil {
		err = d.g.config.Audit.Outcome(audit.Outcome{ID: id, Time: now, Error: string(code)})
	}
	if err != nil {
		d.g.log.Error("record a refused connection", "connection", id, "error", err) // it is closed all the same
	}
	// Said once a second: who connects again and again fills no log.
	last := d.logged.Load()
	if now.UnixNano()-last < int64(time.Second) || !d.logged.CompareAndSwap(last, now.UnixNano()) {
		d.unsaid.Add(1)
		return
	}
	said := []any{"connection", id, "code", string(code), "reason", reason, "unsaid", d.unsaid.Swap(0)}
	if a := addressOf(c); a.IsValid() {
		said = append(said, "source", a.String())
	}
	d.g.log.Warn("a connection was closed before a request", said...)
}

// addressOf is the address at the other end; invalid if it has none.
func addressOf(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
