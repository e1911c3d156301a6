// Command demo walks a person through a real NestJS service behind sallyport: good requests, bad ones, and an attempt
// to break out, each with the curl line, the answer and the audit record that it left. With -once it checks every
// step, ends, and exits non-zero if any is not as it must be.
//
// It uses the program and the service as anybody would: it imports neither.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	once := flag.Bool("once", false, "check every step and end; exit 1 if any is not as it must be")
	program := flag.String("sallyport", "build/sallyport", "the sallyport `PROGRAM`")
	service := flag.String("service", "examples/nestjs", "the built service's `FOLDER`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, *program, *service, *once); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, program, service string, once bool) (err error) {
	program, err = filepath.Abs(program)
	if err != nil {
		return err
	}
	s, err := prepare(ctx, program, service)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	if err := s.start(ctx); err != nil {
		return err
	}
	wrong := s.walk(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if once {
		if wrong > 0 {
			return fmt.Errorf("%d steps are not as they must be", wrong)
		}
		fmt.Println("\nEvery step is as it must be.")
		return nil
	}
	token, err := s.mint("--scope", "orders:read orders:write", "--subject", "alice", "--lifetime", "1h")
	if err != nil {
		return err
	}
	fmt.Printf(`
The service stays up behind the gate at %s. A token to play with, good for an hour:

  TOKEN=%s
  curl -i -H "Authorization: Bearer $TOKEN" %s/orders
  tail -f %s

Ctrl-C ends it.
`, s.url, token, s.url, s.path("var/audit.jsonl"))
	select {
	case <-ctx.Done():
		fmt.Println("\nending")
		return nil
	case <-s.ended:
		return fmt.Errorf("sallyport has ended by itself; its log is %s", s.log.Name())
	}
}
