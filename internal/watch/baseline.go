package watch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// maxLearned bounds the combinations that are not new. Beyond it each further one is new every time.
const maxLearned = 100_000

// baseline is what novel has learned, and since when. The watcher's lock guards it.
type baseline struct {
	path  string
	since time.Time
	known map[string]bool
	dirty bool
}

// baselineFile is the file's form.
type baselineFile struct {
	Version int       `json:"version"`
	Since   time.Time `json:"since"`
	Known   []string  `json:"known"`
}

// openBaseline reads what was learned before. A file that cannot be read is an error: what is new would else be learned
// as if it were not.
func openBaseline(path string, now time.Time) (*baseline, error) {
	b := &baseline{path: path, since: now, known: map[string]bool{}}
	if path == "" {
		return b, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		b.dirty = true
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what was learned: %w", err)
	}
	var f baselineFile
	err = json.Unmarshal(data, &f)
	if err == nil && (f.Version != 1 || f.Since.IsZero()) {
		err = errors.New("it has no version 1, or does not say since when")
	}
	if err != nil {
		return nil, fmt.Errorf("read what was learned: %s is not a baseline (delete it to learn anew): %w", path, err)
	}
	if f.Since.Before(now) {
		b.since = f.Since
	}
	for _, k := range f.Known {
		b.known[k] = true
	}
	return b, nil
}

// learn notes a combination, and reports whether it is new.
func (b *baseline) learn(key string) bool {
	if b.known[key] {
		return false
	}
	if len(b.known) < maxLearned {
		b.known[key], b.dirty = true, true
	}
	return true
}

// save writes what was learned since the last time; all of it or, after a crash, what was there before.
func (w *Watcher) save() {
	w.mu.Lock()
	b := w.book
	if b.path == "" || !b.dirty {
		w.mu.Unlock()
		return
	}
	f := baselineFile{Version: 1, Since: b.since}
	for k := range b.known {
		f.Known = append(f.Known, k)
	}
	b.dirty = false
	w.mu.Unlock()
	slices.Sort(f.Known)
	data, err := json.Marshal(f)
	if err == nil {
		err = replace(b.path, append(data, '\n'))
	}
	if err != nil {
		w.log.Error("keep what was learned", "error", err)
		w.mu.Lock()
		b.dirty = true
		w.mu.Unlock()
	}
}

func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
