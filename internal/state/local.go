package state

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// local keeps the state in a file of this process. One goroutine writes (write.go); whoever waits for the disk at the
// same time shares one sync.
type local struct {
	*index
	db      *bolt.DB
	log     *slog.Logger
	limits  limits
	metrics *metrics
	uses    int // identifiers in the file; the writer's

	topics topics

	queue  chan *change
	stop   chan struct{} // closed by Close
	ended  chan struct{} // closed when the writer has ended
	done   sync.WaitGroup
	closed sync.Once
	broken atomic.Pointer[error] // why nothing is written any longer
}

// limits bound the file. Neither can be reached by a caller who has no token: an identifier is asked about after the
// proof that it is in was verified.
type limits struct{ revocations, uses int }

var localLimits = limits{revocations: 2 << 20, uses: 8 << 20}

const (
	lockPatience = 2 * time.Second
	sweepEvery   = 30 * time.Second
	format       = 1 // of the file
)

// The buckets of the file, and the key in meta that holds the format.
func bucketMeta() []byte        { return []byte("meta") }
func bucketRevocations() []byte { return []byte("revocations") }
func bucketUses() []byte        { return []byte("uses") }
func keyFormat() []byte         { return []byte("format") }

// openLocal opens or makes the file, and has all of it that matters in memory when it returns.
func openLocal(c Config, lim limits, logger *slog.Logger, reg prometheus.Registerer) (_ *local, err error) {
	if c.Path == "" {
		return nil, errors.New("open the state: a path is required")
	}
	l := &local{
		index: newIndex(time.Now), limits: lim, log: logger,
		queue: make(chan *change, 256), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	if l.db, err = openFile(c.Path); err != nil {
		return nil, fmt.Errorf("open the state file %s: %w", c.Path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.db.Close())
		}
	}()
	if err := guarded(l.load); err != nil {
		return nil, fmt.Errorf("read the state file %s: %w", c.Path, err)
	}
	if l.metrics, err = newMetrics(reg, l.held, l.Age); err != nil {
		return nil, err
	}
	go l.write()
	l.done.Go(l.sweepNowAndThen)
	return l, nil
}

// openFile opens the file after it was looked at: bbolt maps it into memory, where what is missing would be a fault.
func openFile(path string) (*bolt.DB, error) {
	// The list of free pages stays in the file: to make it, bbolt reads all of the file in a goroutine of its own, where
	// nothing could catch what damage does.
	options := bolt.Options{Timeout: lockPatience, FreelistType: bolt.FreelistMapType, NoStatistics: true}
	made := false
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		made = true
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("others than its owner may open it (mode %04o): whoever writes it undoes revocations; chmod 600 it", info.Mode().Perm())
	case info.Size() > 0:
		if err := whole(path, options); err != nil {
			return nil, err
		}
	}
	var db *bolt.DB
	err := guarded(func() (err error) {
		db, err = bolt.Open(path, 0o600, &options)
		return err
	})
	if err != nil {
		return nil, explain(err)
	}
	if made {
		// the name of a new file is the folder's content
		if err := syncFolder(filepath.Dir(path)); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	return db, nil
}

// whole establishes that the file has all the pages that its header tells of, and that they make sense together.
func whole(path string, options bolt.Options) error {
	options.ReadOnly = true
	return guarded(func() error {
		db, err := bolt.Open(path, 0o600, &options)
		if err != nil {
			return explain(err)
		}
		err = db.View(func(tx *bolt.Tx) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			if info.Size() < tx.Size() { // before a page is looked at
				return fmt.Errorf("%w: it was cut short: %d bytes of %d are there", ErrCorrupt, info.Size(), tx.Size())
			}
			for problem := range tx.Check() {
				if err == nil {
					err = fmt.Errorf("%w: %w", ErrCorrupt, problem)
				}
			}
			return err
		})
		return errors.Join(err, db.Close())
	})
}

// explain says in our words what bbolt says of a file that it does not open.
func explain(err error) error {
	var path *fs.PathError
	switch {
	case errors.Is(err, ErrCorrupt), errors.As(err, &path):
		return err
	case errors.Is(err, bolterrors.ErrTimeout):
		return ErrHeld
	case errors.As(err, new(syscall.Errno)):
		return err
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the folder %s: %w", dir, err)
	}
	return errors.Join(f.Sync(), f.Close())
}

