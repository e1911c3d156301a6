package egress

import (
	"context"
	"time"
)

// Quiet waits until no attempt is in flight, open tunnels among them, and returns nil, or ctx's error if it ends first.
// What comes meanwhile is served. The caller ends Serve's context after it.
func (p *Proxy) Quiet(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for p.inFlight.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
