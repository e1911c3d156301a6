// Package policy answers who may do what, and why. It is pure: no clock, no
// network, no file; what it needs is handed to it.
//
// A policy is a list of routes. Two questions are put to it, in this order:
//
//	p, err := policy.New(routes)
//	s, denial := p.Select(request) // which route is this?
//	if s.Route == nil {
//		return denial
//	}
//	d := p.Decide(s, request, caller, now) // may this caller, now?
//	if !d.Allowed() { ... }
//
// # Which route
//
// Patterns and their precedence are those of [net/http.ServeMux], without its
// redirects: the most specific pattern wins, and two patterns of which neither
// is more specific do not load. The path must be canonical already (package
// ingress refuses all others).
//
// A service rarely reads paths as strictly as this package does: it may ignore
// letter case and a trailing slash, or hand all paths below a prefix to one
// handler, whatever the method (Express's app.use). The selected route then is
// not the one whose handler runs. Select therefore refuses, as path_ambiguous,
// a path that another route, with another requirement, could claim:
//
//   - if the path without regard to letter case, or without its trailing slash,
//     selects that other route; or with one more, where the selected route's
//     pattern ends in {rest...}; or with an empty segment behind its slash, which
//     some routers let a wildcard take. A path that without its slash selects
//     nothing is refused too, unless the route's pattern itself ends in the slash;
//   - if the method is HEAD and GET selects that other route, since many services
//     answer HEAD by the handler of GET;
//   - if the other route, whatever its method, names the path or a part that it
//     begins with: it matches there with a literal where the selected route has a
//     wildcard. A wildcard never swallows what another route names;
//   - where ";" or "%2F" occur (a route must allow them), if the path cut at ";",
//     without parameters, or with "/" for "%2F" does either.
//
// Two routes have the same requirement if they ask for the same scopes, are
// public until the same instant, allow the same in paths and upgrades, want the
// same proofs, identifiers and logins, and neither has a condition or a rate of
// its own.
//
// # Limits
//
// A route that begins with the same literals as another is taken to know of it:
// beside POST /orders, GET /orders/{rest...} decides for all below /orders/,
// although a handler mounted at /orders would take these paths too.
//
// Where a service's own routes overlap, which of its handlers runs may depend on
// their order; the policy assumes the most specific. Select compares a path with
// the routes that are written down: what a service does at paths that only a
// wildcard covers is that wildcard's to answer for.
package policy

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/limit"
)

// Decision is the answer. Its zero value is a denial.
type Decision struct {
	allowed bool
	Code    Code     // "allowed" or "public", or why not
	Reason  string   // for the operator; never sent to a client; holds words of the configuration only, nothing of a token
	Route   string   // the route's name; empty when none was selected
	Missing []string // scopes the caller lacks, for the RFC 6750 challenge
	Allow   []string // with method_not_allowed: the methods that the path has, for the Allow header (RFC 9110, 10.2.1)
}

// Allowed reports whether evidence for an allow was found.
func (d Decision) Allowed() bool { return d.allowed }

// Deny is a denial made before or outside Decide.
func Deny(code Code, reason string) Decision { return Decision{Code: code, Reason: reason} }

// Route is one way in and what it asks for. Exactly one of AnyCaller, Scopes/AnyScope/When (together), or Public is set.
type Route struct {
	Name        string   // required, unique, [a-z0-9-]
	Match       string   // "METHOD /path/{segment}/{rest...}", as net/http.ServeMux has it, the method required; GET matches HEAD
	Scopes      []string // all of them
	AnyScope    []string // at least one of them
	When        string   // CEL over claims, request and path
	AnyCaller   bool     // any verified caller ("scopes: []" written out)
	Public      *Public  // nobody need prove anything
	AllowInPath []string // "%2F", ";": what this route's captures may hold, see internal/ingress canonical
	Upgrades    []string // "websocket"
	Headers     []string // request headers that When may read, lower-case

	// How and how lately the caller's user must have logged in (RFC 9470), besides the rest. Zero asks for nothing.
	ACR    []string      // the claim acr is one of these, in the order in which they are preferred
	MaxAge time.Duration // the claim auth_time is no longer ago; whole seconds

	// Local is for a public route that the gate answers by itself.
	Local bool

	// What the steps before Decide ask for; Decide itself does not.
	Bound        bool       // only a token that is bound to a key or certificate, with the proof of it
	Nonce        bool       // a proof of the key must hold a nonce of the gate
	TokenID      bool       // only a token with a jti, by which it can be revoked
	Unprivileged bool       // may be served while it is not known what has been revoked
	Rate         limit.Rate // how often a caller, on a public route a source, may come; the zero value is no limit
}

// Public says why a route asks for nothing, who answers for that, and until when.
type Public struct {
	Reason  string
	Owner   string
	Expires time.Time // the first instant at which the route is closed again
}

// Request is what is decided on: ours, never *http.Request.
type Request struct {
	Method string
	Path   string            // canonical, still escaped where canonical says so; begins with "/"
	Host   string            // lower-case, no port, no trailing dot
	Source netip.Addr        // the client, after trusted proxies
	Header map[string]string // only those that some route lists
}

