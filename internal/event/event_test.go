package event_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/event"
	"github.com/sallyport/sallyport/internal/sallytest"
	"github.com/sallyport/sallyport/internal/state"
)

const (
	us             = "https://gate.example.test/events"
	sessionRevoked = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
	verification   = "https://schemas.openid.net/secevent/ssf/event-type/verification"
)

type object = map[string]any

// house is a receiver of one issuer's events, and what they have ended.
type house struct {
	*event.Receiver
	issuer, stranger *sallytest.Issuer
	ended            []state.Revocation
	failing          error
	now              time.Time
}

func newHouse(t testing.TB) *house {
	h := &house{issuer: sallytest.NewIssuer(t), stranger: sallytest.NewIssuer(t), now: time.Now().Truncate(time.Second)}
	accepted := func(i *sallytest.Issuer) bearer.Issuer {
		return bearer.Issuer{Issuer: i.URL, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{URI: i.URL + sallytest.PathJWKS}}
	}
	// the other issuer's tokens are accepted too, its events are not
	v, err := bearer.NewVerifier([]bearer.Issuer{accepted(h.issuer), accepted(h.stranger)}, bearer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	for deadline := time.Now().Add(10 * time.Second); v.Ready() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(v.Ready())
		}
	}
	h.Receiver = &event.Receiver{
		Verifier: func() *bearer.Verifier { return v },
		Audience: map[string][]string{h.issuer.URL: {us}},
		Lifetime: time.Hour,
		Now:      func() time.Time { return h.now },
		Revoke: func(_ context.Context, r state.Revocation) error {
			if h.failing == nil {
				h.ended = append(h.ended, r)
			}
			return h.failing
		},
	}
	return h
}

