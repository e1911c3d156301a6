package oauth

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/url"
	"sync"
	"time"
)

const (
	activeFor   = 30 * time.Second
	inactiveFor = 5 * time.Second
	maxActive   = 10_000
	maxInactive = 1000
)

// ErrInactive says that the server does not vouch for a token.
var ErrInactive = errors.New("the token is not active")

// Introspector asks an introspection endpoint about tokens (RFC 7662). What it says of an active token is kept for 30 s, and not
// beyond the token's end; that one is not active for 5 s. Neither drives the other out. Safe for concurrent use.
type Introspector struct {
	client *Client
	now    func() time.Time

	mu       sync.Mutex
	active   map[[32]byte]said
	inactive map[[32]byte]said
	asking   map[[32]byte]chan struct{} // closed when the answer is there
}

type said struct {
	claims map[string]any
	until  time.Time
}

// NewIntrospector checks the configuration.
func NewIntrospector(c Config) (*Introspector, error) {
	client, err := New(c)
	if err != nil {
		return nil, err
	}
	return &Introspector{
		client: client, now: client.config.Now,
		active: map[[32]byte]said{}, inactive: map[[32]byte]said{}, asking: map[[32]byte]chan struct{}{},
	}, nil
}

// Close closes the connections that are not in use.
func (i *Introspector) Close() { i.client.Close() }

// Introspect returns what the server says of a token that is active now: the members of its answer, which must not be changed,
// and of which only active and exp have been judged. The error is ErrInactive or an *Error.
func (i *Introspector) Introspect(ctx context.Context, token string) (map[string]any, error) {
	key := sha256.Sum256([]byte(token))
	for {
		answer, known, wait := i.look(key)
		if known {
			return result(answer)
		}
		if wait == nil {
			break
		}
		select { // one asks; if it was not told, the next one does
		case <-wait:
		case <-ctx.Done():
			return nil, &Error{Err: ctx.Err()}
		}
	}
	answer, err := i.client.Post(ctx, url.Values{"token": {token}, "token_type_hint": {"access_token"}})
	i.mu.Lock()
	defer i.mu.Unlock()
	close(i.asking[key])
	delete(i.asking, key)
	if err != nil {
		return nil, err
	}
	now := i.now()
	if until, ok := lives(answer, now); ok {
		put(i.active, maxActive, key, said{answer, until}, now)
		return answer, nil
	}
	put(i.inactive, maxInactive, key, said{nil, now.Add(inactiveFor)}, now)
	return nil, ErrInactive
}

func result(s said) (map[string]any, error) {
	if s.claims == nil {
		return nil, ErrInactive
	}
	return s.claims, nil
}

// look returns what is known, or what to wait for; if neither, the caller is the one to ask.
func (i *Introspector) look(key [32]byte) (answer said, known bool, wait chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	for _, kept := range []map[[32]byte]said{i.active, i.inactive} {
		if s, ok := kept[key]; ok && now.Before(s.until) {
			return s, true, nil
		}
	}
	if wait := i.asking[key]; wait != nil {
		return said{}, false, wait
	}
	i.asking[key] = make(chan struct{})
	return said{}, false, nil
}

// lives says whether an answer vouches for a token now, and until when that may be believed. active must be true itself, and
// nothing that some reader takes for it.
func lives(answer map[string]any, now time.Time) (until time.Time, ok bool) {
	if active, ok := answer["active"].(bool); !ok || !active {
		return time.Time{}, false
	}
	until = now.Add(activeFor)
	if exp, there := answer["exp"]; there {
		seconds, ok := exp.(int64)
		if !ok || seconds <= now.Unix() {
			return time.Time{}, false
		}
		if seconds < until.Unix() {
			until = time.Unix(seconds, 0)
		}
	}
	return until, true
}

// put keeps an answer, in the place of those that have ended, or else of any other.
func put(kept map[[32]byte]said, most int, key [32]byte, s said, now time.Time) {
	if len(kept) >= most {
		for k, old := range kept {
			if !now.Before(old.until) {
				delete(kept, k)
			}
		}
	}
	for k := range kept {
		if len(kept) < most {
			break
		}
		delete(kept, k)
	}
	kept[key] = s
}
