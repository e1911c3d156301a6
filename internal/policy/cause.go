package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// For says what may cause an attempt to reach a destination. Its zero value is nothing.
type For struct {
	Any        bool     // whatever does, known or not
	Background bool     // what no request caused
	Routes     []string // requests on one of these routes; empty: on any, if there are Scopes
	Scopes     []string // requests whose caller has all of these
}

// Narrow reports whether there are causes that may not.
func (f *For) Narrow() bool { return !f.Any }

// Cause is one thing that may have caused an attempt: a request, or, with Background, none.
type Cause struct {
	Background bool
	Route      string
	Scopes     []string // of the caller; none on a public route
	Lost       string   // why the request has lost its standing; empty: it has it
}

// Causes is what is known of why an attempt is made. Its zero value is that nothing is known.
type Causes struct {
	Known    bool
	Overflow bool    // there are more than All holds
	All      []Cause // any of them may have
}

// DecideCause is the decision by what may have caused an attempt, for an exit of this list's Select: each of its causes
// must be entitled, so that the rights of a set of requests are those that all of them have. A Decision with a code is the
// denial; the zero one allows nothing: Decide does.
func (e *Exits) DecideCause(s Exit, c Causes) Decision {
	if s.exit == nil {
		return Deny(DestinationUnknown, "no destination was selected")
	}
	d := s.exit.For.judge(c)
	if d.Code != "" {
		d.Route = s.exit.Name
	}
	return d
}

func (f *For) judge(c Causes) Decision {
	standing := slices.ContainsFunc(c.All, func(o Cause) bool { return o.Lost == "" })
	switch {
	case len(c.All) > 0 && !standing && !c.Overflow:
		return Deny(StandingLost, "what may have caused it has lost its standing: "+c.All[0].Lost)
	case f.Any:
		return Decision{}
	case !c.Known:
		return Deny(CauseNotAllowed, "nothing is known of what caused it, and not everything may")
	case c.Overflow:
		return Deny(CauseNotAllowed, "more callers than are compared may have caused it, and not everyone may")
	case len(c.All) == 0:
		return Deny(CauseNotAllowed, "nothing is known of what caused it, and not everything may")
	}
	for _, one := range c.All {
		d := f.judgeOne(one)
		if d.Code == "" {
			continue
		}
		if len(c.All) > 1 {
			d.Reason += fmt.Sprintf(" (one of %d callers in flight: any of them may have caused it)", len(c.All))
		}
		return d
	}
	return Decision{}
}

func (f *For) judgeOne(c Cause) Decision {
	switch {
	case c.Lost != "":
		return Deny(StandingLost, "a request has lost its standing: "+c.Lost)
	case c.Background && f.Background:
		return Decision{}
	case c.Background:
		return Deny(BackgroundNotAllowed, "no request caused it, and the destination is not for that")
	case len(f.Routes) == 0 && len(f.Scopes) == 0:
		return Deny(CauseNotAllowed, "the destination is for no request")
	case len(f.Routes) > 0 && !slices.Contains(f.Routes, c.Route):
		return Deny(CauseNotAllowed, fmt.Sprintf("the destination is not for route %q", c.Route))
	}
	if missing := lacking(f.Scopes, c.Scopes); len(missing) > 0 {
		return Deny(CauseNotAllowed, fmt.Sprintf("the caller of route %q lacks %s", c.Route, strings.Join(missing, " ")))
	}
	return Decision{}
}

// checkFor finds what is wrong with a For.
func checkFor(f For, wrong func(field, hint string, err error)) {
	if f.Any && (f.Background || len(f.Routes) > 0 || len(f.Scopes) > 0) {
		wrong("for", "remove what it is narrowed by, or `any`", errors.New("is for any cause, and for some"))
	}
	if !f.Any && !f.Background && len(f.Routes) == 0 && len(f.Scopes) == 0 {
		wrong("for", "for: {routes: [create-order]}, for: background, or for: any", errors.New("does not say what may cause it: nothing could"))
	}
	for _, r := range f.Routes {
		if err := checkName(r); err != nil {
			wrong("for", "the name of a route", err)
		}
	}
	checkScopes("for", f.Scopes, func(_, hint string, err error) { wrong("for", hint, err) })
}
