package oauth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"
)

const (
	// MaxKeep is how long at most an answer about an active token is used.
	MaxKeep = 30 * time.Second

	inactiveFor = 5 * time.Second
	knownFor    = 10 * time.Minute // a token that was active is not taken for an invented one

	maxActive   = 16 << 20 // bytes of answers
	maxInactive = 512 << 10
	maxStranger = 3 * maxAtOnce / 4 // questions at once about tokens that are not known: the others find a turn
	maxOfSource = maxStranger / 3   // of these, that one source has: who sends many waits behind itself
)

// Why a token is not vouched for.
var (
	// ErrInactive says that the server does not vouch for a token.
	ErrInactive = errors.New("the token is not active")
	// ErrTooMany says that whoever sends the token has sent too many that were not active: the server was not asked.
	ErrTooMany = errors.New("too many tokens of this source were not active")
)

// The results that IntrospectorConfig.Told hears of: of a question, and of what was known without one.
const (
	AskedActive   = "asked_active"
	AskedInactive = "asked_inactive"
	AskedRefused  = "asked_refused" // the server refuses to say
	AskedInVain   = "asked_in_vain" // there was no answer, or none that can be believed
	KeptActive    = "kept_active"
	KeptInactive  = "kept_inactive"
	TooMany       = "too_many"
)

// IntrospectorConfig is an introspection endpoint, who asks it, and how its answers are used.
type IntrospectorConfig struct {
	Config
	// Keep is how long an answer about an active token is used, at most MaxKeep; zero: it is asked for each time.
	Keep time.Duration
	// Open reads a signed answer (RFC 9701), and returns what it says of the token; the client then asks for signed answers and
	// takes no other. Nil: answers are plain JSON.
	Open func(jwt string) (map[string]any, error)
	// Told hears of each result, with the error of AskedInVain; nil: nobody does. It must not wait.
	Told func(result string, err error)
}

// Question is one about a token.
type Question struct {
	Token  string
	Fresh  bool       // answered by what the server says from now on, and by nothing that was known before, but that a token is not active
	Source netip.Addr // who sent it; who sends many that are not active is not asked for any more for a while. Invalid: nobody in particular
}

// Answer is what the server says of a token that is active.
type Answer struct {
	Claims map[string]any // must not be changed; of these only active and exp have been judged
	At     time.Time      // when it was asked
}

// Introspector asks an introspection endpoint about tokens (RFC 7662).
//
// What it says of an active token is used for Keep, and not beyond the token's end; that one is not active for 5 s. Both are
// bounded in bytes, by the keyed hash of the whole token, and apart: neither drives the other out. Of one token one question is
// under way at a time. If who asked it is called away or fails, those who wait ask for themselves.
//
// Safe for concurrent use.
type Introspector struct {
	client    *Client
	config    IntrospectorConfig
	now       func() time.Time
	key       [32]byte
	strangers chan struct{}

	mu       sync.Mutex
	active   memory
	inactive memory
	budget   budget
	queues   map[netip.Addr]*queue // of sources that have questions about tokens that are not known
	begun    uint64                // questions
	forgot   uint64                // how often all that was said was outdated
	asking   map[[32]byte]*flight
}

// flight is a question that is under way.
type flight struct {
	number uint64 // among all, by when they began
	done   chan struct{}
	said   said  // when done is closed
	err    error // the same: why there is none
}

// said is what is known of a token: that it is active, or why not.
type said struct {
	answer Answer
	err    error // ErrInactive, or an *Error with Refused
	until  time.Time
}

// NewIntrospector checks the configuration.
func NewIntrospector(c IntrospectorConfig) (*Introspector, error) {
	client, err := New(c.Config)
	if err == nil && (c.Keep < 0 || c.Keep > MaxKeep) {
		err = fmt.Errorf("answers are kept for 0 to %s, not %s", MaxKeep, c.Keep)
	}
	if err != nil {
		return nil, err
	}
	if c.Told == nil {
		c.Told = func(string, error) {}
	}
	i := &Introspector{
		client: client, config: c, now: client.config.Now, strangers: make(chan struct{}, maxStranger),
		active: newMemory(maxActive), inactive: newMemory(maxInactive), asking: map[[32]byte]*flight{}, queues: map[netip.Addr]*queue{},
	}
	rand.Read(i.key[:])
	return i, nil
}

// Close closes the connections that are not in use.
func (i *Introspector) Close() { i.client.Close() }

// Resting is why the server is left alone now; nil: it is not.
func (i *Introspector) Resting() error { return i.client.Resting() }

// Forget forgets what was said of active tokens, and what is being said of them now: something that it rests on is good no more.
func (i *Introspector) Forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.forgot++
	i.active.outdate()
}

// Ask returns what the server says of a token that is active. The error is ErrInactive, ErrTooMany or an *Error.
func (i *Introspector) Ask(ctx context.Context, q Question) (Answer, error) {
	key := i.nameOf(q.Token)
	fresh := q.Fresh || i.config.Keep == 0
	arrived := i.beginnings()
	for {
		known, f, lead, err := i.look(key, fresh, q.Source)
		switch {
		case err != nil:
			return Answer{}, err
		case f == nil:
			return known.answer, known.err
		case lead:
			return i.lead(ctx, key, f, q)
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return Answer{}, &Error{Err: ctx.Err()}
		}
		// A question that began before this one arrived may have been answered before what this one is about.
		if f.err == nil && (!fresh || f.number > arrived) {
			i.config.Told(keptAs(f.said), nil)
			return f.said.answer, f.said.err
		}
	}
}

