package wire

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// A Pace keeps one direction's deadline on a connection, lazily: one that is set already and comes before the one that is
// asked for is left as it is, and put right only if it ends a wait. On a busy connection that is never.
//
//	p.Arm(until)
//	n, err := c.Read(b)
//	if err != nil && n == 0 && p.Again(err, until) {
//		// as if nothing had happened
//	}
//
// Arm and Again are one goroutine's, Interrupt and Resume anybody's.
type Pace struct {
	Set   func(time.Time) error // SetReadDeadline or SetWriteDeadline
	Exact bool                  // a deadline that ends a wait cannot be taken back, as when a *tls.Conn writes

	mu    sync.Mutex
	armed time.Time
	cut   bool
}

// Arm has the next wait end at a time, or some time before; zero: never.
func (p *Pace) Arm(until time.Time) {
	if until.Equal(p.armed) || !p.Exact && !p.armed.IsZero() && (until.IsZero() || p.armed.Before(until)) {
		return
	}
	p.set(until)
}

func (p *Pace) set(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = until
	if !p.cut {
		p.Set(until) // an error of the connection shows at the next read or write
	}
}

// Again reports whether a wait that ended with this error ended early, and is to be repeated.
func (p *Pace) Again(err error, until time.Time) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) || p.Cut() || !until.IsZero() && !time.Now().Before(until) {
		return false
	}
	p.set(until)
	return true
}

const writeUnit = 32 << 10

// Write writes p to w, whose write deadline this is, and gives it patience for each 32 KiB.
func (p *Pace) Write(w io.Writer, b []byte, patience time.Duration) (written int, err error) {
	until := time.Now().Add(patience * time.Duration(1+len(b)/writeUnit))
	for {
		p.Arm(until)
		n, err := w.Write(b[written:])
		written += n
		if err == nil || !p.Again(err, until) {
			return written, err
		}
	}
}

// Interrupt ends the wait at hand, and each to come until Resume.
func (p *Pace) Interrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	p.Set(time.Unix(1, 0))
}

// Resume undoes Interrupt.
func (p *Pace) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		p.cut = false
		p.Set(p.armed)
	}
}

// Cut reports whether waits end because of Interrupt.
func (p *Pace) Cut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cut
}
