package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/internal/story"
)

func newAuditTail(t *terminal) *cobra.Command {
	var l logFlags
	var f format
	var filter filterFlags
	var follow bool
	var last int
	c := &cobra.Command{
		Use:   "tail [-c FILE] [-f] [-n N] [--token JTI | --decision deny | ...] [FILE]",
		Short: "Show the end of the audit log, and what happens now",
		Long: `Print the last lines of the log that fit all the flags, as a person can read them,
and with -f go on with what comes. Rotation is followed: when the path names
another file, the rest of the old one is read first. Lines come in the order in
which they were written; "query" puts together what belongs together.

Without FILE the log is audit.file of the configuration. --format json prints the
lines of the log as they are.`,
		Example: `  sallyport audit tail -f
  sallyport audit tail -f --decision deny
  sallyport audit tail -n 100 --format json audit.jsonl`,
		Args: cobra.MatchAll(func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("%s takes one FILE, got %d", c.CommandPath(), len(args))
			}
			return nil
		}),
		RunE: func(c *cobra.Command, args []string) error {
			if err := filter.check(); err != nil {
				return err
			}
			if last < 0 {
				return usage("-n %d: a number of lines", last)
			}
			path := ""
			if len(args) == 1 {
				path = args[0]
			} else {
				var err error
				if path, err = l.current(t); err != nil {
					return err
				}
			}
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			s := &tailing{t: t, filter: &filter, json: f == "json", printer: story.Printer{W: t.out, Colour: t.colour, Flat: true}, shown: map[string]int{}, last: last}
			return s.run(ctx, path, follow)
		},
	}
	l.add(c)
	filter.add(c)
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is written, through rotation, until SIGINT")
	c.Flags().IntVarP(&last, "lines", "n", 10, "begin with the last `N` lines that fit")
	formatFlag(c, &f)
	return c
}

// tailing is a log that is read as it is written.
type tailing struct {
	t       *terminal
	filter  *filterFlags
	json    bool
	printer story.Printer
	last    int          // of what was there before, how many lines are shown
	held    []story.Line // until then
	live    bool
	shown   map[string]int // decisions that fit, whose outcomes do too, and how far in they stand
	order   []string       // of shown
}

const (
	pollEvery = 200 * time.Millisecond
	mostShown = 10_000 // decisions whose outcome is waited for
)

// run shows the end of the file, and follows it.
func (s *tailing) run(ctx context.Context, path string, follow bool) error {
	file, err := os.Open(path)
	if err != nil {
		return withHint(fmt.Errorf("read the audit log: %w", err), "name its file, or the configuration that does with -c FILE")
	}
	defer func() { file.Close() }()
	var rest []byte // half a line
	for {
		if rest, err = s.read(file, rest); err != nil {
			return err
		}
		if !s.live {
			s.live = true
			for _, l := range s.held {
				if err := s.print(&l); err != nil {
					return err
				}
			}
			s.held = nil
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pollEvery):
		}
		next, err := another(file, path)
		if err != nil {
			return err
		}
		if next != nil {
			// what was written between the last look and the rename
			if _, err := s.read(file, rest); err != nil {
				next.Close()
				return err
			}
			file.Close()
			file, rest = next, nil
		}
	}
}

// another opens the path if it names another file than the one that is open, or one that was cut to nothing.
func another(file *os.File, path string) (*os.File, error) {
	named, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // between the rename and the signal
	}
	if err != nil {
		return nil, fmt.Errorf("follow the audit log: %w", err)
	}
	ours, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("follow the audit log: %w", err)
	}
	at, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, fmt.Errorf("follow the audit log: %w", err)
	}
	if os.SameFile(named, ours) && named.Size() >= at {
		return nil, nil
	}
	next, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("follow the audit log: %w", err)
	}
	return next, nil
}

// read takes what there is, and returns the half line at its end.
func (s *tailing) read(file *os.File, rest []byte) ([]byte, error) {
	const longest = 64 << 10
	b := bufio.NewReaderSize(file, 256<<10)
	for {
		part, err := b.ReadSlice('\n')
		if rest = append(rest, part...); len(rest) > longest {
			rest = rest[:0] // no line of ours
		}
		switch {
		case err == nil:
			if l, err := story.Parse(bytes.TrimSuffix(rest, []byte{'\n'})); err == nil {
				if err := s.take(l); err != nil {
					return nil, err
				}
			}
			rest = rest[:0]
		case errors.Is(err, io.EOF):
			return rest, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, fmt.Errorf("read the audit log: %w", err)
		}
	}
}

// take shows a line that fits, or keeps it until it is known to be one of the last.
func (s *tailing) take(l story.Line) error {
	switch {
	case l.Kind == "decision" && s.filter.Match(&l):
		s.remember(&l)
	case l.Kind == "outcome":
		if _, ok := s.shown[l.ID]; !ok && !s.filter.all() {
			return nil
		}
	case l.Kind == "gap", s.filter.all() && s.json:
	default:
		return nil
	}
	if s.live {
		return s.print(&l)
	}
	if s.held = append(s.held, l); len(s.held) > s.last {
		s.held = s.held[1:]
	}
	return nil
}

// remember has the outcome shown too, as far in as the decision.
func (s *tailing) remember(l *story.Line) {
	depth := 0
	if len(l.Detail.Requests) > 0 {
		depth = 1
	}
	s.shown[l.ID] = depth
	if s.order = append(s.order, l.ID); len(s.order) > mostShown {
		delete(s.shown, s.order[0])
		s.order = s.order[1:]
	}
}

func (s *tailing) print(l *story.Line) error {
	if s.json {
		_, err := fmt.Fprintf(s.t.out, "%s\n", l.Raw)
		return err
	}
	return s.printer.Line(l, s.shown[l.ID])
}
