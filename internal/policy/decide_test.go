package policy

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// caller is verified and has the scopes.
func caller(scopes ...string) *identity.Caller {
	return &identity.Caller{Issuer: "https://auth.example.com", Subject: "svc", Scopes: scopes, Expires: date("2027-01-02")}
}

func TestDecide(t *testing.T) {
	now := date("2027-01-01")
	p := mustNew(t,
		Route{Name: "any", Match: "GET /any", AnyCaller: true},
		Route{Name: "all", Match: "GET /all", Scopes: []string{"a", "b"}},
		Route{Name: "one", Match: "GET /one", AnyScope: []string{"c", "d"}},
		Route{Name: "both", Match: "GET /both", Scopes: []string{"a"}, AnyScope: []string{"c", "d"}},
		Route{Name: "public", Match: "GET /public", Public: open()},
		Route{Name: "when", Match: "GET /when/{tenant}", Scopes: []string{"a"}, When: "claims.tenant == path.tenant"},
	)
	tenant := caller("a")
	tenant.Claims = map[string]any{"tenant": "t1"}
	for _, test := range []struct {
		name    string
		path    string
		caller  *identity.Caller
		now     time.Time
		want    Code
		missing []string
	}{
		{"any caller", "/any", caller(), now, Allowed, nil},
		{"nobody", "/any", nil, now, MissingToken, nil},
		{"zero caller", "/any", &identity.Caller{}, now, MissingToken, nil},
		{"caller without issuer", "/any", &identity.Caller{Subject: "s", Expires: now}, now, MissingToken, nil},
		{"caller without expiry", "/all", &identity.Caller{Issuer: "i", Scopes: []string{"a", "b"}}, now, MissingToken, nil},
		{"all scopes", "/all", caller("b", "x", "a"), now, Allowed, nil},
		{"one of all scopes", "/all", caller("b"), now, InsufficientScope, []string{"a"}},
		{"no scopes", "/all", caller(), now, InsufficientScope, []string{"a", "b"}},
		{"nobody for scopes", "/all", nil, now, MissingToken, nil},
		{"scope in another case", "/all", caller("A", "b"), now, InsufficientScope, []string{"a"}},
		{"longer scope", "/all", caller("administrator", "ab", "a b", "b"), now, InsufficientScope, []string{"a"}},
		{"any scope", "/one", caller("d"), now, Allowed, nil},
		{"none of any", "/one", caller("a"), now, InsufficientScope, []string{"c", "d"}},
		{"both", "/both", caller("a", "c"), now, Allowed, nil},
		{"both, all missing", "/both", caller("c"), now, InsufficientScope, []string{"a"}},
		{"both, any missing", "/both", caller("a"), now, InsufficientScope, []string{"c", "d"}},
		{"public", "/public", nil, now, AllowedPublic, nil},
		{"public with a caller", "/public", caller(), now, AllowedPublic, nil},
		{"public, last instant", "/public", nil, date("2027-06-01").Add(-1), AllowedPublic, nil},
		{"public, expired", "/public", nil, date("2027-06-01"), PublicExpired, nil},
		{"public, expired, with a caller", "/public", caller("a"), date("2027-06-02"), PublicExpired, nil},
		{"condition holds", "/when/t1", tenant, now, Allowed, nil},
		{"condition false", "/when/t2", tenant, now, ConditionFalse, nil},
		{"condition, scope first", "/when/t1", caller("b"), now, InsufficientScope, []string{"a"}},
		{"condition, no claim", "/when/t1", caller("a"), now, PolicyError, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := Request{Method: "GET", Path: test.path}
			s, d := p.Select(r)
			if s.Route == nil {
				t.Fatal(d)
			}
			d = p.Decide(s, r, test.caller, test.now)
			if d.Code != test.want || d.Allowed() != (test.want == Allowed || test.want == AllowedPublic) || !slices.Equal(d.Missing, test.missing) {
				t.Errorf("%+v allowed %t, want %s, missing %q", d, d.Allowed(), test.want, test.missing)
			}
			if d.Route != s.Route.Name || d.Reason == "" {
				t.Errorf("route %q, reason %q", d.Route, d.Reason)
			}
		})
	}
}

// The zero value refuses, and no value made outside this package allows.
func TestZeroValuesDeny(t *testing.T) {
	public := Route{Name: "p", Match: "GET /p", Public: open()}
	p, other := mustNew(t, public), mustNew(t, public)
	foreign, _ := other.Select(Request{Method: "GET", Path: "/p"})
	for name, d := range map[string]Decision{
		"zero":                 {},
		"denied as allowed":    Deny(Allowed, "no evidence"),
		"zero selection":       p.Decide(Selection{}, Request{}, caller("a"), date("2027-01-01")),
		"selection of a route": p.Decide(Selection{Route: &public}, Request{}, caller("a"), date("2027-01-01")),
		"another's selection":  p.Decide(foreign, Request{}, caller("a"), date("2027-01-01")),
	} {
		if d.Allowed() {
			t.Errorf("%s: allowed: %+v", name, d)
		}
	}
}

