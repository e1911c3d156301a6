package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/event"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/state"
)

const (
	maxAsked   = 16 << 10 // bytes of what is asked of the admin listener
	maxEvents  = 16       // security events at once: each waits for a device
	maxListed  = 1000
	longestDay = 720 * time.Hour // that ingress.issuers[].max_lifetime may be
)

// revoke is the one way in which a token is ended, whoever asks: the record first, then the effect.
func revoke(ctx context.Context, log *audit.Log, store state.Store, r state.Revocation) error {
	began := time.Now()
	r.At = began
	id := audit.NewID(began)
	err := log.Record(audit.Record{ID: id, Time: began, Point: "state", Decision: policy.Deny("revoked", r.Reason), Detail: revoked(r)})
	if err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	err = store.Revoke(ctx, r)
	o := audit.Outcome{ID: id, Duration: time.Since(began)}
	if err != nil {
		o.Error = err.Error()
	}
	if lost := log.Outcome(o); err == nil && lost != nil {
		return fmt.Errorf("revoke: it holds, and its outcome is not on record: %w", lost)
	}
	return err
}

// revoked is a revocation as a record has it.
func revoked(r state.Revocation) map[string]any {
	d := map[string]any{"issuer": r.Issuer, "until": r.Until.UTC().Format(time.RFC3339), "by": r.By}
	for name, value := range map[string]string{
		"token_id": r.TokenID, "digest": r.Digest, "subject": r.Subject, "client": r.Client, "session": r.Session, "key_id": r.KeyID,
	} {
		if value != "" {
			d[name] = value
		}
	}
	if !r.Before.IsZero() {
		d["before"] = r.Before.UTC().Format(time.RFC3339)
	}
	return d
}

// complete fills in what whoever asks need not say. Tokens of a subject, a client, a session or an issuer are ended as of
// now, and those made later are not; one token, and what a key has signed, whenever it was made. A revocation is kept for
// as long as the longest-lived token that it can concern; that of a key for years, since whoever has it goes on to sign.
func complete(r state.Revocation, f *config.File, now time.Time) state.Revocation {
	if r.Before.IsZero() && r.TokenID == "" && r.Digest == "" && r.KeyID == "" {
		r.Before = now
	}
	// iat is in whole seconds, and the one that has begun has not ended
	r.Before = r.Before.Truncate(time.Second)
	switch {
	case !r.Until.IsZero():
	case r.KeyID != "" && r.Before.IsZero():
		r.Until = now.AddDate(10, 0, 0)
	default:
		r.Until = now
		if r.Before.After(now) {
			r.Until = r.Before
		}
		r.Until = r.Until.Add(longestLifetime(f, r.Issuer))
	}
	return r
}

// longestLifetime is how long a token of an issuer may be valid, by either clock.
func longestLifetime(f *config.File, issuer string) time.Duration {
	for _, i := range f.Ingress.Issuers {
		if i.Issuer == issuer {
			lifetime, leeway := time.Hour, 5*time.Second // as package bearer has it
			if i.MaxLifetime > 0 {
				lifetime = i.MaxLifetime
			}
			if i.Leeway > 0 {
				leeway = i.Leeway
			}
			return lifetime + 2*leeway
		}
	}
	return longestDay // of an issuer that we do not know: nothing here lives longer
}

// revocations is what holds, as it is listed.
type revocations struct {
	Total       int                `json:"total"`
	Revocations []state.Revocation `json:"revocations"` // newest first, at most 1000
}

func (a *admin) listRevocations(w http.ResponseWriter, _ *http.Request) {
	list, total := a.gate.state.List(maxListed)
	if list == nil {
		list = []state.Revocation{}
	}
	answer(w, http.StatusOK, revocations{total, list})
}

func (a *admin) revoke(w http.ResponseWriter, r *http.Request) {
	result := "refused"
	defer func() { a.revoked.WithLabelValues(result).Inc() }()
	if err := mayChange(r); err != nil {
		problem(w, http.StatusForbidden, "forbidden", err.Error())
		return
	}
	var asked state.Revocation
	if err := readJSON(r, &asked); err != nil {
		problem(w, http.StatusBadRequest, "invalid_request", err.Error())
		return
	}
	asked.By = "admin"
	asked = complete(asked, a.gate.configuration(), time.Now())
	err := revoke(r.Context(), a.gate.audit, a.gate.state, asked)
	if errors.Is(err, state.ErrInvalid) {
		problem(w, http.StatusBadRequest, "invalid_request", err.Error())
		return
	}
	if err != nil {
		result = "failed"
		a.gate.log.Error("revoke", "error", err)
		problem(w, http.StatusServiceUnavailable, "not_revoked", err.Error())
		return
	}
	result = "done"
	answer(w, http.StatusOK, asked)
}

