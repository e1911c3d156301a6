// Package event takes security event tokens: what an authorization server says of sessions and tokens that it has ended.
//
// A security event token (RFC 8417) is a JWT that its issuer pushes (RFC 8935). It is read strictly, held against the keys
// of the issuer that it names, taken once, and becomes revocations. What it establishes:
//
//   - An issuer ends what is its own: the subject, session or token of a SET is that of the SET's own issuer.
//   - What is not understood is refused whole, and ends nothing: a member that narrows what is meant, and that we pass
//     over, would end more than was asked for.
//   - The same SET twice ends nothing twice, and is no error: its sender may not have heard the first answer. What it
//     ends was issued before it, so that a replay, years later or at another replica, has nothing more to end.
//
// Understood are the events of the table in kinds, for subjects in the formats iss_sub, jwt_id, opaque (a session, where the
// event is that one was revoked) and complex with members user and session (RFC 9493; OpenID Shared Signals).
//
// # Limits
//
// Signed SETs only; delivery by push only. The transmitter is not asked whether a stream is alive.
package event

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/state"
)

const (
	setType = "secevent+jwt" // RFC 8417, section 2.3
	leeway  = 30 * time.Second
	longest = 256 // bytes of a jti
)

// kinds is what an event ends: the tokens of whoever or whatever its subject names, issued until it happened.
func kinds() map[string]string {
	return map[string]string{
		sessionRevoked: "session revoked",
		"https://schemas.openid.net/secevent/caep/event-type/credential-change": "credential changed",
		"https://schemas.openid.net/secevent/risc/event-type/sessions-revoked":  "sessions revoked",
		"https://schemas.openid.net/secevent/risc/event-type/account-disabled":  "account disabled",
		"https://schemas.openid.net/secevent/risc/event-type/account-purged":    "account purged",
	}
}

// sessionRevoked is the one kind that may be about a session: the others are about a user, and an opaque id in them is the
// user's own, by which nothing here is named.
const sessionRevoked = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"

// verification is a transmitter trying out the way here (OpenID Shared Signals, section 8.1.4); it ends nothing.
const verification = "https://schemas.openid.net/secevent/ssf/event-type/verification"

// The codes of an Error are those of RFC 8935, section 2.4.
const (
	codeRequest  = "invalid_request"
	codeKey      = "invalid_key"
	codeIssuer   = "invalid_issuer"
	codeAudience = "invalid_audience"
)

// Error is a refusal of a SET. Code may be told to whoever sent it; Detail is for the operator and holds nothing secret.
type Error struct {
	Code   string
	Detail string
}

func (e *Error) Error() string { return e.Code + ": " + e.Detail }

