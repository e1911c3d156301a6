package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/state"
	"github.com/sallyport/sallyport/internal/watch"
	"github.com/sallyport/sallyport/safedial"
)

const maxAlarms = 1000 // that are listed

// newWatcher builds the watch over what is recorded. It comes before the log that it watches, and is asked to act after
// both are there.
func (g *gate) newWatcher(f *config.File, log *slog.Logger) error {
	rules, err := watchRules(f)
	if err != nil {
		return err
	}
	g.watcher, err = watch.New(watch.Config{
		Rules:    rules,
		Record:   func(r audit.Record) error { return g.audit.Record(r) },
		Revoke:   func(ctx context.Context, r state.Revocation) error { return revoke(ctx, g.audit, g.state, r) },
		Lifetime: lifetimes(g),
		Webhook:  webhook(f.Watch.Webhook),
		Baseline: f.Watch.Baseline,
		Metrics:  g.registry,
		Logger:   log,
	})
	return err
}

// watchRules are those of the file that the configuration names, else those that come with us.
func watchRules(f *config.File) ([]watch.Rule, error) {
	if f.Watch.Rules == "" {
		return watch.Rules(), nil
	}
	file, err := os.Open(f.Watch.Rules)
	if err != nil {
		return nil, fmt.Errorf("watch.rules: %w", err)
	}
	defer file.Close()
	rules, err := watch.ParseRules(f.Watch.Rules, file)
	if err != nil {
		return nil, withHint(fmt.Errorf("watch.rules: %w", err), "doc/watch.md shows the form of a rule")
	}
	return rules, nil
}

// lifetimes is how long a token of an issuer may be valid, by the configuration in force.
func lifetimes(g *gate) func(string) time.Duration {
	return func(issuer string) time.Duration { return longestLifetime(g.configuration(), issuer) }
}

// webhook dials the one host that the configuration names, wherever that is, and nothing that leads to the machine.
func webhook(c *config.Webhook) *watch.Webhook {
	if c == nil {
		return nil
	}
	h := &watch.Webhook{URL: c.URL, Client: clientFor(c.URL)}
	if c.SecretFile != "" {
		h.Secret = func() (string, error) {
			data, err := os.ReadFile(c.SecretFile)
			return strings.TrimSpace(string(data)), err
		}
	}
	return h
}

// clientFor is a client for one URL, whose host may be at a private address, since an operator has written it down.
func clientFor(address string) *http.Client {
	guard := &safedial.Guard{}
	if u, err := url.Parse(address); err == nil {
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
		}
		host := u.Hostname()
		if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
			host = "[" + host + "]"
		}
		guard.Allow = []string{host + ":" + port}
	}
	return guard.Client()
}

// watch has the watch act upon alarms until what is returned is called, which waits for those that wait.
func (g *gate) watch() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.watcher.Run(ctx); err != nil {
			g.log.Error("the watch has ended", "error", err)
		}
	}()
	return func() { cancel(); <-done }
}

// alarms lists the latest.
func (a *admin) alarms(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{"alarms": a.gate.watcher.Alarms(maxAlarms)})
}
