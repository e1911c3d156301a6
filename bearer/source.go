package bearer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// pace is how often keys are fetched. The zero value is no pace; see defaultPace.
type pace struct {
	refresh    time.Duration // between two fetches; zero means as Cache-Control says, else 5 min
	maxStale   time.Duration // how long keys serve after a refresh was due
	missEvery  time.Duration // one fetch for an unknown kid
	missBurst  int           // of which so many may follow at once
	retryFirst time.Duration // after the first failure; doubled after each further one
	retryLast  time.Duration // the longest pause after a failure
}

func defaultPace(o Options) pace {
	p := pace{
		refresh: o.Refresh, maxStale: o.MaxStale,
		missEvery: 10 * time.Second, missBurst: 2,
		retryFirst: 250 * time.Millisecond, retryLast: 15 * time.Second,
	}
	if p.maxStale == 0 {
		p.maxStale = time.Hour
	}
	return p
}

// interval is how long after a successful fetch the next is due.
func (p pace) interval(maxAge time.Duration) time.Duration {
	switch {
	case p.refresh > 0:
		return p.refresh // the operator has said it: no server puts a withdrawal off
	case maxAge < 0:
		return 5 * time.Minute
	}
	return min(max(maxAge, time.Minute), time.Hour)
}

// retry is the pause after so many failures in a row.
func (p pace) retry(failures int) time.Duration {
	pause := p.retryFirst
	for range failures - 1 {
		pause = min(2*pause, p.retryLast)
	}
	return early(pause)
}

// early takes up to a tenth off, so that many verifiers do not ask as one, and none asks late.
func early(d time.Duration) time.Duration {
	return d - rand.N(d/10+1)
}

// source keeps the keys of one issuer. One goroutine (run) fetches; any number look up.
type source struct {
	issuer     string
	algorithms []string
	kind       string // of the issuer
	fetch      func(context.Context) (document, error)
	pace       pace
	now        func() time.Time
	log        *slog.Logger
	kept       *keptFile                  // nil: none is kept
	withdrawn  func(issuer, keyID string) // told of each key that has gone; nil: nobody
	mayBeEmpty bool                       // a set without a usable key takes the last one's place: every key was withdrawn

	current atomic.Pointer[keySet]
	failure atomic.Pointer[error] // of the last fetch; nil after a success
	missed  chan struct{}         // of capacity 1: a token named a key that is not there
}

// lookup returns the key that a token's kid and alg mean. It never waits: a key
// that is not there is a refusal now, and a fetch in the background.
func (s *source) lookup(id string, hasID bool, algorithm string) (key, *Error) {
	set, err := s.usable()
	if err != nil {
		return key{}, &Error{Code: codeUnavailable, Detail: "issuer " + brief(s.issuer), Err: err}
	}
	found, refusal := set.find(id, hasID, algorithm)
	if refusal != nil && refusal.Code == codeKey {
		select {
		case s.missed <- struct{}{}:
		default: // one is waiting already, and one is enough
		}
	}
	return found, refusal
}

// usable returns the keys if there are any that are not too old.
func (s *source) usable() (*keySet, error) {
	set := s.current.Load()
	if set != nil && s.now().Before(set.staleAt) {
		return set, nil
	}
	reason := errors.New("no key set has been fetched yet")
	if set != nil {
		reason = errors.New("the last key set is too old")
	}
	if last := s.failure.Load(); last != nil {
		reason = fmt.Errorf("%w: %w", reason, *last)
	}
	return nil, reason
}