// set is a good SET, changed by the overrides: a nil value takes a claim away.
func (h *house) set(overrides object) object {
	claims := object{
		"iss": h.issuer.URL, "aud": us, "jti": "set-1", "iat": h.now.Unix(),
		"sub_id": object{"format": "iss_sub", "iss": h.issuer.URL, "sub": "alice"},
		"events": object{sessionRevoked: object{"event_timestamp": h.now.Unix() - 7}},
	}
	maps.Copy(claims, overrides)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

func (h *house) sign(t testing.TB, by *sallytest.Issuer, typ string, claims object) bearer.Token {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return bearer.NewToken(by.Sign("ES256", `{"alg":"ES256","kid":"`+by.KeyID("ES256")+`","typ":"`+typ+`"}`, string(payload)))
}

// What each form of a subject ends: the tokens issued until it happened, of this issuer.
func TestWhatItEnds(t *testing.T) {
	h := newHouse(t)
	happened, until := h.now.Add(-7*time.Second), h.now.Add(time.Hour+30*time.Second)
	user := object{"format": "iss_sub", "iss": h.issuer.URL, "sub": "alice"}
	session := object{"format": "opaque", "id": "sid-1"}
	for name, c := range map[string]struct {
		subject object
		want    state.Revocation
	}{
		"a subject":            {user, state.Revocation{Subject: "alice", Before: happened}},
		"a token":              {object{"format": "jwt_id", "iss": h.issuer.URL, "jti": "t-1"}, state.Revocation{TokenID: "t-1"}},
		"a session":            {session, state.Revocation{Session: "sid-1", Before: happened}},
		"a user's session":     {object{"format": "complex", "user": user, "session": session}, state.Revocation{Session: "sid-1", Before: happened}},
		"a user, in a complex": {object{"format": "complex", "user": user}, state.Revocation{Subject: "alice", Before: happened}},
	} {
		for _, place := range []string{"sub_id", "subject"} {
			t.Run(name+" as "+place, func(t *testing.T) {
				h.ended = nil
				claims := h.set(object{"jti": t.Name(), "sub_id": c.subject})
				if place == "subject" { // where drafts of CAEP had it
					claims = h.set(object{"jti": t.Name(), "sub_id": nil, "events": object{sessionRevoked: object{"event_timestamp": h.now.Unix() - 7, "subject": c.subject}}})
				}
				if _, err := h.Receive(t.Context(), h.sign(t, h.issuer, "secevent+jwt", claims)); err != nil {
					t.Fatal(err)
				}
				want := c.want
				want.Issuer, want.At, want.Until, want.Reason = h.issuer.URL, h.now, until, "session revoked"
				if len(h.ended) != 1 || !reflect.DeepEqual(h.ended[0], want) {
					t.Errorf("ended %+v\nwant  %+v", h.ended, want)
				}
			})
		}
	}
}

// Row by row of what is sent by whoever is not the issuer, or by an issuer that means something that we do not understand:
// nothing is ended.
func TestRefused(t *testing.T) {
	h := newHouse(t)
	subject := func(o object) object { return h.set(object{"sub_id": o}) }
	for name, c := range map[string]struct {
		by   *sallytest.Issuer
		typ  string
		set  object
		code string
	}{
		"another key":                  {by: h.stranger, code: "invalid_key"},
		"an issuer nobody knows":       {set: h.set(object{"iss": "https://elsewhere.example.test"}), code: "invalid_issuer"},
		"an issuer without events":     {by: h.stranger, set: h.set(object{"iss": h.stranger.URL}), code: "invalid_issuer"},
		"an access token":              {typ: "at+jwt", code: "invalid_request"},
		"no type":                      {typ: "JWT", code: "invalid_request"},
		"for somebody else":            {set: h.set(object{"aud": "https://other.example.test"}), code: "invalid_audience"},
		"for nobody":                   {set: h.set(object{"aud": nil}), code: "invalid_audience"},
		"for a number":                 {set: h.set(object{"aud": []any{7}}), code: "invalid_audience"},
		"no jti":                       {set: h.set(object{"jti": nil}), code: "invalid_request"},
		"a jti that is too long":       {set: h.set(object{"jti": strings.Repeat("x", 257)}), code: "invalid_request"},
		"no iat":                       {set: h.set(object{"iat": nil}), code: "invalid_request"},
		"iat in the future":            {set: h.set(object{"iat": h.now.Unix() + 31}), code: "invalid_request"},
		"iat too long ago":             {set: h.set(object{"iat": h.now.Unix() - 3601}), code: "invalid_request"},
		"exp":                          {set: h.set(object{"exp": h.now.Unix() + 60}), code: "invalid_request"},
		"no events":                    {set: h.set(object{"events": nil}), code: "invalid_request"},
		"an empty list of events":      {set: h.set(object{"events": object{}}), code: "invalid_request"},
		"an event that is no object":   {set: h.set(object{"events": object{sessionRevoked: true}}), code: "invalid_request"},
		"an unknown event":             {set: h.set(object{"events": object{"https://example.test/other": object{}}}), code: "invalid_request"},
		"an unknown event beside one":  {set: h.set(object{"events": object{"https://example.test/other": object{}, sessionRevoked: object{}}}), code: "invalid_request"},
		"it is yet to happen":          {set: h.set(object{"events": object{sessionRevoked: object{"event_timestamp": h.now.Unix() + 3600}}}), code: "invalid_request"},
		"it happened in milliseconds":  {set: h.set(object{"events": object{sessionRevoked: object{"event_timestamp": h.now.UnixMilli()}}}), code: "invalid_request"},
		"no subject":                   {set: h.set(object{"sub_id": nil}), code: "invalid_request"},
		"two subjects":                 {set: h.set(object{"events": object{sessionRevoked: object{"subject": object{"format": "opaque", "id": "s"}}}}), code: "invalid_request"},
		"a subject of another issuer":  {set: subject(object{"format": "iss_sub", "iss": h.stranger.URL, "sub": "alice"}), code: "invalid_request"},
		"a token of another issuer":    {set: subject(object{"format": "jwt_id", "iss": h.stranger.URL, "jti": "t-1"}), code: "invalid_request"},
		"a subject without issuer":     {set: subject(object{"format": "iss_sub", "sub": "alice"}), code: "invalid_request"},
		"a subject without name":       {set: subject(object{"format": "iss_sub", "iss": h.issuer.URL}), code: "invalid_request"},
		"a format nobody knows":        {set: subject(object{"format": "email", "email": "a@example.test"}), code: "invalid_request"},
		"no format":                    {set: subject(object{"iss": h.issuer.URL, "sub": "alice"}), code: "invalid_request"},
		"a narrower subject":           {set: subject(object{"format": "iss_sub", "iss": h.issuer.URL, "sub": "alice", "device": "d"}), code: "invalid_request"},
		"a user's device":              {set: subject(object{"format": "complex", "user": object{"format": "iss_sub", "iss": h.issuer.URL, "sub": "alice"}, "device": object{"format": "opaque", "id": "d"}}), code: "invalid_request"},
		"a complex subject of nothing": {set: subject(object{"format": "complex"}), code: "invalid_request"},
		"complex in complex":           {set: subject(object{"format": "complex", "user": object{"format": "complex"}}), code: "invalid_request"},
		"a session for a user":         {set: subject(object{"format": "complex", "user": object{"format": "opaque", "id": "s"}}), code: "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			by, typ, set := h.issuer, "secevent+jwt", h.set(nil)
			if c.by != nil {
				by = c.by
			}
			if c.typ != "" {
				typ = c.typ
			}
			if c.set != nil {
				set = c.set
			}
			_, err := h.Receive(t.Context(), h.sign(t, by, typ, set))
			refused, ok := errors.AsType[*event.Error](err)
			if !ok || refused.Code != c.code {
				t.Errorf("%v, want %s", err, c.code)
			}
			if len(h.ended) > 0 {
				t.Fatalf("it ended %+v", h.ended)
			}
		})
	}
	for _, junk := range []string{"", "a.b.c", "not a token at all"} {
		if _, err := h.Receive(t.Context(), bearer.NewToken(junk)); err == nil || len(h.ended) > 0 {
			t.Errorf("%q was taken", junk)
		}
	}
}