func refuse(code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Receiver reads SETs. Its zero value refuses all of them. It is safe for concurrent use.
type Receiver struct {
	Verifier func() *bearer.Verifier                             // whose issuers' keys are used
	Audience map[string][]string                                 // by issuer: the names under which we receive its events; an issuer without any sends none
	Lifetime time.Duration                                       // the longest that a token may be valid: how long what has happened matters
	Revoke   func(ctx context.Context, r state.Revocation) error // what is done
	Revoked  func(state.Token) (state.Revocation, bool)          // what of a SET has been revoked: its key, or all of its issuer; nil: nothing is
	Now      func() time.Time                                    // nil means time.Now

	mu   sync.Mutex
	done map[string]bool // the SETs that were taken lately, by issuer and jti
	ring []string        // the same, in order
	next int
}

// remembered is how many SETs are known again without being done again.
const remembered = 4096

// Event is a SET that may be believed.
type Event struct {
	Issuer, ID  string
	Revocations []state.Revocation // what it ends; none for a verification
	Reason      string             // in words
	Again       bool               // it was taken before: nothing is to be done
}

// Receive reads a SET and does what it says; when it returns nil that holds. Its error is an *Error where the SET is to
// blame, and then nothing was done; another error says that it could not be judged, or not be done in full, and that it
// may be sent again.
func (r *Receiver) Receive(ctx context.Context, set bearer.Token) (Event, error) {
	if r.Verifier == nil || r.Revoke == nil || r.Lifetime <= 0 {
		return Event{}, refuse(codeIssuer, "no issuer's events are taken")
	}
	issuer, keyID, typ, claims, err := r.Verifier().Authentic(set)
	if err != nil {
		return Event{}, unauthentic(err)
	}
	// A key that has leaked must not end whom its thief likes.
	if at, _ := seconds(claims["iat"]); r.Revoked != nil {
		if _, ended := r.Revoked(state.Token{Issuer: issuer, KeyID: keyID, IssuedAt: at}); ended {
			return Event{}, refuse(codeKey, "the key that signed it has been revoked here, or all that its issuer signed")
		}
	}
	e, refusal := r.read(issuer, typ, claims)
	if refusal != nil {
		return Event{}, refusal
	}
	if e.Again = r.knows(e); e.Again {
		return e, nil
	}
	for _, revocation := range e.Revocations {
		if err := r.Revoke(ctx, revocation); err != nil {
			return Event{}, fmt.Errorf("do what a security event says: %w", err)
		}
	}
	r.remember(e)
	return e, nil
}

func (r *Receiver) knows(e Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done[e.Issuer+" "+e.ID]
}

// remember forgets the oldest in its place.
func (r *Receiver) remember(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := e.Issuer + " " + e.ID
	if r.done == nil {
		r.done, r.ring = map[string]bool{}, make([]string, remembered)
	}
	if r.done[id] {
		return
	}
	delete(r.done, r.ring[r.next])
	r.ring[r.next], r.done[id] = id, true
	r.next = (r.next + 1) % remembered
}

func (r *Receiver) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

// unauthentic tells who is to blame for a SET whose signature was not shown to be right. Nothing is, while the keys are
// not there: it may be sent again.
func unauthentic(err error) error {
	refused, ok := errors.AsType[*bearer.Error](err)
	if !ok || refused.Status() == 503 {
		return fmt.Errorf("verify a security event: %w", err)
	}
	switch refused.Code {
	case "unknown_issuer":
		return refuse(codeIssuer, "%v", refused)
	case "unknown_key", "ambiguous_key", "bad_signature", "alg_not_allowed":
		return refuse(codeKey, "%v", refused)
	}
	return refuse(codeRequest, "%v", refused)
}

// read is the straight line behind the signature: type, audience, time, events, subject.
func (r *Receiver) read(issuer, typ string, claims map[string]any) (Event, *Error) {
	audiences := r.Audience[issuer]
	if len(audiences) == 0 {
		return Event{}, refuse(codeIssuer, "no events are taken from this issuer (ingress.issuers[].events)")
	}
	if typ != setType {
		return Event{}, refuse(codeRequest, "typ is not %s", setType)
	}
	if !names(claims["aud"], audiences) {
		return Event{}, refuse(codeAudience, "aud names none of %q", audiences)
	}
	id, _ := claims["jti"].(string)
	if id == "" || len(id) > longest {
		return Event{}, refuse(codeRequest, "jti is not a string of 1 to %d bytes", longest)
	}
	at, refusal := r.issued(claims)
	if refusal != nil {
		return Event{}, refusal
	}
	e := Event{Issuer: issuer, ID: id}
	events, _ := claims["events"].(map[string]any)
	if len(events) == 0 {
		return Event{}, refuse(codeRequest, "events is not an object with an event")
	}
	for uri, body := range events {
		what, known := kinds()[uri]
		details, ok := body.(map[string]any)
		switch {
		case !ok:
			return Event{}, refuse(codeRequest, "the event is not an object")
		case uri == verification:
			continue
		case !known:
			return Event{}, refuse(codeRequest, "an event of this type is not understood: nothing of this SET was done")
		}
		revocation, refusal := r.revocation(issuer, at, claims, details)
		if refusal != nil {
			return Event{}, refusal
		}
		if revocation.Session != "" && uri != sessionRevoked {
			return Event{}, refuse(codeRequest, "the event is about a user, and its subject names a session")
		}
		revocation.Reason = what
		e.Revocations, e.Reason = append(e.Revocations, revocation), what
	}
	return e, nil
}

// issued is when the SET was made (iat), which is neither to come nor so long ago that nothing can matter any more.
func (r *Receiver) issued(claims map[string]any) (time.Time, *Error) {
	at, ok := seconds(claims["iat"])
	switch now := r.now(); {
	case !ok:
		return time.Time{}, refuse(codeRequest, "iat is not a time")
	case at.After(now.Add(leeway)):
		return time.Time{}, refuse(codeRequest, "iat is in the future")
	case at.Before(now.Add(-r.Lifetime)):
		return time.Time{}, refuse(codeRequest, "iat is so long ago that no token from before is valid")
	}
	if _, ok := claims["exp"]; ok {
		// What has happened does not expire (RFC 8417, section 2.2); a token with exp could be meant for another use.
		return time.Time{}, refuse(codeRequest, "exp is there, which a security event does not have")
	}
	return at, nil
}

// revocation is what one event ends: tokens that were issued when it happened (event_timestamp), or when it was told.
func (r *Receiver) revocation(issuer string, at time.Time, claims, details map[string]any) (state.Revocation, *Error) {
	if stamp, there := details["event_timestamp"]; there {
		happened, ok := seconds(stamp)
		if !ok || happened.After(at.Add(leeway)) {
			return state.Revocation{}, refuse(codeRequest, "event_timestamp is not a time in seconds before iat")
		}
		at = happened
	}
	rev := state.Revocation{Issuer: issuer, Before: at, Until: r.now().Add(r.Lifetime + leeway), At: r.now()}
	subject, there := claims["sub_id"].(map[string]any)
	if own, ok := details["subject"].(map[string]any); ok {
		if there {
			return state.Revocation{}, refuse(codeRequest, "there are two subjects, sub_id and that of the event")
		}
		subject = own
	}
	if refusal := name(&rev, subject); refusal != nil {
		return state.Revocation{}, refusal
	}
	if rev.TokenID != "" {
		rev.Before = time.Time{} // one token is that token, whatever its iat
	}
	return rev, nil
}

// name makes a revocation one of the subject (RFC 9493).
func name(rev *state.Revocation, subject map[string]any) *Error {
	format, _ := subject["format"].(string)
	var members []string
	switch format {
	case "iss_sub":
		members = []string{"iss", "sub"}
		rev.Subject, _ = subject["sub"].(string)
	case "jwt_id":
		members = []string{"iss", "jti"}
		rev.TokenID, _ = subject["jti"].(string)
	case "opaque":
		members = []string{"id"}
		rev.Session, _ = subject["id"].(string)
	case "complex":
		return nameComplex(rev, subject)
	default:
		return refuse(codeRequest, "the subject's format is none of iss_sub, jwt_id, opaque and complex")
	}
	for member := range subject {
		if member != "format" && !slices.Contains(members, member) {
			return refuse(codeRequest, "a subject of format %s has a member that it does not have", format)
		}
	}
	if rev.Subject+rev.TokenID+rev.Session == "" {
		return refuse(codeRequest, "the subject of format %s names nobody", format)
	}
	if format != "opaque" && subject["iss"] != rev.Issuer {
		return refuse(codeRequest, "the subject is of another issuer than the event")
	}
	return nil
}

// nameComplex takes the narrower of a user and one of the user's sessions.
func nameComplex(rev *state.Revocation, subject map[string]any) *Error {
	for member := range subject {
		if member != "format" && member != "user" && member != "session" {
			return refuse(codeRequest, "a complex subject has a member other than user and session")
		}
	}
	var parts []*state.Revocation
	for _, member := range []string{"session", "user"} {
		value, there := subject[member]
		if !there {
			continue
		}
		simple, ok := value.(map[string]any)
		part := &state.Revocation{Issuer: rev.Issuer}
		if !ok || simple["format"] == "complex" {
			return refuse(codeRequest, "the %s of a complex subject is not a simple subject", member)
		}
		if refusal := name(part, simple); refusal != nil {
			return refusal
		}
		if member == "session" && part.Session == "" || member == "user" && part.Subject == "" {
			return refuse(codeRequest, "the %s of a complex subject names something else", member)
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return refuse(codeRequest, "a complex subject names neither a user nor a session")
	}
	rev.Session, rev.Subject = parts[0].Session, parts[0].Subject
	return nil
}

// names reports whether aud, a string or an array of strings, holds one of the audiences.
func names(aud any, audiences []string) bool {
	list, ok := aud.([]any)
	if !ok {
		list = []any{aud}
	}
	return slices.ContainsFunc(list, func(a any) bool {
		s, ok := a.(string)
		return ok && s != "" && slices.Contains(audiences, s)
	})
}

// seconds reads a time as whole seconds since 1970 (NumericDate).
func seconds(v any) (time.Time, bool) {
	n, ok := v.(int64)
	return time.Unix(n, 0), ok && n > 0 && n < 1<<33
}
