// Package audit records what was decided before it happens and how it ended after.
//
// The log is a file of JSON lines, described in doc/audit.md: one line for a
// decision, which Record accepts before the decision takes effect, and one with
// the same id for its outcome. What it establishes:
//
//   - An accepted record is in the file once, whole, and in the order in which
//     its writer gave it. What "in the file" means is the Durability.
//   - While the log cannot be written, every Record is refused, so that nothing
//     happens unrecorded. Outcomes are kept (up to 1 MiB) and written later; a
//     line of kind "gap" then says how many records were refused and why.
//   - A line that was cut short (a full disk, a crash) is ended with "[torn]"
//     before anything else is written: it does not parse, the lines around it do.
//   - Each line says its place in the chain of who wrote it, by the hash of all that the
//     chain held before; checkpoints sign that (Config.Sign). A line that is altered, removed,
//     repeated or moved is found by internal/story, and by anybody who reads doc/audit.md.
//   - No line is longer than 24 KiB. What is cut ends with "[truncated]".
//   - What looks like a JWT is "[redacted]", wherever it stands. Control
//     characters are escaped: a line is safe to look at in a terminal.
//
// Limits: a token that is no JWT cannot be recognised; callers must not hand one
// in. Whoever can write the file can take away what was written after the last
// checkpoint that somebody else knows of, and no reader of the file can tell.
package audit

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/policy"
)

// Durability says what Record has established when it returns nil. An outcome
// under Synced is in the kernel, and on the device within 100 ms.
type Durability string

const (
	Buffered Durability = "buffered" // in our memory; in the kernel within 100 ms
	Written  Durability = "written"  // in the kernel
	Synced   Durability = "synced"   // on the device (group commit)
)

// Config is the audit section.
type Config struct {
	File       string     // path; "-" is standard output; empty means audit.jsonl
	Durability Durability // empty means written
	Claims     []string   // claims recorded beside issuer, subject, client and jti; none when empty

	// Sign is asked for the key that signs a checkpoint, when one is due and never before the first record. It must not wait,
	// nor call the log. Nil, or a key without private part: checkpoints are not signed, and whoever can write the file can
	// make another of the same form.
	Sign func() identity.Key
	// Observe is called with each record or outcome, the other being nil, once it is accepted and before Record or
	// Outcome returns: by many at once, and not in the order of the file. An outcome that is kept for later is accepted. It must not wait.
	Observe func(*Record, *Outcome)
}

// Record is one decision, written before it takes effect.
type Record struct {
	ID       string    // required: the request's id
	Time     time.Time // zero means now
	Point    string    // "ingress" for the gate in front; "run" for start, stop and what is enforced
	Decision policy.Decision
	Method   string
	Path     string // no query
	Host     string
	Source   netip.Addr
	Caller   *identity.Caller
	Detail   map[string]any // e.g. the sandbox's enforced protections
}

// Outcome is how a recorded decision ended: the second line with the same id.
type Outcome struct {
	ID       string    // required
	Time     time.Time // zero means now
	Status   int       // HTTP status sent; 0 when none was
	BytesIn  int64
	BytesOut int64
	Duration time.Duration
	Error    string
	Detail   map[string]any // what became known after the decision
}

// Log is an append-only file of JSON lines. Safe for concurrent use.
type Log struct {
	path       string // empty where there is nothing to open anew
	owned      bool   // w is a file that we opened
	durability Durability
	claims     []string
	sign       func() identity.Key
	observe    func(*Record, *Outcome)
	logger     *slog.Logger
	lines      sync.Pool // of *line
	background sync.WaitGroup

	mu      sync.Mutex
	w       io.Writer
	chain   chain
	torn    bool        // the last thing in w is half a line
	dirty   bool        // something was written and not synced
	pending []byte      // whole lines that were accepted, or kept, and are not written yet: unsealed, since the order is that of the file
	fault   *fault      // nil while healthy
	timer   *time.Timer // nil, or set to tick
	batch   *batch      // records that the next sync covers; nil when none waits
	syncing bool        // syncBatches runs
	closed  bool
}

// Open opens (or makes, 0600) the file. logger may be nil; it hears when the log
// becomes unhealthy and healthy again.
func Open(c Config, logger *slog.Logger) (*Log, error) {
	switch c.Durability {
	case "", Buffered, Written, Synced:
	default:
		return nil, fmt.Errorf("open the audit log: durability %q is none of buffered, written and synced", c.Durability)
	}
	if c.File == "" {
		c.File = "audit.jsonl"
	}
	l := New(nil, c)
	if logger != nil {
		l.logger = logger
	}
	open := openFile
	if c.File == "-" {
		open = openStdout
	} else {
		l.path = c.File
	}
	file, torn, err := open(c.File, l.durability)
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	l.w, l.torn, l.owned = file, torn, true
	return l, nil
}

