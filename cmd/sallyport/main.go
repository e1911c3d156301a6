// Command sallyport stands around a service: a gate in front that verifies
// bearer tokens, a gate behind that lets out to known places only, walls around
// its process, and a book of every decision.
//
// This package is flags, wiring and exit codes; one file per command. What is
// decided is decided in the packages below internal.
package main

import (
	"context"
	"io"
	"log"
	"os"

	"github.com/sallyport/sallyport/internal/sandbox"
)

func main() {
	// Before anything else, because the other half of sandbox.Launch is this same program: it must drop what it
	// has before any other code of ours has run.
	sandbox.Child()
	// The standard library's HTTP client writes what a confused service sent to the global logger; those bytes are
	// the service's, and our log is not.
	log.SetOutput(io.Discard)
	os.Exit(Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Main runs one command line and returns its exit code. Machine output goes to stdout, all else to stderr.
func Main(ctx context.Context, args []string, stdin *os.File, stdout, stderr io.Writer) int {
	t := newTerminal(stdin, stdout, stderr)
	root := newRoot(t)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		t.fail(err)
	}
	return exitCode(err)
}
