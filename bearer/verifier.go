package bearer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/jws"
	"github.com/sallyport/sallyport/internal/oauth"
	"github.com/sallyport/sallyport/safedial"
)

const maxLeeway = 30 * time.Second

// Verifier turns tokens into callers. Safe for concurrent use. The zero value refuses every token.
type Verifier struct {
	authorities map[string]*authority // by iss, byte for byte
	domains     map[string]*authority // by SPIFFE trust domain
	now         func() time.Time
	bound       bool
	cache       *cache // nil: nothing is remembered
	cancel      context.CancelFunc
	fetching    sync.WaitGroup
	watch       watchers
	asking      []*authority // that are asked about opaque tokens
}

// authority is an Issuer with its defaults filled in, and its keys.
type authority struct {
	Issuer
	keys  *source
	bound bool                // cnf is judged by who asks
	asks  *oauth.Introspector // nil: nobody is asked about tokens
}

// NewVerifier checks the issuers and starts fetching keys in the background. It fails on an issuer without
// audience, an unusable key file and anything else that could only ever deny or wrongly allow; its error names
// everything that is wrong. The caller must Close the Verifier.
func NewVerifier(issuers []Issuer, o Options) (*Verifier, error) {
	if o.Refresh < 0 || o.MaxStale < 0 {
		return nil, errors.New("build verifier: a negative duration in the options")
	}
	if o.Remember < 0 {
		return nil, errors.New("build verifier: a negative size in the options")
	}
	return newVerifier(issuers, o, defaultPace(o))
}