// nameOf is the name of a token here: over every byte of it, and under a key of this process.
func (i *Introspector) nameOf(token string) (name [32]byte) {
	h := hmac.New(sha256.New, i.key[:])
	h.Write([]byte(token))
	h.Sum(name[:0])
	return name
}

func (i *Introspector) beginnings() uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.begun
}

// look returns what is known; else the question that is under way, or that the caller now leads.
func (i *Introspector) look(key [32]byte, fresh bool, source netip.Addr) (known said, f *flight, lead bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	if s, ok := i.inactive.get(key, now); ok {
		i.config.Told(KeptInactive, nil)
		return s, nil, false, nil
	}
	if s, ok := i.active.get(key, now); ok && !fresh {
		i.config.Told(KeptActive, nil)
		return s, nil, false, nil
	}
	if f := i.asking[key]; f != nil {
		return said{}, f, false, nil
	}
	if !i.active.has(key) && !i.budget.left(source, now) {
		i.config.Told(TooMany, nil)
		return said{}, nil, false, ErrTooMany
	}
	i.begun++
	f = &flight{number: i.begun, done: make(chan struct{})}
	i.asking[key] = f
	return said{}, f, true, nil
}

// lead asks, and tells those who wait.
func (i *Introspector) lead(ctx context.Context, key [32]byte, f *flight, q Question) (Answer, error) {
	f.err = errors.New("nobody was asked") // unless something is found, also by a panic
	defer func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.asking, key)
		close(f.done)
	}()
	asked, forgot := i.now(), i.forgotten()
	claims, size, err := i.ask(ctx, key, q)
	refused, isError := errors.AsType[*Error](err)
	if err != nil && !(isError && refused.Refused != "") {
		switch f.err = err; {
		case errors.Is(err, ErrTooMany):
			i.config.Told(TooMany, nil)
		case ctx.Err() == nil: // who has gone says nothing of the server
			i.config.Told(AskedInVain, err)
		}
		return Answer{}, err
	}
	s := i.judge(claims, err, asked)
	if i.remember(key, s, size, q.Source, forgot) { // else who waits asks for itself
		f.said, f.err = s, nil
	}
	switch {
	case s.err == nil:
		i.config.Told(AskedActive, nil)
	case isError:
		i.config.Told(AskedRefused, nil)
	default:
		i.config.Told(AskedInactive, nil)
	}
	return s.answer, s.err
}

// judge makes of an answer what is remembered.
func (i *Introspector) judge(claims map[string]any, refused error, asked time.Time) said {
	no := said{err: refused, until: i.now().Add(inactiveFor)}
	if refused != nil {
		return no
	}
	until, err := lives(claims, asked, i.config.Keep)
	if err != nil {
		no.err = err
		return no
	}
	return said{answer: Answer{Claims: claims, At: asked}, until: until}
}

func (i *Introspector) forgotten() uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.forgot
}

// remember keeps what was said, and reports whether others may use it. forgot is how often all had been outdated when it was
// asked for: what is outdated already is good for who asked, and for nobody else.
func (i *Introspector) remember(key [32]byte, s said, size int, source netip.Addr, forgot uint64) (current bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	if current = s.err != nil || i.forgot == forgot; !current {
		s.until = now
	}
	if s.err != nil {
		i.active.remove(key)
		i.inactive.put(key, s, 0, s.until, now)
		i.budget.spend(source, now)
		return current
	}
	if !now.Before(s.until) { // not to be used again: that it is known is enough
		s.answer.Claims, size = nil, 0
	}
	i.active.put(key, s, size, now.Add(knownFor), now)
	return current
}

// ask asks. A token that is not known waits until not too many of its kind are asked for.
func (i *Introspector) ask(ctx context.Context, key [32]byte, q Question) (claims map[string]any, size int, err error) {
	leave, err := i.enter(ctx, key, q.Source)
	if err != nil {
		return nil, 0, err
	}
	defer leave()
	form := url.Values{"token": {q.Token}, "token_type_hint": {"access_token"}}
	if i.config.Open == nil {
		err = i.client.post(ctx, form, "application/json", func(response *http.Response) error {
			claims, size, err = read(response)
			return err
		})
		return claims, size, err
	}
	var jwt string
	err = i.client.post(ctx, form, "application/"+signedType, func(response *http.Response) error {
		jwt, err = readSigned(response)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	if claims, err = i.config.Open(jwt); err != nil {
		return nil, 0, &Error{Err: fmt.Errorf("ask %s: %w", i.client.config.Endpoint, err)}
	}
	return claims, len(jwt), nil
}

// keptAs is what somebody is told who did not ask.
func keptAs(s said) string {
	if s.err != nil {
		return KeptInactive
	}
	return KeptActive
}

// lives says until when an answer may be used that vouches for a token now; not at all if it does not. active must be true
// itself, and nothing that some reader takes for it.
func lives(answer map[string]any, now time.Time, keep time.Duration) (until time.Time, err error) {
	if active, ok := answer["active"].(bool); !ok || !active {
		return time.Time{}, ErrInactive
	}
	until = now.Add(min(keep, MaxKeep))
	if exp, there := answer["exp"]; there {
		seconds, ok := exp.(int64)
		if !ok {
			return time.Time{}, fmt.Errorf("%w: its exp is no whole number of seconds", ErrInactive)
		}
		if seconds <= now.Unix() {
			return time.Time{}, fmt.Errorf("%w: it is said to be, and has expired", ErrInactive)
		}
		if seconds < until.Unix() {
			until = time.Unix(seconds, 0)
		}
	}
	return until, nil
}
