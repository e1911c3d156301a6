package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/credential"
	"github.com/sallyport/sallyport/internal/egress"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/policy"
)

func newCheck(t *terminal) *cobra.Command {
	var path, explain, token, outgoing, route string
	var schema, background bool
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
issuer's real keys. Exit code 3 when the answer is a denial.

--egress does the same for an outgoing connection ('billing.internal:443') or
request ('GET billing.internal:443/v1/invoices'): which destination it is, and what
is decided. Nothing is sent and no name is looked up. --route NAME takes a request
on that route for its cause, whose caller has the scopes that the route asks for;
--background takes none.`,
		Example: `  sallyport check
  sallyport check --schema > sallyport.schema.json
  sallyport check --explain 'GET /orders/1'
  sallyport check --explain 'POST /orders' --token - < token.txt
  sallyport check --egress billing.internal:443 --route create-order`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case schema && explain != "" || schema && outgoing != "" || explain != "" && outgoing != "":
				return usage("check: --schema, --explain and --egress exclude each other")
			case token != "" && explain == "":
				return usage("check: --token belongs to --explain")
			case (route != "" || background) && outgoing == "":
				return usage("check: --route and --background belong to --egress")
			case route != "" && background:
				return usage("check: --route and --background exclude each other")
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
			if _, err := watchRules(file); err != nil {
				if f != "json" {
					return err
				}
				if err := t.json(map[string]any{"valid": false, "errors": []string{err.Error()}}); err != nil {
					return err
				}
				return exit(exitFailure)
			}
			if explain != "" {
				return explainRequest(c, t, f, file, explain, token)
			}
			if outgoing != "" {
				of, err := supposedCause(file, route, background)
				if err != nil {
					return err
				}
				return explainOutgoing(t, f, file, outgoing, of)
			}
			if f == "json" {
				return t.json(map[string]any{"valid": true, "errors": []string{}, "warnings": file.Warnings})
			}
			t.warn(file.Warnings)
			_, err = fmt.Fprintf(t.out, "%s: fine: %s, %s, %s\n", path, count(len(file.Ingress.Routes), "route"), count(len(file.Ingress.Issuers), "issuer"),
				count(len(file.Egress.Rules.Destinations), "destination"))
			return err
		},
	}
	configFlag(c, &path)
	formatFlag(c, &f)
	c.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of the configuration")
	c.Flags().StringVar(&explain, "explain", "", "explain the decision for a `'METHOD /path'`")
	c.Flags().StringVar(&outgoing, "egress", "", "explain the decision for a connection to `HOST:PORT`, or a 'METHOD HOST:PORT/path'")
	c.Flags().StringVar(&route, "route", "", "with --egress: the attempt is caused by a request on route `NAME`")
	c.Flags().BoolVar(&background, "background", false, "with --egress: no request causes the attempt")
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
	issuers := file.Ingress.Issuers
	if token == "" {
		issuers = unasked(issuers) // nobody is asked about a token that is not there
	}
	v, err := bearer.NewVerifier(issuers, bearer.Options{Logger: quiet, Bound: true})
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
		Upstream: file.Ingress.Upstream, AskOnly: file.Ingress.Upstream == nil, TrustedProxies: file.Ingress.TrustedProxies, Limits: file.Ingress.Limits,
		Rules: ingress.Rules{
			Policy: file.Ingress.Policy, Verifier: v, Assert: (*identity.Signer)(nil), CORS: file.Ingress.CORS, RateLimits: file.Ingress.RateLimits,
			Metadata: file.Ingress.Metadata,
		},
		Audit: audit.New(io.Discard, audit.Config{}), Logger: quiet, PublicURL: file.Ingress.PublicURL,
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
			t.step(s.OK, s.Name, s.Detail)
		}
		fmt.Fprintf(t.out, "\n%s %s: %s (%s", method, target, t.verdict(e.Decision.Allowed()), e.Decision.Code)
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

// supposedCause is what an attempt that is explained is taken to be caused by; nil: that was not said.
func supposedCause(file *config.File, route string, background bool) (*policy.Cause, error) {
	if route == "" && !background {
		return nil, nil
	}
	if background {
		return &policy.Cause{Background: true}, nil
	}
	for _, r := range file.Ingress.Routes {
		if r.Name == route {
			return &policy.Cause{Route: r.Name, Scopes: r.Scopes}, nil
		}
	}
	return nil, usage("check: --route: there is no route %q", route)
}

// explainOutgoing does for the gate behind what explainRequest does for the one in front.
func explainOutgoing(t *terminal, f format, file *config.File, attempt string, of *policy.Cause) error {
	method, target, isRequest := strings.Cut(attempt, " ")
	if !isRequest {
		method, target = "", attempt
	}
	host, path, hasPath := strings.Cut(target, "/")
	if path = "/" + path; isRequest != hasPath || strings.Contains(path, " ") {
		return usage("check: --egress wants HOST:PORT or 'METHOD HOST:PORT/path', got %q", attempt)
	}
	rules := file.Egress.Rules
	rules.Destinations = slices.Clone(rules.Destinations)
	for i := range rules.Destinations {
		rules.Destinations[i].Credential = credential.Config{} // nothing is attached here, and its secret may be elsewhere
	}
	p, err := egress.New(egress.Config{
		Rules: rules, Limits: file.Egress.Limits, Own: configuredDoors(file),
		Audit: audit.New(io.Discard, audit.Config{}), // what is explained is decided nowhere
	})
	if err != nil {
		return err
	}
	e := p.Explain(host, method, path, of)
	if f == "json" {
		if err := t.json(e); err != nil {
			return err
		}
	} else {
		for _, s := range e.Steps {
			t.step(s.OK, s.Name, s.Detail)
		}
		fmt.Fprintf(t.out, "\n%s: %s (%s)\n", attempt, t.verdict(e.Allowed), e.Code)
		if e.Hint != "" {
			fmt.Fprintf(t.out, "  hint: %s\n", e.Hint)
		}
	}
	if !e.Allowed {
		return exit(exitFindings)
	}
	return nil
}

// step prints one step of a line and what it found.
func (t *terminal) step(ok bool, name, detail string) {
	mark := paint(t.colour, green, "ok  ")
	if !ok {
		mark = paint(t.colour, red, "stop")
	}
	fmt.Fprintf(t.out, "%s  %-11s %s\n", mark, name, detail)
}

func (t *terminal) verdict(allowed bool) string {
	if allowed {
		return paint(t.colour, green, "allowed")
	}
	return paint(t.colour, red, "denied")
}
