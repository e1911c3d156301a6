package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/wire"
)

const (
	headerFields = 100
	bodyTimeout  = 60 * time.Second // without a byte of progress, as at the gate in front
	shutdownWait = 2 * time.Second  // for requests in flight to write their outcome
)

var errNotOriginated = errors.New("https is asked for with CONNECT, unless the destination has tls: originate")

// wireLimits is the part of the limits that holds on a client's connection.
func (l Limits) wireLimits() wire.Limits {
	return wire.Limits{HeaderBytes: int(l.HeaderBytes), HeaderFields: headerFields, HeaderTimeout: l.HeaderTimeout, BodyTimeout: bodyTimeout}
}

// Serve is the forward proxy: it accepts connections until ctx ends, and then ends those that are open, tunnels too. It
// returns when their outcomes are recorded; nil if ctx was why it ended.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	return p.serveProxy(ctx, l, false)
}

// ServeProgram is Serve for the program whose connections a broker holds, and nobody else: a connection that Connect was
// not asked about is closed. l listens on an address of loopback.
func (p *Proxy) ServeProgram(ctx context.Context, l net.Listener) error {
	return p.serveProxy(ctx, l, true)
}

func (p *Proxy) serveProxy(ctx context.Context, l net.Listener, program bool) error {
	p.ours(l.Addr())
	p.enter(l.Addr(), program)
	e := newEntrance(p, l)
	if program {
		e.make = func(c net.Conn, l wire.Limits, closed func()) *wire.Conn {
			return wire.NewProxy(&vouched{Conn: c, led: &p.led, strays: p.metrics.strays.Inc}, l, closed)
		}
	}
	if err := p.serve(ctx, e); err != nil {
		return fmt.Errorf("serve the egress: %w", err)
	}
	return nil
}

// serve answers requests on the connections of an entrance.
func (p *Proxy) serve(ctx context.Context, l *entrance) error {
	var handlers sync.WaitGroup // a tunnel's outlives its connection by the outcome
	base, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handlers.Add(1)
			defer handlers.Done()
			p.handle(w, r)
		}),
		ConnContext:                  wire.ConnContext,
		BaseContext:                  func(net.Listener) context.Context { return base },
		IdleTimeout:                  p.config.Limits.IdleTimeout,
		MaxHeaderBytes:               p.config.Limits.wireLimits().MaxHeaderBytes(),
		DisableGeneralOptionsHandler: true,
		Protocols:                    protocols,
		ErrorLog:                     slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() {
		end(errClosing)
		patience, cancel := context.WithTimeout(context.Background(), shutdownWait)
		defer cancel()
		server.Shutdown(patience)
		server.Close()
	})
	err := server.Serve(l)
	if ended := stop(); ended {
		server.Close()
	} else {
		err = nil
		defer p.rules.Load().kept.close()
	}
	l.open.Wait()
	handlers.Wait()
	return err
}

// entrance hands out wires, and no more at once than may be open; more wait in the kernel's queue.
type entrance struct {
	net.Listener
	p      *Proxy
	make   func(net.Conn, wire.Limits, func()) *wire.Conn
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
	open   sync.WaitGroup
}

func newEntrance(p *Proxy, l net.Listener) *entrance {
	// A few more than tunnels, so that the one too many gets its answer.
	return &entrance{Listener: l, p: p, make: wire.NewProxy, slots: make(chan struct{}, p.config.Limits.Tunnels+16), closed: make(chan struct{})}
}

func (l *entrance) Accept() (net.Conn, error) {
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
	l.open.Add(1)
	return l.make(c, l.p.config.Limits.wireLimits(), func() {
		<-l.slots
		l.open.Done()
	}), nil
}

func (l *entrance) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// handle takes a request down the line; twice, if the kept connection that it was sent on turned out to have ended.
func (p *Proxy) handle(w http.ResponseWriter, r *http.Request) {
	c := wire.Of(r)
	refused := c.Next()
	x := p.begin(viaProxy)
	x.sized, x.websocket = len(r.Header["Content-Length"]) > 0, isWebSocket(r)
	if x.request(w, r, c, refused) {
		again := p.begin(viaProxy)
		again.sized, again.websocket, again.alone = x.sized, x.websocket, true
		again.claim, again.dropped, again.removed = x.claim, x.dropped, x.removed // what was sent has been cleaned of it
		again.request(w, r, c, refused)
	}
}

