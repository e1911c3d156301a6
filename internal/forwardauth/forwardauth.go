// Package forwardauth answers a proxy that asks over HTTP whether a request may pass: nginx's auth_request, Traefik's
// forwardAuth, Caddy's forward_auth and Envoy's ext_authz filter with an http_service.
//
//	s, err := forwardauth.New(forwardauth.Config{
//		Gateway: gateway,
//		Dialect: "nginx",
//		From:    []netip.Prefix{netip.MustParsePrefix("10.1.2.3/32")},
//	})
//	if err != nil {
//		return err
//	}
//	return s.Serve(ctx, listener)
//
// The listener is its own, and only for proxies: who asks says who the client is and what it wants, so whoever may ask could
// lie about both. One who is not in From is answered 403, and is on record. Which headers say what the request is depends on
// the dialect, and never on what arrives: a client can add the headers of another. What must be there and is not, is there
// twice, or cannot be read is a 403 too.
//
// An allowed request is answered 200, with the headers that the service must receive; any other as the gate in front of
// the service would have answered the client, but never with a status below 400, which proxies take for an allow. nginx knows
// two denials, 401 and 403: there any other is a 403, and X-Sallyport-Status, X-Sallyport-Code and X-Sallyport-Problem say what to make of it.
//
// # Limits
//
// A token is judged once for each request. What a request becomes (a stream, a WebSocket) we neither see nor end, bodies are
// not looked at, and the client's certificate is not known, so that tokens which are bound to one are refused.
package forwardauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"

	"golang.org/x/net/netutil"

	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/wire"
)

// Config is what a Server is made of.
type Config struct {
	Gateway *ingress.Gateway
	Dialect string         // "nginx", "traefik", "caddy" or "envoy"
	From    []netip.Prefix // who may ask; empty: whoever reaches a unix socket, and nobody over the network
	Limits  ingress.Limits // those of the gateway
	Logger  *slog.Logger   // nil: none
}

// Server answers proxies.
type Server struct {
	config  Config
	dialect dialect
	limits  wire.Limits
}

// headroom is what a proxy may add to a client's header, in bytes and in fields.
const (
	headroomBytes  = 16 << 10
	headroomFields = 20
)

// New checks the configuration. A server without gateway or dialect does not build.
func New(c Config) (*Server, error) {
	if c.Gateway == nil {
		return nil, errors.New("forwardauth: there is no gateway")
	}
	d, ok := dialects()[c.Dialect]
	if !ok {
		return nil, fmt.Errorf("forwardauth: there is no dialect %q", c.Dialect)
	}
	for _, p := range c.From {
		if !p.IsValid() || p.Bits() == 0 || p.Addr().Is4In6() {
			return nil, fmt.Errorf("forwardauth: from: %s names nobody, or everybody", p)
		}
	}
	l := c.Limits.WithDefaults()
	c.Limits = l
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{config: c, dialect: d, limits: wire.Limits{
		HeaderBytes: l.HeaderBytes + headroomBytes, HeaderFields: l.HeaderFields + headroomFields,
		HeaderTimeout: l.HeaderTimeout, BodyTimeout: l.BodyTimeout,
	}}, nil
}

// Serve answers until ctx ends, then lets what is being judged end, for Limits.DrainTimeout. It closes the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler:                      s,
		ConnContext:                  wire.ConnContext,
		IdleTimeout:                  s.config.Limits.IdleTimeout,
		MaxHeaderBytes:               s.limits.MaxHeaderBytes(),
		WriteTimeout:                 s.config.Limits.BodyTimeout,
		DisableGeneralOptionsHandler: true,
		Protocols:                    protocols,
		ErrorLog:                     slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(wires{netutil.LimitListener(l, s.config.Limits.Connections), s.limits}) }()
	select {
	case err := <-ended:
		server.Close()
		return fmt.Errorf("serve forward_auth: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Limits.DrainTimeout)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		server.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve forward_auth: %w", err)
	}
	return nil
}

// wires puts the strict reader before each connection.
type wires struct {
	net.Listener
	limits wire.Limits
}

func (w wires) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return wire.New(c, w.limits, nil), nil
}

// ServeHTTP answers one question: who asks, what of, and what the gateway says of that.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := wire.Of(r)
	if c == nil { // of a server that is not ours, which has repaired what we would have refused
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	refusal := c.Next()
	q := ingress.Inquiry{Entry: ingress.EntryForwardAuth}
	switch {
	case !s.mayAsk(c):
		q.Source = c.Peer()
		q.Fault = &ingress.Fault{Code: ingress.AskerRefused, Reason: "who asks is not in ingress.forward_auth.from"}
	case refusal != nil:
		// Most likely a field of the client's, which the proxy has handed on.
		q.Fault = &ingress.Fault{Code: policy.Code(refusal.Code), Reason: "refused on the wire"}
	default:
		q = s.dialect.read(r)
	}
	v := s.config.Gateway.Ask(r.Context(), q)
	if refusal != nil || r.ContentLength != 0 || len(r.Header["Upgrade"]) > 0 {
		// What follows on the connection must not be taken for the next question.
		w.Header().Set("Connection", "close")
		c.HangUp(wire.Code(v.Code))
	}
	s.tell(w, v)
}

// mayAsk reports whether the peer is one of those who may ask. On a unix socket the file says who is.
func (s *Server) mayAsk(c *wire.Conn) bool {
	peer := c.Peer()
	if !peer.IsValid() {
		_, local := c.LocalAddr().(*net.UnixAddr)
		return local && len(s.config.From) == 0
	}
	for _, p := range s.config.From {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}
