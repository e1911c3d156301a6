package egress

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/credential"
	"github.com/sallyport/sallyport/internal/leak"
	"github.com/sallyport/sallyport/internal/policy"
)

var errLost = errors.New("what may have caused it has lost its standing")

// isCallers reports whether a credential is that of the one caller that a request is made for.
func isCallers(c credential.Config) bool {
	return c.Kind == credential.Forward || c.Kind == credential.Exchange || c.Kind == credential.Assertion
}

// sourcesFor makes the sources of the destinations' credentials. Those that old rules have of the same configuration are
// taken over, with what they have obtained.
func (p *Proxy) sourcesFor(made, old *rules) error {
	var errs []error
	for i, d := range made.Destinations {
		to := made.destinations[d.Name]
		if d.Credential.Kind == "" || to == nil {
			continue
		}
		if old != nil {
			if before := old.destinations[d.Name]; before != nil && before.source != nil && reflect.DeepEqual(before.Credential, d.Credential) {
				to.source = before.source
				continue
			}
		}
		source, err := credential.New(d.Credential, credential.Options{Sign: p.config.Sign})
		if err != nil {
			errs = append(errs, &policy.DestinationError{Index: i, Field: "credential", Err: err})
			continue
		}
		to.source = source
	}
	return errors.Join(errs...)
}

// closeSources closes those of rules that others do not have.
func (r *rules) closeSources(others *rules) {
	if r == nil {
		return
	}
	for name, d := range r.destinations {
		if d == nil || d.source == nil {
			continue
		}
		if others != nil {
			if other := others.destinations[name]; other != nil && other.source == d.source {
				continue
			}
		}
		d.source.Close()
	}
}

// forget drops what was obtained with a token that is worth nothing any more.
func (p *Proxy) forget(c *cause.Class) {
	if c.Caller == nil {
		return
	}
	for _, d := range p.rules.Load().destinations {
		if d.source != nil {
			d.source.Forget(func(other identity.Caller) bool {
				return other.Issuer == c.Caller.Issuer && other.Digest == c.Caller.Digest && other.TokenID == c.Caller.TokenID
			})
		}
	}
}

// unambiguous denies where the credential is a caller's and there is more than one whose it could be: none is chosen, for
// then whoever is in flight beside a mighty caller would act as that one.
func (x *passage) unambiguous() bool {
	known := x.one() != nil
	if x.destination.Credential.Kind == credential.Assertion {
		known = x.only() != nil // it names the transaction too
	}
	if !isCallers(x.destination.Credential) || x.cause.background || known || x.cause.window.Requests < 2 {
		return true
	}
	return x.denyAs(codeAmbiguous, fmt.Sprintf("the credential is a caller's, and %d requests may have caused it", x.cause.window.Requests))
}

// dropOwn drops what the service sends itself in the header that we attach.
func (x *passage) dropOwn() {
	own := x.destination.Credential.Header
	if x.incoming == nil || x.destination.Credential.Kind != credential.File || own == "" {
		return
	}
	own = http.CanonicalHeaderKey(own)
	values, ok := x.incoming.Header[own]
	if !ok {
		return
	}
	if x.removed == nil {
		x.removed = http.Header{}
	}
	x.removed[own] = values
	delete(x.incoming.Header, own)
	x.dropped = append(x.dropped, strings.ToLower(own))
	slices.Sort(x.dropped)
}

// credential obtains what is attached to the request. It may ask an authorization server, so the decision is on record
// before; what cannot be had ends the attempt.
func (x *passage) credential(ctx context.Context) bool {
	if x.destination == nil || x.destination.source == nil || x.incoming == nil {
		return true
	}
	if haveLost(x.cause.held, x.destination.For.Narrow()) { // while the beginning of a body was awaited, say
		return x.fail(policy.StandingLost, errLost)
	}
	var of credential.Cause
	if r := x.one(); r != nil {
		of = credential.Cause{Caller: r.Caller, Token: r.Token, Route: r.Route, RequestID: r.ID}
	}
	h, err := x.destination.source.Attach(ctx, of)
	if err == nil && x.destination.Credential.Kind == credential.Forward {
		x.scrub, err = leak.NewScrubber(of.Token.Reveal()) // the service does not have it either
	} else if err == nil {
		x.scrub = h.Scrubber()
	}
	if err == nil {
		x.attached = h
		return true
	}
	code := codeCredential
	if refusal, ok := errors.AsType[*credential.Error](err); ok {
		code = policy.Code(refusal.Code)
	}
	if ctx.Err() != nil {
		return x.unreachable(ctx, err)
	}
	x.p.log.Warn("obtain a credential: the attempt ends", "attempt", x.id, "destination", x.name(), "error", err)
	if x.failure == "" {
		x.failure, x.why = code, "the destination's credential could not be had; the log says why"
	}
	return false
}
