package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport/sallyport/internal/story"
)

func newAudit(t *terminal) *cobra.Command {
	return group("audit", "Verify, search and follow the audit log",
		`The audit log holds every decision, written before it took effect, and how it
ended. "verify" says whether it is as it was written, "query" tells the story of a
token, a request or a caller, and "tail" shows what happens now.

    sallyport audit verify /var/log/sallyport/audit.jsonl*
    sallyport audit query --token 7f3a91
    sallyport audit tail -f

Its format is described in doc/audit.md.`,
		newAuditVerify(t), newAuditQuery(t), newAuditTail(t))
}

// logFlags say which log: the files that are named, else audit.file of the configuration.
type logFlags struct {
	config string
	named  func() bool // -c was given
}

func (l *logFlags) add(c *cobra.Command) {
	configFlag(c, &l.config)
	l.named = func() bool { return c.Flags().Changed("config") }
	c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault // files
	}
}

// files are those that are named, in the order in which they were written.
func (l *logFlags) files(t *terminal, args []string) ([]logFile, error) {
	if len(args) == 0 {
		path, err := l.current(t)
		if err != nil {
			return nil, err
		}
		args = []string{path}
	}
	files := make([]logFile, len(args))
	for i, path := range args {
		info, err := os.Stat(path)
		if err != nil {
			return nil, withHint(fmt.Errorf("read the audit log: %w", err), "name its files, or the configuration that does with -c FILE")
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("read the audit log: %s is not a regular file", path)
		}
		files[i] = logFile{path: path, size: info.Size()}
		if files[i].began, err = files[i].first(); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(files, func(a, b logFile) int { return a.began.Compare(b.began) })
	return files, nil
}

// current is the file that is written now.
func (l *logFlags) current(t *terminal) (string, error) {
	f, err := readConfig(t, l.config)
	if err != nil {
		return "", err
	}
	if f.Audit.File == "-" {
		return "", withHint(errors.New("the audit log is written to standard output (audit.file)"), "name the file where whoever reads it has put it")
	}
	return f.Audit.File, nil
}

// logFile is one of the files, possibly compressed.
type logFile struct {
	path  string
	size  int64
	began time.Time // of its first line that parses; zero if there is none
}

// open returns what it holds. seen, unless it is nil, hears of the bytes that are read.
func (f logFile) open(seen func(n int)) (io.ReadCloser, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	b := bufio.NewReaderSize(counted{file, seen}, 256<<10)
	if magic, _ := b.Peek(2); !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return readCloser{b, file}, nil
	}
	z, err := gzip.NewReader(b)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("read the audit log: %s: %w", f.path, err)
	}
	return readCloser{z, file}, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

type counted struct {
	r    io.Reader
	seen func(n int)
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.seen != nil {
		c.seen(n)
	}
	return n, err
}

// first is the time of the first line.
func (f logFile) first() (time.Time, error) {
	r, err := f.open(nil)
	if err != nil {
		return time.Time{}, err
	}
	defer r.Close()
	b := bufio.NewReader(io.LimitReader(r, 1<<20))
	for {
		text, err := b.ReadString('\n')
		if l, perr := story.Parse([]byte(strings.TrimSuffix(text, "\n"))); perr == nil {
			return l.Time, nil
		}
		if errors.Is(err, io.EOF) {
			return time.Time{}, nil
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("read the audit log: %s: %w", f.path, err)
		}
	}
}

// scan reads all lines of all files, as story.Read asks for.
func scan(files []logFile) story.Scan {
	return func(skip func([]byte) bool, f func(story.Line)) (passed int, err error) {
		for _, file := range files {
			r, err := file.open(nil)
			if err != nil {
				return passed, err
			}
			n, err := story.Lines(file.path, r, skip, f)
			r.Close()
			if passed += n; err != nil {
				return passed, err
			}
		}
		return passed, nil
	}
}

// instant is a flag's point in time: RFC 3339, a day, or how long ago.
type instant struct{ time.Time }

func (i *instant) Type() string { return "time" }
func (i *instant) String() string {
	if i.IsZero() {
		return ""
	}
	return i.Format(time.RFC3339)
}

func (i *instant) Set(s string) error {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		i.Time = time.Now().Add(-d)
		return nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if at, err := time.Parse(layout, s); err == nil {
			i.Time = at
			return nil
		}
	}
	return fmt.Errorf("%q is no time: 2027-03-01T12:00:00Z, 2027-03-01 (UTC), or how long ago: 90m", s)
}

// filterFlags are what query and tail look for.
type filterFlags struct {
	story.Filter
	since, until instant
}

func (f *filterFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.Token, "token", "", "of the token with this `JTI`, or with this digest if it has none (token_id, token_digest)")
	flags.StringVar(&f.Request, "request", "", "the request or attempt with this `ID`: request_id of an answer")
	flags.StringVar(&f.Subject, "subject", "", "of this `SUBJECT` (sub)")
	flags.StringVar(&f.Client, "client", "", "of this `CLIENT` (client_id)")
	flags.StringVar(&f.Route, "route", "", "on the `ROUTE` of this name")
	flags.StringVar(&f.Source, "source", "", "from this `IP` address")
	flags.StringVar(&f.Code, "code", "", "with this reason `CODE`: allowed, insufficient_scope, escape_target, ...")
	flags.StringVar(&f.Decision, "decision", "", "allowed or denied: `allow|deny`")
	flags.StringVar(&f.Point, "point", "", "recorded at this `POINT`: ingress, egress, sandbox, run, state or watch")
	_ = c.RegisterFlagCompletionFunc("decision", cobra.FixedCompletions([]string{"allow", "deny"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("point", cobra.FixedCompletions(points(), cobra.ShellCompDirectiveNoFileComp))
}

// points are where records are made.
func points() []string { return []string{"ingress", "egress", "sandbox", "run", "state", "watch"} }

func (f *filterFlags) check() error {
	if f.Decision != "" && f.Decision != "allow" && f.Decision != "deny" {
		return usage("--decision %s is neither allow nor deny", f.Decision)
	}
	if f.Point != "" && !slices.Contains(points(), f.Point) {
		return usage("--point %s is none of %s", f.Point, strings.Join(points(), ", "))
	}
	f.Filter.Since, f.Filter.Until = f.since.Time, f.until.Time
	return nil
}

// all reports whether nothing is asked for in particular.
func (f *filterFlags) all() bool { return f.Filter == story.Filter{} }
