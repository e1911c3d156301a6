package policy

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// table makes routes of lines "METHOD /path requirement": "public", "any", or a scope; and
// what the path may hold. They are named r0, r1, ...
func table(lines ...string) []Route {
	var routes []Route
	for i, line := range lines {
		fields := strings.Fields(line)
		r := Route{Name: "r" + string(rune('0'+i)), Match: fields[0] + " " + fields[1]}
		switch fields[2] {
		case "public":
			r.Public = open()
		case "any":
			r.AnyCaller = true
		default:
			r.Scopes = []string{fields[2]}
		}
		r.AllowInPath = fields[3:]
		routes = append(routes, r)
	}
	return routes
}

func TestSelect(t *testing.T) {
	type request struct {
		method, path string
		want         string // a route's name, or a code
	}
	for _, test := range []struct {
		name     string
		routes   []Route
		requests []request
	}{
		{"most specific wins", table("GET /orders any", "GET /orders/{id} read", "GET /orders/export admin", "GET /{$} public"), []request{
			{"GET", "/orders", "r0"}, {"GET", "/orders/42", "r1"}, {"GET", "/orders/export", "r2"}, {"GET", "/", "r3"},
			{"GET", "/nothing", "no_route"}, {"GET", "/orders/42/items", "no_route"}, {"GET", "/ORDERS", "no_route"}, {"GET", "/orders/", "no_route"},
		}},
		{"GET matches HEAD, nothing else", table("GET /a any", "HEAD /b any", "POST /c any"), []request{
			{"HEAD", "/a", "r0"}, {"HEAD", "/b", "r1"}, {"GET", "/b", "method_not_allowed"}, {"OPTIONS", "/a", "method_not_allowed"},
			{"get", "/a", "method_not_allowed"}, {"", "/a", "method_not_allowed"}, {"HEAD", "/c", "method_not_allowed"}, {"BREW", "/d", "no_route"},
		}},
		{"a mounted GraphQL beside a catch-all", table("POST /graphql x", "GET /{rest...} public", "POST /{rest...} public"), []request{
			{"POST", "/graphql", "r0"}, {"GET", "/", "r1"}, {"GET", "/site/index.html", "r1"}, {"GET", "/graphqlx", "r1"},
			{"POST", "/graphql/", "path_ambiguous"}, {"POST", "/graphql/x", "path_ambiguous"}, {"POST", "/GraphQL", "path_ambiguous"},
			{"POST", "/GRAPHQL/x/y", "path_ambiguous"}, {"GET", "/graphql", "path_ambiguous"}, {"GET", "/graphql/x", "path_ambiguous"}, {"HEAD", "/graphql", "path_ambiguous"},
		}},
		{"the route of a mount by its rest", table("POST /graphql/{rest...} x", "POST /{rest...} public", "GET /{rest...} public"), []request{
			{"POST", "/graphql/a", "r0"}, {"POST", "/graphql", "path_ambiguous"}, {"GET", "/graphql", "path_ambiguous"}, {"GET", "/GRAPHQL/a", "path_ambiguous"}, {"GET", "/other", "r2"},
		}},
		{"a list beside its elements", table("GET /orders list", "GET /orders/{id} read", "DELETE /orders/{id} admin", "POST /orders write"), []request{
			{"GET", "/orders/42", "r1"}, {"DELETE", "/orders/42", "r2"}, {"POST", "/orders", "r3"}, {"GET", "/orders", "r0"}, {"GET", "/Orders/42", "no_route"},
		}},
		{"exact beside wildcard below the first segment", table("GET /public/info admin", "GET /public/{rest...} public"), []request{
			{"GET", "/public/info", "r0"}, {"GET", "/public/other", "r1"}, {"GET", "/public/other/", "r1"},
			{"GET", "/public/info/", "path_ambiguous"}, {"GET", "/public/INFO", "path_ambiguous"}, {"GET", "/public/info/x", "path_ambiguous"},
		}},
		{"trailing slash that selects another route", table("GET /files list", "GET /files/{rest...} read"), []request{
			{"GET", "/files", "r0"}, {"GET", "/files/a", "r1"}, {"GET", "/files/a/", "r1"}, {"GET", "/files/", "path_ambiguous"},
		}},
		{"trailing slash that selects a wildcard's route", table("GET /{tenant} list", "GET /{rest...} read"), []request{
			{"GET", "/foo", "r0"}, {"GET", "/foo/bar", "r1"}, {"GET", "/foo/", "path_ambiguous"},
		}},
		{"a slash behind that selects another route", table("GET /{a}/{b}/{$} one", "GET /{tenant}/{rest...} two", "GET /{rest...} public"), []request{
			{"GET", "/x/y", "path_ambiguous"}, {"GET", "/x", "path_ambiguous"}, {"GET", "/x/y/z", "r1"}, {"GET", "/x/y/", "path_ambiguous"}, {"GET", "/", "path_ambiguous"},
		}},
		{"an empty segment that another route's wildcard takes", table("GET /{rest...} public", "GET /{page} read", "GET /a/{id} admin", "POST /b/{id} admin"), []request{
			{"GET", "/x", "r1"}, {"GET", "/x/y", "r0"}, {"GET", "/", "path_ambiguous"}, {"GET", "/a/", "path_ambiguous"}, {"GET", "/b/", "path_ambiguous"}, {"GET", "/a/7", "r2"},
		}},
		{"an empty segment and one more slash", table("GET /{rest...} public", "GET /{page}/{$} read"), []request{
			{"GET", "/", "path_ambiguous"}, {"GET", "/x/", "path_ambiguous"}, {"GET", "/x/y", "r0"},
		}},
		{"the root, written out", table("GET /{$} public", "GET /{page} read", "GET /a/{$} one", "GET /a/{id} two"), []request{
			{"GET", "/", "r0"}, {"GET", "/x", "r1"}, {"GET", "/a/", "path_ambiguous"}, {"GET", "/a/7", "r3"},
		}},
		{"HEAD beside GET", table("GET /a admin", "HEAD /a public", "GET /b read", "HEAD /b read", "HEAD /c any"), []request{
			{"GET", "/a", "r0"}, {"HEAD", "/a", "path_ambiguous"}, {"GET", "/b", "r2"}, {"HEAD", "/b", "r3"}, {"HEAD", "/c", "r4"},
		}},
		{"trailing slash that selects nothing", table("GET /files/{rest...} read", "GET /docs/ read", "GET /exact/{$} read"), []request{
			{"GET", "/files/", "path_ambiguous"}, {"GET", "/files/a/", "r0"}, {"GET", "/docs/", "r1"}, {"GET", "/docs/a", "r1"}, {"GET", "/exact/", "r2"}, {"GET", "/exact", "no_route"},
		}},
		{"the same requirement is no ambiguity", table("GET /files read", "GET /files/{rest...} read", "POST /graphql read", "GET /{rest...} read"), []request{
			{"GET", "/files/", "r1"}, {"GET", "/graphql", "r3"}, {"GET", "/GraphQL/x", "r3"}, {"GET", "/FILES", "r3"},
		}},
		{"literals in upper case", table("GET /userInfo any", "GET /api/{x} read", "GET /api/whoAmI admin"), []request{
			{"GET", "/userInfo", "r0"}, {"GET", "/userinfo", "no_route"}, {"GET", "/api/whoAmI", "r2"}, {"GET", "/api/whoami", "path_ambiguous"},
		}},
		{"overlap in letter case", table("GET /a/{x}/C one", "GET /A/b/{y} two"), []request{
			{"GET", "/a/b/C", "path_ambiguous"}, {"GET", "/A/b/C", "path_ambiguous"}, {"GET", "/a/c/C", "r0"}, {"GET", "/A/b/d", "r1"},
		}},
		{"overlap across methods", table("GET /a/{x}/c one", "POST /a/b/{y} two"), []request{
			{"GET", "/a/b/c", "path_ambiguous"}, {"POST", "/a/b/c", "path_ambiguous"}, {"GET", "/a/x/c", "r0"}, {"POST", "/a/b/x", "r1"},
		}},
		{"a named element and its part", table("GET /users/me self", "GET /users/{id} read", "GET /users/{id}/orders orders", "GET /users/me/keys self"), []request{
			{"GET", "/users/me", "r0"}, {"GET", "/users/me/keys", "r3"}, {"GET", "/users/7/orders", "r2"}, {"GET", "/users/me/orders", "path_ambiguous"}, {"GET", "/users/ME", "path_ambiguous"},
		}},
		{"letters beyond ASCII", table("GET /caf%C3%A9 admin", "GET /{x} any"), []request{
			{"GET", "/caf%C3%A9", "r0"}, {"GET", "/caf%C3%89", "path_ambiguous"}, {"GET", "/caf%C3%A8", "r1"},
		}},
		{"an escape of a plain byte", table("GET /a! admin", "GET /{x} any"), []request{
			{"GET", "/a!", "r0"}, {"GET", "/a%21", "path_ambiguous"}, {"GET", "/b%21", "r1"},
		}},
		{"specials are refused unless allowed", table("GET /users/{id} read", "GET /files/{name} read %2F", "GET /matrix/{x} read ;"), []request{
			{"GET", "/users/a%2Fb", "path_special"}, {"GET", "/users/a;b", "path_special"}, {"GET", "/users/a%3Bb", "path_special"},
			{"GET", "/files/a%2Fb", "r1"}, {"GET", "/files/a;b", "path_special"}, {"GET", "/matrix/a;b=1", "r2"}, {"GET", "/matrix/a%3Bb", "r2"}, {"GET", "/matrix/a%2Fb", "path_special"},
			{"GET", "/none%2Fx", "no_route"},
		}},
		{"escaped slash that leads to another route", table("GET /users/{id} read %2F", "GET /users/{id}/keys admin", "GET /users/root admin"), []request{
			{"GET", "/users/42%2Fphoto", "r0"}, {"GET", "/users/42%2Fkeys", "path_ambiguous"}, {"GET", "/users/42%2FKEYS", "path_ambiguous"}, {"GET", "/users/42%2Fkeys%2Fx", "path_ambiguous"},
			{"GET", "/users/root%2Fx", "path_ambiguous"}, {"GET", "/users/x%2Froot", "r0"}, {"GET", "/users/%2F42", "path_ambiguous"},
		}},
		{"escaped slash in what the rest takes", table("GET /files/{rest...} read %2F", "GET /files/secret/{x} admin"), []request{
			{"GET", "/files/a%2Fb/c", "r0"}, {"GET", "/files/secret%2Fx", "path_ambiguous"}, {"GET", "/files/a%2Fsecret", "r0"},
		}},
		{"parameters that hide a route", table("GET /{rest...} public ;", "GET /admin/{x} admin ;", "GET /admin admin", "POST /graphql x"), []request{
			{"GET", "/a;v=1/b", "r0"}, {"GET", "/admin;x", "path_ambiguous"}, {"GET", "/admin;x/secret", "path_ambiguous"}, {"GET", "/ADMIN%3Bx/secret", "path_ambiguous"},
			{"GET", "/admin/secret;a=b", "r1"}, {"GET", "/graphql;x", "path_ambiguous"}, {"GET", "/x;/y", "r0"},
		}},
		{"parameters behind which nothing is left", table("GET /{a}/x read ;", "GET /m/n/{x} any ;"), []request{
			{"GET", "/matrix;a=1/x", "path_ambiguous"}, {"GET", "/m/n/1;a", "r1"}, {"GET", "/m/n/;a", "path_ambiguous"}, {"GET", "/m/n/;a/b", "no_route"},
		}},
		{"both specials", table("GET /files/{name} read %2F ;", "GET /files/{name}/keys admin"), []request{
			{"GET", "/files/a%2Fb;c", "r0"}, {"GET", "/files/a%2Fkeys;c", "path_ambiguous"}, {"GET", "/files/a;c%2Fkeys", "path_ambiguous"},
		}},
		{"a path that is not canonical", table("GET /{rest...} public"), []request{
			{"GET", "", "no_route"}, {"GET", "a", "no_route"}, {"GET", "//", "no_route"}, {"GET", "/a//b", "no_route"}, {"GET", "/a%zz", "path_ambiguous"}, {"GET", "*", "no_route"},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := mustNew(t, test.routes...)
			for _, r := range test.requests {
				s, d := p.Select(Request{Method: r.method, Path: r.path})
				got := string(d.Code)
				if s.Route != nil {
					got = s.Route.Name
				}
				if got != r.want {
					t.Errorf("%s %s: %s (%s), want %s", r.method, r.path, got, d.Reason, r.want)
				}
				if d.Allowed() || (s.Route == nil) == (d.Code == "") {
					t.Errorf("%s %s: selection %+v with decision %+v", r.method, r.path, s, d)
				}
			}
		})
	}
}

