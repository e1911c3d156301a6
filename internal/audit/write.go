package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	flushEvery = 100 * time.Millisecond
	retryEvery = time.Second
	// maxPending bounds what is held in memory, in bytes. A buffered log writes when it is full; of the outcomes kept
	// while nothing can be written, the rest is counted as lost. They are those of the requests in flight: no other is let in.
	maxPending = 1 << 20
)

// tornMark ends a line that was cut short. A line end alone would not do: where
// that is all that was missing, a record that was refused would parse.
const tornMark = "[torn]\n"

// fault is why nothing can be written, and what that has cost so far.
type fault struct {
	err     error
	since   time.Time
	refused int // records
	lost    int // outcomes that maxPending had no room for
}

// batch is the records that wait for one sync.
type batch struct {
	done chan struct{} // closed when the sync has ended
	err  error         // its error, set before
}

var errFull = errors.New("no room in memory for more")

// accept takes the line of a record and returns when the durability is reached.
func (l *Log) accept(b []byte) error {
	l.mu.Lock()
	err := l.take(b)
	if err != nil {
		l.refuse()
	}
	if err != nil || l.durability != Synced {
		l.mu.Unlock()
		return err
	}
	group := l.join()
	l.mu.Unlock()
	<-group.done
	if group.err != nil {
		l.mu.Lock()
		l.refuse()
		l.mu.Unlock()
	}
	return group.err
}

// refuse counts a record that was not accepted; l.mu is held.
func (l *Log) refuse() {
	if l.fault != nil {
		l.fault.refused++
	}
}

// acceptOutcome takes the line of an outcome. If it cannot be written it is kept for later; then there is an error, and
// it is accepted all the same.
func (l *Log) acceptOutcome(b []byte) (accepted bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err = l.take(b)
	switch {
	case err == nil:
		if l.durability == Synced {
			l.schedule(flushEvery)
		}
	case l.fault == nil: // closed, or no durability that we know
		return false, err
	case len(l.pending)+len(b) > maxPending:
		l.fault.lost++
		return false, fmt.Errorf("%w; the outcome is lost: %w", err, errFull)
	default:
		l.pending = append(l.pending, b...)
	}
	return true, err
}

// take writes a line or, in a buffered log, keeps it in memory; l.mu is held.
// After an error the line counts as not written.
func (l *Log) take(b []byte) error {
	if l.closed {
		return os.ErrClosed
	}
	if l.fault != nil {
		if err := l.recover(); err != nil {
			return err
		}
	}
	switch l.durability {
	case Buffered:
		if len(l.pending)+len(b) > maxPending {
			if err := l.flush(); err != nil {
				l.fail(err)
				return err
			}
		}
		l.pending = append(l.pending, b...)
		l.schedule(flushEvery)
		return nil
	case Written, Synced:
		if _, err := l.put(b, ""); err != nil {
			l.fail(err)
			return err
		}
		return nil
	}
	return fmt.Errorf("durability %q is unknown", l.durability)
}

// put seals lines, checkpoints among them where they are due and last at their end unless it is empty, and writes
// them with one write(2), after the end of a torn line. It returns how many bytes of the lines that it was given are
// written whole; l.mu is held.
func (l *Log) put(b []byte, last string) (int, error) {
	l.seal(b, last)
	out := l.chain.out
	n, err := l.w.Write(out)
	if err == nil && n < len(out) {
		err = io.ErrShortWrite
	}
	l.dirty = l.dirty || n > 0
	return l.settle(n), err
}

// flush writes what is pending; l.mu is held. What could not be written stays pending.
func (l *Log) flush() error {
	for done := 0; ; {
		part := l.pending[done:]
		if len(part) == 0 {
			l.drop(done)
			return nil
		}
		if len(part) > maxWrite {
			part = part[:bytes.LastIndexByte(part[:maxWrite], '\n')+1]
		}
		n, err := l.put(part, "")
		if done += n; err != nil {
			l.drop(done)
			return err
		}
	}
}

// drop forgets the first n bytes of what is pending.
func (l *Log) drop(n int) {
	l.pending = l.pending[:copy(l.pending, l.pending[n:])]
}

// fail makes the log unhealthy; l.mu is held.
func (l *Log) fail(err error) {
	if l.fault == nil {
		l.fault = &fault{since: time.Now()}
		l.logger.Error("the audit log cannot be written: no record is accepted", "error", err)
	}
	l.fault.err = err
	l.stopTimer()
	l.schedule(retryEvery)
}

