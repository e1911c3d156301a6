package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/follow"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/policy"
)

// reloadPatience is how long a reload waits for the new issuers' keys before it keeps the old rules.
const reloadPatience = 15 * time.Second

// Who asks for a reload.
const (
	bySignal = "signal"
	byAdmin  = "admin"
	byWatch  = "watch"
)

// reloads is what is known of the configuration in force and of the attempts to replace it.
type reloads struct {
	follower *follow.Follower // of the files that a reload reads
	total    *prometheus.CounterVec
	good     prometheus.Gauge
	at       prometheus.Gauge
	number   prometheus.Gauge

	mu         sync.Mutex
	digest     config.Digest // of the configuration in force
	generation int           // 1 is the one that we began with
	fault      string        // why the last attempt failed; empty: it did not
}

func newReloads(r prometheus.Registerer, f *config.File, log *slog.Logger) *reloads {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &reloads{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_reloads_total", Help: "Reloads of the configuration, by who asked (signal, admin, watch) and by result.",
		}, []string{"by", "result"}),
		good:   gauge("sallyport_config_last_reload_successful", "1 if the configuration in force is the one that was read last; 0 if that was refused."),
		at:     gauge("sallyport_config_last_reload_success_timestamp_seconds", "When the configuration in force was taken."),
		number: gauge("sallyport_config_generation", "How many configurations have been in force since the start."),
	}
	m.follower = follow.New(follow.Options{Failed: func(err error) {
		log.Warn("the kernel does not tell of all files that a reload reads: they are looked at every half minute", "error", err)
	}})
	m.follower.Follow(f.Watched())
	m.follower.Know(f.Path, f.Digest) // whatever has happened to it since
	m.taken(f)
	r.MustRegister(m.total, m.good, m.at, m.number, m)
	return m
}

// taken notes that a configuration is in force now.
func (m *reloads) taken(f *config.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.digest, m.fault = f.Digest, ""
	m.generation++
	m.number.Set(float64(m.generation))
	m.good.Set(1)
	m.at.SetToCurrentTime()
}

// failed notes an attempt that was refused, and reports whether the one before it was for the same reason.
func (m *reloads) failed(err error) (again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	again, m.fault = m.fault == err.Error(), err.Error()
	m.good.Set(0)
	return again
}

// inForce is the digest of the configuration in force.
func (m *reloads) inForce() config.Digest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.digest
}

// Describe and Collect give the digest of the configuration in force as a label: one series at a time.
func (m *reloads) Describe(to chan<- *prometheus.Desc) { to <- configInfo() }

func (m *reloads) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.MustNewConstMetric(configInfo(), prometheus.GaugeValue, 1, m.inForce().String())
}

func configInfo() *prometheus.Desc {
	return prometheus.NewDesc("sallyport_config_info", "1, with the SHA-256 of the configuration file in force.", []string{"digest"}, nil)
}

// reload reads the file again and replaces the rules, all or none: on any error the old ones stay. What happens to the files
// from when it begins is another reload's.
func (g *gate) reload(ctx context.Context, by string) error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	g.reloads.follower.Look()
	f, err := g.take(ctx, by)
	if err != nil {
		g.reloads.total.WithLabelValues(by, "failed").Inc()
		known := g.reloads.failed(err)
		err = fmt.Errorf("reload: the old configuration stays: %w", err)
		if ctx.Err() == nil && (by != byWatch || !known) {
			g.log.Error("reload", "by", by, "error", err)
			if err := g.recordReload("config_refused", by, f, err.Error()); err != nil {
				g.log.Error("record a reload", "error", err)
			}
		}
		return err
	}
	g.reloads.taken(f)
	g.reloads.total.WithLabelValues(by, "done").Inc()
	for _, w := range f.Warnings {
		g.log.Warn("configuration", "warning", w)
	}
	g.log.Info("configuration reloaded", "by", by, "file", f.Path, "digest", f.Digest.String(), "routes", len(f.Ingress.Routes), "issuers", len(f.Ingress.Issuers),
		"destinations", len(f.Egress.Rules.Destinations))
	return nil
}