// Routes with a condition are never the same rule; expiry, upgrades and specials are part of the requirement.
func TestSameRequirement(t *testing.T) {
	base := Route{Scopes: []string{"a", "b"}, AnyScope: []string{"c", "d"}}
	for name, test := range map[string]struct {
		change func(*Route)
		same   bool
	}{
		"equal":            {func(*Route) {}, true},
		"order of scopes":  {func(r *Route) { r.Scopes, r.AnyScope = []string{"b", "a"}, []string{"d", "c"} }, true},
		"headers":          {func(r *Route) { r.Headers = []string{"x-a"} }, true},
		"fewer scopes":     {func(r *Route) { r.Scopes = []string{"a"} }, false},
		"other any":        {func(r *Route) { r.AnyScope = []string{"c"} }, false},
		"all, not any":     {func(r *Route) { r.Scopes, r.AnyScope = []string{"a", "b", "c", "d"}, nil }, false},
		"any caller":       {func(r *Route) { *r = Route{AnyCaller: true} }, false},
		"public":           {func(r *Route) { *r = Route{Public: open()} }, false},
		"condition":        {func(r *Route) { r.When = "true" }, false},
		"upgrade":          {func(r *Route) { r.Upgrades = []string{"websocket"} }, false},
		"specials in path": {func(r *Route) { r.AllowInPath = []string{"%2F"} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			wide, narrow := base, base
			test.change(&wide)
			wide.Name, wide.Match = "wide", "GET /{rest...}"
			narrow.Name, narrow.Match = "narrow", "GET /named"
			s, d := mustNew(t, wide, narrow).Select(Request{Method: "GET", Path: "/named/x"})
			if (s.Route != nil) != test.same {
				t.Errorf("selected %v (%s), want same rule: %t", s.Route, d.Reason, test.same)
			}
		})
	}
	for _, test := range []struct {
		expires string
		same    bool
	}{{"2027-06-01", true}, {"2027-06-02", false}} {
		wide, narrow := open(), open()
		wide.Reason, wide.Owner, wide.Expires = "other reason", "other owner", date(test.expires)
		p := mustNew(t, Route{Name: "wide", Match: "GET /{rest...}", Public: wide}, Route{Name: "narrow", Match: "GET /named", Public: narrow})
		if s, _ := p.Select(Request{Method: "GET", Path: "/named/x"}); (s.Route != nil) != test.same {
			t.Errorf("public until %s: selected %v", test.expires, s.Route)
		}
	}
	both := []Route{{Name: "wide", Match: "GET /{rest...}", When: "true"}, {Name: "narrow", Match: "GET /named", When: "true"}}
	if s, _ := mustNew(t, both...).Select(Request{Method: "GET", Path: "/named/x"}); s.Route != nil {
		t.Error("two routes with conditions count as one rule")
	}
}

