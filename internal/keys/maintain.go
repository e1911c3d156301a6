package keys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Maintain rotates and withdraws as the configuration says, once, and publishes
// if anything changed, another process's changes included. The caller calls it
// on a timer, about once a minute: a new key begins to sign in one of these
// calls.
//
// If the folder cannot be read or the set not be published, the ring stays as it
// was. If only the new key cannot be made, or an old file not be deleted, the
// rest is done.
func (r *Ring) Maintain(now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.config
	unlock, err := lock(c.Path)
	if err != nil {
		return err
	}
	defer unlock()
	keys, err := readFolder(c.Path)
	if err != nil {
		return err
	}
	var rotation error
	if rotationDue(keys, c.RotateEvery, now) {
		var k key
		if k, rotation = generate(c.Path, keys, now); rotation == nil {
			keys = sorted(append(keys, k))
		}
	}
	if len(keys) == 0 {
		return rotation
	}
	s := r.newSnapshot(keys, now)
	if err := r.use(s); err != nil {
		return errors.Join(rotation, err)
	}
	// after the set without them is published and in use, because a file that is gone cannot be published again
	return errors.Join(rotation, withdraw(c.Path, keys, s.infos))
}

// rotationDue says whether the newest key is old enough to be followed. A key
// made in the future, by a clock that was wrong, does not count.
func rotationDue(keys []key, every time.Duration, now time.Time) bool {
	for _, k := range keys {
		if !k.created.After(now) {
			return now.Sub(k.created) >= every
		}
	}
	return true
}

// withdraw deletes the files of those keys that are not live any more.
func withdraw(folder string, keys []key, live []Info) error {
	var errs []error
	removed := false
	for _, k := range keys {
		if slices.ContainsFunc(live, func(i Info) bool { return i.ID == k.id }) {
			continue
		}
		if err := os.Remove(filepath.Join(folder, k.fileName())); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("withdraw a signing key: %w", err))
			continue
		}
		removed = true
	}
	if removed {
		errs = append(errs, syncFolder(folder))
	}
	return errors.Join(errs...)
}
