package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/term"
)

// The laws of this program's output:
//
//   - stdout is for what the command was asked to print, and for nothing else;
//   - everything said to a person goes to stderr;
//   - colour appears only on a terminal, and never when NO_COLOR is set;
//   - an error is one line "sallyport: what went wrong", and a hint is a line below it.
type terminal struct {
	in        *os.File
	out, err  io.Writer
	colour    bool // on out
	colourErr bool // on err
}

func newTerminal(in *os.File, out, err io.Writer) *terminal {
	isTerm := func(w io.Writer) bool {
		f, ok := w.(*os.File)
		return ok && term.IsTerminal(int(f.Fd()))
	}
	plain := os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb"
	return &terminal{in: in, out: out, err: err, colour: isTerm(out) && !plain, colourErr: isTerm(err) && !plain}
}

// interactive tells whether there is a person in front.
func (t *terminal) interactive() bool {
	f, ok := t.err.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// fail prints an error as a person needs it.
func (t *terminal) fail(err error) {
	if ce, ok := errors.AsType[*codeError](err); ok && ce.err == nil {
		return
	}
	fmt.Fprintf(t.err, "%s %v\n", paint(t.colourErr, red, "sallyport:"), err)
	if h, ok := errors.AsType[*hinted](err); ok {
		fmt.Fprintf(t.err, "  hint: %s\n", strings.ReplaceAll(h.hint, "\n", "\n        "))
	}
}

// note says something to the person in front.
func (t *terminal) note(format string, args ...any) { fmt.Fprintf(t.err, format+"\n", args...) }

// json prints a value for a machine.
func (t *terminal) json(v any) error {
	enc := json.NewEncoder(t.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// logger is what services log to: lines for a person on a terminal, JSON for a log collector elsewhere.
func (t *terminal) logger(level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if t.colourErr {
		return slog.New(slog.NewTextHandler(t.err, o))
	}
	return slog.New(slog.NewJSONHandler(t.err, o))
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

func paint(on bool, colour, s string) string {
	if !on {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

// readSecret reads a token from the argument, or from stdin where the argument is "-", so that it need not stand in
// the process list or the shell's history.
func (t *terminal) readSecret(arg string) (string, error) {
	if arg != "-" {
		return arg, nil
	}
	const most = 64 << 10
	b, err := io.ReadAll(io.LimitReader(t.in, most+1))
	if err != nil {
		return "", fmt.Errorf("read standard input: %w", err)
	}
	if len(b) > most {
		return "", fmt.Errorf("standard input holds more than %d bytes: that is no token", most)
	}
	// A shell's echo ends its line; the token itself is judged to the byte.
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), nil
}