// A reason is written into a log: it holds nothing of the token and is valid, short JSON text.
func TestReasonsHoldNoClaims(t *testing.T) {
	const secret = "s3cr3t-claim-value"
	c := caller("a", secret)
	c.Subject, c.TokenID = secret, secret
	c.Claims = map[string]any{"tenant": secret, "key": secret, "n": int64(1), "list": []any{secret}}
	for _, when := range []string{
		`claims.tenant == "x"`, `claims[claims.key] == "x"`, `claims.n / 0 == 1`, `int(claims.tenant) == 1`, `claims.tenant + 1 == 2`,
		`claims.list[7] == "x"`, `timestamp(claims.tenant) > timestamp("2020-01-01T00:00:00Z")`, `claims.tenant && true`, `claims.list.exists(x, int(x) == 1)`,
		`request.header["x-secret"] == "x"`, `int(path.id) == 1`, `duration(claims.tenant) > duration("1s")`, `{"a": true}[claims.tenant]`,
	} {
		p := mustNew(t, Route{Name: "r", Match: "GET /r/{id}", When: when, Headers: []string{"x-secret"}})
		r := Request{Method: "GET", Path: "/r/" + secret, Source: netip.MustParseAddr("192.0.2.1"), Header: map[string]string{"x-secret": secret}}
		s, d := p.Select(r)
		if s.Route == nil {
			t.Fatal(d)
		}
		d = p.Decide(s, r, c, date("2027-01-01"))
		text, err := json.Marshal(d)
		if err != nil || strings.Contains(string(text), secret) || len(d.Reason) > 200 {
			t.Errorf("%s: %s %v", when, text, err)
		}
		if d.Allowed() {
			t.Errorf("%s: allowed", when)
		}
	}
}

// Admits denies exactly where Decide would deny whatever the request is: it looks at no path and at no condition.
func TestAdmits(t *testing.T) {
	now := date("2027-01-01")
	p := mustNew(t,
		Route{Name: "all", Match: "GET /all", Scopes: []string{"a", "b"}},
		Route{Name: "when", Match: "GET /when/{tenant}", Scopes: []string{"a"}, When: "claims.tenant == path.tenant"},
		Route{Name: "public", Match: "GET /public", Public: open()},
	)
	for _, test := range []struct {
		route  string
		caller *identity.Caller
		now    time.Time
		want   Code
	}{
		{"all", caller("a", "b"), now, Allowed},
		{"all", caller("a"), now, InsufficientScope},
		{"all", nil, now, MissingToken},
		{"when", caller("a"), now, Allowed},
		{"when", caller(), now, InsufficientScope},
		{"public", nil, now, AllowedPublic},
		{"public", nil, date("2027-06-01"), PublicExpired},
		{"gone", caller("a"), now, NoRoute},
		{"", nil, now, NoRoute},
	} {
		if d := p.Admits(test.route, test.caller, test.now); d.Code != test.want || d.Allowed() != (test.want == Allowed || test.want == AllowedPublic) {
			t.Errorf("%s: %s, want %s", test.route, d.Code, test.want)
		}
	}
}

// What the earlier steps ask for is part of a route's requirement, and no part of a public one.
func TestProofsOfARoute(t *testing.T) {
	for field, change := range map[string]func(*Route){
		"sender_constrained": func(r *Route) { r.Bound = true },
		"dpop_nonce":         func(r *Route) { r.Nonce = true },
		"require_jti":        func(r *Route) { r.TokenID = true },
		"privileged":         func(r *Route) { r.Unprivileged = true },
	} {
		public := Route{Name: "public", Match: "GET /public", Public: open()}
		change(&public)
		if _, err := New([]Route{public}); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("a public route with %s: %v", field, err)
		}
		one, other := Route{Name: "one", Match: "GET /a/{x}", AnyCaller: true}, Route{Name: "other", Match: "GET /A/b", AnyCaller: true}
		p := mustNew(t, one, other)
		if s, d := p.Select(Request{Method: "GET", Path: "/a/b"}); s.Route == nil {
			t.Fatalf("two routes with one requirement: %s", d.Code)
		}
		change(&other)
		p = mustNew(t, one, other)
		if s, d := p.Select(Request{Method: "GET", Path: "/a/b"}); s.Route != nil || d.Code != PathAmbiguous {
			t.Errorf("%s makes no difference between two routes: %s", field, d.Code)
		}
	}
}
