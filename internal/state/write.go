package state

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

// change is something to be written. apply runs in a transaction with others; it reports whether there is anything to be
// written, and its error fails them all. Its results may be read after done, and only then.
type change struct {
	apply func(*bolt.Tx) (bool, error)
	done  chan error // gets one value: nil once the disk has it
}

// maxTogether is how many changes share a transaction.
const maxTogether = 1024

var errUnchanged = errors.New("nothing was changed")

// change has something written, and returns when the disk has it. After an error it may or may not be.
func (l *local) change(ctx context.Context, apply func(*bolt.Tx) (bool, error)) error {
	if why := l.broken.Load(); why != nil {
		return *why
	}
	c := &change{apply: apply, done: make(chan error, 1)}
	select {
	case l.queue <- c:
	case <-l.stop:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ended:
		select { // it may have been the last that was written
		case err := <-c.done:
			return err
		default:
			return errClosed
		}
	}
}

// write is the one goroutine that writes. Changes that came while the disk was busy share the next transaction.
func (l *local) write() {
	defer close(l.ended)
	var together []*change
	for {
		select {
		case c := <-l.queue:
			together = append(together[:0], c)
		case <-l.stop:
			return
		}
	more:
		for len(together) < maxTogether {
			select {
			case c := <-l.queue:
				together = append(together, c)
			default:
				break more
			}
		}
		err := l.commit(together)
		for _, c := range together {
			c.done <- err
		}
		clear(together)
	}
}

// commit writes changes in one transaction. A disk that is full may have room later; after any other error it is not
// known what the disk has, so that nothing more is written until the file is opened anew.
func (l *local) commit(together []*change) error {
	if why := l.broken.Load(); why != nil {
		return *why
	}
	uses := l.uses
	err := guarded(func() error {
		return l.db.Update(func(tx *bolt.Tx) error {
			changed := false
			for _, c := range together {
				did, err := c.apply(tx)
				if err != nil {
					return err
				}
				changed = changed || did
			}
			if !changed {
				return errUnchanged
			}
			return nil
		})
	})
	if err == nil || errors.Is(err, errUnchanged) {
		return nil
	}
	l.uses = uses
	err = fmt.Errorf("write the state file: %w", err)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		l.log.Error("the state cannot be written: nothing is revoked durably, and nothing that may be used once is let pass", "error", err)
		return err
	}
	l.broken.Store(&err)
	l.log.Error("the state cannot be written any longer: restart when the disk is well", "error", err)
	return err
}

// guarded runs f and makes an error of what a damaged file can do to it: bbolt panics, and a page that is not there is a
// fault of the memory.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, p)
		}
	}()
	return f()
}

// stored reads all revocations of the file, in the order in which they were asked for.
func stored(tx *bolt.Tx) ([]Revocation, error) {
	var list []Revocation
	err := tx.Bucket(bucketRevocations()).ForEach(func(k, v []byte) error {
		r, err := decode(v)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if want := keyOf(r); string(k) != string(want[:]) {
			return fmt.Errorf("%w: a revocation does not lie where it belongs", ErrCorrupt)
		}
		list = append(list, r)
		return nil
	})
	slices.SortStableFunc(list, func(a, b Revocation) int { return a.At.Compare(b.At) })
	return list, err
}

// sweepNowAndThen forgets what has expired, in memory and in the file.
func (l *local) sweepNowAndThen() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.stop:
			return
		}
		l.sweep()
		if err := l.sweepFile(); err != nil && !errors.Is(err, errClosed) {
			l.log.Warn("sweep the state file: what has expired stays in it", "error", err)
		}
	}
}

// sweepFile deletes what has expired from the file, a little at a time, so that neither readers nor writers wait for it.
func (l *local) sweepFile() error {
	for _, bucket := range [][]byte{bucketRevocations(), bucketUses()} {
		for from := []byte(nil); ; {
			select {
			case <-l.stop:
				return errClosed
			default:
			}
			expired, next, err := l.expired(bucket, from)
			if err != nil {
				return err
			}
			if len(expired) > 0 {
				if err := l.change(context.Background(), l.forget(bucket, expired)); err != nil {
					return err
				}
			}
			if next == nil {
				break
			}
			from = next
		}
	}
	return nil
}

// expired looks at a part of a bucket, from a key on, and returns the keys of what may be forgotten and where the next
// part begins.
func (l *local) expired(bucket, from []byte) (expired [][]byte, next []byte, err error) {
	const part = 10_000
	now := l.now().UnixNano()
	err = guarded(func() error {
		return l.db.View(func(tx *bolt.Tx) error {
			c := tx.Bucket(bucket).Cursor()
			k, v := c.Seek(from)
			for n := 0; k != nil; n++ {
				if n == part {
					next = slices.Clone(k)
					return nil
				}
				if stampOf(v) <= now {
					expired = append(expired, slices.Clone(k))
				}
				k, v = c.Next()
			}
			return nil
		})
	})
	return expired, next, err
}

// forget deletes keys, unless what is under them was renewed meanwhile.
func (l *local) forget(bucket []byte, keys [][]byte) func(*bolt.Tx) (bool, error) {
	return func(tx *bolt.Tx) (bool, error) {
		now, b, changed := l.now().UnixNano(), tx.Bucket(bucket), false
		for _, k := range keys {
			if v := b.Get(k); v == nil || stampOf(v) > now {
				continue
			}
			if err := b.Delete(k); err != nil {
				return false, err
			}
			changed = true
			if string(bucket) == string(bucketUses()) {
				l.uses--
			}
		}
		return changed, nil
	}
}
