package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/credential"
	"github.com/sallyport/sallyport/internal/egress"
	"github.com/sallyport/sallyport/internal/sandbox"
)

// newBehind builds the gate behind the service. It stands where something can come to it: from a program whose
// connections are brokered, or from egress.listen.
func (g *gate) newBehind(f *config.File, d doors) error {
	var err error
	g.behind, err = egress.New(egress.Config{
		Rules:   f.Egress.Rules,
		Limits:  f.Egress.Limits,
		Audit:   g.audit,
		Metrics: g.registry,
		Logger:  g.log,
		Tracer:  g.tracer,
		Flight:  g.flight,
		Sign:    g.sign,
		Own:     d.own(f.Ingress.Upstream),
	})
	if err != nil {
		return fmt.Errorf("build the gate behind: %w", err)
	}
	return nil
}

// sign states a caller to the gate in front of another service, as the file in force has it.
func (g *gate) sign(c credential.Cause, audience string, scopes []string) (string, error) {
	s := g.signer.Load()
	if s == nil {
		return "", errors.New("there is no ingress.assertion to sign by")
	}
	return s.Next(*c.Caller, audience, scopes, c.Route, c.RequestID)
}

// guard serves what comes to the gate behind until ctx ends.
func (s *server) guard(ctx context.Context) error {
	serves := 0
	done := make(chan error, 3)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.doors.egress != nil {
		serves++
		go func() { done <- s.behind.Serve(ctx, s.doors.egress) }()
	}
	if s.doors.program != nil {
		serves++
		go func() { done <- s.behind.ServeProgram(ctx, s.doors.program) }()
	}
	if s.service != nil {
		serves++
		go func() { done <- s.behind.ServeLed(ctx) }()
	}
	if serves == 0 {
		<-ctx.Done()
		return nil
	}
	var errs []error
	for range serves {
		errs = append(errs, <-done)
		cancel() // one without the other is no gate
	}
	return errors.Join(errs...)
}

// drainBehind ends the gate behind a service that is not ours to wait for, when nobody uses it any more or the time for
// draining is over.
func (s *server) drainBehind() {
	patience := cmp.Or(s.configuration().Ingress.Limits.DrainTimeout, 20*time.Second) // as the gate in front has it
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if s.behind.Quiet(ctx) != nil {
		s.log.Warn("draining took too long: outgoing connections are ended")
	}
	s.closeBehind()
}

// connect hands the broker's questions to the gate behind.
func connect(p *egress.Proxy) func(sandbox.Attempt, func(sandbox.Way)) {
	return func(a sandbox.Attempt, done func(sandbox.Way)) {
		p.Connect(egress.Attempt{Process: a.Process, Network: a.Network, To: a.To, Path: a.Path}, func(w egress.Way) {
			done(sandbox.Way{Errno: w.Errno, Via: w.Via, Allow: w.Allow, Begun: w.Begun, Ended: w.Ended})
		})
	}
}

// resolve has questions that a program's UDP sockets send answered by the gate behind (sandbox.udp).
func resolve(ctx context.Context, p *egress.Proxy) func([]byte) []byte {
	return func(query []byte) []byte { return p.Answer(ctx, query, false) }
}

// network is what the profile asks for.
func network(p sandbox.Profile) string { return cmp.Or(p.Network, "broker") }

// causes is what a program must be told to say which request it acts for: where a proxy is that hears it, and how to say
// that it acts for none.
func causes(d doors, background string) map[string]string {
	env := map[string]string{"SALLYPORT_BACKGROUND": background}
	proxy := d.proxy()
	if d.program != nil {
		proxy = d.program.Addr().(*net.TCPAddr).AddrPort()
	}
	if proxy.IsValid() {
		env["SALLYPORT_PROXY"] = "http://" + proxy.String()
	}
	return env
}

// outgoing is what a program must be told to find its way out: that names are looked up over TCP, which the broker leads
// to our name server; or, without the broker, where the forward proxy is. What the operator wrote stays.
func outgoing(p sandbox.Profile, proxy netip.AddrPort) map[string]string {
	said := func(name string) bool {
		_, set := p.Env.Set[name]
		return set || slices.Contains(p.Env.Pass, name)
	}
	env := make(map[string]string)
	put := func(name, value string) {
		if !said(name) {
			env[name] = value
		}
	}
	switch {
	case network(p) == "broker":
		// resolv.conf(5): glibc and c-ares heed it, musl and Go do not (sandbox.udp).
		put("RES_OPTIONS", "use-vc")
	case network(p) == "ports" && proxy.IsValid():
		for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
			put(name, "http://"+proxy.String())
		}
		// Empty: there is no other way, not even to loopback.
		put("NO_PROXY", "")
		put("no_proxy", "")
		put("NODE_USE_ENV_PROXY", "1") // without it Node's fetch heeds none of them
	}
	return env
}
