// Package state holds what replicas of a gate must agree on: which tokens are revoked, and which identifiers have been used.
//
// A Store is asked about every request, so the question is answered from memory (index.go): a few look-ups in exact
// maps, as fast with a million revocations as with none. What it knows is kept by a driver:
//
//   - local: a file of one process (bbolt). Revoke and Once return when the disk has it.
//   - nats: key-value buckets of a NATS JetStream cluster. Revoke and Once return when a quorum of its servers has it,
//     and a feed brings each revocation to every replica.
//
// What holds of both: a revocation that was acknowledged is never forgotten before its time, by no restart and no lost
// server; of all who use an identifier exactly one is told that it is the first; what is not known is an error, and the
// caller must refuse. A revocation begins to hold in the process that was asked before it is stored, and holds there even
// if it cannot be stored: the error then says that it would not survive, and that the others do not know it.
//
// Both keep a revocation for a few minutes longer than it asks for, so that a clock that is ahead forgets nothing early.
//
// Limits: whoever can write the file, or has the cluster's credentials, can undo revocations. doc/state.md says how to run
// a cluster, and what happens when it is down.
package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// Store is the agreement. It is safe for concurrent use.
type Store interface {
	// Revoke makes a revocation hold. When it returns nil the revocation is durable and holds in this process; every
	// other replica follows. It is idempotent. After an error it may or may not hold.
	Revoke(ctx context.Context, r Revocation) error
	// Revoked reports the revocation that a token falls under. It asks what is in memory: it neither waits nor fails.
	Revoked(t Token) (r Revocation, ok bool)
	// Once reports whether an identifier of a kind is used for the first time. Of all who ask with it before until, on
	// all replicas and after every restart, exactly one hears true. An error means that it is not known.
	Once(ctx context.Context, kind, id string, until time.Time) (first bool, err error)
	// Age is how long ago the store was last known to be complete: zero with one node, the time since the feed was last
	// heard with many.
	Age() time.Duration
	// Ready is nil once everything that was revoked before is in memory, else why it is not.
	Ready() error
	// Subscribe has f called with each revocation that begins to hold in this process, in order, until cancel is called.
	// f must not wait, and so must not call Revoke; it may call Revoked.
	Subscribe(f func(Revocation)) (cancel func())
	// List is what holds now, newest first, at most limit entries, and how many there are. One that another covers, of
	// the same tokens and for as long, is not kept beside it.
	List(limit int) (list []Revocation, total int)
	Close() error
}

// Revocation ends tokens of one issuer, by what they claim and never by their bytes. At most one of TokenID, Digest,
// Subject, Client, Session and KeyID is set; none of them means all tokens of the issuer.
type Revocation struct {
	Issuer  string `json:"issuer"` // required
	TokenID string `json:"token_id,omitempty"`
	Digest  string `json:"digest,omitempty"` // of a token without jti, as identity.Caller has it
	Subject string `json:"subject,omitempty"`
	Client  string `json:"client,omitempty"`
	Session string `json:"session,omitempty"` // sid
	KeyID   string `json:"key_id,omitempty"`
	// Before ends those issued at or before it, those without iat among them; in the future it ends those that will be
	// issued until then. It is in whole seconds, as iat is. Zero ends them whenever they were issued.
	Before time.Time `json:"before,omitzero"`
	// Until is when it may be forgotten: no token that it ends is valid any longer. Required.
	Until  time.Time `json:"until"`
	At     time.Time `json:"at"`               // when it was asked for; zero means now
	By     string    `json:"by,omitempty"`     // who asked: "admin", "event", "watch"
	Reason string    `json:"reason,omitempty"` // for the operator
}

// Token is what of a verified token a revocation can name.
type Token struct {
	Issuer, TokenID, Digest, Subject, Client, Session, KeyID string
	IssuedAt                                                 time.Time // zero: it has no iat
}

// Config is the state section.
type Config struct {
	Driver string // Local or NATS; empty means Local
	Path   string // of the local driver's file; required there

	// Of the nats driver.
	URL         []string // nats://, tls:// or wss:// of its servers; required there
	Credentials string   // file with a JWT and its seed; empty: the servers ask for none
	CA          string   // file with the roots of the servers' certificates; when set nothing is spoken but TLS
	Bucket      string   // empty means "sallyport"
	Replicas    int      // how many servers hold each entry: 1, 3 or 5; zero means 3

	// MaxFeedAge is how old what is known may be before those who ask for it should refuse. The store itself only
	// reports Age.
	MaxFeedAge time.Duration
}

// The drivers.
const (
	Local = "local"
	NATS  = "nats"
)