// load reads the file into memory. It takes all of it or none: with a part of the revocations others would be undone.
func (l *local) load() error {
	err := l.db.Update(func(tx *bolt.Tx) error {
		if tx.Bucket(bucketMeta()) == nil {
			return prepare(tx)
		}
		version := tx.Bucket(bucketMeta()).Get(keyFormat())
		if len(version) != 8 || tx.Bucket(bucketRevocations()) == nil || tx.Bucket(bucketUses()) == nil {
			return fmt.Errorf("%w: a part of it is missing", ErrCorrupt)
		}
		if v := binary.BigEndian.Uint64(version); v != format {
			return fmt.Errorf("it has format %d, and this version reads %d", v, format)
		}
		return errUnchanged
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return err
	}
	return l.db.View(func(tx *bolt.Tx) error {
		list, err := stored(tx)
		if err != nil {
			return err
		}
		for _, r := range list {
			l.addStored(r, 0)
		}
		c := tx.Bucket(bucketUses()).Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			l.uses++
		}
		return nil
	})
}

// prepare makes the buckets of a new file.
func prepare(tx *bolt.Tx) error {
	for _, name := range [][]byte{bucketMeta(), bucketRevocations(), bucketUses()} {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	return tx.Bucket(bucketMeta()).Put(keyFormat(), binary.BigEndian.AppendUint64(nil, format))
}

// held is how many revocations there are.
func (x *index) held() int { return int(x.count.Load()) }

// Revoke is of Store.
func (l *local) Revoke(ctx context.Context, r Revocation) (err error) {
	began := time.Now()
	defer func() { l.metrics.revoked(began, err) }()
	if r.At.IsZero() {
		r.At = began
	}
	if err := r.validate(l.now()); err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	if l.held() >= l.limits.revocations {
		return fmt.Errorf("revoke: %d revocations are held: %w", l.held(), ErrFull)
	}
	a := l.add(r)
	if l.isStored(a.held) {
		return nil
	}
	held := a.held.revocation()
	key := keyOf(held)
	value, err := encode(held)
	if err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	err = l.change(ctx, func(tx *bolt.Tx) (bool, error) {
		b := tx.Bucket(bucketRevocations())
		for _, o := range a.dropped {
			k := keyOf(o.revocation())
			if err := b.Delete(k[:]); err != nil {
				return false, err
			}
		}
		return true, b.Put(key[:], value)
	})
	if err != nil {
		return fmt.Errorf("revoke: it holds in this process, but is not stored: %w", err)
	}
	l.stored(a.held)
	return nil
}

// Revoked is of Store.
func (l *local) Revoked(t Token) (Revocation, bool) { return l.revoked(t) }

// Once is of Store.
func (l *local) Once(ctx context.Context, kind, ident string, until time.Time) (first bool, err error) {
	defer func() { l.metrics.asked(first, err) }()
	now := l.now()
	if err := validateOnce(kind, ident, until, now); err != nil {
		return false, fmt.Errorf("use an identifier: %w", err)
	}
	key := digest("use", kind, ident)
	found, full := false, false
	err = l.change(ctx, func(tx *bolt.Tx) (bool, error) {
		b := tx.Bucket(bucketUses())
		old := b.Get(key[:])
		switch {
		case old != nil && stampOf(old) > now.UnixNano():
			found = true
			return false, nil
		case old == nil && l.uses >= l.limits.uses:
			full = true
			return false, nil
		case old == nil:
			l.uses++
		}
		return true, b.Put(key[:], stamp(until))
	})
	switch {
	case err != nil:
		return false, fmt.Errorf("use an identifier: %w", err)
	case full:
		return false, fmt.Errorf("use an identifier: %d are kept: %w", l.limits.uses, ErrFull)
	}
	return !found, nil
}

// Age is of Store: there is nobody else.
func (l *local) Age() time.Duration { return 0 }

// Ready is of Store.
func (l *local) Ready() error {
	select {
	case <-l.stop:
		return errClosed
	default:
	}
	if why := l.broken.Load(); why != nil {
		return fmt.Errorf("the state file cannot be written: %w", *why)
	}
	return nil
}

// Subscribe is of Store.
func (l *local) Subscribe(f func(Revocation)) (cancel func()) { return l.subs.add(f) }

// List is of Store.
func (l *local) List(limit int) ([]Revocation, int) { return l.list(limit) }

// Close is of Store. What is known stays known: Revoked answers as before.
func (l *local) Close() (err error) {
	l.closed.Do(func() {
		close(l.stop)
		<-l.ended
		l.done.Wait()
		l.metrics.close()
		if err = l.db.Close(); err != nil {
			err = fmt.Errorf("close the state file: %w", err)
		}
	})
	return err
}
