package ingress

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/jws"
	"github.com/sallyport/sallyport/internal/policy"
)

// headerTransaction carries a transaction token: from the gate behind another service to us, and from us to our service.
const headerTransaction = "Txn-Token"

const (
	// maxWorkloads is how many services a transaction may come through, ours included: identity signs for no more.
	maxWorkloads = 8
	// maxVisits is how often ours may be among those before: it may be called back, and not be part of a loop.
	maxVisits = 1

	// assertionLeeway is how far the clocks of the two ends of an assertion may differ, as package identity has it.
	assertionLeeway = 5 * time.Second
)

// The codes of a caller that came by a hop, beside those of identity, which are answered 401.
const (
	codeHopUnknown  policy.Code = "unknown_issuer"       // no configured hop signed it: 401
	codeHopKeys     policy.Code = "keys_unavailable"     // the hop's keys have not been fetched, or not for too long: 503
	codeHopCaller   policy.Code = "caller_not_allowed"   // the hop may not speak for callers of this issuer: 403
	codeLoop        policy.Code = "transaction_loop"     // the transaction came through our service twice already: 403
	codeChain       policy.Code = "transaction_too_long" // it came through as many services as it may: 403
	codeExpired     policy.Code = "expired"              // the token has ended, though its issuer's leeway admits it: 401
	codeNobodyNamed policy.Code = "missing_claim"        // the token names neither a subject nor a client: 401
)

// Hop is another gate whose transaction tokens are believed: it has verified a caller, and passes the caller on.
type Hop struct {
	Issuer  string         // by which it signs, byte for byte; not our own
	Keys    *bearer.KeySet // that it publishes; whoever made it closes it
	Scopes  []string       // those of a caller's that count here; empty: none
	Callers []string       // the issuers of tokens whose callers it may pass on; at least one
}

// hop is a Hop, ready to judge.
type hop struct {
	Hop
	verifier *identity.Verifier
}

// newHops checks what is believed of others, by the name that they sign with.
func newHops(r Rules) (map[string]hop, error) {
	if len(r.Hops) == 0 {
		return nil, nil
	}
	if r.Assert == nil || r.Assert.TrustDomain == "" {
		return nil, errors.New("hops: without an assertion and its trust domain nobody can say that a transaction is meant for this service")
	}
	hops := make(map[string]hop, len(r.Hops))
	for _, h := range r.Hops {
		_, twice := hops[h.Issuer]
		switch {
		case h.Issuer == "":
			return nil, errors.New("hops: a hop has no issuer")
		case h.Issuer == r.Assert.Issuer:
			return nil, fmt.Errorf("hops: %s is our own name: what we tell our service would open this gate", h.Issuer)
		case twice:
			return nil, fmt.Errorf("hops: %s is there twice", h.Issuer)
		case h.Keys == nil:
			return nil, fmt.Errorf("hops: %s has no keys", h.Issuer)
		case len(h.Callers) == 0:
			return nil, fmt.Errorf("hops: %s speaks for nobody: name the issuers of its callers", h.Issuer)
		}
		hops[h.Issuer] = hop{h, &identity.Verifier{
			Issuer: h.Issuer, Audience: r.Assert.Audience, TrustDomain: r.Assert.TrustDomain, Keys: h.Keys.Lookup, Now: r.Assert.Now,
		}}
	}
	return hops, nil
}

// byHop reports whether another gate's word is the credential: there is a hop to believe, and a Txn-Token.
func (x *exchange) byHop() bool {
	return len(x.rules.hops) > 0 && len(x.r.Header[headerTransaction]) > 0
}

// transaction takes the transaction token as the one credential of the request.
func (x *exchange) transaction() bool {
	switch {
	case len(x.r.Header[headerTransaction]) > 1:
		return x.deny(codeMultiple, "more than one Txn-Token header")
	case len(x.r.Header["Authorization"]) > 0:
		return x.deny(codeMultiple, "an Authorization header beside Txn-Token: which of the two callers is it?")
	case x.strayToken(x.r.Header["Cookie"]):
		return x.deny(codeMultiple, "an access_token in the query or a cookie beside Txn-Token")
	}
	x.token = bearer.NewToken(x.r.Header[headerTransaction][0])
	return x.alive()
}

