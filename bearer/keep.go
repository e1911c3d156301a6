package bearer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// keptFile is where one issuer's last good key set outlives the process. Whoever
// can write it decides who is let in, so it is used only if nobody but its owner can.
type keptFile struct {
	path         string
	issuer, from string // what it must be of: a set from elsewhere is no set of this issuer
}

// kept is the content of the file.
type kept struct {
	Issuer  string        `json:"issuer"`
	From    string        `json:"from"`
	Fetched time.Time     `json:"fetched"`
	MaxAge  time.Duration `json:"max_age"` // nanoseconds; negative when the server said none
	Set     string        `json:"set"`     // as it was fetched
}

// keptIn returns the file for an issuer's keys in a folder; nil for a key file, which is there anyway.
func keptIn(folder string, i Issuer) *keptFile {
	if folder == "" || i.Keys.File != "" {
		return nil
	}
	from := i.Keys.URI
	if i.Keys.Discovery {
		from = "discovery"
	}
	sum := sha256.Sum256([]byte(i.Issuer))
	return &keptFile{filepath.Join(folder, "keys-"+hex.EncodeToString(sum[:16])+".json"), i.Issuer, from}
}

// write puts a set in the place of the last one, whole or not at all.
func (k *keptFile) write(d document, at time.Time) error {
	data, err := json.Marshal(kept{k.issuer, k.from, at, d.maxAge, string(d.data)})
	if err != nil {
		return fmt.Errorf("keep key set: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(k.path), ".keys-*") // of mode 0600
	if err != nil {
		return fmt.Errorf("keep key set: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), k.path)
	}
	if err != nil {
		return fmt.Errorf("keep key set: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// read returns the set and when it was fetched.
func (k *keptFile) read() (document, time.Time, error) {
	info, err := os.Lstat(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return document{}, time.Time{}, errors.New("there is none")
	}
	if err != nil {
		return document{}, time.Time{}, fmt.Errorf("read kept key set: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 || info.Size() > 7*maxDocument {
		return document{}, time.Time{}, fmt.Errorf("read kept key set %s: not a file that only its owner can write, or too long", k.path)
	}
	data, err := os.ReadFile(k.path)
	if err != nil {
		return document{}, time.Time{}, fmt.Errorf("read kept key set: %w", err)
	}
	var content kept
	if err := json.Unmarshal(data, &content); err != nil {
		return document{}, time.Time{}, fmt.Errorf("read kept key set %s: %w", k.path, err)
	}
	if content.Issuer != k.issuer || content.From != k.from {
		return document{}, time.Time{}, fmt.Errorf("read kept key set %s: it is of issuer %s, from %s", k.path, brief(content.Issuer), brief(content.From))
	}
	return document{[]byte(content.Set), content.MaxAge}, content.Fetched, nil
}