// Open opens what c names. A cluster that cannot be reached is no error: the store is not ready until it was. logger and
// metrics may be nil.
func Open(c Config, logger *slog.Logger, metrics prometheus.Registerer) (Store, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	switch c.Driver {
	case "", Local:
		return openLocal(c, localLimits, logger, metrics)
	case NATS:
		return openCluster(c, logger, metrics)
	}
	return nil, fmt.Errorf("open the state: driver %q is not known", c.Driver)
}

var (
	// ErrHeld says that another process has the file open.
	ErrHeld = errors.New("another process has it open")
	// ErrCorrupt says that the file is not one of ours, or no longer.
	ErrCorrupt = errors.New("it is damaged, or not a state file")
	// ErrFull says that there is no room for more until something expires.
	ErrFull = errors.New("there is no room for more until something expires")
	// ErrInvalid says that a revocation, or what Once was asked, has a wrong form.
	ErrInvalid = errors.New("invalid")

	errClosed = errors.New("the state is closed")
	errNobody = errors.New("none of the servers answers")
	// errNowhere says that somebody has deleted the buckets.
	errNowhere = errors.New("the buckets are gone, and not made anew yet")
)

// never is the Age of a store that was not complete yet.
const never = time.Duration(math.MaxInt64)

const (
	maxField = 1 << 10 // bytes of one field of a Revocation, and of an identifier
	// maxAhead bounds Until: what is never forgotten would fill the store for ever.
	maxAhead = 10 * 366 * 24 * time.Hour
	// grace is how long after Until something is kept: the largest leeway, and clocks that are two minutes apart.
	grace = 150 * time.Second
)

// validate judges what is asked for now. Every error wraps ErrInvalid.
func (r Revocation) validate(now time.Time) error {
	if err := r.form(); err != nil {
		return err
	}
	switch {
	case !r.Until.After(now):
		return fmt.Errorf("%w: until %s is past: it would end nothing", ErrInvalid, r.Until.UTC().Format(time.RFC3339))
	case r.Until.Sub(now) > maxAhead:
		return fmt.Errorf("%w: until is more than ten years ahead", ErrInvalid)
	}
	return nil
}

// form judges what holds at any time.
func (r Revocation) form() error {
	selectors := 0
	for _, f := range []struct {
		name, value string
		selects     bool
	}{
		{"issuer", r.Issuer, false}, {"token_id", r.TokenID, true}, {"digest", r.Digest, true}, {"subject", r.Subject, true},
		{"client", r.Client, true}, {"session", r.Session, true}, {"key_id", r.KeyID, true}, {"by", r.By, false}, {"reason", r.Reason, false},
	} {
		switch {
		case len(f.value) > maxField:
			return fmt.Errorf("%w: %s is longer than %d bytes", ErrInvalid, f.name, maxField)
		case !utf8.ValidString(f.value):
			return fmt.Errorf("%w: %s is not UTF-8", ErrInvalid, f.name)
		case f.selects && f.value != "":
			selectors++
		}
	}
	switch {
	case r.Issuer == "":
		return fmt.Errorf("%w: issuer is required", ErrInvalid)
	case selectors > 1:
		return fmt.Errorf("%w: more than one of token_id, digest, subject, client, session and key_id: revoke by one", ErrInvalid)
	case r.Until.IsZero():
		return fmt.Errorf("%w: until is required: when no token that it ends is valid any longer", ErrInvalid)
	case !representable(r.Until) || !r.Before.IsZero() && !representable(r.Before) || !r.At.IsZero() && !representable(r.At):
		return fmt.Errorf("%w: a time is before 1970 or after 2200", ErrInvalid)
	case !r.Before.IsZero() && r.Before.Nanosecond() != 0:
		return fmt.Errorf("%w: before must be in whole seconds, as iat is", ErrInvalid)
	case r.Before.After(r.Until):
		return fmt.Errorf("%w: before is after until: it would be forgotten while it still has to end tokens", ErrInvalid)
	}
	return nil
}

// representable holds a time within what nanoseconds since 1970 can say, with room for grace.
func representable(t time.Time) bool { return t.Unix() >= 0 && t.Year() <= 2200 }

// validateOnce judges what Once is asked.
func validateOnce(kind, id string, until, now time.Time) error {
	switch {
	case kind == "" || len(kind) > 64:
		return fmt.Errorf("%w: a kind has 1 to 64 bytes", ErrInvalid)
	case id == "" || len(id) > maxField:
		return fmt.Errorf("%w: an identifier has 1 to %d bytes", ErrInvalid, maxField)
	case !until.After(now):
		return fmt.Errorf("%w: until is past", ErrInvalid)
	case until.Sub(now) > maxAhead:
		return fmt.Errorf("%w: until is more than ten years ahead", ErrInvalid)
	}
	return nil
}
