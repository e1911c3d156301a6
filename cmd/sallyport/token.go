package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/jws"
	"github.com/sallyport/sallyport/internal/keys"
)

func newToken(t *terminal) *cobra.Command {
	return group("token", "Verify, decode and mint tokens",
		`Find out why a token is refused, see what it says, or make one for a test.

A token given as - is read from standard input, which keeps it out of the process
list and the shell's history.`,
		newTokenVerify(t), newTokenDecode(t), newTokenMint(t))
}

// verdict is what token verify prints.
type verdict struct {
	Valid  bool           `json:"valid"`
	Reason string         `json:"reason"` // "valid", or the code of the refusal
	Detail string         `json:"detail"`
	Claims map[string]any `json:"claims"` // only what was verified
}

func newTokenVerify(t *terminal) *cobra.Command {
	var jwks, issuer, config string
	var audience, algorithms, types []string
	var f format
	c := &cobra.Command{
		Use:   "verify [--jwks FILE] [--issuer I] [--audience A] [--algorithms A,B] [-c FILE] TOKEN|-",
		Short: "Say whether a token is valid, and if not, why",
		Long: `Verify a token exactly as the gate does, and print the reason code.

With -c the issuers of the configuration judge it. With --issuer and --audience
the flags do; keys come from --jwks, else from the issuer's metadata. With neither
--issuer nor -c, only the strict form, the signature (by --jwks) and the times are
judged, and no other claim.

Exit code 0 when the token is valid, 3 when it is not.`,
		Example: `  sallyport token verify -c sallyport.yaml - < token.txt
  sallyport token verify --jwks issuer.jwks.json --issuer https://auth.example.com \
      --audience https://api.example.com --format json - < token.txt`,
		Args: exactly("TOKEN or -"),
		RunE: func(c *cobra.Command, args []string) error {
			withConfig := c.Flags().Changed("config")
			if withConfig && (jwks != "" || issuer != "" || len(audience) > 0 || len(algorithms) > 0 || len(types) > 0) {
				return usage("token verify: -c says it all; leave out --jwks, --issuer, --audience, --algorithms and --types")
			}
			if !withConfig && jwks == "" && issuer == "" {
				return &codeError{exitUsage, withHint(errors.New("token verify: verified with which keys?"), "give --jwks FILE, --issuer URL with --audience, or -c FILE")}
			}
			if issuer == "" && !withConfig && (len(audience) > 0 || len(types) > 0) {
				return usage("token verify: --audience and --types are judged together with --issuer")
			}
			if issuer != "" && len(audience) == 0 {
				return &codeError{exitUsage, withHint(errors.New("token verify: --issuer needs --audience"), "a token that is meant for another service must not pass: say which one this is")}
			}
			if jwks != "" {
				if _, err := os.Stat(jwks); err != nil {
					return fmt.Errorf("read the key set: %w", err) // ours to mend, and no verdict on the token
				}
			}
			raw, err := t.readSecret(args[0])
			if err != nil {
				return err
			}
			claims, err := func() (map[string]any, error) {
				if issuer == "" && !withConfig {
					set, err := os.ReadFile(jwks)
					if err != nil {
						return nil, fmt.Errorf("read the key set: %w", err)
					}
					return bearer.VerifySignature(bearer.NewToken(raw), set, algorithms, time.Now())
				}
				issuers := []bearer.Issuer{{Issuer: issuer, Audience: audience, Algorithms: algorithms, TokenTypes: types, Keys: bearer.Keys{Discovery: jwks == "", File: jwks}}}
				if withConfig {
					file, err := readConfig(t, config)
					if err != nil {
						return nil, err
					}
					issuers = file.Ingress.Issuers
				}
				v, err := bearer.NewVerifier(issuers, bearer.Options{Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					return nil, err
				}
				defer v.Close()
				if err := waitReady(c.Context(), v, 10*time.Second); err != nil {
					return nil, &bearer.Error{Code: "keys_unavailable", Err: err}
				}
				caller, err := v.Verify(c.Context(), bearer.NewToken(raw))
				return caller.Claims, err
			}()
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
	c.Flags().StringVar(&jwks, "jwks", "", "the issuer's keys: a JWK set `FILE`")
	c.Flags().StringVar(&issuer, "issuer", "", "the issuer, byte for byte as in iss (`URL`)")
	c.Flags().StringSliceVar(&audience, "audience", nil, "the `AUDIENCE` that must be named; repeat for several")
	c.Flags().StringSliceVar(&algorithms, "algorithms", nil, "the `ALGORITHMS` that are accepted (default ES256,EdDSA,RS256,PS256)")
	c.Flags().StringSliceVar(&types, "types", nil, "the `TYPES` (typ) that are accepted with --issuer (default at+jwt)")
	c.Flags().StringVarP(&config, "config", "c", "sallyport.yaml", "the configuration `FILE` whose issuers judge")
	_ = c.MarkFlagFilename("jwks", "json")
	formatFlag(c, &f)
	return c
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

func newTokenDecode(t *terminal) *cobra.Command {
	c := &cobra.Command{
		Use:   "decode TOKEN|-",
		Short: "Print what a token says, verified or not",
		Long: `Print header and claims of a token as JSON. Nothing is verified: anybody can write
such a token. A token that the strict form refuses is still shown as far as it
can be read, with the reason on stderr and exit code 3.`,
		Example: `  sallyport token decode - < token.txt`,
		Args:    exactly("TOKEN or -"),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := t.readSecret(args[0])
			if err != nil {
				return err
			}
			_, strict := jws.Parse(raw)
			out := map[string]any{}
			for i, part := range strings.SplitN(raw, ".", 3) {
				if i == 2 {
					break
				}
				name := [...]string{"header", "claims"}[i]
				b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(part, "="))
				if err == nil && json.Valid(b) {
					out[name] = json.RawMessage(b)
				}
			}
			if len(out) == 0 {
				return &codeError{exitFindings, fmt.Errorf("decode the token: %w", strict)}
			}
			if err := t.json(out); err != nil {
				return err
			}
			if strict != nil {
				t.note("%s refused by the strict form: %v", paint(t.colourErr, yellow, "warning:"), strict)
				return exit(exitFindings)
			}
			t.note("not verified: sallyport token verify does that")
			return nil
		},
	}
	return c
}

func newTokenMint(t *terminal) *cobra.Command {
	var path, issuer, subject, client, scope, typ string
	var audience, extra []string
	var lifetime, age time.Duration
	c := &cobra.Command{
		Use:   "mint --keys FOLDER --issuer I --audience A [--subject S] [--scope 'A B']",
		Short: "Make a token for a test",
		Long: `Make an access token (RFC 9068) signed with a key of a folder that "keys generate"
made. It is for tests and demonstrations: a gate accepts it only where its
configuration names that issuer and those keys.

--age makes it as if it had been issued a while ago, which gives expired tokens.`,
		Example: `  sallyport keys generate --path issuer
  sallyport keys jwks --path issuer > issuer.jwks.json
  sallyport token mint --keys issuer --issuer https://issuer.demo.test \
      --audience https://orders.demo.test --subject alice --scope 'orders:read' \
      --claim 'roles=["orders-admin"]'`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			if path == "" || issuer == "" || len(audience) == 0 {
				return &codeError{exitUsage, withHint(errors.New("token mint: --keys, --issuer and --audience are required"), "sallyport token mint --help shows an example")}
			}
			ring, err := keys.Open(keys.Config{Path: path})
			if err != nil {
				return keysHint(err)
			}
			if lifetime <= 0 {
				return usage("token mint: --lifetime must be positive, got %s; --age makes expired tokens", lifetime)
			}
			issued := time.Now().Add(-age)
			claims := map[string]any{
				"iss": issuer, "aud": audience, "jti": rand.Text(),
				"iat": issued.Unix(), "exp": issued.Add(lifetime).Unix(),
			}
			if len(audience) == 1 {
				claims["aud"] = audience[0]
			}
			for name, value := range map[string]string{"sub": subject, "client_id": client, "scope": scope} {
				if value != "" {
					claims[name] = value
				}
			}
			for _, e := range extra {
				name, value, ok := strings.Cut(e, "=")
				if !ok || name == "" {
					return usage("token mint: --claim wants NAME=JSON, got %q", e)
				}
				var v any
				if err := json.Unmarshal([]byte(value), &v); err != nil {
					return usage("token mint: --claim %s: %q is not JSON (a string needs its quotes)", name, value)
				}
				claims[name] = v
			}
			key := ring.Signing()
			signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: key.Private, KeyID: key.ID}},
				(&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
			if err != nil {
				return fmt.Errorf("mint: %w", err)
			}
			payload, err := json.Marshal(claims)
			if err != nil {
				return fmt.Errorf("mint: %w", err)
			}
			signed, err := signer.Sign(payload)
			if err != nil {
				return fmt.Errorf("mint: %w", err)
			}
			compact, err := signed.CompactSerialize()
			if err != nil {
				return fmt.Errorf("mint: %w", err)
			}
			_, err = io.WriteString(t.out, compact+"\n")
			return err
		},
	}
	c.Flags().StringVar(&path, "keys", "", "the `FOLDER` of the issuer's keys")
	c.Flags().StringVar(&issuer, "issuer", "", "iss (`URL`)")
	c.Flags().StringSliceVar(&audience, "audience", nil, "aud; repeat for several")
	c.Flags().StringVar(&subject, "subject", "", "sub")
	c.Flags().StringVar(&client, "client", "", "client_id")
	c.Flags().StringVar(&scope, "scope", "", "scope, separated by spaces")
	c.Flags().StringVar(&typ, "type", "at+jwt", "typ of the header")
	c.Flags().StringArrayVar(&extra, "claim", nil, "another claim, `NAME=JSON`; repeat for several")
	c.Flags().DurationVar(&lifetime, "lifetime", 5*time.Minute, "time from iat to exp")
	c.Flags().DurationVar(&age, "age", 0, "how long ago it was issued")
	_ = c.MarkFlagDirname("keys")
	return c
}