// recover tries to write what says that there was a gap, and then what was kept.
// If that works the log is healthy; l.mu is held.
func (l *Log) recover() error {
	f := l.fault
	var e line
	e.gap(*f, time.Now())
	// alone, because it is short: as long as this fails, what is pending need not be tried
	_, err := l.put(e.b, "")
	if err == nil {
		f.refused, f.lost = 0, 0
		if len(l.pending) > 0 {
			err = l.flush()
		}
	}
	if err == nil && l.durability == Synced {
		err = syncWriter(l.w)
	}
	if err != nil {
		f.err = err
		return err
	}
	l.fault = nil
	l.stopTimer()
	l.logger.Info("the audit log can be written again", "since", f.since)
	return nil
}

// schedule has tick called after d, unless it will be anyway; l.mu is held.
func (l *Log) schedule(d time.Duration) {
	if l.timer == nil && !l.closed {
		l.timer = time.AfterFunc(d, l.tick)
	}
}

func (l *Log) stopTimer() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

// tick does what is due: it tries again after a fault, flushes, or syncs.
func (l *Log) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = nil
	switch {
	case l.closed:
	case l.fault != nil:
		if l.recover() != nil {
			l.schedule(retryEvery)
		}
	case len(l.pending) > 0:
		if err := l.flush(); err != nil {
			l.fail(err)
		}
	case l.durability == Synced && l.dirty:
		l.join()
	}
}

// join adds the caller to those who wait for the next sync, and sees to it that
// there will be one; l.mu is held. What was written before is covered.
func (l *Log) join() *batch {
	if l.batch == nil {
		l.batch = &batch{done: make(chan struct{})}
	}
	if !l.syncing {
		l.syncing = true
		l.background.Go(l.syncBatches)
	}
	return l.batch
}

// syncBatches syncs as long as somebody waits. Those who come while it syncs
// share the next one.
func (l *Log) syncBatches() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.batch != nil {
		group, w := l.batch, l.w
		l.batch, l.dirty = nil, false
		l.mu.Unlock()
		err := syncWriter(w)
		l.mu.Lock()
		// Reopen closed it, after it had synced it
		if err != nil && !errors.Is(err, os.ErrClosed) {
			group.err = err
			l.fail(err)
		}
		close(group.done)
	}
	l.syncing = false
}

func syncWriter(w io.Writer) error {
	s, ok := w.(interface{ Sync() error })
	if !ok {
		return errors.New("what is written to cannot be synced")
	}
	return s.Sync()
}

// openFile opens the log for appending, and says whether it ends in half a line.
func openFile(path string, d Durability) (f *os.File, torn bool, err error) {
	// readable too, to look at its last byte
	f, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	if info.Mode().IsRegular() && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			return nil, false, err
		}
		torn = last[0] != '\n'
	}
	if d == Synced {
		if err := f.Sync(); err != nil {
			return nil, false, fmt.Errorf("%s cannot be synced: %w", path, err)
		}
		// the name of a new file is the folder's content
		if err := syncFolder(filepath.Dir(path)); err != nil {
			return nil, false, err
		}
	}
	return f, torn, nil
}

// openStdout opens standard output a second time. On the first, a reader that
// goes away would end the process with SIGPIPE; here it is an error of Write.
func openStdout(_ string, d Durability) (*os.File, bool, error) {
	fd, _, errno := syscall.Syscall(syscall.SYS_FCNTL, os.Stdout.Fd(), syscall.F_DUPFD_CLOEXEC, 3)
	if errno != 0 {
		return nil, false, fmt.Errorf("standard output: %w", errno)
	}
	f := os.NewFile(fd, "stdout")
	if d == Synced {
		if err := f.Sync(); err != nil {
			f.Close()
			return nil, false, fmt.Errorf("standard output cannot be synced, as durability asks: %w", err)
		}
	}
	return f, false, nil
}

// closeFile syncs, where that can be done, and closes.
func closeFile(f *os.File, d Durability) error {
	err := f.Sync()
	if d != Synced && (errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EROFS)) {
		err = nil // a pipe, a terminal or a device
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("close the audit log: %w", err)
	}
	return nil
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func countLines(b []byte) int { return bytes.Count(b, []byte{'\n'}) }