// newVerifier is NewVerifier at a given pace.
func newVerifier(issuers []Issuer, o Options, p pace) (*Verifier, error) {
	if len(issuers) == 0 {
		return nil, errors.New("build verifier: no issuer")
	}
	v := &Verifier{authorities: map[string]*authority{}, domains: map[string]*authority{}, now: o.Now, bound: o.Bound, cache: newCache(o.Remember)}
	if v.now == nil {
		v.now = time.Now
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	guard := guardOf(o.Guard, issuers)

	var wrong []error
	for _, issuer := range issuers {
		a, err := newAuthority(issuer)
		if _, twice := v.authorities[issuer.Issuer]; err == nil && twice {
			err = errors.New("the issuer is there twice")
		}
		if err == nil && a.Kind == KindSPIFFE {
			if v.domains[a.TrustDomain] != nil {
				err = errors.New("its trust domain is another issuer's too")
			}
			v.domains[a.TrustDomain] = a
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("build verifier: issuer %s: %w", brief(issuer.Issuer), err))
			continue
		}
		a.bound = o.Bound
		a.keys = &source{
			issuer: issuer.Issuer, algorithms: a.Algorithms, kind: a.Kind, fetch: fetchFrom(issuer.Issuer, issuer.Keys, guard),
			pace: p, now: v.now, log: log, missed: make(chan struct{}, 1), kept: keptIn(o.Keep, issuer),
			withdrawn: v.watch.tell,
		}
		v.authorities[issuer.Issuer] = a
		if a.Introspection == nil {
			continue
		}
		if err := a.open(o, v.now, log); err != nil {
			wrong = append(wrong, fmt.Errorf("build verifier: issuer %s: %w", brief(issuer.Issuer), err))
			continue
		}
		v.asking = append(v.asking, a)
		v.watch.add(func(issuer, _ string) { // a signed answer rests on the key that has gone
			if issuer == a.Issuer.Issuer {
				a.asks.Forget()
			}
		})
	}
	if err := checkOpaque(issuers); err != nil {
		wrong = append(wrong, err)
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	if err := v.start(log); err != nil {
		return nil, err
	}
	return v, nil
}

// guardOf returns the guard through which the keys of issuers are fetched: the given one, or without it one that leads to the
// hosts that they name.
func guardOf(guard *safedial.Guard, issuers []Issuer) *safedial.Guard {
	if guard == nil {
		// A cluster issues tokens too, and publishes their keys at its API; an issuer may run on the machine around this
		// container. Neither opens what is private and not an issuer's.
		guard = &safedial.Guard{Allow: destinations(issuers), Unlock: []string{"kubernetes-api", "node-gateway"}}
	}
	return guard
}

// start reads the key files, which must be usable now, and fetches the other keys
// in the background, since a server that is down now may be up in a moment.
func (v *Verifier) start(log *slog.Logger) error {
	ctx, cancel := context.WithCancel(context.Background())
	due := map[*source]time.Time{}
	for name, a := range v.authorities {
		if !a.keyed() {
			continue
		}
		if a.Keys.File == "" {
			if plain(a.Issuer) {
				log.Warn("keys are fetched without TLS: whoever is on the way decides who is let in", "issuer", name)
			}
			due[a.keys] = time.Now()
			continue
		}
		wait, err := a.keys.update(ctx)
		if err != nil {
			cancel()
			return fmt.Errorf("build verifier: issuer %s: %w", brief(name), &Error{Code: codeUnavailable, Err: err})
		}
		due[a.keys] = time.Now().Add(early(wait))
	}
	v.cancel = cancel
	for s, at := range due {
		v.fetching.Go(func() { s.run(ctx, at) })
	}
	return nil
}

func plain(i Issuer) bool {
	return strings.HasPrefix(i.Keys.URI, "http://") || i.Keys.Discovery && strings.HasPrefix(i.Issuer, "http://")
}

// Verify returns the caller that the token proves, or a *Error. It never waits for a key; for the answer about an opaque token
// it does (VerifyFrom).
func (v *Verifier) Verify(ctx context.Context, t Token) (identity.Caller, error) {
	return v.VerifyFrom(ctx, t, netip.Addr{}, false)
}

// verify is the straight line: form, issuer, algorithm, key, signature (or what is remembered of them), then the claims.
// Nothing is said about the configuration of claims before the signature has
// shown that an authorization server of ours wrote the token.
func (v *Verifier) verify(ctx context.Context, t Token) (identity.Caller, *Error) {
	if t.raw == nil {
		return identity.Caller{}, refuse(codeMissing, "no token")
	}
	p, remembered, refusal := v.show(ctx, *t.raw)
	if refusal != nil {
		return identity.Caller{}, refusal
	}
	now := v.now()
	caller, refusal := p.judge(now)
	if refusal != nil {
		return identity.Caller{}, refusal
	}
	if !remembered {
		v.cache.keep(p, now)
	}
	// last, so that a request that has ended is never let in
	if err := ctx.Err(); err != nil {
		return identity.Caller{}, &Error{Code: codeCanceled, Err: err}
	}
	return caller, nil
}

// Authentic shows that a key of a configured issuer has signed t, a JWT of any
// type, and returns the issuer, the key's id, the type in lower case without
// "application/", and the claims. It judges none of them, neither audience nor
// time: it is for what is no access token, and lets nobody in. Its error is an
// *Error.
func (v *Verifier) Authentic(t Token) (issuer, keyID, typ string, claims map[string]any, err error) {
	if t.raw == nil {
		return "", "", "", nil, refuse(codeMissing, "no token")
	}
	token, err := jws.Parse(*t.raw)
	if err != nil {
		return "", "", "", nil, malformed(err)
	}
	a, refusal := v.issuerNamed(token.Payload["iss"])
	if refusal != nil {
		return "", "", "", nil, refusal
	}
	k, refusal := prove(*t.raw, token, a.Algorithms, a.keys.lookup)
	if refusal != nil {
		return "", "", "", nil, refusal
	}
	return a.Issuer.Issuer, k.id, foldType(token.Type), token.Payload, nil
}

// prove shows that a key that lookup returns has signed the token, and returns it.
// The algorithm is judged before any key is looked for.
func prove(raw string, token jws.Compact, algorithms []string, lookup func(id string, hasID bool, algorithm string) (key, *Error)) (key, *Error) {
	if !slices.Contains(algorithms, token.Algorithm) {
		return key{}, refuse(codeAlgorithm, "alg %s is not in the issuer's list", brief(token.Algorithm))
	}
	k, refusal := lookup(token.KeyID, token.HasKeyID, token.Algorithm)
	if refusal != nil {
		return key{}, refusal
	}
	if err := k.Verify(raw, token.Algorithm); err != nil {
		return key{}, refuse(codeSignature, "kid %s: %v", brief(k.id), err)
	}
	return k, nil
}

func malformed(err error) *Error {
	var form *jws.Error
	if errors.As(err, &form) {
		return refuse(form.Code, "%s", form.Detail)
	}
	return &Error{Code: jws.CodeNotCompact, Err: err}
}

// authorityOf finds the issuer that a token claims to be of: by iss, or, where there is none, by the trust domain of a SPIFFE
// ID in sub, since a JWT-SVID need not have one. The claim has not been
// verified: it only says whose keys must now show it to be true.
func (v *Verifier) authorityOf(claims map[string]any) (*authority, *Error) {
	iss, there := claims["iss"]
	if !there && v != nil {
		domain, _ := readSPIFFE(claims["sub"])
		if a := v.domains[domain]; a != nil {
			return a, nil
		}
	}
	return v.issuerNamed(iss)
}

// issuerNamed finds an issuer by what a token has as iss.
func (v *Verifier) issuerNamed(iss any) (*authority, *Error) {
	name, ok := iss.(string)
	if !ok {
		return nil, refuse(codeIssuer, "no iss that is a string")
	}
	if v == nil || v.authorities[name] == nil {
		return nil, refuse(codeIssuer, "iss %s", brief(name))
	}
	return v.authorities[name], nil
}

// Ready returns nil once every issuer that has keys has usable ones, else which has none and why.
func (v *Verifier) Ready() error {
	if v == nil || len(v.authorities) == 0 {
		return errors.New("no issuer")
	}
	var missing []error
	for name, a := range v.authorities {
		if _, err := a.keys.usable(); err != nil && a.keyed() {
			missing = append(missing, fmt.Errorf("issuer %s: %w", brief(name), err))
		}
	}
	slices.SortFunc(missing, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(missing...)
}

// Close ends the background fetches and waits for them. Tokens are verified with the keys that are there
// until they are too old.
func (v *Verifier) Close() {
	if v == nil || v.cancel == nil {
		return
	}
	v.cancel()
	v.fetching.Wait()
	for _, a := range v.asking {
		a.asks.Close()
	}
}
