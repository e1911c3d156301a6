package policy

import (
	"net/netip"
	"strings"
	"testing"
)

func TestConditionRefusedAtLoad(t *testing.T) {
	for _, test := range []struct {
		name, when string
		want       string // in the message
		hint       string // in the hint
	}{
		{"syntax", "claims.tenant ==", "line 1, column 17", "CEL"},
		{"second line", "claims.a == 1 &&\n  foo", "line 2, column 3: undeclared reference to 'foo'", "claims, request and path"},
		{"dyn", "claims.admin", "gives dyn, not bool", "claims.admin == true"},
		{"string", "path.id", "gives string, not bool", ""},
		{"int", "1", "gives int, not bool", ""},
		{"type error", "path.id == 1", "no matching overload", ""},
		{"unknown capture", `path.idd == "x"`, `no capture "idd"`, "it has: id, rest"},
		{"unknown request member", `request.body == "x"`, `request has no "body"`, "method, path, host, source, header"},
		{"unlisted header by index", `request.header["x-b"] == "1"`, `header "x-b"`, "headers: [x-b]"},
		{"unlisted header by member", `request.header.other == "1"`, `header "other"`, ""},
		{"unlisted header by has", `has(request.header.other)`, `header "other"`, ""},
		{"unlisted header by in", `"x-b" in request.header`, `header "x-b"`, ""},
		{"listed header in another case", `request.header["X-A"] == "1"`, `header "X-A"`, "[x-a]"},
		{"regular expression of the caller's", "path.id.matches(claims.re)", "not a literal", ""},
		{"regular expression, broken", `path.id.matches("(")`, "invalid", ""},
		{"regular expression, long", `path.id.matches("` + strings.Repeat("a", 300) + `")`, "longer than 256", ""},
		{"regular expression, large program", `path.id.matches("(a{200}){20}")`, "", ""},
		{"loops over claims in loops over claims", "claims.a.exists(x, claims.b.exists(y, x == y))", "could cost", "loops"},
		{"loops three deep", "[1].all(x, [1].all(y, [1].all(z, true)))", "nesting", ""},
		{"text that grows", `path.id.replace("a", path.id).replace("a", path.id) == "x"`, "could cost", ""},
		{"long", strings.Repeat(" ", 5000) + "true", "longer than", ""},
		{"deep", strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200), "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := New([]Route{{Name: "r", Match: "GET /r/{id}/{rest...}", When: test.when, Headers: []string{"x-a"}}})
			if err == nil {
				t.Fatal("loads")
			}
			for _, e := range routeErrors(t, err) {
				if e.Field == "when" && strings.Contains(e.Err.Error(), test.want) && strings.Contains(e.Hint, test.hint) && !strings.Contains(e.Err.Error(), "\n") {
					return
				}
			}
			t.Errorf("no error that says %q with a hint of %q:\n%v", test.want, test.hint, err)
		})
	}
	_, err := New([]Route{{Name: "r", Match: "GET /r", When: `request.header.size() == 0`}})
	if err == nil || !strings.Contains(err.Error(), "the route lists none") {
		t.Errorf("headers without a list: %v", err)
	}
}

func TestConditionHolds(t *testing.T) {
	c := caller("a")
	c.Claims = map[string]any{"tenant": "acme", "level": int64(3), "ratio": 0.5, "admin": true, "none": nil,
		"groups": []any{"dev", "ops"}, "nested": map[string]any{"plan": "gold"}, "mixed": []any{int64(1), "1"}}
	r := Request{Method: "GET", Path: "/r/acme-7/a/b", Host: "api.example.com", Source: netip.MustParseAddr("192.0.2.7"),
		Header: map[string]string{"x-a": "1", "x-other": "of another route"}}
	for when, want := range map[string]Code{
		`claims.tenant == path.id.split("-")[0]`:                           Allowed,
		`path.id.startsWith(claims.tenant + "-")`:                          Allowed,
		`path.rest == "a/b"`:                                               Allowed,
		`claims.level >= 3 && claims.ratio < 1`:                            Allowed,
		`claims.level > 2.5`:                                               Allowed,
		`claims.admin == true && claims.none == null`:                      Allowed,
		`"ops" in claims.groups`:                                           Allowed,
		`claims.groups.exists(g, g == "ops")`:                              Allowed,
		`claims.nested.plan == "gold"`:                                     Allowed,
		`has(claims.missing)`:                                              ConditionFalse,
		`!has(claims.missing) || claims.missing == 1`:                      Allowed,
		`claims.missing == 1`:                                              PolicyError,
		`claims.missing == 1 || true`:                                      Allowed, // CEL: one side that decides is enough
		`claims.tenant > 3`:                                                PolicyError,
		`claims.tenant && true`:                                            PolicyError,
		`claims.groups[5] == "x"`:                                          PolicyError,
		`claims.mixed.all(x, x > 0)`:                                       PolicyError,
		`request.method == "GET" && request.host == "api.example.com"`:     Allowed,
		`request.source == "192.0.2.7" && request.path == "/r/acme-7/a/b"`: Allowed,
		`request.header["x-a"] == "1"`:                                     Allowed,
		`request.header["x-b"] == "1"`:                                     PolicyError, // not sent
		`"x-b" in request.header`:                                          ConditionFalse,
		`request.header.size() == 1`:                                       Allowed, // another route's header is not there
		`request.header["x-oth" + "er"] == "of another route"`:             PolicyError,
		`request.source.matches("^192\\.0\\.2\\.")`:                        Allowed,
		`claims.tenant.lowerAscii().trim() == "acme"`:                      Allowed,
		`claims.groups.join(",") == "dev,ops"`:                             Allowed,
		`false`:                                                            ConditionFalse,
	} {
		p, err := New([]Route{{Name: "r", Match: "GET /r/{id}/{rest...}", When: when, Headers: []string{"x-a", "x-b"}}})
		if err != nil {
			t.Errorf("%s: %v", when, err)
			continue
		}
		s, d := p.Select(r)
		if s.Route == nil {
			t.Fatal(d)
		}
		if d = p.Decide(s, r, c, date("2027-01-01")); d.Code != want || d.Allowed() != (want == Allowed) {
			t.Errorf("%s: %s (%s), want %s", when, d.Code, d.Reason, want)
		}
	}
}

