package credential

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/jws"
	"github.com/sallyport/sallyport/internal/leak"
	"github.com/sallyport/sallyport/internal/oauth"
)

const (
	margin     = 15 * time.Second // before its end a token is used no more, for what is on its way
	longest    = time.Hour        // however long the server says
	refusalFor = 2 * time.Second
	usualMax   = 10_000
	maxRefused = 1000
)

// tokens are those of one destination that were obtained from a token endpoint.
type tokens struct {
	client *oauth.Client
	now    func() time.Time
	max    int
	ctx    context.Context // of what is being obtained
	cancel context.CancelFunc
	asking sync.WaitGroup

	mu      sync.Mutex
	held    map[key]*list.Element // of *held
	used    list.List             // the latest first
	refused map[key]refused
	flights map[key]*flight
	closed  bool
}

// key is the SHA-256 of the inbound token; zero for a token of our own.
type key [32]byte

// wanted says which token.
type wanted struct {
	key       key
	caller    *identity.Caller // nil: nobody's
	last      time.Time        // at most until then; zero: no such end
	scopes    []string         // at most these; none: the server's choice
	exchanged bool
	ahead     bool // obtained anew before its end, while the old one serves
	form      func() url.Values
}

type held struct {
	key         key
	header      Header
	caller      *identity.Caller
	until, anew time.Time // used until then; obtained anew from then on
}

type refused struct {
	until time.Time
	why   *Error
}

// flight is one request to the server, for all who wait for its answer.
type flight struct {
	caller    *identity.Caller
	forgotten bool // held by tokens.mu
	done      chan struct{}
	header    Header
	refusal   *Error
}

func newTokens(client *oauth.Client, now func() time.Time, max int) *tokens {
	if max <= 0 {
		max = usualMax
	}
	t := &tokens{client: client, now: now, max: max, held: map[key]*list.Element{}, refused: map[key]refused{}, flights: map[key]*flight{}}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// get returns a token that is held, or waits for one.
func (t *tokens) get(ctx context.Context, w wanted) (Header, *Error) {
	f, header, refusal := t.look(w)
	if f == nil {
		return header, refusal
	}
	select {
	case <-f.done:
		return f.header, f.refusal
	case <-ctx.Done():
		return Header{}, &Error{Code: CodeUnavailable, Detail: "the request ended before there was a token", Err: context.Cause(ctx)}
	}
}

// look returns what is known, or the flight that will tell.
func (t *tokens) look(w wanted) (*flight, Header, *Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if e := t.held[w.key]; e != nil {
		h := e.Value.(*held)
		if now.Before(h.until) {
			t.used.MoveToFront(e)
			if w.ahead && !now.Before(h.anew) && t.flights[w.key] == nil && !now.Before(t.refused[w.key].until) {
				t.begin(w)
			}
			return nil, h.header, nil
		}
		t.drop(e)
	}
	if r, ok := t.refused[w.key]; ok && now.Before(r.until) {
		return nil, Header{}, r.why
	}
	if f := t.flights[w.key]; f != nil {
		return f, Header{}, nil
	}
	return t.begin(w), Header{}, nil
}

// begin asks in the background: whoever waits may go, and the others still get their answer.
func (t *tokens) begin(w wanted) *flight {
	f := &flight{caller: w.caller, done: make(chan struct{})}
	if t.closed {
		f.refusal = &Error{Code: CodeUnavailable, Detail: "closed"}
		close(f.done)
		return f
	}
	t.flights[w.key] = f
	t.asking.Go(func() {
		h, refusal := t.ask(w)
		t.land(w, f, h, refusal)
	})
	return f
}

// land keeps what a flight brought and tells who waits.
func (t *tokens) land(w wanted, f *flight, h *held, refusal *Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer close(f.done)
	delete(t.flights, w.key)
	switch {
	case f.forgotten:
		f.refusal = &Error{Code: CodeRefused, Detail: "the caller's token was revoked while it was exchanged"}
	case refusal != nil:
		f.refusal = refusal
		if refusal.Code == CodeRefused {
			t.refuse(w.key, refusal)
		}
	default:
		f.header = h.header
		if t.now().Before(h.until) {
			t.keep(h)
		}
	}
}

func (t *tokens) keep(h *held) {
	if e := t.held[h.key]; e != nil {
		t.drop(e)
	}
	for t.used.Len() >= t.max {
		t.drop(t.used.Back())
	}
	t.held[h.key] = t.used.PushFront(h)
}

func (t *tokens) drop(e *list.Element) {
	delete(t.held, e.Value.(*held).key)
	t.used.Remove(e)
}

// refuse keeps a refusal, apart from the tokens, so that no number of them drives one out.
func (t *tokens) refuse(k key, why *Error) {
	now := t.now()
	if len(t.refused) >= maxRefused {
		for k, r := range t.refused {
			if !now.Before(r.until) {
				delete(t.refused, k)
			}
		}
	}
	if len(t.refused) < maxRefused {
		t.refused[k] = refused{now.Add(refusalFor), why}
	}
}

func (t *tokens) forget(match func(identity.Caller) bool) (count int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.held {
		if h := e.Value.(*held); h.caller != nil && match(*h.caller) {
			t.drop(e)
			count++
		}
	}
	for _, f := range t.flights {
		if !f.forgotten && f.caller != nil && match(*f.caller) {
			f.forgotten = true
			count++
		}
	}
	return count
}

func (t *tokens) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.asking.Wait()
	if t.client != nil {
		t.client.Close()
	}
}