func TestSelectMethodNotAllowed(t *testing.T) {
	p := mustNew(t, table("GET /a any", "POST /a write", "DELETE /{x} admin", "PUT /b any")...)
	_, d := p.Select(Request{Method: "PATCH", Path: "/a"})
	if d.Code != MethodNotAllowed || !slices.Equal(d.Allow, []string{"DELETE", "GET", "HEAD", "POST"}) {
		t.Errorf("%+v", d)
	}
}

func TestSelectCaptures(t *testing.T) {
	p := mustNew(t, table("GET /a/{x}/b/{y}/{rest...} read %2F ;", "GET /plain any", "GET /docs/ any")...)
	for path, want := range map[string]map[string]string{
		"/a/1/b/2/":                      {"x": "1", "y": "2", "rest": ""},
		"/a/1/b/2/3/4/":                  {"x": "1", "y": "2", "rest": "3/4/"},
		"/a/caf%C3%A9/b/a%40b/c%20d/%21": {"x": "café", "y": "a@b", "rest": "c d/!"},
		"/a/1%2F2/b/y/r%2Fs/t":           {"x": "1/2", "y": "y", "rest": "r/s/t"},
		"/plain":                         nil,
		"/docs/x/y":                      nil,
	} {
		s, d := p.Select(Request{Method: "GET", Path: path})
		if path == "/a/1/b/2/" { // without its slash it selects nothing
			if d.Code != PathAmbiguous {
				t.Errorf("%s: %+v", path, d)
			}
			continue
		}
		if s.Route == nil || !maps.Equal(s.Captures, want) {
			t.Errorf("%s: captures %q (%s), want %q", path, s.Captures, d.Reason, want)
		}
	}
}

// A candidate that fails leaves nothing of its captures behind.
func TestSelectCapturesOfTheSelectedRouteOnly(t *testing.T) {
	p := mustNew(t, table("GET /{tenant}/{kind}/x one", "GET /{rest...} one")...)
	s, d := p.Select(Request{Method: "GET", Path: "/a/b/y"})
	if !maps.Equal(s.Captures, map[string]string{"rest": "a/b/y"}) {
		t.Errorf("captures %q (%s)", s.Captures, d.Reason)
	}
}