// request is one request on its way. It reports whether it is to be sent once more: nothing of it has arrived.
func (x *passage) request(w http.ResponseWriter, r *http.Request, c *wire.Conn, refused *wire.Refusal) (again bool) {
	defer x.outcome()
	defer x.crash(w)
	x.peer = c.Peer()
	x.via = viaProxy
	switch l := c.Conn.(type) {
	case *ledConn:
		x.via, x.process, x.fixed = l.via, l.process, l.to
	case *vouched:
		if l.errand != nil {
			x.process = l.errand.process
		}
	}
	if !x.read(r, c, refused) {
		x.record()
		x.refuseRequest(w, r, c)
		return false
	}
	if r.Method == http.MethodConnect {
		x.connect(w, r, c)
		return false
	}
	if !x.p.open(r.Context(), x) {
		x.refuseRequest(w, r, c)
		return false
	}
	return x.exchange(w, r, c)
}

// crash answers a panic of a step, or breaks off what was begun, so that nobody takes it for whole.
func (x *passage) crash(w http.ResponseWriter) {
	p := recover()
	if p == nil {
		return
	}
	x.link.close()
	if p == http.ErrAbortHandler {
		panic(p)
	}
	x.fault(p)
	x.failure = codeInternal
	if x.status != 0 {
		panic(http.ErrAbortHandler)
	}
	x.answer(w, true)
}

// refuseRequest answers a request that is not forwarded.
func (x *passage) refuseRequest(w http.ResponseWriter, r *http.Request, c *wire.Conn) {
	hangUp := r.ContentLength != 0 || r.Method == http.MethodConnect || x.websocket || len(r.Header["Upgrade"]) > 0 || isWireCode(x.code())
	if hangUp {
		c.HangUp(wire.Code(x.code()))
	}
	x.answer(w, hangUp)
}

// read finds out what is asked for, or denies: what was refused on the wire, and what has no one reading.
func (x *passage) read(r *http.Request, c *wire.Conn, refused *wire.Refusal) bool {
	if refused != nil {
		x.out.Method, x.out.Host.Name = refused.Method, refused.Host
		if strings.HasPrefix(refused.Path, "/") {
			x.out.Path = refused.Path
		}
		return x.denyAs(policy.Code(refused.Code), "refused as bytes, before it was a request")
	}
	x.out.Method, x.out.Request, x.header = r.Method, r.Method != http.MethodConnect, r.Header
	if !x.alone {
		x.claim = claimOf(r)
		if l, ok := c.Conn.(*ledConn); ok && !x.claim.presented {
			x.claim.presented, x.claim.capability = l.claim.presented, l.claim.capability
		}
		x.removed, x.dropped = dropCredentials(r.Header)
	}
	if x.out.Request {
		x.incoming = r
	}
	if x.out.Request {
		x.out.Path, _, _ = strings.Cut(targetOf(r), "?")
	}
	host, err := x.authority(r)
	if err != nil {
		x.out.Host.Name = r.Host
		if err == errNotOriginated {
			return x.denyAs(policy.Code(wire.TargetForm), err.Error())
		}
		return x.denyAs(codeHost, err.Error())
	}
	x.out.Host = host
	if l, ok := c.Conn.(*ledConn); ok && !slices.Contains(l.hosts, host) && len(l.hosts) > 0 {
		return x.denyAs(policy.HostMismatch, "the request is for another host than the one that is connected to: "+host.String())
	}
	if r.ContentLength > x.p.config.Limits.BodyBytes {
		return x.denyAs(codeTooLarge, "Content-Length is over the limit")
	}
	if len(r.Header["Upgrade"]) > 0 && !x.websocket {
		return x.denyAs(codeUpgrade, "an upgrade to anything but WebSocket: what follows could not be judged")
	}
	return true
}

// authority is the host that a request is for, in the one spelling that is compared.
func (x *passage) authority(r *http.Request) (policy.Host, error) {
	s, port := r.Host, ":80"
	switch {
	case r.Method == http.MethodConnect:
		return parseHost(r.RequestURI)
	case r.URL.Host != "":
		s = r.URL.Host
		if r.URL.Scheme == "https" {
			port = ":443"
		}
	case x.fixed.IsValid():
		// Host says which port unless it is the default of the scheme, and some clients never do.
		port = fmt.Sprintf(":%d", x.fixed.Port())
	}
	if i := strings.LastIndexByte(s, ':'); i < 0 || strings.HasSuffix(s, "]") {
		s += port
	}
	host, err := parseHost(s)
	if err == nil && r.URL.Scheme == "https" && !x.originates(host) {
		return host, errNotOriginated
	}
	return host, err
}

