package bearer

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// What a token was accepted for can end while it is in use, in a stream. These methods are for whoever keeps one open.

// Usable reports whether a key of an issuer, by its kid as identity.Caller.KeyID has it, may verify tokens now. Where
// another key has taken the place of one with the same kid it says so of the new one; Withdrawn tells of the old. A caller whose
// token its issuer was asked about has no key, and none that could be withdrawn.
func (v *Verifier) Usable(issuer, keyID string) bool {
	if v == nil || v.authorities[issuer] == nil {
		return false
	}
	if v.authorities[issuer].asks != nil && keyID == "" {
		return true
	}
	set, err := v.authorities[issuer].keys.usable()
	return err == nil && slices.ContainsFunc(set.keys, func(k key) bool { return k.id == keyID })
}

// Leeway is how long after its expiry a token of the issuer is accepted, for clocks that disagree; zero for an issuer that
// is not known.
func (v *Verifier) Leeway(issuer string) time.Duration {
	if v == nil || v.authorities[issuer] == nil {
		return 0
	}
	return v.authorities[issuer].Leeway
}

// Withdrawn has f called with each key that goes out of use because the issuer's set has it no more, or has another under
// its kid, until cancel is called. When f is called the key verifies nothing any more. f must not wait.
func (v *Verifier) Withdrawn(f func(issuer, keyID string)) (cancel func()) { return v.watch.add(f) }

// watchers are those who want to know of keys that have gone.
type watchers struct {
	mu   sync.Mutex
	next int
	list map[int]func(issuer, keyID string)
}

func (w *watchers) add(f func(issuer, keyID string)) (cancel func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.list == nil {
		w.list = map[int]func(issuer, keyID string){}
	}
	id := w.next
	w.next++
	w.list[id] = f
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.list, id)
	}
}

func (w *watchers) tell(issuer, keyID string) {
	w.mu.Lock()
	list := slices.Collect(maps.Values(w.list))
	w.mu.Unlock()
	for _, f := range list {
		f(issuer, keyID)
	}
}