// run fetches until ctx ends: when a refresh is due, and when a key was missed and
// the budget for that has something left. The two do not wait for each other: no
// flood of unknown kids puts a refresh off, and a refresh costs no budget. What
// the budget cannot serve at once it serves later, so a new key is found within
// missEvery even if an attacker spent the rest.
func (s *source) run(ctx context.Context, due time.Time) {
	budget := bucket{every: s.pace.missEvery, left: s.pace.missBurst, burst: s.pace.missBurst, at: time.Now()}
	failures, missed := 0, false
	for {
		at := due
		if missed {
			at = earliest(due, budget.next(time.Now()))
		}
		timer := time.NewTimer(time.Until(at))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.missed:
			timer.Stop()
			missed = true
			continue
		case <-timer.C:
		}
		if missed && time.Now().Before(due) {
			budget.take(time.Now())
		}
		missed = false
		wait, err := s.update(ctx)
		if err == nil {
			failures, due = 0, time.Now().Add(early(wait))
			continue
		}
		failures++
		now := time.Now()
		retry := now.Add(s.pace.retry(failures))
		if !due.After(now) {
			due = retry
		}
		due = earliest(due, retry) // after a miss, the refresh stays due when it was
	}
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// update fetches the key set and puts it in the place of the last one, or leaves
// that where it is and returns why. It returns when the next refresh is due.
func (s *source) update(ctx context.Context) (time.Duration, error) {
	fetched, err := s.fetch(ctx)
	if ctx.Err() != nil {
		return 0, ctx.Err() // closing is no failure worth a word
	}
	var keys []key
	var rejected []error
	if err == nil {
		keys, rejected, err = readKeysOf(s.kind, fetched.data, s.algorithms)
	}
	if s.mayBeEmpty && errors.Is(err, errNoKey) {
		err = nil
	}
	if err != nil {
		s.failure.Store(&err)
		s.log.Error("key set not replaced", "issuer", s.issuer, "error", err)
		s.restore()
		return 0, err
	}
	wait, now := s.pace.interval(fetched.maxAge), s.now()
	set := &keySet{keys: keys, staleAt: now.Add(wait + s.pace.maxStale)}
	last := s.current.Load() // only this goroutine replaces it
	set.follow(last)
	s.current.Store(set)
	s.failure.Store(nil)
	s.report(last, set, rejected)
	if s.kept != nil {
		if err := s.kept.write(fetched, now); err != nil {
			s.log.Warn("key set not kept", "issuer", s.issuer, "error", err)
		}
	}
	return wait, nil
}

// restore takes the set that an earlier process kept. That is done only when the
// first fetch has failed, so that a restart brings no withdrawn key back while the
// issuer can be asked, and the set is as old as it is.
func (s *source) restore() {
	if s.kept == nil || s.current.Load() != nil {
		return
	}
	fetched, at, err := s.kept.read()
	var keys []key
	if err == nil {
		keys, _, err = readKeysOf(s.kind, fetched.data, s.algorithms)
	}
	now := s.now()
	set := &keySet{keys: keys, staleAt: at.Add(s.pace.interval(fetched.maxAge) + s.pace.maxStale)}
	if err == nil && (at.After(now) || !now.Before(set.staleAt)) {
		err = fmt.Errorf("it was fetched at %s", at.Format(time.RFC3339))
	}
	if err != nil {
		s.log.Warn("kept key set not used", "issuer", s.issuer, "error", err)
		return
	}
	s.current.Store(set)
	s.log.Warn("kept key set in use", "issuer", s.issuer, "fetched", at)
}

// report logs what a new set changed; nothing when it changed nothing.
func (s *source) report(last, set *keySet, rejected []error) {
	var before []key
	if last != nil {
		before = last.keys
	}
	added, removed := missing(before, set.keys), missing(set.keys, before)
	if len(added)+len(removed) == 0 {
		return
	}
	s.log.Info("key set replaced", "issuer", s.issuer, "keys", len(set.keys), "added", names(added), "removed", names(removed))
	for _, k := range removed {
		if s.withdrawn != nil {
			s.withdrawn(s.issuer, k.id)
		}
	}
	for _, err := range rejected {
		s.log.Warn("key of a key set not used", "issuer", s.issuer, "error", err)
	}
}

// missing returns the keys of list that are not in from. A key that was replaced
// under its kid is another key.
func missing(from, list []key) []key {
	var out []key
	for _, k := range list {
		if !slices.ContainsFunc(from, func(f key) bool { return f.id == k.id && f.Thumbprint == k.Thumbprint }) {
			out = append(out, k)
		}
	}
	return out
}

// names is how keys are logged.
func names(keys []key) []string {
	out := []string{}
	for _, k := range keys {
		out = append(out, fmt.Sprintf("%s (%s)", brief(k.id), k.Thumbprint))
	}
	return out
}

// bucket is a token bucket: left at the time at, one more each every, at most burst.
type bucket struct {
	every       time.Duration
	left, burst int
	at          time.Time
}

// fill puts in what came since. After that, at is when the last one came.
func (b *bucket) fill(now time.Time) {
	came := int(now.Sub(b.at) / b.every)
	if b.left+came >= b.burst {
		b.left, b.at = b.burst, now
		return
	}
	b.left += came
	b.at = b.at.Add(time.Duration(came) * b.every)
}

// next returns when there is one to take.
func (b *bucket) next(now time.Time) time.Time {
	b.fill(now)
	if b.left > 0 {
		return now
	}
	return b.at.Add(b.every)
}

// take takes one, which next said is there.
func (b *bucket) take(now time.Time) {
	b.fill(now)
	if b.left > 0 {
		b.left--
	}
}
