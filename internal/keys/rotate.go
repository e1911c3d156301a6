package keys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// ErrLastKey says that no other key could sign in place of one that is to be withdrawn.
var ErrLastKey = errors.New("there is no other key that could sign in its place")

// Rotate makes the next key now, whether it is due or not, and publishes it. As
// ever it begins to sign once it has been published for a minute, and the key
// before it retires after the overlap: nothing that was signed becomes invalid.
func (r *Ring) Rotate(now time.Time) (Info, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	unlock, err := lock(r.config.Path)
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	keys, err := readFolder(r.config.Path)
	if err != nil {
		return Info{}, err
	}
	k, err := generate(r.config.Path, keys, now)
	if err != nil {
		return Info{}, err
	}
	s := r.newSnapshot(sorted(append(keys, k)), now)
	if err := r.use(s); err != nil {
		return Info{}, err
	}
	return s.info(k.id)
}

// info describes a key that was just made.
func (s *snapshot) info(id string) (Info, error) {
	i := slices.IndexFunc(s.infos, func(i Info) bool { return i.ID == id })
	if i < 0 { // made with a clock so far behind that it was superseded and has retired
		return Info{}, fmt.Errorf("made the key %s, which has retired already: is the clock right?", id)
	}
	return s.infos[i], nil
}

// Withdraw ends a key at once: its file is deleted, it signs nothing more, and
// what it has signed is refused by whoever reads the published set. If it was
// the one that signs, another takes its place. The last key is not withdrawn
// (ErrLastKey): Rotate first.
//
// The file goes first, so that a crash at any instant leaves no key that comes
// back. If the set cannot be published after that, the error says so, and
// Maintain tries again.
func (r *Ring) Withdraw(id string, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	unlock, err := lock(r.config.Path)
	if err != nil {
		return err
	}
	defer unlock()
	keys, err := readFolder(r.config.Path)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(keys, func(k key) bool { return k.id == id })
	switch {
	case i < 0:
		return fmt.Errorf("withdraw a signing key: %s holds none that is named %s", r.config.Path, id)
	case len(keys) == 1:
		return fmt.Errorf("withdraw the signing key %s: %w", id, ErrLastKey)
	}
	err = os.Remove(filepath.Join(r.config.Path, keys[i].fileName()))
	if err == nil {
		err = syncFolder(r.config.Path)
	}
	if err != nil {
		return fmt.Errorf("withdraw the signing key %s: %w", id, err)
	}
	s := r.newSnapshot(slices.Delete(keys, i, i+1), now)
	// before it is published, because a key that is withdrawn must not sign even where nobody could be told
	r.current.Store(s)
	return r.use(s)
}

// Overdue returns why the keys should have been rotated by now, or nil. Maintain
// rotates when it is due; late is how long it may fail to before that is worth
// an alarm.
func (r *Ring) Overdue(now time.Time, late time.Duration) error {
	for _, i := range r.current.Load().infos {
		if i.Created.After(now) {
			continue // by a clock that was wrong
		}
		if due := i.Created.Add(r.config.RotateEvery); now.Sub(due) > late {
			return fmt.Errorf("the newest signing key, %s, is %v old: its successor was due %v ago",
				i.ID, now.Sub(i.Created).Round(time.Second), now.Sub(due).Round(time.Second))
		}
		return nil
	}
	return errors.New("every signing key was made in the future: is the clock right?")
}
