package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/access"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/egress"
	"github.com/sallyport/sallyport/internal/extauthz"
	"github.com/sallyport/sallyport/internal/forwardauth"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/state"
	"github.com/sallyport/sallyport/internal/trace"
	"github.com/sallyport/sallyport/internal/watch"
)

// readConfig reads the file, and says what is wrong with it as a person needs it.
func readConfig(t *terminal, path string) (*config.File, error) {
	f, err := config.Read(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, withHint(fmt.Errorf("read the configuration: %w", err),
			"name the file with -c FILE; the README shows one in fifteen lines")
	}
	if err != nil {
		return nil, err
	}
	t.warn(f.Warnings)
	return f, nil
}

// warn prints what is legal and worth a look.
func (t *terminal) warn(warnings config.Errors) {
	if len(warnings) > 0 {
		t.note("%s\n%v", paint(t.colourErr, yellow, "warning:"), warnings)
	}
}

// gate is everything behind the listeners, built from one file and ready to serve.
type gate struct {
	log      *slog.Logger
	registry *prometheus.Registry
	audit    *audit.Log
	access   *access.Log   // nil: there is none
	tracer   *trace.Tracer // nil: nothing is traced
	state    state.Store
	ring     *keys.Ring // signs assertions and the audit log's checkpoints
	watcher  *watch.Watcher
	unwatch  func() // nil until it watches
	flight   *cause.Flight
	gateway  *ingress.Gateway
	forward  *forwardauth.Server // nil where no proxy asks over HTTP
	envoy    *extauthz.Server    // nil where Envoy does not ask
	behind   *egress.Proxy
	doors    doors
	service  *service // nil where somebody else runs it
	asked    *questions

	reloads   *reloads
	reloading sync.Mutex // one reload at a time
	mu        sync.Mutex // guards what a reload replaces
	file      *config.File
	verifier  *bearer.Verifier
	hops      []ingress.Hop // whose keys are followed

	remembered remembered

	signer atomic.Pointer[identity.Signer] // of the assertion; nil where none is made
}

// assemble opens what the file names, in the order in which a failure loses nothing: the book first, since without
// it nothing else may happen.
func assemble(f *config.File, log *slog.Logger, d doors) (g *gate, err error) {
	g = &gate{file: f, log: log, doors: d, flight: cause.NewFlight(), registry: prometheus.NewRegistry()}
	begun := g // what is returned with an error is nil
	defer func() {
		if err != nil {
			begun.close()
		}
	}()
	g.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := g.newWatcher(f, log); err != nil {
		return nil, err
	}
	book := f.Audit
	book.Observe = g.watcher.Observe
	book.Sign = begun.signing // asked with the first record, which comes after the ring below
	if g.audit, err = audit.Open(book, log); err != nil {
		return nil, withHint(err, "audit.file must be writable by the user that sallyport becomes (sandbox.user); nothing runs without the audit log")
	}
	if err := g.openAccess(f, log); err != nil {
		return nil, err
	}
	if err := g.openTracer(f, log); err != nil {
		return nil, err
	}
	if g.state, err = openState(f.State, log, g.registry); err != nil {
		return nil, err
	}
	if g.ring, err = openRing(f.Keys, log); err != nil {
		return nil, err
	}
	measureRing(g.registry, g.ring)
	g.reloads = newReloads(g.registry, f, log)
	g.unwatch = g.watch()
	g.asked = newQuestions(g.registry, begun.asking)
	rules, err := g.rules(f)
	if err != nil {
		return nil, err
	}
	g.verifier, g.hops = rules.Verifier, rules.Hops
	g.remembered.follow(g.verifier)
	g.remembered.measure(g.registry)
	g.signer.Store(rules.Assert)
	tlsConfig, err := serverTLS(f.Ingress.TLS, log)
	if err != nil {
		return nil, err
	}
	measureHealth(g, tlsConfig)
	g.gateway, err = ingress.New(ingress.Config{
		Upstream:       f.Ingress.Upstream,
		AskOnly:        f.Ingress.Upstream == nil,
		Protocols:      f.Ingress.Protocols,
		TrustedProxies: f.Ingress.TrustedProxies,
		TLS:            tlsConfig,
		SPIFFE:         f.Ingress.SPIFFE,
		ProxyProtocol:  f.Ingress.ProxyProtocol,
		Peers:          f.Ingress.Peers,
		Limits:         f.Ingress.Limits,
		Rules:          rules,
		Audit:          g.audit,
		Flight:         g.flight,
		State:          g.state,
		Bus:            busOf(g.state),
		MaxFeedAge:     f.State.MaxFeedAge,
		PublicURL:      f.Ingress.PublicURL,
		NonceSecret:    g.nonceSecret(),
		Metrics:        g.registry,
		Access:         g.access,
		Tracer:         g.tracer,
		Logger:         log,
		Realm:          f.Ingress.Realm,
		Engine:         f.Ingress.Engine,

		ResourceMetadata: f.Ingress.ResourceMetadata,
	})
	if err != nil {
		return nil, fmt.Errorf("build the gate: %w", err)
	}
	if err := g.newAsked(f); err != nil {
		return nil, err
	}
	if err := g.newBehind(f, d); err != nil {
		return nil, err
	}
	return g, nil
}

