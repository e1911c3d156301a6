// Package access writes a line for each request that has its answer, for whoever counts and looks at them.
//
//	log, err := access.Open("access.jsonl", registry)
//	if err != nil {
//		return err
//	}
//	defer log.Close()
//	log.Write(access.Entry{ID: id, Method: "GET", Path: "/orders/7", Status: 200})
//
// It is apart from the audit log and promises nothing that that does: nobody waits for a line. Lines are gathered in memory and
// written by a goroutine of its own, ten times a second; where the disk, or whoever reads the pipe, does not keep up, lines
// beyond 1 MiB are dropped and counted. What a crash takes is lost.
//
// A line is a JSON object with the members of Entry. The path has no query, and what looks like a token in it is redacted. A
// line's method, path and the like are cut as in the audit log.
package access

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/audit"
)

const (
	every      = 100 * time.Millisecond // between two writes
	maxPending = 1 << 20                // bytes that wait
	wake       = 64 << 10               // bytes that do not wait for the time
	patience   = 2 * time.Second        // for the last write
	timeForm   = "2006-01-02T15:04:05.000000Z"
)

// Entry is one request, as far as it is told.
type Entry struct {
	Time     time.Time // when it began
	ID       string    // as in the audit log
	Method   string
	Path     string // no query
	Route    string // empty: none was selected
	Status   int    // 0: no answer was begun
	Code     string // of the decision, or of what went wrong behind it
	Duration time.Duration
	BytesIn  int64
	BytesOut int64
	Source   netip.Addr // the client, after trusted proxies
	Protocol string     // HTTP/1.1, HTTP/2.0
	Way      string     // how it came: proxy, forward_auth, ext_authz
}

// Log is an open log. Safe for concurrent use. A nil one takes everything and writes nothing.
type Log struct {
	path             string // empty: standard output
	written, dropped prometheus.Counter

	mu      sync.Mutex
	pending []byte
	lines   int // in pending
	wake    chan struct{}
	closing chan struct{}
	done    chan struct{}
	once    sync.Once

	file   sync.Mutex // held while it is written or replaced
	w      *os.File
	spare  []byte // to gather in while the other is written
	faults func(error)
}

// Open opens the file, or makes it (0600); "-" is standard output. failed hears, once for each reason, why lines could not be
// written; nil: nobody does.
func Open(path string, metrics prometheus.Registerer, failed func(error)) (*Log, error) {
	lines := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_access_log_lines_total", Help: "Lines of the access log, by result: written, or dropped because it did not keep up or could not be written.",
	}, []string{"result"})
	l := &Log{
		path: path, wake: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
		written: lines.WithLabelValues("written"), dropped: lines.WithLabelValues("dropped"),
	}
	if failed != nil {
		last := ""
		l.faults = func(err error) {
			if err.Error() != last {
				last = err.Error()
				failed(err)
			}
		}
	}
	if path == "-" {
		l.path, l.w = "", os.Stdout
	} else {
		w, err := openFile(path)
		if err != nil {
			return nil, fmt.Errorf("open the access log: %w", err)
		}
		l.w = w
	}
	if metrics != nil {
		if err := metrics.Register(lines); err != nil {
			if l.path != "" {
				l.w.Close()
			}
			return nil, fmt.Errorf("register a metric: %w", err)
		}
	}
	go l.run()
	return l, nil
}

// openFile follows no link that others could have put there.
func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
}

// Write takes an entry, and never waits.
func (l *Log) Write(e Entry) {
	if l == nil {
		return
	}
	l.mu.Lock()
	if len(l.pending) > maxPending {
		l.mu.Unlock()
		l.dropped.Inc()
		return
	}
	l.pending = e.append(l.pending)
	l.lines++
	soon := len(l.pending) > wake
	l.mu.Unlock()
	if soon {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// append appends the line.
func (e *Entry) append(b []byte) []byte {
	text := func(name, value string, limit int) {
		if value != "" {
			b = append(b, name...)
			b = audit.AppendText(b, value, limit)
		}
	}
	number := func(name string, n int64) {
		b = append(b, name...)
		b = strconv.AppendInt(b, n, 10)
	}
	b = append(b, `{"time":"`...)
	b = e.Time.UTC().AppendFormat(b, timeForm)
	b = append(b, '"')
	text(`,"id":`, e.ID, 128)
	text(`,"method":`, e.Method, 128)
	text(`,"path":`, e.Path, 2048)
	text(`,"route":`, e.Route, 512)
	number(`,"status":`, int64(e.Status))
	text(`,"code":`, e.Code, 128)
	b = append(b, `,"duration_ms":`...)
	b = strconv.AppendFloat(b, float64(e.Duration.Microseconds())/1000, 'f', -1, 64)
	number(`,"bytes_in":`, e.BytesIn)
	number(`,"bytes_out":`, e.BytesOut)
	if e.Source.IsValid() {
		b = append(b, `,"source":"`...)
		b = e.Source.AppendTo(b)
		b = append(b, '"')
	}
	text(`,"protocol":`, e.Protocol, 128)
	text(`,"entry":`, e.Way, 128)
	return append(b, "}\n"...)
}

// run writes what has been gathered, until Close.
func (l *Log) run() {
	defer close(l.done)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.wake:
		case <-l.closing:
			l.flush()
			return
		}
		l.flush()
	}
}

// flush writes what has been gathered. What cannot be written is dropped: a log that is late is of no use to who counts.
func (l *Log) flush() {
	l.file.Lock()
	defer l.file.Unlock()
	l.mu.Lock()
	lines, n := l.pending, l.lines
	l.pending, l.lines = l.spare[:0], 0
	l.mu.Unlock()
	if n == 0 {
		l.spare = lines
		return
	}
	if _, err := l.w.Write(lines); err != nil {
		l.dropped.Add(float64(n))
		if l.faults != nil {
			l.faults(fmt.Errorf("write the access log: %w", err))
		}
	} else {
		l.written.Add(float64(n))
	}
	l.spare = lines
	if cap(lines) > 4*wake {
		l.spare = nil // of a burst
	}
}

// Reopen opens the path anew, after rotation; on error the old file stays. Standard output stays as it is.
func (l *Log) Reopen() error {
	if l == nil || l.path == "" {
		return nil
	}
	w, err := openFile(l.path)
	if err != nil {
		return fmt.Errorf("reopen the access log: %w", err)
	}
	l.flush() // what belongs into the old one
	l.file.Lock()
	defer l.file.Unlock()
	l.w.Close()
	l.w = w
	return nil
}

// Close writes what has been gathered, and waits for that no longer than two seconds: whoever reads a pipe may have stopped.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.once.Do(func() { close(l.closing) })
	select {
	case <-l.done:
	case <-time.After(patience):
		return errors.New("close the access log: nobody takes its last lines")
	}
	if l.path == "" {
		return nil
	}
	return l.w.Close()
}
