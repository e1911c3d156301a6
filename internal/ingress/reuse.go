package ingress

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// maxStatements bounds the assertions that are kept to be used again, of both generations together: some 16 MiB.
const maxStatements = 16 << 10

// statements are the assertions of the last moments, for further requests of the same token on the same route. Every such
// request has gone down the whole line: what is saved is the signature, and nothing is decided by what is kept.
type statements struct {
	keep time.Duration // how old one may be; not positive: none is used again

	mu         sync.Mutex
	young, old map[statementOf]*statement // old is what was young before it turned
	turned     time.Time
}

// statementOf is what a statement is about.
type statementOf struct{ issuer, digest, route string }

// statement is an assertion that was made for a request.
type statement struct {
	text    string
	request string // its jti, and the transaction that it began
	key     string // the kid that it was signed with
	made    time.Time
	expires time.Time
	about   [sha256.Size]byte // see aboutCaller
}

// statementFor is what an exchange's assertion would be kept as. There is nothing to keep for who came by a hop, whose
// transaction goes on, or has a token that nothing names.
func (x *exchange) statementFor() (of statementOf, ok bool) {
	r, c := x.rules, x.caller
	if r.AssertReuse <= 0 || r.Assert == nil || c == nil || c.Digest == "" || c.Transaction != x.id || len(c.Workloads) > 0 {
		return of, false
	}
	return statementOf{c.Issuer, c.Digest, x.selection.Route.Name}, true
}

// restate finds an assertion that says of this request's caller what a new one would, but for the request's own id.
func (x *exchange) restate() {
	of, ok := x.statementFor()
	if !ok || !x.decision.Allowed() {
		return
	}
	now := x.g.now()
	s := x.rules.statements.find(of, now)
	if s == nil || s.key != x.rules.Assert.Key().ID {
		return
	}
	if about, plain := aboutCaller(x.caller, x.rules.Assert.Claims); !plain || about != s.about {
		return
	}
	x.stated = s
	x.caller.Transaction = s.request // which goes on here: the record says so, and what the gate behind signs
}

// state keeps an assertion that was made for this request.
func (x *exchange) state() {
	of, ok := x.statementFor()
	if !ok {
		return
	}
	about, plain := aboutCaller(x.caller, x.rules.Assert.Claims)
	if !plain {
		return
	}
	now, lifetime := x.g.now(), x.rules.Assert.Lifetime
	if lifetime == 0 {
		lifetime = time.Minute
	}
	s := &statement{text: x.assertion, request: x.id, key: x.rules.Assert.Key().ID, made: now, expires: now.Truncate(time.Second).Add(lifetime), about: about}
	if x.caller.Expires.Before(s.expires) {
		s.expires = x.caller.Expires
	}
	x.rules.statements.add(of, s)
}

func (k *statements) find(of statementOf, now time.Time) *statement {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.young[of]
	if s == nil {
		s = k.old[of]
	}
	if s == nil || now.Before(s.made) || now.Sub(s.made) >= k.keep || !now.Before(s.expires) {
		return nil
	}
	return s
}

// add keeps a statement until its time is over, or there are too many.
func (k *statements) add(of statementOf, s *statement) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.young == nil || len(k.young) >= maxStatements/2 || s.made.Sub(k.turned) >= k.keep {
		k.old, k.young, k.turned = k.young, map[statementOf]*statement{}, s.made
	}
	k.young[of] = s
}

// aboutCaller is a digest of all that an assertion says of a caller beside issuer and token. Of one token it differs only where somebody else
// was asked about it, and has answered differently. plain is false if a claim that is passed on is no plain value.
func aboutCaller(c *identity.Caller, claims []string) (sum [sha256.Size]byte, plain bool) {
	var room [512]byte
	b := room[:0]
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	for _, s := range [...]string{c.Subject, c.Client, c.TokenID} {
		text(s)
	}
	b = binary.AppendVarint(b, c.Expires.UnixNano())
	b = binary.AppendVarint(b, c.IssuedAt.UnixNano())
	b = binary.AppendUvarint(b, uint64(len(c.Scopes)))
	for _, s := range c.Scopes {
		text(s)
	}
	for i := range len(claims) + 1 {
		name := "sid"
		if i > 0 {
			name = claims[i-1]
		}
		value, has := c.Claims[name]
		switch v := value.(type) {
		case nil:
			b = append(b, 'n', truth(has))
		case string:
			b = append(b, 's')
			text(v)
		case bool:
			b = append(b, 'b', truth(v))
		case int64:
			b = binary.AppendVarint(append(b, 'i'), v)
		default:
			return sum, false
		}
	}
	return sha256.Sum256(b), true
}

func truth(b bool) byte {
	if b {
		return 1
	}
	return 0
}
