package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/policy"
)

const (
	maintainEvery = time.Minute
	late          = 10 * time.Minute // by which a rotation may fail before it is worth an alarm
	alarmEvery    = 24 * time.Hour
)

// openRing opens the signing keys; the first start makes the first key.
func openRing(c keys.Config, log *slog.Logger) (*keys.Ring, error) {
	r, err := keys.Open(c)
	if errors.Is(err, keys.ErrNoKey) {
		info, gerr := keys.Generate(c, time.Now())
		if gerr != nil {
			return nil, withHint(gerr, "keys.path must be writable by the user that sallyport becomes (sandbox.user)")
		}
		log.Info("made the first signing key", "kid", info.ID, "path", c.Path)
		r, err = keys.Open(c)
	}
	if err != nil {
		return nil, fmt.Errorf("open the signing keys: %w", err)
	}
	return r, nil
}

// measureRing tells the metrics how old the keys are.
func measureRing(registry *prometheus.Registry, r *keys.Ring) {
	gauge := func(name, help string, value func() float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("sallyport_signing_keys", "Signing keys that are published.", func() float64 { return float64(len(r.List())) })
	gauge("sallyport_signing_key_age_seconds", "Age of the newest signing key.", func() float64 { return time.Since(r.List()[0].Created).Seconds() })
	gauge("sallyport_signing_key_rotation_overdue", "1 while the signing keys should have been rotated and were not.", func() float64 {
		if r.Overdue(time.Now(), late) != nil {
			return 1
		}
		return 0
	})
}

// maintain rotates and withdraws signing keys until ctx ends, and raises an alarm when that does not succeed for long.
func (g *gate) maintain(ctx context.Context) {
	tick := time.NewTicker(maintainEvery)
	defer tick.Stop()
	var alarmed time.Time
	for {
		now := time.Now()
		if err := g.ring.Maintain(now); err != nil {
			g.log.Error("maintain the signing keys", "error", err)
		}
		if err := g.ring.Overdue(now, late); err == nil {
			alarmed = time.Time{}
		} else if now.Sub(alarmed) >= alarmEvery {
			alarmed = now
			g.log.Error("alarm: the rotation of the signing keys is overdue", "error", err)
			if err := recordKeys(g.audit, "rotation_overdue", err.Error(), nil); err != nil {
				g.log.Error("record an alarm", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// recordKeys writes into the book what becomes of our own keys.
func recordKeys(log *audit.Log, what, reason string, detail map[string]any) error {
	now := time.Now()
	return log.Record(audit.Record{ID: audit.NewID(now), Time: now, Point: "run", Decision: policy.Deny(policy.Code(what), reason), Detail: detail})
}

// rotateKeys makes the next key and then, unless withdraw is empty, ends the key of that name at once. It is on record
// before it takes effect.
func rotateKeys(log *audit.Log, r *keys.Ring, withdraw string) (keys.Info, error) {
	detail := map[string]any{}
	if withdraw != "" {
		// before one is made, because a name that was mistyped should change nothing
		if !slices.ContainsFunc(r.List(), func(i keys.Info) bool { return i.ID == withdraw }) {
			return keys.Info{}, withHint(fmt.Errorf("rotate the signing keys: there is none that is named %s", withdraw), "sallyport keys list names them; nothing was changed")
		}
		detail["withdraw"] = withdraw
	}
	if err := recordKeys(log, "keys_rotated", "", detail); err != nil {
		return keys.Info{}, err
	}
	made, err := r.Rotate(time.Now())
	if err == nil && withdraw != "" {
		err = r.Withdraw(withdraw, time.Now())
	}
	if err != nil {
		return made, fmt.Errorf("rotate the signing keys: %w", err)
	}
	for _, i := range r.List() { // it may sign already
		if i.ID == made.ID {
			made = i
		}
	}
	return made, nil
}
