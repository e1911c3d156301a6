package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func date(text string) time.Time {
	t, err := time.Parse(time.DateOnly, text)
	if err != nil {
		panic(err)
	}
	return t
}

// open is a public route's Public, valid.
func open() *Public {
	return &Public{Reason: "load balancer probe", Owner: "platform", Expires: date("2027-06-01")}
}

func mustNew(t testing.TB, routes ...Route) *Policy {
	t.Helper()
	p, err := New(routes)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// routeErrors takes apart what New returned.
func routeErrors(t testing.TB, err error) []*RouteError {
	t.Helper()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T %v is not a joined error", err, err)
	}
	var list []*RouteError
	for _, e := range joined.Unwrap() {
		var routeErr *RouteError
		if !errors.As(e, &routeErr) {
			t.Fatalf("%T %v is no *RouteError", e, e)
		}
		list = append(list, routeErr)
	}
	return list
}

func TestNewRefuses(t *testing.T) {
	get := func(path string) Route { return Route{Name: "a", Match: "GET " + path, AnyCaller: true} }
	with := func(change func(*Route)) Route {
		r := get("/x/{id}")
		change(&r)
		return r
	}
	for _, test := range []struct {
		name   string
		routes []Route
		field  string
		want   string // in the message or the hint
	}{
		{"no name", []Route{with(func(r *Route) { r.Name = "" })}, "name", "needs a name"},
		{"name in upper case", []Route{with(func(r *Route) { r.Name = "Read" })}, "name", "a-z"},
		{"long name", []Route{with(func(r *Route) { r.Name = strings.Repeat("a", 65) })}, "name", "longer"},
		{"name twice", []Route{get("/a"), get("/b")}, "name", `route 0 is named "a" too`},

		{"no pattern", []Route{with(func(r *Route) { r.Match = "" })}, "match", "needs a method"},
		{"no method", []Route{with(func(r *Route) { r.Match = "/x" })}, "match", "has no method"},
		{"no path", []Route{with(func(r *Route) { r.Match = "GET" })}, "match", "one space"},
		{"lower-case method", []Route{with(func(r *Route) { r.Match = "get /x" })}, "match", "not a method"},
		{"unknown method", []Route{with(func(r *Route) { r.Match = "BREW /x" })}, "match", "not a method"},
		{"TRACE", []Route{with(func(r *Route) { r.Match = "TRACE /x" })}, "match", "not a method"},
		{"CONNECT", []Route{with(func(r *Route) { r.Match = "CONNECT /x" })}, "match", "not a method"},
		{"any method", []Route{with(func(r *Route) { r.Match = "* /x" })}, "match", "not a method"},
		{"host", []Route{get("example.com/x")}, "match", "no host"},
		{"two spaces", []Route{get(" /x")}, "match", "one space"},
		{"tab", []Route{with(func(r *Route) { r.Match = "GET\t/x" })}, "match", "not a method"},
		{"unclosed wildcard", []Route{get("/{id")}, "match", "bad wildcard segment"},
		{"wildcard in a segment", []Route{get("/a{id}")}, "match", "bad wildcard segment"},
		{"empty wildcard", []Route{get("/{}")}, "match", "empty wildcard"},
		{"rest not at the end", []Route{get("/{rest...}/x")}, "match", "not at end"},
		{"capture twice", []Route{get("/{id}/{id}")}, "match", "duplicate wildcard name"},
		{"capture that CEL cannot name", []Route{get("/{größe}")}, "match", "ASCII"},
		{"unclean path", []Route{get("/a/../b")}, "match", "unclean"},
		{"double slash", []Route{get("//b")}, "match", "unclean"},
		{"escaped dot dot", []Route{get("/a/%2e%2e/b")}, "match", `".."`},
		{"escape of a letter", []Route{get("/%61dmin")}, "match", `canonical spelling, which is "admin"`},
		{"lower-case hex", []Route{get("/caf%c3%a9")}, "match", `which is "caf%C3%A9"`},
		{"raw letter beyond ASCII", []Route{get("/café")}, "match", `which is "caf%C3%A9"`},
		{"escaped plain byte", []Route{get("/a%21")}, "match", `which is "a!"`},
		{"escaped slash", []Route{get("/a%2Fb")}, "match", "cannot hold"},
		{"semicolon", []Route{get("/a;b")}, "match", "cannot hold"},
		{"percent", []Route{get("/a%25")}, "match", "cannot hold"},
		{"question mark", []Route{get("/a?b")}, "match", "cannot hold"},
		{"backslash", []Route{get(`/a\b`)}, "match", "cannot hold"},
		{"bad escape", []Route{get("/a%zz")}, "match", "escape"},
		{"not UTF-8", []Route{get("/a%80")}, "match", "UTF-8"},
		{"Kelvin sign", []Route{get("/%E2%84%AAeys")}, "match", "cannot hold"},
		{"space at the end", []Route{get("/a%20")}, "match", "space"},
		{"raw space", []Route{get("/a b")}, "match", "canonical spelling"},

		{"same pattern", []Route{get("/x"), with(func(r *Route) { r.Name, r.Match = "b", "GET /x" })}, "match",
			`route "b" (GET /x) conflicts with route "a" (route 0, GET /x)`},
		{"overlapping patterns", []Route{get("/{x}/b"), with(func(r *Route) { r.Name, r.Match = "b", "GET /a/{y}" })}, "match",
			`conflicts with route "a" (route 0, GET /{x}/b): GET /a/{y} and GET /{x}/b both match some paths, like "/a/b"`},
		{"HEAD beside GET, more general", []Route{get("/x"), with(func(r *Route) { r.Name, r.Match = "b", "HEAD /{rest...}" })}, "match", "fewer methods"},
		{"letter case only", []Route{get("/Orders/{id}"), with(func(r *Route) { r.Name, r.Match = "b", "POST /orders/{x}" })}, "match", "letter case only"},
		{"letter case beyond ASCII", []Route{get("/%C3%84"), with(func(r *Route) { r.Name, r.Match = "b", "GET /%C3%A4" })}, "match", "letter case only"},

		{"no requirement", []Route{with(func(r *Route) { r.AnyCaller = false })}, "scopes", "does not say what it asks for"},
		{"any caller and scopes", []Route{with(func(r *Route) { r.Scopes = []string{"a"} })}, "scopes", "contradicts"},
		{"any caller and condition", []Route{with(func(r *Route) { r.When = "true" })}, "scopes", "contradicts"},
		{"public and any caller", []Route{with(func(r *Route) { r.Public = open() })}, "public", "asks for nothing"},
		{"public and scopes", []Route{with(func(r *Route) { r.AnyCaller, r.Public, r.Scopes = false, open(), []string{"a"} })}, "public", "asks for nothing"},
		{"public without reason", []Route{with(func(r *Route) { r.AnyCaller, r.Public = false, &Public{Owner: "o", Expires: date("2027-01-01")} })}, "public", "reason"},
		{"public without owner", []Route{with(func(r *Route) { r.AnyCaller, r.Public = false, &Public{Reason: "r", Expires: date("2027-01-01")} })}, "public", "owner"},
		{"public without expiry", []Route{with(func(r *Route) { r.AnyCaller, r.Public = false, &Public{Reason: "r", Owner: "o"} })}, "public", "closes"},
		{"scopes in one entry", []Route{with(func(r *Route) { r.AnyCaller, r.Scopes = false, []string{"read write"} })}, "scopes", "is not a scope"},
		{"empty scope", []Route{with(func(r *Route) { r.AnyCaller, r.AnyScope = false, []string{""} })}, "any_scope", "is not a scope"},
		{"scope twice", []Route{with(func(r *Route) { r.AnyCaller, r.Scopes = false, []string{"a", "a"} })}, "scopes", "twice"},

		{"unknown special", []Route{with(func(r *Route) { r.AllowInPath = []string{"%25"} })}, "allow_in_path", "is not one of"},
		{"special without a wildcard", []Route{{Name: "a", Match: "GET /x", AnyCaller: true, AllowInPath: []string{";"}}}, "allow_in_path", "no wildcard"},
		{"unknown upgrade", []Route{with(func(r *Route) { r.Upgrades = []string{"h2c"} })}, "upgrades", "websocket"},
		{"upgrade by POST", []Route{with(func(r *Route) { r.Match, r.Upgrades = "POST /x/{id}", []string{"websocket"} })}, "upgrades", "begins with GET"},
		{"header in upper case", []Route{with(func(r *Route) { r.Headers = []string{"X-Source"} })}, "headers", "lower case"},
		{"credential header", []Route{with(func(r *Route) { r.Headers = []string{"authorization"} })}, "headers", "credential"},
		{"underscore header", []Route{with(func(r *Route) { r.Headers = []string{"x_source"} })}, "headers", `"-"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := New(test.routes)
			if err == nil {
				t.Fatal("loads")
			}
			if p != nil {
				t.Error("there is a policy beside the error")
			}
			for _, e := range routeErrors(t, err) {
				if e.Field == test.field && strings.Contains(e.Err.Error()+" | "+e.Hint, test.want) {
					if e.Index != len(test.routes)-1 {
						t.Errorf("route %d is blamed, want the last", e.Index)
					}
					return
				}
			}
			t.Errorf("no error in %s that says %q:\n%v", test.field, test.want, err)
		})
	}
}

// All that is wrong is said at once, in the order of the routes.
func TestNewReportsEverything(t *testing.T) {
	_, err := New([]Route{
		{Name: "A", Match: "get /x"},
		{Name: "b", Match: "GET /x/{id}", When: "claims.admin"},
		{Name: "b", Match: "GET /y", AnyCaller: true, Scopes: []string{" "}},
	})
	var got []string
	for _, e := range routeErrors(t, err) {
		got = append(got, fmt.Sprint(e.Index, " ", e.Field))
		if !strings.HasPrefix(e.Error(), fmt.Sprintf("route %d: %s: ", e.Index, e.Field)) || !errors.Is(e, e.Err) {
			t.Errorf("error %q", e)
		}
	}
	want := []string{"0 match", "0 name", "0 scopes", "1 when", "2 scopes", "2 scopes", "2 name"}
	if !slices.Equal(got, want) {
		t.Errorf("errors %q, want %q", got, want)
	}
}

// What loads keeps its meaning: changing the routes afterwards changes nothing.
func TestPolicyDoesNotChange(t *testing.T) {
	routes := []Route{
		{Name: "a", Match: "GET /a", Scopes: []string{"read"}, Headers: []string{"x-b", "x-a"}},
		{Name: "p", Match: "GET /p", Public: open()},
		{Name: "c", Match: "GET /c", AnyCaller: true, Headers: []string{"x-a", "x-c"}},
	}
	p := mustNew(t, routes...)
	routes[0].Scopes[0] = "none"
	routes[1].Public.Expires = date("2099-01-01")
	if got := p.Headers(); !slices.Equal(got, []string{"x-a", "x-b", "x-c"}) {
		t.Errorf("Headers() = %q", got)
	}
	p.Headers()[0] = "authorization"
	if p.Headers()[0] != "x-a" {
		t.Error("Headers() gives the policy's own list away")
	}
	s, _ := p.Select(Request{Method: "GET", Path: "/a"})
	if d := p.Decide(s, Request{}, caller("none"), date("2027-01-01")); d.Allowed() {
		t.Error("the scopes changed after New")
	}
	s, _ = p.Select(Request{Method: "GET", Path: "/p"})
	if d := p.Decide(s, Request{}, nil, date("2028-01-01")); d.Allowed() {
		t.Error("the expiry changed after New")
	}
}

// The zero policy, and one without routes, deny everything.
func TestEmptyPolicyDenies(t *testing.T) {
	p := mustNew(t)
	for _, path := range []string{"/", "/a", "", "a", "//"} {
		s, d := p.Select(Request{Method: "GET", Path: path})
		if s.Route != nil || d.Allowed() || d.Code != NoRoute {
			t.Errorf("%q: %+v %+v", path, s, d)
		}
	}
}

// Each code that this package gives is explained once.
func TestCodesAreExplained(t *testing.T) {
	seen := make(map[Code]bool)
	for _, c := range Codes() {
		if seen[c.Code] || c.Code == "" || !strings.HasSuffix(c.Meaning, ".") {
			t.Errorf("%q: %q", c.Code, c.Meaning)
		}
		seen[c.Code] = true
	}
	for _, c := range []Code{Allowed, AllowedPublic, NoRoute, MethodNotAllowed, PathAmbiguous, PathSpecial, PublicExpired,
		MissingToken, InsufficientScope, ConditionFalse, PolicyError} {
		if !seen[c] {
			t.Errorf("%q is not explained", c)
		}
	}
}
