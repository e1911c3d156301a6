package ingress

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/cause"
)

// A token that its issuer is asked about ends there, and nobody is told. While a request of one is in flight, its issuer is
// therefore asked again: as seldom as what it says may be kept, and where that is not at all, every reaskEvery.

const (
	reaskEvery  = 10 * time.Second
	reaskAtOnce = 4
)

// reask asks until ctx ends.
func (g *Gateway) reask(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			g.askAgain(ctx)
		}
	}
}

// askAgain asks about the tokens of all requests in flight, and ends those that are not good any more. One that nobody can be
// asked about goes on.
func (g *Gateway) askAgain(ctx context.Context) {
	rules := g.rules.Load()
	tokens := map[string]bearer.Token{} // by digest
	g.config.Flight.Sweep(func(r *cause.Request) *cause.Lost {
		if r.Caller != nil && len(r.Caller.Workloads) == 0 && rules.Verifier.Introspects(*r.Caller) {
			tokens[r.Caller.Digest] = r.Token
		}
		return nil
	})
	var mu sync.Mutex
	ended := map[string]*cause.Lost{}
	var asking sync.WaitGroup
	turns := make(chan struct{}, reaskAtOnce)
	for digest, token := range tokens {
		turns <- struct{}{}
		asking.Go(func() {
			defer func() { <-turns }()
			if lost := lostAnswer(ctx, rules, token); lost != nil {
				mu.Lock()
				defer mu.Unlock()
				ended[digest] = lost
			}
		})
	}
	asking.Wait()
	if len(ended) == 0 {
		return
	}
	g.config.Flight.Sweep(func(r *cause.Request) *cause.Lost {
		if r.Caller == nil {
			return nil
		}
		return ended[r.Caller.Digest]
	})
}

// lostAnswer verifies a token again. Only a refusal of the token itself ends anything: what cannot be known now was known when
// the request was let in.
func lostAnswer(ctx context.Context, rules *rules, token bearer.Token) *cause.Lost {
	_, err := rules.Verifier.VerifyFrom(ctx, token, netip.Addr{}, false)
	refused, ok := errors.AsType[*bearer.Error](err)
	if !ok || refused.Status() != 401 {
		return nil
	}
	lost := &cause.Lost{Code: lostInactive, Reason: err.Error()}
	if refused.Code == lostExpired {
		lost.Code = lostExpired
	}
	return lost
}
