package policy

import (
	"fmt"
	"net/netip"
	"testing"
)

func BenchmarkSelect(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		var routes []Route
		for i := range n / 2 {
			routes = append(routes,
				Route{Name: fmt.Sprintf("list-%d", i), Match: fmt.Sprintf("GET /api/v1/things%d", i), Scopes: []string{"read"}},
				Route{Name: fmt.Sprintf("read-%d", i), Match: fmt.Sprintf("GET /api/v1/things%d/{id}/parts/{part}", i), Scopes: []string{"read"}})
		}
		p := mustNew(b, routes...)
		last := n/2 - 1
		for name, path := range map[string]string{
			"literal":  fmt.Sprintf("/api/v1/things%d", last),
			"captures": fmt.Sprintf("/api/v1/things%d/42/parts/7", last),
			"miss":     "/api/v2/none",
		} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				r := Request{Method: "GET", Path: path}
				b.ReportAllocs()
				for b.Loop() {
					if s, _ := p.Select(r); (s.Route == nil) != (name == "miss") {
						b.Fatal("selected ", s.Route)
					}
				}
			})
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	p := mustNew(b,
		Route{Name: "scopes", Match: "GET /scopes", Scopes: []string{"orders:read", "orders:list"}},
		Route{Name: "when", Match: "GET /when/{id}", Scopes: []string{"orders:read"}, When: `claims.tenant == path.id.split("-")[0]`},
		Route{Name: "equal", Match: "GET /equal/{id}", When: `claims.tenant == path.id`},
	)
	c := caller("openid", "orders:read", "orders:list")
	c.Claims = map[string]any{"tenant": "acme"}
	now := date("2027-01-01")
	for name, path := range map[string]string{"scopes": "/scopes", "split": "/when/acme-7", "equal": "/equal/acme"} {
		b.Run(name, func(b *testing.B) {
			r := Request{Method: "GET", Path: path, Source: netip.MustParseAddr("192.0.2.1")}
			s, _ := p.Select(r)
			b.ReportAllocs()
			for b.Loop() {
				if d := p.Decide(s, r, c, now); !d.Allowed() {
					b.Fatal(d)
				}
			}
		})
	}
}

func BenchmarkNew(b *testing.B) {
	var routes []Route
	for i := range 100 {
		routes = append(routes, Route{Name: fmt.Sprintf("r%d", i), Match: fmt.Sprintf("GET /r%d/{id}", i), When: "claims.tenant == path.id"})
	}
	for b.Loop() {
		mustNew(b, routes...)
	}
}