// take is a reload's line: read, compare, build, wait for keys, record, swap. It returns the file, if that could be read,
// with an error too.
func (g *gate) take(ctx context.Context, by string) (*config.File, error) {
	if g.service.learns() {
		return nil, errors.New("not while a profile is learned: it is about the configuration that it began with")
	}
	before := g.configuration()
	f, err := config.Read(before.Path)
	if err != nil {
		return nil, err
	}
	// Also where it is refused: a file that it names may be what is amiss.
	g.reloads.follower.Follow(append(before.Watched(), f.Watched()...))
	if what := fixedDifference(before, f); what != "" {
		return f, withHint(&fixedError{what}, "restart to change it")
	}
	r, err := g.rules(f)
	if err != nil {
		return f, err
	}
	// The new verifier must hold keys before it judges anybody, or a reload would turn good requests away.
	if err = waitReady(ctx, r.Verifier, reloadPatience); err == nil {
		g.awaitHops(ctx, r.Hops, hopPatience)
		if err = g.recordReload("config_reloaded", by, f, ""); err == nil {
			err = g.swap(r, f, before)
		}
	}
	if err != nil {
		r.Verifier.Close()
		closeHops(r.Hops)
		return f, err
	}
	g.signer.Store(r.Assert)
	g.mu.Lock()
	old, oldHops := g.verifier, g.hops
	g.verifier, g.hops, g.file = r.Verifier, r.Hops, f
	g.mu.Unlock()
	g.remembered.follow(r.Verifier)
	old.Close()
	closeHops(oldHops)
	g.reloads.follower.Follow(f.Watched())
	return f, nil
}

// recordReload writes into the book that the configuration changes, or why it does not. f is nil where it could not be read.
func (g *gate) recordReload(code, by string, f *config.File, reason string) error {
	now := time.Now()
	d := map[string]any{"event": code, "by": by, "config": g.configuration().Path, "config_digest_before": g.reloads.inForce().String()}
	if f != nil {
		d["config_digest"] = f.Digest.String()
	}
	return g.audit.Record(audit.Record{ID: audit.NewID(now), Time: now, Point: "run", Decision: policy.Decision{Code: policy.Code(code), Reason: reason}, Detail: d})
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

// watchFiles reloads when the files have changed, until ctx ends. What failed for a reason that is not in the files, an issuer
// that was away say, is tried again.
func (g *gate) watchFiles(ctx context.Context) {
	if f := g.configuration(); !f.Reload.Watch || g.service.learns() {
		return
	}
	g.reloads.follower.Run(ctx, func() (again bool) {
		if ctx.Err() != nil {
			return false
		}
		err := g.reload(ctx, byWatch)
		_, wrong := errors.AsType[config.Errors](err)
		_, fixed := errors.AsType[*fixedError](err)
		return err != nil && !wrong && !fixed
	})
}

// fixedError says what only a restart can change.
type fixedError struct{ keys string }

func (e *fixedError) Error() string { return e.keys + " cannot change while running" }

// fixedDifference names the settings that differ and that only a restart can change.
func fixedDifference(a, b *config.File) string {
	same := func(x, y any) bool { return fmt.Sprintf("%+v", x) == fmt.Sprintf("%+v", y) }
	var keys []string
	for _, d := range fixed(a, b) {
		if !same(d.a, d.b) && (d.key != "sandbox" || len(keys) == 0) {
			keys = append(keys, d.key)
		}
	}
	return strings.Join(keys, ", ")
}

// setting is one that two files have.
type setting struct {
	key  string
	a, b any
}

// fixed are the settings that cannot change while running. A test holds that every other one is taken by a reload.
func fixed(a, b *config.File) []setting {
	return []setting{
		{"ingress.listen", a.Ingress.Listen, b.Ingress.Listen},
		{"ingress.upstream", deref(a.Ingress.Upstream), deref(b.Ingress.Upstream)},
		{"ingress.protocols", a.Ingress.Protocols, b.Ingress.Protocols},
		{"ingress.forward_auth", deref(a.Ingress.ForwardAuth), deref(b.Ingress.ForwardAuth)},
		{"ingress.ext_authz", deref(a.Ingress.ExtAuthz), deref(b.Ingress.ExtAuthz)},
		{"ingress.tls", deref(a.Ingress.TLS), deref(b.Ingress.TLS)},
		{"ingress.tls.spiffe", deref(a.Ingress.SPIFFE), deref(b.Ingress.SPIFFE)},
		{"ingress.proxy_protocol", deref(a.Ingress.ProxyProtocol), deref(b.Ingress.ProxyProtocol)},
		{"ingress.peers", deref(a.Ingress.Peers), deref(b.Ingress.Peers)},
		{"ingress.trusted_proxies", a.Ingress.TrustedProxies, b.Ingress.TrustedProxies},
		{"ingress.limits", a.Ingress.Limits, b.Ingress.Limits},
		{"ingress.realm", a.Ingress.Realm, b.Ingress.Realm},
		{"ingress.engine", a.Ingress.Engine, b.Ingress.Engine},
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
		{"reload", a.Reload, b.Reload},
		{"telemetry", deref(a.Telemetry), deref(b.Telemetry)},
		{"access_log", a.AccessLog, b.AccessLog},
		{"sandbox.preload", a.Preload, b.Preload},
		{"sandbox", a.Sandbox, b.Sandbox}, // last: it also holds what follows from the others
	}
}
