package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/ingress"
)

func newCheck(t *terminal) *cobra.Command {
	var path, explain, token string
	var schema bool
	var f format
	c := &cobra.Command{
		Use:   "check [-c FILE]",
		Short: "Check the configuration, or explain what it decides",
		Long: `Check the configuration and report everything that is wrong with it at once, each
with file, line, column and what to do.

--schema prints the JSON Schema of the file, so that an editor completes it. Put
this on the file's first line:
    # yaml-language-server: $schema=./sallyport.schema.json

--explain runs a request that is not there through the same line that "run" and
"serve" use, up to the decision, and prints every step: which route, which
requirement, which verdict and why. With --token the token is verified with the
issuer's real keys. Exit code 3 when the answer is a denial.`,
		Example: `  sallyport check
  sallyport check --schema > sallyport.schema.json
  sallyport check --explain 'GET /orders/1'
  sallyport check --explain 'POST /orders' --token - < token.txt`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case schema && explain != "":
				return usage("check: --schema and --explain exclude each other")
			case token != "" && explain == "":
				return usage("check: --token belongs to --explain")
			case schema:
				_, err := fmt.Fprintf(t.out, "%s\n", strings.TrimSpace(string(config.Schema())))
				return err
			}
			file, err := config.Read(path)
			if errs, ok := errors.AsType[config.Errors](err); ok && f == "json" {
				if err := t.json(map[string]any{"valid": false, "errors": errs}); err != nil {
					return err
				}
				return exit(exitFailure)
			}
			if err != nil {
				_, err := readConfig(t, path)
				return err
			}
			if explain != "" {
				return explainRequest(c, t, f, file, explain, token)
			}
			if f == "json" {
				return t.json(map[string]any{"valid": true, "errors": []string{}, "warnings": file.Warnings})
			}
			t.warn(file.Warnings)
			_, err = fmt.Fprintf(t.out, "%s: fine: %s, %s\n", path, count(len(file.Ingress.Routes), "route"), count(len(file.Ingress.Issuers), "issuer"))
			return err
		},
	}
	configFlag(c, &path)
	formatFlag(c, &f)
	c.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of the configuration")
	c.Flags().StringVar(&explain, "explain", "", "explain the decision for a `'METHOD /path'`")
	c.Flags().StringVar(&token, "token", "", "with --explain: the bearer `TOKEN` of the request, or - for standard input")
	return c
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func explainRequest(c *cobra.Command, t *terminal, f format, file *config.File, request, token string) error {
	method, target, ok := strings.Cut(request, " ")
	if !ok || strings.Contains(target, " ") {
		return usage("check: --explain wants 'METHOD /path', got %q", request)
	}
	var credential bearer.Token
	if token != "" {
		raw, err := t.readSecret(token)
		if err != nil {
			return err
		}
		credential = bearer.NewToken(raw)
	}
	quiet := slog.New(slog.DiscardHandler)
	v, err := bearer.NewVerifier(file.Ingress.Issuers, bearer.Options{Logger: quiet})
	if err != nil {
		return err
	}
	defer v.Close()
	if token != "" {
		if err := waitReady(c.Context(), v, 10*time.Second); err != nil {
			return withHint(fmt.Errorf("the issuers' keys: %w", err), "without keys every token is refused; --explain without --token needs none")
		}
	}
	// What is explained is decided nowhere: the book it would be recorded in is thrown away.
	gw, err := ingress.New(ingress.Config{
		Upstream: file.Ingress.Upstream, TrustedProxies: file.Ingress.TrustedProxies, Limits: file.Ingress.Limits,
		Rules: ingress.Rules{Policy: file.Ingress.Policy, Verifier: v, Assert: (*identity.Signer)(nil), CORS: file.Ingress.CORS},
		Audit: audit.New(io.Discard, audit.Config{}), Logger: quiet,
	})
	if err != nil {
		return err
	}
	e := gw.Explain(c.Context(), method, target, "localhost", credential)
	if f == "json" {
		if err := t.json(map[string]any{
			"allowed": e.Decision.Allowed(), "code": e.Decision.Code, "reason": e.Decision.Reason,
			"route": e.Route, "status": e.Status, "steps": e.Steps,
		}); err != nil {
			return err
		}
	} else {
		for _, s := range e.Steps {
			mark := paint(t.colour, green, "ok  ")
			if !s.OK {
				mark = paint(t.colour, red, "stop")
			}
			fmt.Fprintf(t.out, "%s  %-10s %s\n", mark, s.Name, s.Detail)
		}
		verdict := paint(t.colour, green, "allowed")
		if !e.Decision.Allowed() {
			verdict = paint(t.colour, red, "denied")
		}
		fmt.Fprintf(t.out, "\n%s %s: %s (%s", method, target, verdict, e.Decision.Code)
		if !e.Decision.Allowed() {
			fmt.Fprintf(t.out, ", status %d", e.Status)
		}
		fmt.Fprint(t.out, ")\n")
	}
	if !e.Decision.Allowed() {
		return exit(exitFindings)
	}
	return nil
}
