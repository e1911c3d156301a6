// Package keys holds our own signing keys: made, published, withdrawn.
//
// They lie in a folder, one file each. The life of a key:
//
//	created ── 60 s ── signs ── until a newer one signs ── retires
//
// A new key is published at once and signs 60 s later, so that a service has
// read it before it meets it; only a key that is alone signs at once. When the
// newest is RotateEvery old, Maintain makes the next one. A key that has a
// successor stays published until Overlap after the successor was made; then
// Maintain deletes its file. Rotate makes the next one before it is due. Withdraw
// ends a key at once, which is what to do when one has leaked; a key whose file
// somebody else deletes is withdrawn at the next Maintain.
//
// Several processes may share a folder: whoever writes holds a flock on it, and
// files appear whole or not at all.
//
// Limits: the private keys lie in the files as they are. Whoever can read the
// folder can sign, so it must be out of the service's sight; Open refuses files
// that others than their owner can read.
package keys

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/identity"
)

const (
	// activation is how long a key is published before it signs. Services look at the published file every second
	// (identity.KeysFile) or every half minute (what most JOSE libraries allow themselves).
	activation = time.Minute
	// minOverlap is the activation of the successor, the 60 s an assertion lives, and as long again for slow clocks.
	minOverlap = 3 * time.Minute
	maxKeys    = 100 // what identity.KeysFile reads

	defaultPath        = "keys"
	defaultRotateEvery = 720 * time.Hour
	defaultOverlap     = 168 * time.Hour
)

// ErrNoKey says that the folder holds no key, or is not there.
var ErrNoKey = errors.New("there is no signing key")

// Config is the keys section.
type Config struct {
	Path        string        // folder, 0700; empty means "keys"
	Algorithm   string        // EdDSA; empty means that
	RotateEvery time.Duration // age at which a new key is made; zero means 720 h
	Overlap     time.Duration // how long the old one stays published after a newer was made; at least 3 min; zero means 168 h
	Publish     string        // a JWKS file that the service can read, outside Path; written on each change; empty means none
}

// Ring is the set of keys in a folder, one of which signs. Safe for concurrent use.
type Ring struct {
	config  Config
	current atomic.Pointer[snapshot]

	mu    sync.Mutex           // held by Maintain
	since map[string]time.Time // when each key was first published, as far as we know
}

// Info describes one key without its private part.
type Info struct {
	ID        string    `json:"kid"`
	Created   time.Time `json:"created"`
	Signing   bool      `json:"signing"`
	Activates time.Time `json:"activates,omitzero"` // when it begins to sign; zero once it may
	Rotates   time.Time `json:"rotates,omitzero"`   // when its successor is due; of the newest key alone
	Retires   time.Time `json:"retires,omitzero"`   // when it leaves the published set
}

// Use is what the key is for: "next" (published, and does not sign yet),
// "signing", or "verifying" (what it has signed).
func (i Info) Use() string {
	switch {
	case i.Signing:
		return "signing"
	case i.Retires.IsZero():
		return "next"
	}
	return "verifying"
}

// Open reads the folder. It fails if there is no key (ErrNoKey), if a file is
// readable by others, if one does not parse, or if one is there that is no key.
// Where Publish is set and does not hold the published set, it is written.
func Open(c Config) (*Ring, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	keys, err := readFolder(c.Path)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("read %s: %w", c.Path, ErrNoKey)
	}
	r := &Ring{config: c}
	now := time.Now()
	s := r.newSnapshot(keys, now)
	r.current.Store(s)
	if c.Publish != "" && !isPublished(c.Publish, s.jwks) {
		if err := r.publishFolder(now); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// publishFolder reads the folder again, because before the lock another process may have written, and publishes.
func (r *Ring) publishFolder(now time.Time) error {
	unlock, err := lock(r.config.Path)
	if err != nil {
		return err
	}
	defer unlock()
	keys, err := readFolder(r.config.Path)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return fmt.Errorf("read %s: %w", r.config.Path, ErrNoKey)
	}
	return r.use(r.newSnapshot(keys, now))
}

// use publishes a snapshot, if it is not published yet, and then puts it into
// effect: no key signs that could not be published.
func (r *Ring) use(s *snapshot) error {
	if path := r.config.Publish; path != "" && !isPublished(path, s.jwks) {
		if err := publish(path, s.jwks); err != nil {
			return err
		}
	}
	r.current.Store(s)
	return nil
}

// Generate makes a key, stores it (0600, atomically), publishes it, and returns what it is. It makes the folder if there is none.
func Generate(c Config, now time.Time) (Info, error) {
	c, err := c.withDefaults()
	if err != nil {
		return Info{}, err
	}
	if err := makeFolder(c.Path); err != nil {
		return Info{}, fmt.Errorf("make the folder of signing keys: %w", err)
	}
	unlock, err := lock(c.Path)
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	keys, err := readFolder(c.Path)
	if err != nil {
		return Info{}, err
	}
	k, err := generate(c.Path, keys, now)
	if err != nil {
		return Info{}, err
	}
	r := &Ring{config: c}
	s := r.newSnapshot(sorted(append(keys, k)), now)
	if err := r.use(s); err != nil {
		return Info{}, err
	}
	return s.info(k.id)
}

