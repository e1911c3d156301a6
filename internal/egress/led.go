package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
)

// announceWait is how long an accepted connection waits for the broker to say whose it is: the broker's call may come
// after ours.
const announceWait = 2 * time.Second

// led is where connections are led that a broker holds, and what it said of them.
type led struct {
	ready   chan struct{} // closed when the listener is open
	address netip.AddrPort
	dns     netip.AddrPort // of the stub over UDP

	mu        sync.Mutex
	announced map[netip.AddrPort]*errand
	waiting   map[netip.AddrPort]chan *errand
	pruned    time.Time // when those that nobody claimed were taken away
}

// errand is where a led connection was going.
type errand struct {
	to      netip.AddrPort
	process int
	hosts   []policy.Host // what To is known as, of the destinations; none: unknown, in report mode
	dns     bool          // to the stub
	proxy   bool          // to the program's forward proxy
	begun   time.Time
}

// Led is where connections are led; invalid before ServeLed has opened it.
func (p *Proxy) Led() netip.AddrPort {
	select {
	case <-p.led.ready:
		return p.led.address
	default:
		return netip.AddrPort{}
	}
}

// ServeLed opens a listener on loopback for the connections that Connect leads here, and a UDP socket for questions, and
// serves both until ctx ends; then it ends the connections that are open. It is called once.
func (p *Proxy) ServeLed(ctx context.Context) error {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // nobody comes by several paths
	l, err := plain.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("serve led connections: %w", err)
	}
	defer l.Close()
	questions, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return fmt.Errorf("serve led connections: %w", err)
	}
	defer questions.Close()
	p.ours(l.Addr())
	p.ours(questions.LocalAddr())
	p.led.address = l.Addr().(*net.TCPAddr).AddrPort()
	p.led.dns = questions.LocalAddr().(*net.UDPAddr).AddrPort()
	close(p.led.ready)

	base, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	stop := context.AfterFunc(ctx, func() {
		end(errClosing)
		l.Close()
		questions.Close()
	})
	defer stop()
	var open sync.WaitGroup
	open.Go(func() { p.serveUDP(base, questions) })
	err = p.acceptLed(base, l, &open)
	end(errClosing)
	questions.Close()
	open.Wait()
	p.rules.Load().kept.close()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve led connections: %w", err)
}

func (p *Proxy) acceptLed(ctx context.Context, l net.Listener, open *sync.WaitGroup) error {
	places := make(chan struct{}, p.config.Limits.Tunnels)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // no descriptors, a connection that ended meanwhile: it will be better
			time.Sleep(5 * time.Millisecond)
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			p.metrics.strays.Inc()
			c.Close()
			continue
		}
		open.Go(func() {
			defer func() { <-places }()
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			p.take(ctx, c)
		})
	}
}

// take finds out whose connection it is and serves it.
func (p *Proxy) take(ctx context.Context, c net.Conn) {
	defer func() {
		if v := recover(); v != nil {
			p.begin(viaLed).fault(v)
		}
	}()
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return
	}
	e := p.led.claim(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	switch {
	case e == nil:
		p.metrics.strays.Inc()
	case e.dns:
		p.serveTCP(ctx, c)
	default:
		p.serveErrand(ctx, c, e)
	}
}

// serveErrand looks at what the destinations at the address have to show: requests, a ClientHello or nothing.
func (p *Proxy) serveErrand(ctx context.Context, c net.Conn, e *errand) {
	seen, named, rest := p.rules.Load().sort(e.hosts)
	var early []byte
	switch {
	case len(rest) > 0 || len(e.hosts) == 0:
		p.pipe(ctx, c, e, rest)
		return
	case len(seen) > 0 && len(named) > 0: // one address for both: the first byte tells
		var first [1]byte
		c.SetReadDeadline(time.Now().Add(p.config.Limits.HeaderTimeout))
		if n, _ := c.Read(first[:]); n == 0 {
			return
		}
		c.SetReadDeadline(time.Time{})
		early = first[:]
		if first[0] == recordHandshake {
			seen = nil
		}
	}
	if len(seen) > 0 {
		p.serveOne(ctx, &ledConn{Conn: &prefixed{c, early}, via: viaLed, to: e.to, process: e.process, hosts: seen})
		return
	}
	p.greet(ctx, c, early, e, named)
}

