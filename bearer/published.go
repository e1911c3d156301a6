package bearer

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sallyport/sallyport/identity"
)

const (
	publishedEvery = time.Minute     // a key set of a gate is fetched, unless Options say otherwise
	publishedStale = 5 * time.Minute // and serves so long after a fetch was due: who cannot be asked for keys calls nobody either
)

// KeySet follows the keys that another gate publishes, for an identity.Verifier of what that gate signs: Ed25519 keys,
// each named by its thumbprint. Safe for concurrent use. The zero value has no key.
type KeySet struct {
	lookup   func(kid string) (ed25519.PublicKey, bool)
	ready    func() error
	cancel   context.CancelFunc
	fetching sync.WaitGroup
}

// NewKeySet starts to follow the keys of the named signer, at a URI or in a file; there is no discovery. A file is
// looked at again every second at most (identity.KeysFile); a URI is fetched in the background every minute, and when
// a key is asked for that is not there, within the bounds of this package. A key that a new set lacks is out of use,
// also if the set holds none at all; while fetching fails the last keys serve for 5 minutes. Options.Keep is not used.
// The caller must Close the KeySet.
func NewKeySet(name string, keys Keys, o Options) (*KeySet, error) {
	who := Issuer{Issuer: name, Keys: keys, Algorithms: []string{"EdDSA"}}
	if err := checkKeys(who); err != nil || keys.Discovery {
		return nil, fmt.Errorf("follow the keys of %s: %w", brief(name), errors.Join(err, notDiscovered(keys)))
	}
	if keys.File != "" {
		lookup, err := identity.KeysFile(keys.File)
		if err != nil {
			return nil, fmt.Errorf("follow the keys of %s: %w", brief(name), err)
		}
		return &KeySet{lookup: lookup, ready: func() error { return nil }, cancel: func() {}}, nil
	}
	if o.Refresh == 0 {
		o.Refresh = publishedEvery
	}
	if o.MaxStale == 0 {
		o.MaxStale = publishedStale
	}
	s := &source{
		issuer: name, algorithms: who.Algorithms, fetch: fetchFrom(name, keys, guardOf(o.Guard, []Issuer{who})),
		pace: defaultPace(o), now: o.Now, log: o.Logger, missed: make(chan struct{}, 1), mayBeEmpty: true,
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if plain(who) {
		s.log.Warn("keys are fetched without TLS: whoever is on the way decides who is let in", "issuer", name)
	}
	set := &KeySet{lookup: s.published, ready: func() error { _, err := s.usable(); return err }}
	var ctx context.Context
	ctx, set.cancel = context.WithCancel(context.Background())
	set.fetching.Go(func() { s.run(ctx, time.Now()) })
	return set, nil
}

func notDiscovered(k Keys) error {
	if k.Discovery {
		return errors.New("a gate has no metadata to discover them by")
	}
	return nil
}

// published returns the key that calls itself by its thumbprint.
func (s *source) published(kid string) (ed25519.PublicKey, bool) {
	k, refusal := s.lookup(kid, true, "EdDSA")
	if refusal != nil || k.id != k.Thumbprint {
		return nil, false
	}
	public, ok := k.Public.(ed25519.PublicKey)
	return public, ok
}

// Lookup returns the key with this kid. It never waits: one that is not there is looked for in the background.
func (s *KeySet) Lookup(kid string) (ed25519.PublicKey, bool) {
	if s == nil || s.lookup == nil {
		return nil, false
	}
	return s.lookup(kid)
}

// Ready returns nil once the keys have been fetched, and not too long ago; else why not.
func (s *KeySet) Ready() error {
	if s == nil || s.ready == nil {
		return errors.New("no key set")
	}
	return s.ready()
}

// Close ends the background fetches and waits for them.
func (s *KeySet) Close() {
	if s == nil || s.cancel == nil {
		return
	}
	s.cancel()
	s.fetching.Wait()
}