// rotation is what is asked of the signing keys.
type rotation struct {
	Withdraw string `json:"withdraw,omitempty"` // the kid of a key that is to end at once, after the next one was made
}

func (a *admin) rotate(w http.ResponseWriter, r *http.Request) {
	if err := mayChange(r); err != nil {
		problem(w, http.StatusForbidden, "forbidden", err.Error())
		return
	}
	var asked rotation
	if err := readJSON(r, &asked); err != nil {
		problem(w, http.StatusBadRequest, "invalid_request", err.Error())
		return
	}
	made, err := rotateKeys(a.gate.audit, a.gate.ring, asked.Withdraw)
	if err != nil {
		a.gate.log.Error("rotate the signing keys", "error", err)
		problem(w, http.StatusConflict, "not_rotated", err.Error())
		return
	}
	answer(w, http.StatusOK, made)
}

// events takes a security event token, pushed as RFC 8935 says: 202, or 400 with what was wrong. Its signature is its
// right to be here, so that any listener will do.
func (a *admin) events(w http.ResponseWriter, r *http.Request) {
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAsked))
	select { // behind the reading: whoever sends slowly takes nobody's place
	case a.busy <- struct{}{}:
		defer func() { <-a.busy }()
	default:
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusServiceUnavailable, "overloaded", "too many security events at once")
		return
	}
	if media != "application/secevent+jwt" || err != nil {
		a.refuseEvent(w, &event.Error{Code: "invalid_request", Detail: "the body is not an application/secevent+jwt of at most " + strconv.Itoa(maxAsked) + " bytes"})
		return
	}
	taken, err := a.receiver().Receive(r.Context(), bearer.NewToken(string(body)))
	if refused, ok := errors.AsType[*event.Error](err); ok {
		a.refuseEvent(w, refused)
		return
	}
	if err != nil {
		a.event.WithLabelValues("failed").Inc()
		a.gate.log.Error("take a security event", "error", err)
		problem(w, http.StatusServiceUnavailable, "not_taken", "it could not be judged or done in full: send it again")
		return
	}
	result := "done"
	switch {
	case taken.Again:
		result = "again"
	case len(taken.Revocations) == 0:
		result = "verification"
	}
	a.event.WithLabelValues(result).Inc()
	a.gate.log.Info("security event", "issuer", taken.Issuer, "jti", taken.ID, "result", result, "ends", len(taken.Revocations))
	w.WriteHeader(http.StatusAccepted)
}

// refuseEvent records a SET that was refused and tells its sender why, as RFC 8935, section 2.3 has it.
func (a *admin) refuseEvent(w http.ResponseWriter, e *event.Error) {
	a.event.WithLabelValues("refused").Inc()
	now := time.Now()
	err := a.gate.audit.Record(audit.Record{ID: audit.NewID(now), Time: now, Point: "state", Decision: policy.Deny("event_refused", e.Error())})
	if err != nil {
		a.gate.log.Error("record a refused security event", "error", err)
		problem(w, http.StatusServiceUnavailable, "not_recorded", "the audit log cannot be written")
		return
	}
	w.Header().Set("Content-Language", "en")
	answer(w, http.StatusBadRequest, map[string]string{"err": e.Code, "description": e.Detail})
}

// receiver takes the events of the issuers of the configuration in force.
func (a *admin) receiver() *event.Receiver {
	f := a.gate.configuration()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.received == nil || a.receivedBy != f {
		longest := time.Hour
		for _, i := range f.Ingress.Issuers {
			longest = max(longest, longestLifetime(f, i.Issuer))
		}
		a.receivedBy = f
		a.received = &event.Receiver{
			Verifier: a.gate.tokens, Audience: f.Ingress.Events, Lifetime: longest, Revoked: a.gate.state.Revoked,
			Revoke: func(ctx context.Context, r state.Revocation) error {
				r.By = "event"
				return revoke(ctx, a.gate.audit, a.gate.state, r)
			},
		}
	}
	return a.received
}

// readJSON reads one object of a known form, and nothing else. An empty body is an empty object.
func readJSON(r *http.Request, into any) error {
	d := json.NewDecoder(io.LimitReader(r.Body, maxAsked))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the body: %w", err)
	}
	if d.More() {
		return errors.New("read the body: there is more than one object")
	}
	return nil
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
