// Command lab runs the escape lab: a deliberately vulnerable service in a real container, as root, with everything within
// reach that an attacker hopes for, attacked bare and behind sallyport.
//
//	lab [-format text|json] [-page FILE] [-only REGEXP]
//
// It is one straight line:
//
//	build ─ engine ─ images ─ neighbours ─ services ─ for each: attacks ─ proofs ─ report
//
// The variants are the bare service, the service under `sallyport run` in the same container, and that with one layer
// taken away at a time. What is attacked stands in app and must run nowhere else; the attacks are one list, in attacks.go.
// Files on the host are written in a temporary folder and nowhere else.
//
// It needs root or a container engine that it may use: SALLYPORT_TEST_DOCKER (scripts/with-engine starts one in a
// network namespace of its own) or else DOCKER_HOST, a unix socket. It exits with 1 when an attack went another way than
// its row in the list says.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.SetOutput(progress)
	format := flags.String("format", "text", "`text` or json, on standard output")
	page := flags.String("page", "", "write doc/escape-lab.md's content to `FILE` too")
	only := flags.String("only", "", "run only the attacks whose name matches `REGEXP`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *format != "text" && *format != "json" {
		return fmt.Errorf("-format %s: text or json", *format)
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	rows, err := perform(ctx, chosen, progress)
	if err != nil {
		return err
	}
	if *page != "" {
		if err := os.WriteFile(*page, writePage(rows), 0o644); err != nil {
			return err
		}
	}
	report := writeText(rows)
	if *format == "json" {
		if report, err = writeJSON(rows); err != nil {
			return err
		}
	}
	if _, err := out.Write(report); err != nil {
		return err
	}
	return unexpected(rows)
}

func choose(only string) ([]attack, error) {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	var chosen []attack
	for _, a := range attacks() {
		if pattern.MatchString(a.name) {
			chosen = append(chosen, a)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("-only %s: no such attack", only)
	}
	return chosen, nil
}