// What no estimate catches ends at the run-time limit, and denies.
func TestConditionCostLimit(t *testing.T) {
	p := mustNew(t, Route{Name: "r", Match: "GET /r", When: `claims.a.all(x, x.matches("^(a|b|ab)*$"))`})
	c := caller()
	list := make([]any, 4000)
	for i := range list {
		list[i] = strings.Repeat("ab", 500)
	}
	c.Claims = map[string]any{"a": list}
	r := Request{Method: "GET", Path: "/r"}
	s, _ := p.Select(r)
	if d := p.Decide(s, r, c, date("2027-01-01")); d.Code != PolicyError || !strings.Contains(d.Reason, "costs too much") {
		t.Errorf("%+v", d)
	}
}

// TestWhatIsNotWatched holds which conditions run without a count of their cost: those that cannot reach the limit with the
// largest inputs that they are run with so, as counting says.
func TestWhatIsNotWatched(t *testing.T) {
	longest := strings.Repeat("a-", largest/2-20)
	many := make([]any, largest/4) // "a", and a comma: as many as an answer of that size can hold
	for i := range many {
		many[i] = "a"
	}
	claims := map[string]any{"text": longest, "list": many}
	for when, free := range map[string]bool{
		`claims.text == path.id`:                              true,
		`claims.text == path.id.split("-")[0]`:                true,
		`path.id in claims.list`:                              true,
		`claims.text.matches("^(a|-)*$")`:                     true,
		`claims.text + claims.text == path.id`:                true,
		`claims.list.exists(x, x == path.id)`:                 false,
		`claims.text.replace("a", "aaaaaaaaaaaa") == path.id`: false,
		`claims.list.all(x, claims.list.exists(y, y == "b"))`: false,
	} {
		p, err := New([]Route{{Name: "r", Match: "GET /r/{id}", When: when}})
		if err != nil {
			if free {
				t.Errorf("%s: %v", when, err)
			}
			continue // too dear to load at all
		}
		c := p.routes[0].when
		if (c.free != nil) != free {
			t.Errorf("%s: runs without a count: %t, want %t", when, c.free != nil, free)
		}
		if !free {
			continue
		}
		who := caller()
		who.Claims = claims
		r := Request{Method: "GET", Path: "/r/" + longest[:largest-100]}
		s, _ := p.Select(r)
		if s.Route == nil || !c.small(r) {
			t.Fatalf("%s: the request is not what it should be", when)
		}
		if _, _, err := c.program.Eval(&activation{condition: c, selection: s, request: r, caller: who}); err != nil {
			t.Errorf("%s: counted, it ends by %v", when, err)
		}
		r.Path += longest
		if c.small(r) {
			t.Errorf("%s: a path of %d bytes is small", when, len(r.Path))
		}
	}
	p := mustNew(t, Route{Name: "r", Match: "GET /r/{id}", When: `path.id.split("-")[0] == "a"`})
	r := Request{Method: "GET", Path: "/r/" + strings.Repeat(longest, 8)}
	s, _ := p.Select(r)
	if d := p.Decide(s, r, caller(), date("2027-01-01")); d.Code != PolicyError || !strings.Contains(d.Reason, "costs too much") {
		t.Errorf("a path that is too long to go uncounted: %+v", d)
	}
}