func TestAgain(t *testing.T) {
	h := newHouse(t)
	set := h.sign(t, h.issuer, "secevent+jwt", h.set(nil))

	// what was not done is done the next time
	h.failing = errors.New("the store is down")
	if _, err := h.Receive(t.Context(), set); !errors.Is(err, h.failing) {
		t.Fatalf("%v", err)
	}
	h.failing = nil
	for i := range 3 {
		e, err := h.Receive(t.Context(), set)
		if err != nil || e.Again != (i > 0) || e.ID != "set-1" || e.Issuer != h.issuer.URL {
			t.Errorf("%d: %+v, %v", i, e, err)
		}
	}
	if len(h.ended) != 1 {
		t.Errorf("one event was done %d times", len(h.ended))
	}
	// many others later it may be done again, to the same effect: what is remembered is bounded
	for i := range 4096 {
		if _, err := h.Receive(t.Context(), h.sign(t, h.issuer, "secevent+jwt", h.set(object{"jti": string(rune('a'+i%26)) + time.Duration(i).String()}))); err != nil {
			t.Fatal(err)
		}
	}
	before := h.ended[0]
	h.ended = nil
	if e, err := h.Receive(t.Context(), set); err != nil || e.Again || len(h.ended) != 1 || !reflect.DeepEqual(h.ended[0], before) {
		t.Errorf("%+v, %v: ended %+v, at first %+v", e, err, h.ended, before)
	}
}