// Selection is the route a request selects, with its captures. Only Select makes one that Decide believes.
type Selection struct {
	Route    *Route            // must not be changed
	Captures map[string]string // decoded; nil when the pattern has none

	route *route
}

// RouteError is one thing wrong with one route.
type RouteError struct {
	Index int    // in the list given to New
	Field string // the yaml key: name, match, scopes, any_scope, when, public, allow_in_path, upgrades, headers, step_up, rate_limit
	Err   error
	Hint  string
}

// Error is "route 3: match: ...", counting from 0 as Index does.
func (e *RouteError) Error() string { return fmt.Sprintf("route %d: %s: %v", e.Index, e.Field, e.Err) }

// Unwrap returns Err.
func (e *RouteError) Unwrap() error { return e.Err }

// Policy is a compiled list of routes. It does not change and is safe for concurrent use.
type Policy struct {
	routes  []*route
	exact   *node // by the literals as they are written
	folded  *node // by the literals decoded and without letter case
	headers []string
}

// route is a Route, compiled.
type route struct {
	Route
	owner   *Policy
	pattern pattern
	rule    int        // equal for routes with the same requirement
	when    *condition // nil: none
}

// New compiles the routes. The error joins (errors.Join) one *RouteError for each thing that is wrong. A policy
// without routes is one: it denies everything.
func New(routes []Route) (*Policy, error) {
	p := &Policy{exact: &node{}, folded: &node{}}
	var errs []*RouteError
	for i, r := range routes {
		compiled, wrong := compile(i, r)
		errs = append(errs, wrong...)
		compiled.owner = p
		p.routes = append(p.routes, compiled)
	}
	errs = append(errs, checkNames(routes)...)
	errs = append(errs, checkConflicts(p.routes)...)
	errs = append(errs, checkLetterCase(p.routes)...)
	if len(errs) > 0 {
		slices.SortStableFunc(errs, func(a, b *RouteError) int { return cmp.Compare(a.Index, b.Index) })
		return nil, join(errs)
	}
	numberRules(p.routes)
	for _, r := range p.routes {
		p.exact.insert(r, func(s segment) string { return s.literal })
		p.folded.insert(r, func(s segment) string { return s.folded })
		p.headers = append(p.headers, r.Headers...)
	}
	slices.Sort(p.headers)
	p.headers = slices.Compact(p.headers)
	return p, nil
}

// Headers is the union of the routes' Headers, sorted: what a Request must carry.
func (p *Policy) Headers() []string { return slices.Clone(p.headers) }

// Routes is the list that the policy was made of. It must not be changed.
func (p *Policy) Routes() iter.Seq[*Route] {
	return func(yield func(*Route) bool) {
		for _, r := range p.routes {
			if !yield(&r.Route) {
				return
			}
		}
	}
}

// compile checks all of one route by itself. The result is complete only if nothing is wrong with it.
func compile(index int, r Route) (*route, []*RouteError) {
	r.Scopes, r.AnyScope = slices.Clone(r.Scopes), slices.Clone(r.AnyScope)
	r.AllowInPath, r.Upgrades, r.Headers = slices.Clone(r.AllowInPath), slices.Clone(r.Upgrades), slices.Clone(r.Headers)
	r.ACR = slices.Clone(r.ACR)
	if r.Public != nil {
		public := *r.Public
		r.Public = &public
	}
	c := &route{Route: r}
	var errs []*RouteError
	report := func(field, hint string, err error) {
		errs = append(errs, &RouteError{Index: index, Field: field, Err: err, Hint: hint})
	}
	var err error
	if c.pattern, err = parsePattern(r.Match); err != nil {
		report("match", "METHOD /path/{segment}/{rest...}, for example: GET /orders/{id}", err)
	}
	patternOK := err == nil
	checkRoute(c, patternOK, report)
	if r.When != "" && patternOK {
		var hint string
		if c.when, hint, err = compileCondition(r.When, c.pattern.captures(), r.Headers); err != nil {
			report("when", hint, err)
		}
	}
	return c, errs
}

// numberRules gives routes with the same requirement the same number. A condition, or a rate, makes a route's
// requirement its own.
func numberRules(routes []*route) {
	numbers := make(map[string]int)
	for i, r := range routes {
		key := fmt.Sprintf("when of route %d", i)
		if r.When == "" && r.Rate == (limit.Rate{}) { // what is counted for one route must not be had by the other
			key = fmt.Sprintf("%q %q %t %q %q %t %t %t %t %q %s %t", sortedSet(r.Scopes), sortedSet(r.AnyScope), r.AnyCaller,
				sortedSet(r.AllowInPath), sortedSet(r.Upgrades), r.Bound, r.Nonce, r.TokenID, r.Unprivileged,
				sortedSet(r.ACR), r.MaxAge, r.Local)
			if r.Public != nil {
				key += " public until " + r.Public.Expires.UTC().Format(time.RFC3339Nano)
			}
		}
		if _, ok := numbers[key]; !ok {
			numbers[key] = len(numbers)
		}
		r.rule = numbers[key]
	}
}

func sortedSet(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

func join(list []*RouteError) error {
	errs := make([]error, len(list))
	for i, e := range list {
		errs[i] = e
	}
	return errors.Join(errs...)
}