func (x *passage) originates(h policy.Host) bool {
	exit, _ := x.rules.exits.Select(policy.Outbound{Host: h})
	return exit.Destination != nil && x.rules.destinations[exit.Destination.Name].Originate
}

// targetOf is a request's target in origin-form, byte by byte.
func targetOf(r *http.Request) string {
	t := r.RequestURI
	if i := strings.Index(t, "://"); i >= 0 && t[0] != '/' {
		t = t[i+len("://"):]
		i = strings.IndexAny(t, "/?")
		if i < 0 {
			return "/"
		}
		t = t[i:]
	}
	if t[0] == '?' {
		t = "/" + t
	}
	return t
}

// connect makes the connection a tunnel. What is inside is looked at as the destination's protocol says.
func (x *passage) connect(w http.ResponseWriter, r *http.Request, c *wire.Conn) {
	x.via = viaConnect
	if exit, _ := x.rules.exits.Select(x.out); exit.Destination != nil && exit.Destination.Seen {
		x.connectSeen(w, r, c)
		return
	}
	var client net.Conn
	var early []byte
	accept := func() (err error) {
		if client, early, err = hijack(w, c); err != nil {
			return err
		}
		x.status = http.StatusOK
		_, err = io.WriteString(client, "HTTP/1.1 200 Connection Established\r\n\r\n")
		return err
	}
	defer func() {
		if client != nil {
			c.Close()
		}
	}()
	x.greet = func() (h policy.Hello, err error) {
		if err := accept(); err != nil {
			return h, err
		}
		h, early, err = peekHello(client, early, x.p.config.Limits.HeaderTimeout)
		return h, err
	}
	if !x.p.open(r.Context(), x) {
		if client == nil {
			x.refuseRequest(w, r, c)
			return
		}
		x.alarm(client)
		return
	}
	if client == nil {
		if err := accept(); err != nil {
			x.link.close()
			x.fail(codeClientGone, err)
			return
		}
	}
	x.tunnel(r.Context(), client, early, x.link.Conn, nil)
}

// connectSeen lets requests through the tunnel, each of which goes down the line by itself.
func (x *passage) connectSeen(w http.ResponseWriter, r *http.Request, c *wire.Conn) {
	x.unmetered = true
	client, early, err := hijack(w, c)
	defer c.Close()
	if err != nil {
		return
	}
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection Established\r\n\r\n"); err == nil {
		x.p.serveOne(r.Context(), &ledConn{Conn: &prefixed{client, early}, via: viaConnect, hosts: []policy.Host{x.out.Host}, claim: x.claim})
	}
}

// hijack takes the connection over, with what the client has sent behind its request.
func hijack(w http.ResponseWriter, c *wire.Conn) (net.Conn, []byte, error) {
	_, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	early, _ := buffered.Reader.Peek(buffered.Reader.Buffered())
	held, below := c.Take()
	early = append(slices.Clone(early), held...)
	for {
		switch c := below.(type) {
		case *ledConn:
			below = c.Conn
		case *vouched:
			below = c.Conn
		case *prefixed:
			early, below = append(early, c.first...), c.Conn
		default:
			return below, early, nil // a TCP connection, so that it can be spliced
		}
	}
}

// alarm tells a TLS client why there is no ServerHello, as far as TLS has words for it.
func (x *passage) alarm(client net.Conn) {
	description := byte(alertAccessDenied)
	if x.failure != "" {
		description = alertInternal
	}
	client.SetWriteDeadline(time.Now().Add(time.Second))
	client.Write(alert(description))
}

// serveOne answers the requests on one connection, and returns when it is closed.
func (p *Proxy) serveOne(ctx context.Context, c *ledConn) {
	e := newEntrance(p, &single{conn: c, closed: make(chan struct{})})
	e.make = wire.New
	p.serve(ctx, e)
}

// single is a listener of one connection.
type single struct {
	conn   *ledConn
	given  bool
	once   sync.Once
	closed chan struct{}
}

func (s *single) Accept() (net.Conn, error) {
	if !s.given {
		s.given = true
		s.conn.onClose = func() { s.Close() }
		return s.conn, nil
	}
	<-s.closed
	return nil, net.ErrClosed
}

func (s *single) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *single) Addr() net.Addr { return s.conn.LocalAddr() }

// prefixed is a connection of which something was read already.
type prefixed struct {
	net.Conn
	first []byte
}

func (c *prefixed) Read(p []byte) (int, error) {
	if len(c.first) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.first)
	c.first = c.first[n:]
	return n, nil
}

// CloseWrite ends one direction.
func (c *prefixed) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}
