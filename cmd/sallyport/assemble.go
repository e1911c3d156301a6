package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/egress"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/state"
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
	state    state.Store
	ring     *keys.Ring // signs assertions and the audit log's checkpoints
	watcher  *watch.Watcher
	unwatch  func() // nil until it watches
	flight   *cause.Flight
	gateway  *ingress.Gateway
	behind   *egress.Proxy
	doors    doors
	service  *service // nil where somebody else runs it

	reloading sync.Mutex // one reload at a time
	mu        sync.Mutex // guards what a reload replaces
	file      *config.File
	verifier  *bearer.Verifier
	hops      []ingress.Hop // whose keys are followed

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
	if g.state, err = openState(f.State, log, g.registry); err != nil {
		return nil, err
	}
	if g.ring, err = openRing(f.Keys, log); err != nil {
		return nil, err
	}
	measureRing(g.registry, g.ring)
	g.unwatch = g.watch()
	rules, err := g.rules(f)
	if err != nil {
		return nil, err
	}
	g.verifier, g.hops = rules.Verifier, rules.Hops
	g.signer.Store(rules.Assert)
	tlsConfig, err := serverTLS(f.Ingress.TLS, log)
	if err != nil {
		return nil, err
	}
	g.gateway, err = ingress.New(ingress.Config{
		Upstream:       f.Ingress.Upstream,
		TrustedProxies: f.Ingress.TrustedProxies,
		TLS:            tlsConfig,
		Limits:         f.Ingress.Limits,
		Rules:          rules,
		Audit:          g.audit,
		Flight:         g.flight,
		State:          g.state,
		MaxFeedAge:     f.State.MaxFeedAge,
		PublicURL:      f.Ingress.PublicURL,
		NonceSecret:    g.nonceSecret(),
		Metrics:        g.registry,
		Logger:         log,
		Realm:          f.Ingress.Realm,

		ResourceMetadata: f.Ingress.ResourceMetadata,
	})
	if err != nil {
		return nil, fmt.Errorf("build the gate: %w", err)
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
	v, err := bearer.NewVerifier(f.Ingress.Issuers, bearer.Options{Logger: g.log, Keep: f.Ingress.KeepKeys, Bound: true})
	if err != nil {
		return ingress.Rules{}, fmt.Errorf("build the token verifier: %w", err)
	}
	r := ingress.Rules{Policy: f.Ingress.Policy, Verifier: v, CORS: f.Ingress.CORS}
	if a := f.Ingress.Assertion; a != nil {
		r.AssertHeader = a.Header
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

// reloadPatience is how long a reload waits for the new issuers' keys before it keeps the old rules.
const reloadPatience = 15 * time.Second

// reload reads the file again and replaces the rules, all or none: on any error the old ones stay.
func (g *gate) reload(ctx context.Context) error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	if g.service.learns() {
		return errors.New("reload: not while a profile is learned: it is about the configuration that it began with")
	}
	before := g.configuration()
	f, err := config.Read(before.Path)
	if err != nil {
		return fmt.Errorf("reload: the old configuration stays: %w", err)
	}
	if what := fixedDifference(before, f); what != "" {
		return withHint(fmt.Errorf("reload: the old configuration stays: %s cannot change while running", what), "restart to change it")
	}
	r, err := g.rules(f)
	if err != nil {
		return fmt.Errorf("reload: the old configuration stays: %w", err)
	}
	// The new verifier must hold keys before it judges anybody, or a reload would turn good requests away.
	if err := waitReady(ctx, r.Verifier, reloadPatience); err != nil {
		r.Verifier.Close()
		closeHops(r.Hops)
		return fmt.Errorf("reload: the old configuration stays: %w", err)
	}
	g.awaitHops(ctx, r.Hops, hopPatience)
	if err := g.swap(r, f, before); err != nil {
		r.Verifier.Close()
		closeHops(r.Hops)
		return fmt.Errorf("reload: the old configuration stays: %w", err)
	}
	g.signer.Store(r.Assert)
	g.mu.Lock()
	old, oldHops := g.verifier, g.hops
	g.verifier, g.hops, g.file = r.Verifier, r.Hops, f
	g.mu.Unlock()
	old.Close()
	closeHops(oldHops)
	g.log.Info("configuration reloaded", "file", f.Path, "routes", len(f.Ingress.Routes), "issuers", len(f.Ingress.Issuers),
		"destinations", len(f.Egress.Rules.Destinations))
	return nil
}

// swap replaces the rules of both gates, or of neither.
func (g *gate) swap(r ingress.Rules, f, before *config.File) error {
	if err := g.behind.Swap(f.Egress.Rules); err != nil {
		return err
	}
	if err := g.gateway.Swap(r); err != nil {
		return errors.Join(err, g.behind.Swap(before.Egress.Rules))
	}
	return nil
}

// fixedDifference names the first setting that differs and that only a restart can change.
func fixedDifference(a, b *config.File) string {
	same := func(x, y any) bool { return fmt.Sprintf("%+v", x) == fmt.Sprintf("%+v", y) }
	for _, d := range []struct {
		key  string
		a, b any
	}{
		{"ingress.listen", a.Ingress.Listen, b.Ingress.Listen},
		{"ingress.upstream", a.Ingress.Upstream.String(), b.Ingress.Upstream.String()},
		{"ingress.tls", deref(a.Ingress.TLS), deref(b.Ingress.TLS)},
		{"ingress.trusted_proxies", a.Ingress.TrustedProxies, b.Ingress.TrustedProxies},
		{"ingress.limits", a.Ingress.Limits, b.Ingress.Limits},
		{"ingress.realm", a.Ingress.Realm, b.Ingress.Realm},
		{"ingress.resource_metadata", a.Ingress.ResourceMetadata, b.Ingress.ResourceMetadata},
		{"ingress.public_url", a.Ingress.PublicURL, b.Ingress.PublicURL},
		{"ingress.keep_keys", a.Ingress.KeepKeys, b.Ingress.KeepKeys},
		{"ingress.assertion", a.Ingress.Assertion != nil, b.Ingress.Assertion != nil},
		{"egress.listen", a.Egress.Listen, b.Egress.Listen},
		{"egress.limits", a.Egress.Limits, b.Egress.Limits},
		{"audit", a.Audit, b.Audit},
		{"watch", []any{a.Watch.Rules, a.Watch.Baseline, deref(a.Watch.Webhook)}, []any{b.Watch.Rules, b.Watch.Baseline, deref(b.Watch.Webhook)}},
		{"state", a.State, b.State},
		{"keys", a.Keys, b.Keys},
		{"admin", a.Admin, b.Admin},
		{"sandbox.preload", a.Preload, b.Preload},
		{"sandbox", a.Sandbox, b.Sandbox}, // last: it also holds what follows from the others
	} {
		if !same(d.a, d.b) {
			return d.key
		}
	}
	return ""
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
	for {
		err := v.Ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
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

// serverTLS builds the listener's TLS from the files, which are read again when they change.
func serverTLS(c *config.TLS, log *slog.Logger) (*tls.Config, error) {
	if c == nil {
		return nil, nil
	}
	get, err := ingress.CertificateFiles(c.Cert, c.Key, func(err error) {
		log.Error("read the listener's certificate again: the old one serves", "error", err)
	})
	if err != nil {
		return nil, fmt.Errorf("ingress.tls: %w", err)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: get, NextProtos: []string{"http/1.1"}}
	if c.ClientCertificates == "requested" {
		t.ClientAuth = tls.RequestClientCert // whose it is, only the token that is bound to it says
	}
	if c.ClientCA != "" {
		pem, err := os.ReadFile(c.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("ingress.tls.client_ca: %w", err)
		}
		t.ClientCAs = x509.NewCertPool()
		if !t.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ingress.tls.client_ca: no certificate in %s", c.ClientCA)
		}
		t.ClientAuth = tls.RequireAndVerifyClientCert
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