// verifyHop turns the transaction token into the caller that the first gate verified, with what this gate lets the hop say.
func (x *exchange) verifyHop() bool {
	raw := x.r.Header[headerTransaction][0]
	h, code, err := x.rules.hopOf(raw)
	if err != nil {
		return x.refuse(policy.Deny(code, "Txn-Token: "+err.Error()), http.StatusUnauthorized)
	}
	caller, err := h.verifier.Verify(raw)
	if refused, ok := errors.AsType[*identity.Error](err); ok {
		if unready := h.Keys.Ready(); refused.Code == "kid_unknown" && unready != nil {
			return x.refuse(policy.Deny(codeHopKeys, fmt.Sprintf("the keys of the hop %s: %v", h.Issuer, unready)), http.StatusServiceUnavailable)
		}
		return x.refuse(policy.Deny(policy.Code(refused.Code), "Txn-Token of the hop "+h.Issuer+": "+refused.Detail), http.StatusUnauthorized)
	}
	if err != nil {
		return x.refuse(policy.Deny(codeTokenRefused, err.Error()), http.StatusUnauthorized)
	}
	if code, reason := h.Judge(&caller, x.rules.Assert.Audience); code != "" {
		return x.refuse(policy.Deny(code, reason), http.StatusForbidden)
	}
	x.caller = &caller
	return x.alive()
}

// leewayOf is how long after its expiry a caller's token is accepted: by its issuer's configuration, or by a hop.
func (r *rules) leewayOf(c *identity.Caller) time.Duration {
	if len(c.Workloads) > 0 {
		return assertionLeeway
	}
	return r.Verifier.Leeway(c.Issuer)
}

// lostHop judges a caller again that came by a hop, whose key is named by its thumbprint and so is one hop's only. It reports
// why the hop's word does not count any more, and the caller as far as it does.
func (r *rules) lostHop(c *identity.Caller) (identity.Caller, *cause.Lost) {
	for _, h := range r.hops {
		if _, ok := h.Keys.Lookup(c.KeyID); !ok {
			continue
		}
		narrowed := *c
		if _, reason := h.Judge(&narrowed, r.Assert.Audience); reason != "" {
			return narrowed, &cause.Lost{Code: lostRoute, Reason: reason}
		}
		return narrowed, nil
	}
	return *c, &cause.Lost{Code: lostKey, Reason: "the key of the hop is in use no more"}
}

// hopOf finds the hop that a transaction token claims to be of. The claim is not verified yet: it only says whose keys
// must now show it to be true.
func (r *rules) hopOf(raw string) (hop, policy.Code, error) {
	t, err := jws.Parse(raw)
	if form, ok := errors.AsType[*jws.Error](err); ok {
		return hop{}, policy.Code(form.Code), errors.New(form.Detail)
	}
	if err != nil {
		return hop{}, codeTokenRefused, err
	}
	issuer, _ := t.Payload["iss"].(string)
	h, ok := r.hops[issuer]
	if !ok {
		return hop{}, codeHopUnknown, fmt.Errorf("iss %.80q is no hop of ingress.hops", issuer)
	}
	return h, "", nil
}

// Judge holds a caller of an authentic statement of the hop against what it may say here, and narrows the caller to that.
// own is our service. A code is a refusal.
func (h Hop) Judge(c *identity.Caller, own string) (code policy.Code, reason string) {
	if !slices.Contains(h.Callers, c.Issuer) {
		return codeHopCaller, fmt.Sprintf("the hop %s may not speak for callers of the issuer %.80q: ingress.hops lists its callers", h.Issuer, c.Issuer)
	}
	visits := 0
	for _, w := range c.Workloads {
		if w == own {
			visits++
		}
	}
	switch way := strings.Join(c.Workloads, ", "); {
	case visits > maxVisits:
		return codeLoop, fmt.Sprintf("the transaction came through %s %d times already: %s", own, visits, way)
	case len(c.Workloads) >= maxWorkloads:
		return codeChain, fmt.Sprintf("the transaction came through %d services already: %s", len(c.Workloads), way)
	}
	var narrowed []string
	for _, s := range c.Scopes {
		if slices.Contains(h.Scopes, s) {
			narrowed = append(narrowed, s)
		}
	}
	c.Scopes = narrowed
	return "", ""
}
