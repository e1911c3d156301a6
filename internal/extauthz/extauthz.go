// Package extauthz answers Envoy, which asks over gRPC whether a request may pass (envoy.service.auth.v3.Authorization).
//
//	s, err := extauthz.New(extauthz.Config{Gateway: gateway})
//	if err != nil {
//		return err
//	}
//	return s.Serve(ctx, listener)
//
// The listener is its own, and only for Envoy: who asks says who the client is, what it wants and which certificate it has
// shown. Whoever reaches a unix socket or a loopback port may ask; over the network only those in From, and any other is
// denied, and is on record.
//
// What Envoy says is read strictly: a question without the client's address, with two keys that differ in letter case alone,
// or that says in two places two things is denied. The verdict is that of the gate in front of a service: a denial with its status, header and
// body, or the headers that the service must receive, each in place of what the client sent, and the names of those that must not reach it.
//
// # Limits
//
// A token is judged once for each request. What a request becomes (a stream, a WebSocket) we neither see nor end, and bodies
// are not looked at, whether Envoy sends them or not. To a gRPC client Envoy makes a gRPC status of our denial.
package extauthz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"github.com/sallyport/sallyport/internal/ingress"
)

// Config is what a Server is made of.
type Config struct {
	Gateway *ingress.Gateway
	From    []netip.Prefix // who may ask; empty: whoever reaches a unix socket or a loopback address
	Limits  ingress.Limits // those of the gateway
	Logger  *slog.Logger   // nil: none
}

// Server answers Envoy.
type Server struct {
	authv3.UnimplementedAuthorizationServer
	config Config
}

const (
	// headroom is what a question has beside the client's header: a certificate, its chain aside, and what frames all that.
	headroom = 64 << 10
	// metadataBytes bounds what Envoy sends beside the question.
	metadataBytes = 16 << 10
	// pingsApart is how often, at most, Envoy may ask whether we are there.
	pingsApart = 5 * time.Second
)

// New checks the configuration. A server without gateway does not build.
func New(c Config) (*Server, error) {
	if c.Gateway == nil {
		return nil, errors.New("extauthz: there is no gateway")
	}
	for _, p := range c.From {
		if !p.IsValid() || p.Bits() == 0 || p.Addr().Is4In6() {
			return nil, fmt.Errorf("extauthz: from: %s names nobody, or everybody", p)
		}
	}
	c.Limits = c.Limits.WithDefaults()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{config: c}, nil
}

// Serve answers until ctx ends, then lets what is being judged end, for Limits.DrainTimeout. It closes the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	limits := s.config.Limits
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(2*limits.HeaderBytes+headroom),
		grpc.MaxConcurrentStreams(uint32(limits.Requests)),
		grpc.MaxHeaderListSize(metadataBytes),
		grpc.ConnectionTimeout(limits.HeaderTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: limits.IdleTimeout, Time: limits.BodyTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingsApart, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	authv3.RegisterAuthorizationServer(server, s)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(netutil.LimitListener(l, limits.Connections)) }()
	select {
	case err := <-ended:
		server.Stop()
		return fmt.Errorf("serve ext_authz: %w", err)
	case <-ctx.Done():
	}
	hurry := time.AfterFunc(limits.DrainTimeout, server.Stop)
	defer hurry.Stop()
	server.GracefulStop()
	if err := <-ended; err != nil {
		return fmt.Errorf("serve ext_authz: %w", err)
	}
	return nil
}

// Check answers one question: who asks, what of, and what the gateway says of that.
func (s *Server) Check(ctx context.Context, asked *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.Limits.HeaderTimeout)
	defer cancel()
	q := ingress.Inquiry{Entry: ingress.EntryExtAuthz}
	if from, ok := s.mayAsk(ctx); ok {
		q = read(asked)
	} else {
		q.Source = from
		q.Fault = &ingress.Fault{Code: ingress.AskerRefused, Reason: "who asks is not in ingress.ext_authz.from"}
	}
	return tell(s.config.Gateway.Ask(ctx, q)), nil
}

// mayAsk reports whether the peer is one of those who may ask, and its address, if it has one.
func (s *Server) mayAsk(ctx context.Context) (netip.Addr, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}, false
	}
	if _, local := p.LocalAddr.(*net.UnixAddr); local {
		return netip.Addr{}, len(s.config.From) == 0
	}
	a, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}, false
	}
	from := a.Addr().Unmap().WithZone("")
	if len(s.config.From) == 0 {
		return from, from.IsLoopback()
	}
	for _, prefix := range s.config.From {
		if prefix.Contains(from) {
			return from, true
		}
	}
	return from, false
}
