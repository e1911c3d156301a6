package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/keys"
)

func newTokenMint(t *terminal) *cobra.Command {
	var path string
	var m minting
	c := &cobra.Command{
		Use:   "mint --keys FOLDER --issuer I --audience A [--subject S] [--scope 'A B']",
		Short: "Make a token for a test",
		Long: `Make an access token (RFC 9068) signed with a key of a folder that "keys generate"
made. It is for tests and demonstrations: a gate accepts it only where its
configuration names that issuer and those keys.

--age makes it as if it had been issued a while ago, which gives expired tokens.
--type txntoken+jwt, with txn, req_wl, rctx and tctx by --claim and a lifetime of a
minute, makes a transaction token, as a gate of ingress.hops would sign one.`,
		Example: `  sallyport keys generate --path issuer
  sallyport keys jwks --path issuer > issuer.jwks.json
  sallyport token mint --keys issuer --issuer https://issuer.demo.test \
      --audience https://orders.demo.test --subject alice --scope 'orders:read' \
      --claim 'roles=["orders-admin"]'`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			if path == "" || m.issuer == "" || len(m.audience) == 0 {
				return &codeError{exitUsage, withHint(errors.New("token mint: --keys, --issuer and --audience are required"), "sallyport token mint --help shows an example")}
			}
			claims, err := m.claims(time.Now())
			if err != nil {
				return err
			}
			ring, err := keys.Open(keys.Config{Path: path})
			if err != nil {
				return keysHint(err)
			}
			token, err := m.sign(ring.Signing(), claims)
			if err != nil {
				return fmt.Errorf("mint a token: %w", err)
			}
			_, err = io.WriteString(t.out, token+"\n")
			return err
		},
	}
	c.Flags().StringVar(&path, "keys", "", "the `FOLDER` of the issuer's keys")
	c.Flags().StringVar(&m.issuer, "issuer", "", "iss (`URL`)")
	c.Flags().StringSliceVar(&m.audience, "audience", nil, "aud; repeat for several")
	c.Flags().StringVar(&m.subject, "subject", "", "sub")
	c.Flags().StringVar(&m.client, "client", "", "client_id")
	c.Flags().StringVar(&m.scope, "scope", "", "scope, separated by spaces")
	c.Flags().StringVar(&m.typ, "type", "at+jwt", "typ of the header")
	c.Flags().StringArrayVar(&m.extra, "claim", nil, "another claim, `NAME=JSON`; repeat for several")
	c.Flags().DurationVar(&m.lifetime, "lifetime", 5*time.Minute, "time from iat to exp")
	c.Flags().DurationVar(&m.age, "age", 0, "how long ago it was issued")
	_ = c.MarkFlagDirname("keys")
	return c
}

// minting is what a token for a test says.
type minting struct {
	issuer, subject, client, scope, typ string
	audience, extra                     []string
	lifetime, age                       time.Duration
}

// claims makes the payload at an instant.
func (m *minting) claims(now time.Time) (map[string]any, error) {
	if m.lifetime <= 0 {
		return nil, usage("token mint: --lifetime must be positive, got %s; --age makes expired tokens", m.lifetime)
	}
	issued := now.Add(-m.age)
	claims := map[string]any{
		"iss": m.issuer, "aud": m.audience, "jti": rand.Text(),
		"iat": issued.Unix(), "exp": issued.Add(m.lifetime).Unix(),
	}
	if len(m.audience) == 1 {
		claims["aud"] = m.audience[0]
	}
	for name, value := range map[string]string{"sub": m.subject, "client_id": m.client, "scope": m.scope} {
		if value != "" {
			claims[name] = value
		}
	}
	for _, e := range m.extra {
		name, value, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			return nil, usage("token mint: --claim wants NAME=JSON, got %q", e)
		}
		var v any
		if err := json.Unmarshal([]byte(value), &v); err != nil {
			return nil, usage("token mint: --claim %s: %q is not JSON (a string needs its quotes)", name, value)
		}
		claims[name] = v
	}
	return claims, nil
}

// sign makes the compact form.
func (m *minting) sign(key identity.Key, claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: key.Private, KeyID: key.ID}},
		(&jose.SignerOptions{}).WithType(jose.ContentType(m.typ)))
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}
