package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

//go:embed billing.yaml
var billingConfiguration string

// makeKeys makes the key of the gates of orders, so that billing's knows it before they begin.
func (l *lab) makeKeys(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, l.built("sallyport"), "keys", "generate", "--path", filepath.Join(l.dir, "keys"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the gates' key: %w\n%s", err, out)
	}
	return nil
}

// copyKeys gives them to a gate.
func (l *lab) copyKeys(to string) error {
	from := filepath.Join(l.dir, "keys")
	files, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, f := range files {
		if !f.Type().IsRegular() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(from, f.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, f.Name()), content, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// configureBilling writes what billing's sallyport reads.
func (l *lab) configureBilling(dir string) error {
	jwks, err := l.issuer.jwks()
	if err != nil {
		return err
	}
	orders, err := exec.Command(l.built("sallyport"), "keys", "jwks", "--path", filepath.Join(l.dir, "keys")).Output()
	if err != nil {
		return fmt.Errorf("publish the gates' key: %w", err)
	}
	if err := errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777)); err != nil {
		return err
	}
	for name, content := range map[string]string{"sallyport.yaml": billingConfiguration, "issuer.jwks.json": string(jwks), "orders.jwks.json": string(orders)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// mayInvoice holds that a clerk can write an invoice: else nothing is proven by somebody's not being able to.
func (s *service) mayInvoice(ctx context.Context) error {
	var last answer
	for began := time.Now(); time.Since(began) < time.Minute && s.lab.engine.running(ctx, "billing"); pause(ctx, 200*time.Millisecond) {
		last = s.ask(ctx, writeInvoice(`{"amount":1}`))
		if strings.Contains(last.body, s.lab.secret.billing) {
			return nil
		}
	}
	return fmt.Errorf("a clerk cannot write an invoice: %v %.300s\n%s", last.err, last.body, s.lab.engine.logs(ctx, "billing"))
}
