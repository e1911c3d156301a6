package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// Decide judges a caller (nil: none) on a selected route at an instant. A zero Caller is nobody. The Selection must be
// one of this policy's Select.
func (p *Policy) Decide(s Selection, r Request, caller *identity.Caller, now time.Time) Decision {
	if s.route == nil {
		return Deny(NoRoute, "no route was selected")
	}
	d := s.route.decide(s, r, caller, now)
	if s.route.owner != p {
		d = Deny(PolicyError, "the route was selected by another policy")
	}
	d.Route = s.route.Name
	return d
}

// Admits judges what of a route's requirement is about the caller and not about the request: that the route is there, and
// the scopes. A denial means that Decide would deny every request of this caller on it.
func (p *Policy) Admits(route string, caller *identity.Caller, now time.Time) Decision {
	for _, r := range p.routes {
		if r.Name == route {
			unconditional := *r
			unconditional.When = ""
			d := unconditional.decide(Selection{}, Request{}, caller, now)
			d.Route = route
			return d
		}
	}
	return Deny(NoRoute, "there is no such route any more")
}

func (r *route) decide(s Selection, request Request, caller *identity.Caller, now time.Time) Decision {
	if r.Public != nil {
		if !now.Before(r.Public.Expires) {
			return Deny(PublicExpired, "public until "+r.Public.Expires.UTC().Format(time.RFC3339)+" only; owner: "+r.Public.Owner)
		}
		return Decision{allowed: true, Code: AllowedPublic, Reason: "public: " + r.Public.Reason}
	}
	// A verified caller has an issuer and an expiry; what lacks them was not made by verifying a token.
	if caller == nil || caller.Issuer == "" || caller.Expires.IsZero() {
		return Deny(MissingToken, "the route asks for a caller")
	}
	if missing := lacking(r.Scopes, caller.Scopes); len(missing) > 0 {
		d := Deny(InsufficientScope, "lacks "+strings.Join(missing, " "))
		d.Missing = missing
		return d
	}
	if len(r.AnyScope) > 0 && len(lacking(r.AnyScope, caller.Scopes)) == len(r.AnyScope) {
		d := Deny(InsufficientScope, "has none of "+strings.Join(r.AnyScope, " "))
		d.Missing = slices.Clone(r.AnyScope)
		return d
	}
	if reason := r.loggedIn(caller, now); reason != "" {
		return Deny(InsufficientAuthentication, reason)
	}
	if r.When != "" {
		holds, err := r.when.holds(s, request, caller)
		if err != nil {
			return Deny(PolicyError, fmt.Sprintf("when: %v", err))
		}
		if !holds {
			return Deny(ConditionFalse, "when: false")
		}
	}
	return Decision{allowed: true, Code: Allowed, Reason: r.evidence()}
}

// evidence says what the caller was found to have.
func (r *route) evidence() string {
	switch {
	case r.When != "":
		return "the caller has the scopes and the condition holds"
	case len(r.Scopes) > 0 || len(r.AnyScope) > 0:
		return "the caller has the scopes"
	default:
		return "any verified caller"
	}
}

// lacking is what of wanted is not in held, compared byte by byte. It does not allocate if nothing is.
func lacking(wanted, held []string) []string {
	var missing []string
	for _, scope := range wanted {
		if !slices.Contains(held, scope) {
			missing = append(missing, scope)
		}
	}
	return missing
}