// ask obtains one token.
func (t *tokens) ask(w wanted) (*held, *Error) {
	asked := t.now()
	answer, err := t.client.Post(t.ctx, w.form())
	if no, ok := errors.AsType[*oauth.Error](err); ok && no.Refused != "" {
		return nil, &Error{Code: CodeRefused, Detail: "no token for this", Err: err}
	}
	if err != nil {
		return nil, &Error{Code: CodeUnavailable, Detail: "no token", Err: err}
	}
	token, life, err := readAnswer(answer, w.scopes, w.exchanged, asked)
	if err != nil {
		return nil, &Error{Code: CodeUnavailable, Detail: "what the authorization server answered is not used", Err: err}
	}
	h := &held{key: w.key, caller: w.caller, header: header("Authorization", "Bearer ", token), until: asked.Add(life - margin)}
	h.anew = asked.Add(life * 3 / 4)
	if limit := h.until.Add(-margin); h.anew.After(limit) {
		h.anew = limit
	}
	if !w.last.IsZero() && h.until.After(w.last) {
		h.until = w.last
	}
	if h.header.scrub, err = leak.NewScrubber(token); err != nil {
		return nil, &Error{Code: CodeUnavailable, Detail: "what the authorization server answered is not used", Err: err}
	}
	return h, nil
}

// readAnswer reads a successful answer (RFC 6749, section 5.1, RFC 8693, section 2.2.1) and returns the token and how long
// it may be used. No error holds a part of the token.
func readAnswer(answer map[string]any, scopes []string, exchanged bool, now time.Time) (token string, life time.Duration, err error) {
	token, _ = answer["access_token"].(string)
	if !oauth.IsToken(token) {
		return "", 0, errors.New("access_token is not a b64token")
	}
	if kind, _ := answer["token_type"].(string); !strings.EqualFold(kind, "Bearer") {
		return "", 0, errors.New("token_type is not Bearer")
	}
	if exchanged {
		if issued, _ := answer["issued_token_type"].(string); issued != typeAccessToken && issued != typeJWT {
			return "", 0, errors.New("issued_token_type is neither an access token nor a JWT")
		}
	}
	if err := notWider(answer, scopes); err != nil {
		return "", 0, err
	}
	if seconds, there := answer["expires_in"]; there {
		n, ok := seconds.(int64)
		if !ok || n <= 0 {
			return "", 0, errors.New("expires_in is not a whole number of seconds")
		}
		life = min(time.Duration(min(n, int64(longest/time.Second)))*time.Second, longest)
	} // else it is used once, and not kept
	claims, err := jws.Parse(token)
	if err != nil {
		return token, life, nil // opaque to us
	}
	// What it says of itself, unverified: it came from the server that we asked. It can only make less of it.
	if err := notWider(claims.Payload, scopes); err != nil {
		return "", 0, fmt.Errorf("the token itself: %w", err)
	}
	if exp, ok := claims.Payload["exp"].(int64); ok {
		left := min(time.Unix(exp, 0).Sub(now), longest)
		if left <= 0 {
			return "", 0, errors.New("the token itself has ended")
		}
		if life == 0 {
			life = left
		}
		life = min(life, left)
	}
	return token, life, nil
}

// notWider holds a scope, where there is one, to what was asked for. Where nothing was asked it is the server's choice.
func notWider(object map[string]any, scopes []string) error {
	var list []string
	switch value := object["scope"].(type) {
	case nil: // RFC 6749, section 5.1: it is what was asked for
	case string:
		list = strings.Fields(value)
	case []any:
		for _, element := range value {
			scope, _ := element.(string)
			list = append(list, scope)
		}
	default:
		return errors.New("scope is neither a string nor a list")
	}
	for _, scope := range list {
		if len(scopes) > 0 && !slices.Contains(scopes, scope) {
			return errors.New("its scope is wider than what was asked for")
		}
	}
	return nil
}