// sort parts hosts by what is looked at.
func (r *rules) sort(hosts []policy.Host) (seen, named, rest []policy.Host) {
	for _, h := range hosts {
		exit, _ := r.exits.Select(policy.Outbound{Host: h})
		switch {
		case exit.Destination == nil: // a reload took it away; the line says so
			named = append(named, h)
		case exit.Destination.Seen:
			seen = append(seen, h)
		case exit.Destination.Named:
			named = append(named, h)
		default:
			rest = append(rest, h)
		}
	}
	return seen, named, rest
}

// pipe is a led connection that nobody looks at. The destination may speak first: it is dialled at once.
func (p *Proxy) pipe(ctx context.Context, c net.Conn, e *errand, hosts []policy.Host) {
	x := e.begin(p, viaLed)
	defer x.outcome()
	if len(hosts) > 0 {
		x.out.Host = hosts[0]
	}
	if p.open(ctx, x) {
		x.tunnel(ctx, c, nil, x.link.Conn, nil)
	}
}

// greet is a led connection that begins with a ClientHello: the server that it asks for says which destination it is.
func (p *Proxy) greet(ctx context.Context, c net.Conn, early []byte, e *errand, hosts []policy.Host) {
	h, early, err := peekHello(c, early, p.config.Limits.HeaderTimeout)
	x := e.begin(p, viaLed)
	defer x.outcome()
	x.out.Host = hosts[0]
	if i := slices.IndexFunc(hosts, func(host policy.Host) bool { return host.Name == h.ServerName }); i >= 0 {
		x.out.Host = hosts[i]
	}
	x.greet = func() (policy.Hello, error) { return h, err }
	if !p.open(ctx, x) {
		x.alarm(c)
		return
	}
	x.tunnel(ctx, c, early, x.link.Conn, nil)
}

// begin starts the line for an errand, known by its address until there is a name.
func (e *errand) begin(p *Proxy, via string) *passage {
	x := p.begin(via)
	x.fixed, x.process = e.to, e.process
	x.out.Host = policy.Host{Name: e.to.Addr().String(), Port: e.to.Port()}
	return x
}

// vouched is a connection to the program's forward proxy, which is nobody's until the broker says that it is the program's.
type vouched struct {
	net.Conn
	led    *led
	strays func()
	once   sync.Once
	errand *errand // nil: nobody's
}

func (c *vouched) Read(p []byte) (int, error) {
	c.once.Do(func() {
		if from, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
			c.errand = c.led.claim(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
		if c.errand == nil || !c.errand.proxy {
			c.errand = nil
			c.strays()
			c.Conn.Close()
		}
	})
	return c.Conn.Read(p)
}

// ledConn is a connection whose requests are judged, and what is known of where it leads.
type ledConn struct {
	net.Conn
	via     string
	to      netip.AddrPort // invalid: by name
	process int
	hosts   []policy.Host // which requests may be for
	claim   claim         // of CONNECT: what requests that present nothing themselves present
	onClose func()
}

func (c *ledConn) Close() error {
	err := c.Conn.Close()
	c.onClose()
	return err
}

// CloseWrite ends one direction.
func (c *ledConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// announce says whose connection from an address is.
func (l *led) announce(from netip.AddrPort, e *errand) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	l.mu.Lock()
	defer l.mu.Unlock()
	if w, ok := l.waiting[from]; ok {
		delete(l.waiting, from)
		w <- e
		return
	}
	e.begun = time.Now()
	l.announced[from] = e
	if len(l.announced) > 1024 && e.begun.Sub(l.pruned) > announceWait { // connections that never came: nobody takes them away
		l.pruned = e.begun
		for a, old := range l.announced {
			if time.Since(old.begun) > 2*announceWait {
				delete(l.announced, a)
			}
		}
	}
}

// withdraw forgets a connection that did not come about.
func (l *led) withdraw(from netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.announced, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
}

// claim waits until it is known whose connection from an address is. nil: nobody's.
func (l *led) claim(from netip.AddrPort) *errand {
	l.mu.Lock()
	if e, ok := l.announced[from]; ok {
		delete(l.announced, from)
		l.mu.Unlock()
		return e
	}
	w := make(chan *errand, 1)
	l.waiting[from] = w
	l.mu.Unlock()
	timer := time.NewTimer(announceWait)
	defer timer.Stop()
	select {
	case e := <-w:
		return e
	case <-timer.C:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, from)
	select {
	case e := <-w: // in the last moment
		return e
	default:
		return nil
	}
}
