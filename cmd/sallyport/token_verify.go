package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/jws"
)

// verdict is what token verify prints.
type verdict struct {
	Valid  bool           `json:"valid"`
	Reason string         `json:"reason"` // "valid", or the code of the refusal
	Detail string         `json:"detail"`
	Claims map[string]any `json:"claims"` // only what was verified
}

func newTokenVerify(t *terminal) *cobra.Command {
	var v verification
	var f format
	c := &cobra.Command{
		Use:   "verify [--jwks FILE] [--issuer I] [--audience A] [--algorithms A,B] [-c FILE] TOKEN|-",
		Short: "Say whether a token is valid, and if not, why",
		Long: `Verify a token exactly as the gate does, and print the reason code.

With -c the issuers of the configuration judge it; a transaction token (typ
txntoken+jwt) is judged as the service does that receives our own, or as the gate
does that takes one from a hop (ingress.hops). With --issuer and --audience
the flags do; keys come from --jwks, else from the issuer's metadata. With neither
--issuer nor -c, only the strict form, the signature (by --jwks) and the times are
judged, and no other claim.

Exit code 0 when the token is valid, 3 when it is not.`,
		Example: `  sallyport token verify -c sallyport.yaml - < token.txt
  sallyport token verify --jwks issuer.jwks.json --issuer https://auth.example.com \
      --audience https://api.example.com --format json - < token.txt`,
		Args: exactly("TOKEN or -"),
		RunE: func(c *cobra.Command, args []string) error {
			v.withConfig = c.Flags().Changed("config")
			if err := v.check(); err != nil {
				return err
			}
			raw, err := t.readSecret(args[0])
			if err != nil {
				return err
			}
			claims, err := v.verify(c.Context(), t, raw)
			out := verdict{Valid: err == nil, Reason: "valid", Claims: claims}
			if err != nil {
				refusal, ok := errors.AsType[*bearer.Error](err)
				if !ok {
					return err
				}
				out.Reason, out.Detail, out.Claims = refusal.Code, refusal.Detail, map[string]any{}
				if refusal.Err != nil {
					out.Detail = strings.TrimPrefix(out.Detail+": "+refusal.Err.Error(), ": ")
				}
			}
			return printVerdict(t, f, out)
		},
	}
	c.Flags().StringVar(&v.jwks, "jwks", "", "the issuer's keys: a JWK set `FILE`")
	c.Flags().StringVar(&v.issuer, "issuer", "", "the issuer, byte for byte as in iss (`URL`)")
	c.Flags().StringSliceVar(&v.audience, "audience", nil, "the `AUDIENCE` that must be named; repeat for several")
	c.Flags().StringSliceVar(&v.algorithms, "algorithms", nil, "the `ALGORITHMS` that are accepted (default ES256,EdDSA,RS256,PS256)")
	c.Flags().StringSliceVar(&v.types, "types", nil, "the `TYPES` (typ) that are accepted with --issuer (default at+jwt)")
	c.Flags().StringVarP(&v.config, "config", "c", "sallyport.yaml", "the configuration `FILE` whose issuers judge")
	_ = c.MarkFlagFilename("jwks", "json")
	formatFlag(c, &f)
	return c
}

// verification is who judges a token: the issuers of a configuration, an issuer of the flags, or a key set alone.
type verification struct {
	jwks, issuer, config        string
	audience, algorithms, types []string
	withConfig                  bool // -c was given
}

// check refuses a command line that would judge less than it seems to.
func (v *verification) check() error {
	switch {
	case v.withConfig && (v.jwks != "" || v.issuer != "" || len(v.audience) > 0 || len(v.algorithms) > 0 || len(v.types) > 0):
		return usage("token verify: -c says it all; leave out --jwks, --issuer, --audience, --algorithms and --types")
	case v.withConfig:
		return nil
	case v.jwks == "" && v.issuer == "":
		return &codeError{exitUsage, withHint(errors.New("token verify: verified with which keys?"), "give --jwks FILE, --issuer URL with --audience, or -c FILE")}
	case v.issuer == "" && (len(v.audience) > 0 || len(v.types) > 0):
		return usage("token verify: --audience and --types are judged together with --issuer")
	case v.issuer != "" && len(v.audience) == 0:
		return &codeError{exitUsage, withHint(errors.New("token verify: --issuer needs --audience"), "a token that is meant for another service must not pass: say which one this is")}
	}
	return nil
}

// verify returns the verified claims. A verdict on the token is a *bearer.Error; another error is ours to mend.
func (v *verification) verify(ctx context.Context, t *terminal, raw string) (map[string]any, error) {
	token := bearer.NewToken(raw)
	if v.jwks != "" {
		set, err := os.ReadFile(v.jwks)
		if err != nil {
			return nil, fmt.Errorf("read the key set: %w", err)
		}
		if v.issuer == "" {
			return bearer.VerifySignature(token, set, v.algorithms, time.Now())
		}
	}
	issuers := []bearer.Issuer{{Issuer: v.issuer, Audience: v.audience, Algorithms: v.algorithms, TokenTypes: v.types,
		Keys: bearer.Keys{Discovery: v.jwks == "", File: v.jwks}}}
	if v.withConfig {
		file, err := readConfig(t, v.config)
		if err != nil {
			return nil, err
		}
		if parsed, err := jws.Parse(raw); err == nil && parsed.Type == "txntoken+jwt" {
			return verifyTransaction(ctx, file, raw, parsed.Payload)
		}
		issuers = file.Ingress.Issuers
	}
	verifier, err := bearer.NewVerifier(issuers, bearer.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer verifier.Close()
	if err := waitReady(ctx, verifier, 10*time.Second); err != nil {
		return nil, &bearer.Error{Code: "keys_unavailable", Err: err}
	}
	caller, err := verifier.Verify(ctx, token)
	return caller.Claims, err
}

func printVerdict(t *terminal, f format, v verdict) error {
	if f == "json" {
		if err := t.json(v); err != nil {
			return err
		}
	} else if v.Valid {
		fmt.Fprintf(t.out, "%s\n", paint(t.colour, green, "valid"))
		if err := t.json(v.Claims); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(t.out, "%s: %s: %s\n", paint(t.colour, red, "invalid"), v.Reason, v.Detail)
	}
	if !v.Valid {
		return exit(exitFindings)
	}
	return nil
}
