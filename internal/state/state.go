// Package state holds what replicas of a gate must agree on: which tokens are revoked, and which identifiers have been used.
package state

import (
	"context"
	"time"
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
	// f must not wait.
	Subscribe(f func(Revocation)) (cancel func())
	// List is what holds now, newest first, at most limit entries, and how many there are.
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
	At     time.Time `json:"at"`               // when it was asked for
	By     string    `json:"by,omitempty"`     // who asked: "admin", "event", "watch"
	Reason string    `json:"reason,omitempty"` // for the operator
}

// Token is what of a verified token a revocation can name.
type Token struct {
	Issuer, TokenID, Digest, Subject, Client, Session, KeyID string
	IssuedAt                                                 time.Time // zero: it has no iat
}
