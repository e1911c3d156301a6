package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/extauthz"
	"github.com/sallyport/sallyport/internal/forwardauth"
)

// newAsked builds what answers proxies that ask, by the same gate as stands in front of the service.
func (g *gate) newAsked(f *config.File) (err error) {
	if a := f.Ingress.ForwardAuth; a != nil {
		g.forward, err = forwardauth.New(forwardauth.Config{Gateway: g.gateway, Dialect: a.Dialect, From: a.From, Limits: f.Ingress.Limits, Logger: g.log})
		if err != nil {
			return fmt.Errorf("build ingress.forward_auth: %w", err)
		}
	}
	if a := f.Ingress.ExtAuthz; a != nil {
		g.envoy, err = extauthz.New(extauthz.Config{Gateway: g.gateway, From: a.From, Limits: f.Ingress.Limits, Logger: g.log})
		if err != nil {
			return fmt.Errorf("build ingress.ext_authz: %w", err)
		}
	}
	return nil
}

// front serves every way in until ctx ends, and returns when all have ended. One that ends by itself ends the others: a gate
// is open as it was configured, or not at all.
func (g *gate) front(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ends, ways := make(chan error, 3), 0
	serve := func(l net.Listener, by func(context.Context, net.Listener) error) {
		if l != nil {
			ways++
			go func() { ends <- by(ctx, l) }()
		}
	}
	serve(g.doors.data, g.gateway.Serve)
	if g.doors.data == nil {
		ways++
		go func() { g.gateway.Attend(ctx); ends <- nil }()
	}
	serve(g.doors.forwardAuth, g.forward.Serve)
	serve(g.doors.extAuthz, g.envoy.Serve)
	var errs []error
	for range ways {
		errs = append(errs, <-ends)
		cancel()
	}
	return errors.Join(errs...)
}

// front is what the log says of the ways in, and of where they lead.
func (d doors) front(upstream *url.URL) []any {
	var out []any
	for _, way := range []struct {
		name string
		l    net.Listener
	}{{"address", d.data}, {"forward_auth", d.forwardAuth}, {"ext_authz", d.extAuthz}} {
		if way.l != nil {
			out = append(out, way.name, way.l.Addr().String())
		}
	}
	if upstream != nil {
		out = append(out, "upstream", upstream.String())
	}
	return out
}
