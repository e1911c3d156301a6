package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds on what one route may hold. They are far beyond what a person writes.
const (
	maxName      = 64
	maxScope     = 256
	maxListed    = 64 // entries of any list
	maxCondition = 4096
)

// checkRoute checks everything of a route but its pattern and condition.
func checkRoute(r *route, patternOK bool, report func(field, hint string, err error)) {
	if err := checkName(r.Name); err != nil {
		report("name", "lower-case letters, digits and hyphens, for example: read-order", err)
	}
	checkRequirement(r, report)
	checkScopes("scopes", r.Scopes, report)
	checkScopes("any_scope", r.AnyScope, report)
	if r.Public != nil {
		checkPublic(r.Public, report)
	}
	checkProofs(r, report)
	checkStepUp(r, report)
	if err := r.Rate.Check(); err != nil {
		report("rate_limit", "for example {requests: 5, per: 1m}", err)
	}
	for _, special := range r.AllowInPath {
		if special != "%2F" && special != ";" {
			report("allow_in_path", "", fmt.Errorf("%q is not one of %q and %q", special, "%2F", ";"))
		}
	}
	if len(r.AllowInPath) > 0 && patternOK && len(r.pattern.captures()) == 0 && r.pattern.ending != endsRest {
		report("allow_in_path", "literals never hold these: name a part of the path, as in /files/{name}", errors.New("the pattern has no wildcard that could hold them"))
	}
	for _, upgrade := range r.Upgrades {
		if upgrade != "websocket" {
			report("upgrades", "", fmt.Errorf("%q is not %q, the only upgrade there is", upgrade, "websocket"))
		}
	}
	if len(r.Upgrades) > 0 && patternOK && r.pattern.method != "GET" {
		report("upgrades", "", fmt.Errorf("a WebSocket begins with GET (RFC 6455, 4.1), not %s", r.pattern.method))
	}
	for _, name := range r.Headers {
		if err := checkHeader(name); err != nil {
			report("headers", "", fmt.Errorf("%q: %w", name, err))
		}
	}
	checkList("allow_in_path", r.AllowInPath, report)
	checkList("upgrades", r.Upgrades, report)
	checkList("headers", r.Headers, report)
}

// checkRequirement establishes that a route says what it asks for, in one of the three ways.
func checkRequirement(r *route, report func(field, hint string, err error)) {
	asks := len(r.Scopes) > 0 || len(r.AnyScope) > 0 || r.When != ""
	switch {
	case r.Public != nil && (asks || r.AnyCaller):
		report("public", "remove public, or the scopes and the condition", errors.New("a public route asks for nothing, so it cannot have scopes or a condition"))
	case r.AnyCaller && asks:
		report("scopes", "", errors.New("no scopes (any verified caller) contradicts any_scope and when; leave it out"))
	case r.Public == nil && !asks && !r.AnyCaller:
		report("scopes", "list scopes; or write \"scopes: []\" for any verified caller; or public, with reason, owner and expires",
			errors.New("the route does not say what it asks for"))
	}
	if len(r.When) > maxCondition {
		report("when", "", fmt.Errorf("longer than %d bytes", maxCondition))
	}
}

// checkProofs refuses what a route without a caller cannot ask for.
func checkProofs(r *route, report func(field, hint string, err error)) {
	for _, asked := range []struct {
		field string
		is    bool
	}{
		{"sender_constrained", r.Bound}, {"dpop_nonce", r.Nonce}, {"require_jti", r.TokenID}, {"privileged", r.Unprivileged},
		{"step_up", len(r.ACR) > 0 || r.MaxAge != 0},
	} {
		if asked.is && r.Public != nil {
			report(asked.field, "remove it, or public", errors.New("a public route asks for no token, so it can ask nothing of one"))
		}
	}
}

// checkStepUp checks what a route asks of the caller's login. Its values stand in a challenge.
func checkStepUp(r *route, report func(field, hint string, err error)) {
	const hint = "step_up: {acr: [urn:example:mfa], max_age: 10m}"
	checkList("step_up", r.ACR, report)
	for _, acr := range r.ACR {
		if !isListed(acr) {
			report("step_up", hint, fmt.Errorf("acr %q: not printable ASCII without spaces, quotes and backslashes, of 1 to %d bytes", acr, maxScope))
		}
	}
	if r.MaxAge < 0 || r.MaxAge%time.Second != 0 {
		report("step_up", hint, fmt.Errorf("max_age is %s, and not a number of whole seconds", r.MaxAge))
	}
	if r.Local && r.Public == nil {
		report("public", "", errors.New("what the gate answers by itself is public"))
	}
}

func checkPublic(p *Public, report func(field, hint string, err error)) {
	const hint = "public: {reason: load balancer probe, owner: platform, expires: 2027-06-01}"
	if strings.TrimSpace(p.Reason) == "" {
		report("public", hint, errors.New("a public route needs a reason"))
	}
	if strings.TrimSpace(p.Owner) == "" {
		report("public", hint, errors.New("a public route needs an owner, who answers for it"))
	}
	if p.Expires.IsZero() {
		report("public", hint, errors.New("a public route needs the date on which it closes again"))
	}
}

// checkNames establishes that a name stands for one route.
func checkNames(routes []Route) []*RouteError {
	var errs []*RouteError
	first := make(map[string]int)
	for i, r := range routes {
		if j, ok := first[r.Name]; ok && r.Name != "" {
			errs = append(errs, &RouteError{Index: i, Field: "name", Err: fmt.Errorf("route %d is named %q too", j, r.Name)})
			continue
		}
		first[r.Name] = i
	}
	return errs
}

func checkName(name string) error {
	if name == "" {
		return errors.New("a route needs a name")
	}
	if len(name) > maxName {
		return fmt.Errorf("longer than %d bytes", maxName)
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("%q holds more than a-z, 0-9 and \"-\"", name)
		}
	}
	return nil
}

// checkScopes checks scope tokens (RFC 6749, 3.3: NQCHAR).
func checkScopes(field string, scopes []string, report func(field, hint string, err error)) {
	checkList(field, scopes, report)
	for _, scope := range scopes {
		if !isListed(scope) {
			report(field, "one list entry for each scope", fmt.Errorf("%q is not a scope (RFC 6749, section 3.3)", scope))
		}
	}
}

// isListed reports whether a value can stand in a list with spaces between, inside quotes.
func isListed(s string) bool {
	bad := strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' })
	return s != "" && !bad && len(s) <= maxScope
}

// checkHeader establishes that a condition may read a header: a lower-case name of letters, digits and hyphens that
// carries no credential. The gate has taken what a credential says already, as claims.
func checkHeader(name string) error {
	if slices.Contains([]string{"authorization", "proxy-authorization", "cookie", "dpop"}, name) {
		return errors.New("holds a credential, which no condition may read")
	}
	if name == "" || len(name) > maxName {
		return fmt.Errorf("a header name has 1 to %d bytes", maxName)
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return errors.New("a header is named in lower case, with a-z, 0-9 and \"-\"")
		}
	}
	return nil
}

func checkList(field string, list []string, report func(field, hint string, err error)) {
	if len(list) > maxListed {
		report(field, "", fmt.Errorf("has more than %d entries", maxListed))
	}
	if unique := sortedSet(list); len(unique) < len(list) {
		report(field, "", errors.New("has an entry twice"))
	}
}
