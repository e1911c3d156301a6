package sallytest

import (
	"sync"
	"time"
)

// Clock is a clock that a test sets. Its zero value shows the zero time; it is safe for concurrent use.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that shows now until it is moved.
func NewClock(now time.Time) *Clock { return &Clock{now: now} }

// Now returns what the clock shows. Pass it where a Now field is wanted.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock, back if d is negative.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