// signing is the key that signs now; none before the ring is open.
func (g *gate) signing() identity.Key {
	if g.ring == nil {
		return identity.Key{}
	}
	return g.ring.Signing()
}

// nonceSecret is what nonces are derived from: the signing key, so that replicas with the same folder of keys know each
// other's.
func (g *gate) nonceSecret() func() ([]byte, error) {
	return func() ([]byte, error) { return g.ring.Derive("dpop nonce") }
}

// rules builds the part of the gate that a reload replaces.
func (g *gate) rules(f *config.File) (ingress.Rules, error) {
	v, err := bearer.NewVerifier(f.Ingress.Issuers, bearer.Options{
		Logger: g.log, Keep: f.Ingress.KeepKeys, Bound: true, Remember: f.Ingress.TokenCache, Introspected: g.asked.count,
	})
	if err != nil {
		return ingress.Rules{}, fmt.Errorf("build the token verifier: %w", err)
	}
	r := ingress.Rules{
		Policy: f.Ingress.Policy, Verifier: v, CORS: f.Ingress.CORS, RateLimits: f.Ingress.RateLimits, Metadata: f.Ingress.Metadata,
	}
	if a := f.Ingress.Assertion; a != nil {
		r.AssertHeader, r.AssertReuse = a.Header, a.Reuse
		r.Assert = &identity.Signer{
			Issuer: assertionIssuer(a), Audience: a.Audience, TrustDomain: a.TrustDomain, Lifetime: a.Lifetime, Claims: a.Claims,
			Key: g.ring.Signing,
		}
	}
	if r.Hops, err = g.followHops(f.Ingress.Hops); err != nil {
		v.Close()
		return ingress.Rules{}, err
	}
	return r, nil
}

// followHops begins to follow the keys of the gates whose word is taken. Nobody waits for them: gates that call one
// another would wait for each other, and what a hop says without its keys is answered 503.
func (g *gate) followHops(list []config.Hop) ([]ingress.Hop, error) {
	var hops []ingress.Hop
	for i, h := range list {
		keys, err := bearer.NewKeySet(h.Issuer, h.Keys, bearer.Options{Logger: g.log})
		if err != nil {
			closeHops(hops)
			return nil, withHint(fmt.Errorf("ingress.hops[%d]: %w", i, err), "that gate publishes its keys at keys.publish, and on its admin listener at /.well-known/jwks.json")
		}
		hops = append(hops, ingress.Hop{Issuer: h.Issuer, Keys: keys, Scopes: h.Scopes, Callers: h.Callers})
	}
	return hops, nil
}

// hopPatience is how long a reload waits for the keys of hops.
const hopPatience = 3 * time.Second

// awaitHops waits until the keys of all hops are there: without them a reload would end whatever they have passed on. One that
// is away keeps nobody from reloading.
func (g *gate) awaitHops(ctx context.Context, hops []ingress.Hop, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, h := range hops {
		if err := waitReady(ctx, h.Keys, patience); err != nil {
			g.log.Warn("reload without the keys of a hop: what it has passed on ends", "hop", h.Issuer, "error", err)
		}
	}
}

// closeHops ends the following of keys.
func closeHops(hops []ingress.Hop) {
	for _, h := range hops {
		h.Keys.Close()
	}
}

// trustDomain is what the service verifies as aud.
func trustDomain(a *config.Assertion) string {
	if a.TrustDomain != "" {
		return a.TrustDomain
	}
	return a.Audience
}