// New writes to w, for tests and standard output. Close does not close w. Under
// Synced w must have a method Sync() error, or every record is refused.
func New(w io.Writer, c Config) *Log {
	if c.Durability == "" {
		c.Durability = Written
	}
	return &Log{
		w: w, durability: c.Durability, claims: c.Claims, sign: c.Sign, observe: c.Observe, chain: newChain(),
		logger: slog.New(slog.DiscardHandler),
		lines:  sync.Pool{New: func() any { return &line{b: make([]byte, 0, 1024)} }},
	}
}

var errNoID = errors.New("audit: a record needs an id")

// Record accepts the decision. The caller must not act if an error is returned.
func (l *Log) Record(r Record) error {
	if r.ID == "" {
		return errNoID
	}
	e := l.lines.Get().(*line)
	defer l.lines.Put(e)
	e.record(r, l.claims)
	if err := l.accept(e.b); err != nil {
		return fmt.Errorf("record a decision: %w", err)
	}
	if l.observe != nil {
		l.tellRecord(r)
	}
	return nil
}

// tellRecord has a record of its own, so that one that nobody observes stays on its caller's stack.
func (l *Log) tellRecord(r Record)   { l.observe(&r, nil) }
func (l *Log) tellOutcome(o Outcome) { l.observe(nil, &o) }

// Prompt reports whether Record waits for no device.
func (l *Log) Prompt() bool { return l.durability != Synced }

// Outcome accepts how it ended. An error makes the log unhealthy: Record refuses
// until a write succeeds. The outcome is then written first.
func (l *Log) Outcome(o Outcome) error {
	if o.ID == "" {
		return errNoID
	}
	e := l.lines.Get().(*line)
	defer l.lines.Put(e)
	e.outcome(o)
	accepted, err := l.acceptOutcome(e.b)
	if accepted && l.observe != nil {
		l.tellOutcome(o)
	}
	if err != nil {
		return fmt.Errorf("record an outcome: %w", err)
	}
	return nil
}

// Reopen opens the path anew (after rotation) and swaps it in; on error the old
// file stays. A log without a path has nothing to reopen.
func (l *Log) Reopen() error {
	if l.path == "" {
		return nil
	}
	file, torn, err := openFile(l.path, l.durability)
	if err != nil {
		return fmt.Errorf("reopen the audit log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		file.Close()
		return fmt.Errorf("reopen the audit log: %w", os.ErrClosed)
	}
	if l.fault == nil {
		err := l.flush()
		if err == nil {
			err = l.finish(whyLeave)
		}
		if err != nil {
			l.fail(err) // what is pending goes into the new file
		}
	}
	if l.durability == Synced {
		// before it is closed, because syncBatches takes a closed file for a synced one
		if err := syncWriter(l.w); err != nil {
			file.Close()
			return fmt.Errorf("reopen the audit log: %w", err)
		}
		l.dirty = false
	}
	old := l.w
	l.w, l.torn, l.chain.at.placed = file, torn, false
	// an error of close(2) says nothing about what was written or synced before
	old.(*os.File).Close()
	return nil
}

// Healthy returns why the log accepts nothing at present, or nil.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("the audit log: %w", os.ErrClosed)
	}
	if l.fault != nil {
		return fmt.Errorf("the audit log cannot be written since %s: %w", l.fault.since.UTC().Format(time.RFC3339), l.fault.err)
	}
	return nil
}

// Close flushes, syncs and closes. Its error says what was lost.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.stopTimer()
	if l.chain.timer != nil {
		l.chain.timer.Stop()
	}
	var err error
	if l.fault != nil {
		err = l.recover()
	} else {
		err = l.flush()
	}
	if err != nil {
		err = fmt.Errorf("close the audit log: %d lines are lost: %w", countLines(l.pending), err)
	} else if err = l.finish(whyEnd); err != nil {
		err = fmt.Errorf("close the audit log: no last checkpoint: %w", err)
	}
	l.mu.Unlock()
	l.background.Wait()
	if l.owned {
		err = errors.Join(err, closeFile(l.w.(*os.File), l.durability))
	}
	return err
}
