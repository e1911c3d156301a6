package state

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// How a replica knows that no revocation is missing. Every half second it writes a beat into the bucket, beside the
// revocations, and waits for two things: that a quorum has acknowledged it, and that the feed has brought it back. The
// feed is in the order of the bucket, so when it brings a beat it has brought whatever was acknowledged before that beat
// was sent. A server that is cut off from the others can neither acknowledge a beat nor bring one that was written
// elsewhere; a feed that has fallen silent brings none. Either way Age grows.
const (
	beatEvery   = 500 * time.Millisecond
	beatLives   = time.Minute     // on the servers, after its replica has ended
	patience    = 3 * time.Second // for a beat that was acknowledged and is not brought
	maxPatience = 30 * time.Second
	lostTouch   = 5 * time.Second // without an acknowledgement: another server may have one
	retryAtMost = 2 * time.Second
)

// follow keeps the feed running until ctx ends.
func (n *cluster) follow(ctx context.Context) {
	level, silence := slog.LevelWarn, patience
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, retryAtMost) {
		f := &feed{cluster: n, snapshot: n.snapshots.Add(1), told: make(map[uint64]time.Time), silence: silence}
		err := f.run(ctx)
		if ctx.Err() != nil {
			return
		}
		silence = min(2*silence, maxPatience) // or it would be read anew for ever from servers that are slow
		if f.whole {
			wait, level, silence = 50*time.Millisecond, slog.LevelWarn, patience
		}
		if errors.Is(err, nats.ErrStreamNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			n.buckets.Store(nil) // somebody has deleted it: it is made anew, and given what holds here
		}
		n.trouble.Store(&err)
		n.log.Log(ctx, level, "the feed of revocations has ended: it is read anew", "error", err)
		level = slog.LevelDebug // said once, until it was complete again
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// feed is one reading of the bucket: all that is in it, and then what is added.
type feed struct {
	*cluster
	snapshot uint32
	silence  time.Duration // how long it may bring nothing while beats are acknowledged
	whole    bool          // it has been complete

	mu        sync.Mutex
	told      map[uint64]time.Time // when each beat was sent, later than the last that counted
	acked     uint64               // the last that was acknowledged, and when
	ackedAt   time.Time
	refused   error         // why the last was not
	tolerance time.Duration // how long none may be acknowledged before another server is tried
	brought   uint64        // the last that the feed brought, and when it brought anything
	progress  time.Time     // when the feed last brought anything
}

// run reads until something is wrong. It does not end because no quorum answers: then there is nothing to be had.
func (f *feed) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var side sync.WaitGroup
	defer side.Wait()
	defer cancel()
	if !f.conn.IsConnected() {
		return errNobody
	}
	opening, opened := context.WithTimeout(ctx, 5*time.Second)
	b, err := f.open(opening)
	opened()
	if err != nil {
		return err
	}
	w, err := b.revocations.WatchFiltered(ctx, []string{"r.*", "h." + f.me}, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("read the bucket: %w", err)
	}
	// It asks the servers to delete what they keep for it, and so may wait for them; the next reading need not.
	defer f.ending.Go(func() {
		if err := w.Stop(); err != nil {
			f.log.Debug("end the feed", "error", err)
		}
		drain(w)
	})
	f.ackedAt, f.progress, f.tolerance = time.Now(), time.Now(), lostTouch
	side.Go(func() { f.beat(ctx) })
	var giving atomic.Bool
	look := time.NewTicker(beatEvery)
	defer look.Stop()
	for {
		select {
		case e, open := <-w.Updates():
			switch {
			case !open:
				return errors.New("the servers have ended it")
			case e == nil: // all that was there when it began; the next beat proves it
				continue
			}
			if err := f.take(e); err != nil {
				return err
			}
			if f.concluded() && !f.whole {
				f.whole = true
				f.log.Info("the feed of revocations is complete", "held", f.held())
				if f.lost(f.snapshot) > 0 {
					f.indebted.Store(true)
				}
			}
		case <-look.C:
			if err := f.judge(); err != nil {
				return err
			}
			// One at a time, and only while they can be given anything.
			if f.whole && f.indebted.Load() && f.answered() && giving.CompareAndSwap(false, true) {
				side.Go(func() {
					defer giving.Store(false)
					f.restore(ctx)
				})
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// drain reads what a watcher that was stopped still has: its callback waits for whoever reads.
func drain(w jetstream.KeyWatcher) {
	for enough := time.After(time.Second); ; {
		select {
		case _, open := <-w.Updates():
			if !open {
				return
			}
		case <-enough:
			return
		}
	}
}

// take holds what the feed brought. What cannot be read ends the feed: a revocation that is not understood is one that is
// not held.
func (f *feed) take(e jetstream.KeyValueEntry) error {
	f.mu.Lock()
	f.progress = time.Now()
	f.mu.Unlock()
	if strings.HasPrefix(e.Key(), "h.") {
		if len(e.Value()) == 8 {
			f.mu.Lock()
			f.brought = max(f.brought, binary.BigEndian.Uint64(e.Value()))
			f.mu.Unlock()
		}
		return nil
	}
	r, err := decode(e.Value())
	if err == nil && revocationKey(r) != e.Key() {
		err = errors.New("a revocation does not lie where it belongs")
	}
	if err != nil {
		f.log.Error("the bucket of revocations holds what is none: nothing that follows is known", "key", e.Key(), "error", err)
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	f.addStored(r, f.snapshot)
	return nil
}

// concluded notes until when the feed is known to be complete, and reports whether it ever was.
func (f *feed) concluded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := min(f.acked, f.brought)
	at, ok := f.told[last]
	if !ok {
		return f.whole
	}
	for k := range f.told {
		if k <= last {
			delete(f.told, k)
		}
	}
	if old := f.complete.Load(); old == nil || old.Before(at) {
		f.complete.Store(&at)
	}
	return true
}

// judge ends a feed that no longer brings what is acknowledged, and turns to another server where none acknowledges.
func (f *feed) judge() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.acked > f.brought && now.Sub(f.ackedAt) < f.silence && now.Sub(f.progress) > f.silence {
		return fmt.Errorf("it brings nothing for %s, and there is something", now.Sub(f.progress).Truncate(time.Millisecond))
	}
	if now.Sub(f.ackedAt) > f.tolerance && f.conn.IsConnected() {
		if errors.Is(f.refused, jetstream.ErrNoStreamResponse) {
			return fmt.Errorf("nobody keeps the bucket: %w", f.refused)
		}
		f.ackedAt, f.tolerance = now, min(2*f.tolerance, time.Minute) // or all replicas would besiege servers that are slow
		f.log.Warn("the state's server has no quorum: trying another", "server", f.conn.ConnectedUrlRedacted())
		if err := f.conn.ForceReconnect(); err != nil {
			f.log.Debug("connect to another server", "error", err)
		}
	}
	return nil
}

// answered reports whether a quorum does.
func (f *feed) answered() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refused == nil && time.Since(f.ackedAt) < 2*beatEvery
}

// beat writes beats until ctx ends. None waits for the one before: that one may have gone to a server that is lost.
func (f *feed) beat(ctx context.Context) {
	const outstanding = 8
	var sent sync.WaitGroup
	defer sent.Wait()
	may := make(chan struct{}, outstanding)
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case may <- struct{}{}:
			sent.Go(func() {
				f.beatOnce(ctx)
				<-may
			})
		default:
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (f *feed) beatOnce(ctx context.Context) {
	beat := f.beats.Add(1)
	f.mu.Lock()
	f.told[beat] = time.Now()
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lostTouch)
	defer cancel()
	_, err := f.js.PublishMsg(ctx, &nats.Msg{Subject: "$KV." + f.config.Bucket + ".h." + f.me, Data: binary.BigEndian.AppendUint64(nil, beat)},
		jetstream.WithMsgTTL(beatLives), jetstream.WithRetryAttempts(0))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refused = err; err != nil {
		delete(f.told, beat)
		return
	}
	f.acked, f.ackedAt = max(f.acked, beat), time.Now()
}

// restore has the servers keep what they do not have: what was revoked while none of them answered, and what they have
// lost. It is not the place of a replica to forget it with them.
func (f *feed) restore(ctx context.Context) {
	f.indebted.Store(false)
	list, given := f.owed(), 0
	for _, e := range list {
		if e.until <= f.now().UnixNano() || f.isStored(e) {
			continue
		}
		if err := f.store(ctx, e); err != nil {
			f.indebted.Store(true)
			f.log.Warn("give the state's servers what they do not have", "given", given, "of", len(list), "error", err)
			return
		}
		given++
	}
	if given > 0 {
		f.log.Warn("the state's servers did not have what holds here: they were given it", "revocations", given)
	}
}