func assertionIssuer(a *config.Assertion) string {
	if a.Issuer != "" {
		return a.Issuer
	}
	return "sallyport"
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// waitReady waits until a verifier has keys for every issuer, or a key set has been fetched.
func waitReady(ctx context.Context, v interface{ Ready() error }, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) { // keys in a file are there at once
		err := v.Ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// tokens is the verifier in force.
func (g *gate) tokens() *bearer.Verifier {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.verifier
}

// ready says why a request would not be served now, or nil.
func (g *gate) ready() error {
	return errors.Join(g.tokens().Ready(), g.audit.Healthy(), g.gateway.Ready(), g.state.Ready(), g.service.ready())
}

// configuration is the file in force.
func (g *gate) configuration() *config.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.file
}

// close ends what assemble began. A reload that is under way ends first: its context has.
func (g *gate) close() {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	if g.behind != nil {
		g.behind.Close()
	}
	if g.verifier != nil {
		g.verifier.Close()
	}
	closeHops(g.hops)
	if g.unwatch != nil {
		g.unwatch() // it may yet revoke and record
	}
	if g.state != nil {
		if err := g.state.Close(); err != nil {
			g.log.Error("close the state", "error", err)
		}
	}
	g.tracer.Close()
	if err := g.access.Close(); err != nil {
		g.log.Error("close the access log", "error", err)
	}
	if g.audit != nil {
		if err := g.audit.Close(); err != nil {
			g.log.Error("close the audit log", "error", err)
		}
	}
}

// openState opens what replicas agree on. Without it nobody could tell a revoked token from a good one.
func openState(c state.Config, log *slog.Logger, metrics prometheus.Registerer) (state.Store, error) {
	s, err := state.Open(c, log, metrics)
	switch {
	case errors.Is(err, state.ErrHeld):
		return nil, withHint(err, "give each sallyport a state.path of its own; replicas that must agree share a cluster: state: {driver: nats, url: [...]}")
	case errors.Is(err, state.ErrCorrupt):
		return nil, withHint(err, "nothing was changed in it. Restore it from a copy; if there is none, move it away and revoke again what was revoked")
	case err != nil && c.Driver != state.NATS:
		return nil, withHint(err, "state.path must be writable by the user that sallyport becomes (sandbox.user); without it no revocation would be known")
	case err != nil:
		return nil, withHint(err, "state.credentials_file and state.ca_file must be readable by the user that sallyport becomes (sandbox.user)")
	}
	return s, nil
}

// busOf is how replicas tell each other what they have counted.
func busOf(s state.Store) state.Bus {
	bus, _ := s.(state.Bus) // nil: nobody is told
	return bus
}

// openAccess opens the access log, where the file names one.
func (g *gate) openAccess(f *config.File, log *slog.Logger) (err error) {
	if f.AccessLog.File == "" {
		return nil
	}
	g.access, err = access.Open(f.AccessLog.File, g.registry, func(err error) { log.Error("a part of the access log is lost", "error", err) })
	return withHint(err, "access_log.file must be writable by the user that sallyport becomes (sandbox.user)")
}

const readableHint = "PEM; it must be readable by the user that sallyport becomes when it is started as root (sandbox.user, 65532 when unset)"

// serverTLS builds the listener's TLS from the files, which are read again when they change.
func serverTLS(c *config.TLS, log *slog.Logger) (*tls.Config, error) {
	if c == nil {
		return nil, nil
	}
	get, err := ingress.CertificateFiles(c.Cert, c.Key, func(err error) {
		log.Error("read the listener's certificate again: the old one serves", "error", err)
	})
	if err != nil {
		return nil, withHint(fmt.Errorf("ingress.tls: %w", err), readableHint)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: get, NextProtos: []string{"http/1.1"}}
	if c.ClientCertificates == "requested" {
		t.ClientAuth = tls.RequestClientCert // whose it is, only the token that is bound to it says
	}
	if c.ClientCA != "" {
		if err := ingress.ClientAuthorities(t, c.ClientCA, func(err error) {
			log.Error("read the authorities of clients again: the old ones stay", "error", err)
		}); err != nil {
			return nil, withHint(fmt.Errorf("ingress.tls.client_ca: %w", err), readableHint)
		}
	}
	return t, nil
}

// listen opens an address of the file: host:port, or unix:PATH with the given mode.
func listen(addr string, mode os.FileMode) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(addr, "unix:")
	if !isUnix {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, withHint(fmt.Errorf("listen on %s: %w", addr, err), "is another program, or another sallyport, there already?")
		}
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's folder: %w", err)
	}
	// A socket that nobody answers is what an ended process left behind; one that answers is somebody's.
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == os.ModeSocket {
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, fmt.Errorf("listen on %s: another process answers there", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the socket left behind: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}
