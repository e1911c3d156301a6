package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/ingress"
)

// verifyTransaction judges a transaction token by a configuration: one of our own as our service does, one of a hop as our
// gate does. claims are its own, which say whose it claims to be. A verdict is a *bearer.Error.
func verifyTransaction(ctx context.Context, f *config.File, raw string, claims map[string]any) (map[string]any, error) {
	a := f.Ingress.Assertion
	if a == nil {
		return nil, &bearer.Error{Code: "unknown_issuer", Detail: "a transaction token, and the configuration has no ingress.assertion"}
	}
	v := identity.Verifier{Audience: a.Audience, TrustDomain: a.TrustDomain}
	v.Issuer, _ = claims["iss"].(string)
	if v.Issuer == assertionIssuer(a) {
		lookup, err := identity.KeysFile(f.Keys.Publish)
		if err != nil {
			return nil, withHint(err, "the gate publishes them at keys.publish when it starts")
		}
		v.Keys = lookup
		_, err = v.Verify(raw)
		return claims, verdictOf(err)
	}
	for _, h := range f.Ingress.Hops {
		if h.Issuer != v.Issuer {
			continue
		}
		keys, err := bearer.NewKeySet(h.Issuer, h.Keys, bearer.Options{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return nil, err
		}
		defer keys.Close()
		if err := waitReady(ctx, keys, 10*time.Second); err != nil {
			return nil, &bearer.Error{Code: "keys_unavailable", Err: err}
		}
		v.Keys = keys.Lookup
		caller, err := v.Verify(raw)
		if err != nil {
			return nil, verdictOf(err)
		}
		hop := ingress.Hop{Issuer: h.Issuer, Keys: keys, Scopes: h.Scopes, Callers: h.Callers}
		if code, reason := hop.Judge(&caller, a.Audience); code != "" {
			return nil, &bearer.Error{Code: string(code), Detail: reason}
		}
		return claims, nil
	}
	return nil, &bearer.Error{Code: "unknown_issuer", Detail: fmt.Sprintf("iss %.80q is neither our own name nor a hop of ingress.hops", v.Issuer)}
}

// verdictOf is a refusal of package identity as the command tells one.
func verdictOf(err error) error {
	if refused, ok := errors.AsType[*identity.Error](err); ok {
		return &bearer.Error{Code: refused.Code, Detail: refused.Detail}
	}
	return err
}
