package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func forWhom(t *testing.T, f For) (*Exits, Exit, Outbound) {
	t.Helper()
	e, err := NewExits([]Destination{{Name: "db", Hosts: []Host{{"db.example", 5432}}, For: f}}, false)
	if err != nil {
		t.Fatal(err)
	}
	o := Outbound{Host: Host{"db.example", 5432}, Addresses: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:5432")}}
	x, _ := e.Select(o)
	return e, x, o
}

func TestCauses(t *testing.T) {
	read, write := Cause{Route: "read", Scopes: []string{"r"}}, Cause{Route: "write", Scopes: []string{"r", "w"}}
	public, background := Cause{Route: "health"}, Cause{Background: true}
	revoked := Cause{Route: "write", Scopes: []string{"r", "w"}, Lost: "revoked"}
	known := func(all ...Cause) Causes { return Causes{Known: true, All: all} }
	anyone, nobody := For{Any: true}, For{Background: true}
	routes, scopes := For{Routes: []string{"write"}}, For{Scopes: []string{"r", "w"}}
	both, either := For{Routes: []string{"write", "health"}, Scopes: []string{"w"}}, For{Routes: []string{"write"}, Background: true}
	for i, c := range []struct {
		who  For
		of   Causes
		want Code
	}{
		{anyone, Causes{}, ""},
		{anyone, known(read, background), ""},
		{anyone, Causes{Known: true, Overflow: true}, ""},
		{anyone, known(read, revoked), ""},
		{anyone, known(revoked, revoked), StandingLost},
		{nobody, Causes{}, CauseNotAllowed},
		{nobody, known(), CauseNotAllowed},
		{nobody, known(background), ""},
		{nobody, known(write), CauseNotAllowed},
		{routes, Causes{}, CauseNotAllowed},
		{routes, known(), CauseNotAllowed},
		{routes, Causes{Known: true, Overflow: true, All: []Cause{write}}, CauseNotAllowed},
		{routes, known(write), ""},
		{routes, known(write, write), ""},
		{routes, known(write, read), CauseNotAllowed},
		{routes, known(background), BackgroundNotAllowed},
		{routes, known(revoked), StandingLost},
		{routes, known(write, revoked), StandingLost},
		{scopes, known(write), ""},
		{scopes, known(read), CauseNotAllowed},
		{scopes, known(public), CauseNotAllowed},
		{both, known(write), ""},
		{both, known(public), CauseNotAllowed},
		{either, known(background), ""},
		{either, known(write), ""},
		{either, known(read), CauseNotAllowed},
	} {
		e, x, o := forWhom(t, c.who)
		d := e.DecideCause(x, c.of)
		if d.Code != c.want || d.Allowed() || d.Code != "" && (d.Route != "db" || d.Reason == "") {
			t.Errorf("%d: decided %+v, want %q", i, d, c.want)
		}
		o.Causes = c.of
		if all := e.Decide(x, o); all.Allowed() != (c.want == "") {
			t.Errorf("%d: by all: %+v", i, all)
		}
	}
	e, _, _ := forWhom(t, anyone)
	if d := e.DecideCause(Exit{}, known(read)); d.Code != DestinationUnknown {
		t.Errorf("of no exit: %+v", d)
	}
	var zero For
	for _, of := range []Causes{{}, known(), known(read), known(background)} {
		if d := zero.judge(of); d.Code == "" {
			t.Errorf("the zero value lets %+v pass", of)
		}
	}
}

func TestForIsWrong(t *testing.T) {
	for what, f := range map[string]For{
		"does not say":    {},
		"and for some":    {Any: true, Routes: []string{"a"}},
		"a-z":             {Routes: []string{"A route"}},
		"is not a scope":  {Scopes: []string{"a b"}},
		"an entry twice":  {Scopes: []string{"a", "a"}},
		"is for any":      {Any: true, Background: true},
		"is for any caus": {Any: true, Scopes: []string{"a"}},
	} {
		_, err := NewExits([]Destination{{Name: "db", Hosts: []Host{{"db.example", 5432}}, For: f}}, false)
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%+v: %v, want %q", f, err, what)
		}
	}
}

// TestIntersection holds the decision against a naive one: what a set of causes may is what each of them may. Adding a
// cause never widens it, taking one away never narrows it.
func TestIntersection(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	words := []string{"a", "b", "c", "d"}
	some := func() (list []string) {
		for _, w := range words {
			if random.IntN(3) == 0 {
				list = append(list, w)
			}
		}
		return list
	}
	naive := func(f For, c Cause) bool {
		if c.Lost != "" {
			return false
		}
		if f.Any {
			return true
		}
		if c.Background {
			return f.Background
		}
		if len(f.Routes)+len(f.Scopes) == 0 {
			return false
		}
		for _, s := range f.Scopes {
			if !slices.Contains(c.Scopes, s) {
				return false
			}
		}
		return len(f.Routes) == 0 || slices.Contains(f.Routes, c.Route)
	}
	allowed := 0
	for range 20000 {
		f := For{Background: random.IntN(2) == 0, Routes: some(), Scopes: some()}
		if random.IntN(8) == 0 {
			f = For{Any: true}
		}
		var all []Cause
		want, standing := true, false
		for range random.IntN(5) {
			c := Cause{Route: words[random.IntN(4)], Scopes: some()}
			if random.IntN(6) == 0 {
				c = Cause{Background: true}
			}
			if random.IntN(12) == 0 {
				c.Lost = "revoked"
			}
			all = append(all, c)
			standing = standing || c.Lost == ""
			want = want && naive(f, c)
		}
		switch {
		case f.Any:
			want = standing || len(all) == 0
		case len(all) == 0:
			want = false
		}
		got := f.judge(Causes{Known: true, All: all}).Code == ""
		if got != want {
			t.Fatalf("%+v by %+v: %v, want %v", f, all, got, want)
		}
		if got {
			allowed++
		}
		for i := range all {
			alone := f.judge(Causes{Known: true, All: all[i : i+1]}).Code == ""
			if got && !alone && !f.Any {
				t.Fatalf("%+v lets %+v pass, and not %+v", f, all, all[i])
			}
		}
		if f.judge(Causes{Known: true, Overflow: true, All: all}).Code == "" && !f.Any || f.judge(Causes{All: all}).Code == "" && !f.Any {
			t.Fatalf("%+v lets pass what is not known", f)
		}
	}
	if allowed < 500 {
		t.Errorf("only %d were allowed", allowed)
	}
}

func BenchmarkDecideCause(b *testing.B) {
	for _, n := range []int{1, 100, 4096} {
		b.Run(fmt.Sprintf("classes=%d", n), func(b *testing.B) {
			f := For{Routes: []string{"create-order", "update-order"}, Scopes: []string{"orders:write"}}
			c := Causes{Known: true}
			for range n {
				c.All = append(c.All, Cause{Route: "update-order", Scopes: []string{"orders:read", "orders:write"}})
			}
			b.ReportAllocs()
			for b.Loop() {
				if d := f.judge(c); d.Code != "" {
					b.Fatal(d)
				}
			}
		})
	}
}
