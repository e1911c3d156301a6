package ingress

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/limit"
	"github.com/sallyport/sallyport/internal/state"
)

const (
	shareTopic = "rates"
	shareEvery = 250 * time.Millisecond // what has been counted is told to the others
	shareBeat  = 4                      // of these, at the latest, a message is sent, though nothing was counted
	shareLost  = 3 * time.Second        // without hearing oneself one is alone
	shareBytes = 256 << 10              // of names in one message; what is counted beyond stays unsaid
)

// tally is what one replica has counted since its last message: how many requests it let in, by who sent them, and how many
// forged credentials came from where. A name is what its key is made of.
type tally struct {
	From     string           `json:"from"`
	Source   map[string]int64 `json:"source,omitempty"`
	Failures map[string]int64 `json:"failures,omitempty"`
	Caller   map[string]int64 `json:"caller,omitempty"`
	Route    map[string]int64 `json:"route,omitempty"`

	bytes int
}

// sharing tells the other replicas what was counted here, and counts here what they tell. Nobody waits for it: each counts for
// itself what comes to it, so that N replicas, however cut off from one another, let in N times a limit at the most.
type sharing struct {
	bus   state.Bus // nil: there is nobody to share with
	me    string
	began time.Time
	heard atomic.Int64 // when our own message last came back, since began
	alone atomic.Bool  // when it was last looked at

	mu     sync.Mutex
	tally  tally
	unsaid atomic.Uint64
}

func newSharing(bus state.Bus) *sharing {
	return &sharing{bus: bus, me: rand.Text(), began: time.Now()}
}

// note counts one for the next message.
func (s *sharing) note(which func(*tally) *map[string]int64, name string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := which(&s.tally)
	if *m == nil {
		*m = map[string]int64{}
	}
	if _, known := (*m)[name]; !known {
		if s.tally.bytes+len(name) > shareBytes {
			s.unsaid.Add(uint64(n))
			return
		}
		s.tally.bytes += len(name) + 16
	}
	(*m)[name] += n
}

func bySource(t *tally) *map[string]int64  { return &t.Source }
func byFailure(t *tally) *map[string]int64 { return &t.Failures }
func byCaller(t *tally) *map[string]int64  { return &t.Caller }
func byRoute(t *tally) *map[string]int64   { return &t.Route }

// spread is note, where the rules share.
func (x *exchange) spread(which func(*tally) *map[string]int64, name func() string) {
	if x.rules.limiter.Shared && x.g.sharing.bus != nil {
		x.g.sharing.note(which, name(), 1)
	}
}

// share tells and hears until ctx ends.
func (g *Gateway) share(ctx context.Context) {
	s := g.sharing
	if s.bus == nil {
		return
	}
	cancel, err := s.bus.Hear(shareTopic, g.hear)
	if err != nil {
		g.log.Error("hear what other replicas count: limits are counted by this one alone", "error", err)
		return
	}
	defer cancel()
	s.heard.Store(int64(time.Since(s.began)))
	tick := time.NewTicker(shareEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !g.rules.Load().limiter.Shared {
			s.heard.Store(int64(time.Since(s.began)))
			continue
		}
		s.mu.Lock()
		said := s.tally
		s.tally = tally{}
		s.mu.Unlock()
		if said.bytes > 0 || n%shareBeat == 0 {
			said.From = s.me
			message, err := json.Marshal(said)
			if err == nil {
				err = s.bus.Send(shareTopic, message)
			}
			if err != nil { // what was counted here stays counted here
				g.log.Debug("tell other replicas what was counted", "error", err)
			}
		}
		g.noticeSharing()
	}
}

// shared reports whether what is counted here reaches the others, as far as can be known: our own messages come back, and the
// servers between us are a quorum.
func (g *Gateway) shared() bool {
	s := g.sharing
	return s.bus != nil && g.rules.Load().limiter.Shared && time.Since(s.began)-time.Duration(s.heard.Load()) < shareLost && g.known() == nil
}

// noticeSharing says once when it begins, and once when it ends, that this replica counts alone.
func (g *Gateway) noticeSharing() {
	if alone := !g.shared(); alone != g.sharing.alone.Swap(alone) {
		if alone {
			g.log.Warn("limits are counted by this replica alone: the others are not heard")
		} else {
			g.log.Info("limits are counted by all replicas together again")
		}
	}
}

// hear counts what a replica has counted. Whoever may send it may as well revoke: it is believed, within bounds.
func (g *Gateway) hear(message []byte) {
	var t tally
	if err := json.Unmarshal(message, &t); err != nil {
		g.log.Debug("what another replica has counted cannot be read", "error", err)
		return
	}
	s, l := g.sharing, g.rules.Load().limiter
	if t.From == s.me {
		s.heard.Store(int64(time.Since(s.began)))
		return
	}
	if !l.Shared {
		return
	}
	now := l.instant(g.now())
	charge := func(m *limit.Meter, p limit.Pace, k limit.Key, n int64) {
		if m != nil && p.Limits() && n > 0 {
			m.Charge(k, p, n, now)
		}
	}
	for name, n := range t.Source {
		if a, ok := sourceNamed(name); ok {
			charge(l.source, l.sourcePace, l.keys.Source(a), n)
		}
	}
	for name, n := range t.Caller {
		charge(l.caller, l.callerPace, l.keys.Of(strings.Split(name, "\x00")...), n)
	}
	for name, n := range t.Route {
		words := strings.Split(name, "\x00")
		charge(l.route, l.routePaces[words[0]], l.keys.Of(words...), n)
	}
	for name, n := range t.Failures {
		a, ok := sourceNamed(name)
		for ; ok && l.guard != nil && n > 0; n-- {
			if l.guard.Fail(l.keys.Source(a), now) {
				g.log.Warn("a source is locked out: too many of its credentials were forged, malformed or unknown", "source", name, "for", l.Failures.For.String())
				break
			}
			n = min(n, limit.MaxFailures)
		}
	}
}

// sourceNamed reads what sourceName has written.
func sourceNamed(name string) (netip.Addr, bool) {
	if p, err := netip.ParsePrefix(name); err == nil {
		return p.Addr(), true
	}
	if name == (netip.Addr{}).String() {
		return netip.Addr{}, true
	}
	a, err := netip.ParseAddr(name)
	return a, err == nil
}