func (c Config) withDefaults() (Config, error) {
	if c.Path == "" {
		c.Path = defaultPath
	}
	if c.RotateEvery == 0 {
		c.RotateEvery = defaultRotateEvery
	}
	if c.Overlap == 0 {
		c.Overlap = defaultOverlap
	}
	switch {
	case c.Algorithm != "" && c.Algorithm != "EdDSA":
		return c, fmt.Errorf("keys: algorithm %q is not EdDSA", c.Algorithm)
	case c.RotateEvery < minOverlap:
		return c, fmt.Errorf("keys: a rotation every %v is more often than every %v", c.RotateEvery, minOverlap)
	case c.Overlap < minOverlap:
		return c, fmt.Errorf("keys: an overlap of %v is less than %v: the old key must outlast what it signed", c.Overlap, minOverlap)
	case c.Overlap/c.RotateEvery >= maxKeys/2:
		return c, fmt.Errorf("keys: an overlap of %v with a rotation every %v would publish over %d keys", c.Overlap, c.RotateEvery, maxKeys/2)
	}
	if c.Publish != "" {
		folder, err := filepath.Abs(c.Path)
		if err != nil {
			return c, fmt.Errorf("keys: %w", err)
		}
		file, err := filepath.Abs(c.Publish)
		if err != nil {
			return c, fmt.Errorf("keys: %w", err)
		}
		if filepath.Dir(file) == folder {
			return c, fmt.Errorf("keys: %s lies in the folder of private keys, which the service must not read: publish elsewhere", c.Publish)
		}
	}
	return c, nil
}

// Signing returns the key that signs now. It changes in Maintain only, and takes no lock.
func (r *Ring) Signing() identity.Key {
	s := r.current.Load()
	return identity.Key{ID: s.signing.id, Private: s.signing.private}
}

// Derive returns a secret of 32 bytes for a purpose, which all who share the folder have, and which tells nothing of the key
// that it comes from. It changes with the key that signs.
func (r *Ring) Derive(purpose string) ([]byte, error) {
	return hkdf.Key(sha256.New, r.current.Load().signing.private.Seed(), nil, "sallyport "+purpose, 32)
}

// List describes the keys, newest first.
func (r *Ring) List() []Info { return slices.Clone(r.current.Load().infos) }

// JWKS returns the published set, JSON (RFC 7517).
func (r *Ring) JWKS() []byte { return slices.Clone(r.current.Load().jwks) }

// snapshot is what holds between two calls of Maintain.
type snapshot struct {
	signing key
	infos   []Info
	jwks    []byte
}

// newSnapshot judges keys (newest first, at least one) at an instant. It leaves out what has retired.
func (r *Ring) newSnapshot(keys []key, now time.Time) *snapshot {
	r.note(keys, now)
	var live []key
	var infos []Info
	for i, k := range keys {
		info := Info{ID: k.id, Created: k.created}
		if i == 0 {
			info.Rotates = k.created.Add(r.config.RotateEvery)
		} else {
			info.Retires = keys[i-1].created.Add(r.config.Overlap)
			if !now.Before(info.Retires) {
				continue
			}
		}
		if at := r.since[k.id].Add(activation); now.Before(at) {
			info.Activates = at
		}
		live, infos = append(live, k), append(infos, info)
	}
	signing := slices.IndexFunc(infos, func(i Info) bool { return i.Activates.IsZero() })
	if signing < 0 {
		// none has been published for long enough: the one that has been for longest, the only one at the first start
		signing = 0
		for i := range infos {
			if !infos[i].Activates.After(infos[signing].Activates) {
				signing = i
			}
		}
		infos[signing].Activates = time.Time{}
	}
	infos[signing].Signing = true
	return &snapshot{live[signing], infos, encodeSet(live)}
}

// note remembers since when each key has been published: since it was made if
// the published file holds it already (whoever made it published it) or, where
// there is no file, if we find it at the start; else from now on.
func (r *Ring) note(keys []key, now time.Time) {
	var published map[string]bool
	if r.config.Publish != "" {
		published = readPublished(r.config.Publish)
	}
	since := make(map[string]time.Time, len(keys))
	for _, k := range keys {
		at, known := r.since[k.id]
		switch {
		case known:
		case published[k.id], r.since == nil && r.config.Publish == "":
			at = k.created
		default:
			at = now
		}
		since[k.id] = at
	}
	r.since = since
}

// encodeSet is the published form: public parts, newest first.
func encodeSet(keys []key) []byte {
	type jwk struct {
		KeyType   string `json:"kty"`
		Curve     string `json:"crv"`
		X         string `json:"x"`
		KeyID     string `json:"kid"`
		Use       string `json:"use"`
		Algorithm string `json:"alg"`
	}
	set := struct {
		Keys []jwk `json:"keys"`
	}{make([]jwk, 0, len(keys))}
	for _, k := range keys {
		x := base64.RawURLEncoding.EncodeToString(k.private.Public().(ed25519.PublicKey))
		set.Keys = append(set.Keys, jwk{"OKP", "Ed25519", x, k.id, "sig", "EdDSA"})
	}
	data, err := json.Marshal(set)
	if err != nil {
		panic(err) // strings alone cannot fail
	}
	return data
}