// What a key has signed is nobody's word once the key was revoked: its thief could end everybody's sessions.
func TestRevokedKey(t *testing.T) {
	h := newHouse(t)
	h.Revoked = func(k state.Token) (state.Revocation, bool) {
		return state.Revocation{}, k.Issuer == h.issuer.URL && k.KeyID == h.issuer.KeyID("ES256") && k.IssuedAt.Equal(h.now)
	}
	_, err := h.Receive(t.Context(), h.sign(t, h.issuer, "secevent+jwt", h.set(nil)))
	if refused, ok := errors.AsType[*event.Error](err); !ok || refused.Code != "invalid_key" || len(h.ended) > 0 {
		t.Errorf("%v: ended %+v", err, h.ended)
	}
}

func TestVerificationEndsNothing(t *testing.T) {
	h := newHouse(t)
	e, err := h.Receive(t.Context(), h.sign(t, h.issuer, "secevent+jwt", h.set(object{"events": object{verification: object{"state": "x"}}, "sub_id": nil})))
	if err != nil || len(e.Revocations) > 0 || len(h.ended) > 0 {
		t.Errorf("%+v, %v", e, err)
	}
}

// Keys that are not there yet are nobody's fault: it may be sent again.
func TestKeysNotThere(t *testing.T) {
	h := newHouse(t)
	h.stranger.Fail(503)
	v, err := bearer.NewVerifier([]bearer.Issuer{{Issuer: h.issuer.URL, Audience: []string{"x"}, Keys: bearer.Keys{URI: h.stranger.URL + sallytest.PathJWKS}}}, bearer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	h.Verifier = func() *bearer.Verifier { return v }
	_, err = h.Receive(t.Context(), h.sign(t, h.issuer, "secevent+jwt", h.set(nil)))
	if _, refused := errors.AsType[*event.Error](err); err == nil || refused {
		t.Errorf("%v", err)
	}
}

// FuzzRead holds that whatever an issuer signs ends nothing but what is its own, and nothing that is issued later.
func FuzzRead(f *testing.F) {
	h := newHouse(f)
	for _, o := range []object{nil, {"sub_id": object{"format": "complex", "session": object{"format": "opaque", "id": "s"}}}, {"events": object{}}} {
		payload, err := json.Marshal(h.set(o))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(payload))
	}
	f.Fuzz(func(t *testing.T, payload string) {
		h.ended = nil
		token := h.issuer.Sign("ES256", `{"alg":"ES256","kid":"`+h.issuer.KeyID("ES256")+`","typ":"secevent+jwt"}`, payload)
		e, err := h.Receive(t.Context(), bearer.NewToken(token))
		if err != nil && len(h.ended) > 0 {
			t.Fatalf("refused with %v, and ended %+v", err, h.ended)
		}
		for _, r := range h.ended {
			if r.Issuer != h.issuer.URL || r.Subject+r.Session+r.TokenID == "" || r.Before.After(h.now.Add(time.Minute)) || r.Before.IsZero() && r.TokenID == "" {
				t.Fatalf("%q ended %+v (%+v)", payload, r, e)
			}
		}
	})
}

// A session is ended by an event about a session. What says that an account is gone, and names it by an id that may be
// anything's, must not be answered as if it were done.
func TestAnAccountIsNoSession(t *testing.T) {
	h := newHouse(t)
	session := object{"format": "opaque", "id": "alice"}
	const types = "https://schemas.openid.net/secevent/"
	for _, uri := range []string{
		sessionRevoked, types + "caep/event-type/credential-change", types + "risc/event-type/sessions-revoked",
		types + "risc/event-type/account-disabled", types + "risc/event-type/account-purged",
	} {
		for _, subject := range []object{session, {"format": "complex", "session": session}} {
			h.ended = nil
			claims := h.set(object{"jti": uri + subject["format"].(string), "sub_id": subject, "events": object{uri: object{}}})
			_, err := h.Receive(t.Context(), h.sign(t, h.issuer, "secevent+jwt", claims))
			if taken := err == nil; taken != (uri == sessionRevoked) || taken != (len(h.ended) == 1) {
				t.Errorf("%s of %v: %v, ended %+v", uri, subject, err, h.ended)
			}
		}
	}
}
