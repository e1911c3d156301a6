package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// generator makes patterns and canonical paths out of few words, so that they meet often.
type generator struct{ *rand.Rand }

func (g generator) pick(of ...string) string { return of[g.IntN(len(of))] }

func (g generator) method() string { return g.pick("GET", "GET", "GET", "POST", "HEAD", "DELETE") }

func (g generator) pattern() string {
	var b strings.Builder
	for i := range g.IntN(4) {
		if g.IntN(3) == 0 {
			fmt.Fprintf(&b, "/{w%d}", i)
		} else {
			b.WriteString("/" + g.pick("a", "b", "c", "B", "caf%C3%A9", "a!"))
		}
	}
	end := g.pick("", "", "", "/", "/{$}", "/{rest...}")
	if b.Len() == 0 && end == "" {
		end = "/"
	}
	return b.String() + end
}

// routes are up to n that load together, one rule each, or all one rule.
func (g generator) routes(n int, oneRule bool) []Route {
	var routes []Route
	for i := range n {
		r := Route{Name: fmt.Sprintf("r%d", i), Match: g.method() + " " + g.pattern(), Scopes: []string{fmt.Sprintf("s%d", i)}}
		if oneRule {
			r.Scopes = []string{"s"}
		}
		if strings.ContainsRune(r.Match, '{') && g.IntN(2) == 0 {
			r.AllowInPath = []string{"%2F", ";"}
		}
		if _, err := New(append(slices.Clone(routes), r)); err == nil {
			routes = append(routes, r)
		}
	}
	return routes
}

func (g generator) path(words ...string) string {
	if len(words) == 0 {
		words = []string{"a", "b", "c", "A", "B", "caf%C3%A9", "caf%C3%89", "a!", "x"}
	}
	path := ""
	for range g.IntN(5) {
		path += "/" + g.pick(words...)
	}
	if path == "" || g.IntN(4) == 0 {
		path += "/"
	}
	return path
}

// redirected is what serveMux gives for a path to which ServeMux would add a slash, since that then matches better.
const redirected = "redirected"

// serveMux answers with the pattern and the captures that net/http selects; an error is no answer, and neither is a
// redirect, which we have none of.
func serveMux(routes []Route) func(method, path string) (pattern string, captures map[string]string) {
	mux := http.NewServeMux()
	var matched string
	var captured map[string]string
	for _, r := range routes {
		parsed, err := parsePattern(r.Match)
		if err != nil {
			panic(err)
		}
		mux.HandleFunc(r.Match, func(_ http.ResponseWriter, request *http.Request) {
			matched = r.Match
			for _, name := range parsed.captures() {
				if captured == nil {
					captured = make(map[string]string)
				}
				captured[name] = request.PathValue(name)
			}
		})
	}
	return func(method, path string) (string, map[string]string) {
		matched, captured = "", nil
		recorder := httptest.NewRecorder()
		mux.ServeHTTP(recorder, httptest.NewRequest(method, path, nil))
		if to := recorder.Header().Get("Location"); to != "" {
			return redirected, nil
		}
		return matched, captured
	}
}

// Precedence, HEAD and captures are those of http.ServeMux, for random policies and canonical paths.
func TestSelectAgreesWithServeMux(t *testing.T) {
	g := generator{rand.New(rand.NewPCG(7, 7))}
	selected, refused := 0, 0
	for round := range 400 {
		oneRule := round%2 == 0
		routes := g.routes(2+g.IntN(8), oneRule)
		p, err := New(routes)
		if err != nil {
			t.Fatal(err)
		}
		mux := serveMux(routes)
		for range 60 {
			method, path := g.method(), g.path()
			want, captures := mux(method, path)
			s, d := p.Select(Request{Method: method, Path: path})
			switch {
			case s.Route != nil:
				selected++
				if want == redirected && oneRule {
					continue // the slash makes no difference
				}
				if s.Route.Match != want || !maps.Equal(s.Captures, captures) {
					t.Fatalf("%s %s: %q %q, ServeMux says %q %q\n%+v", method, path, s.Route.Match, s.Captures, want, captures, routes)
				}
			case d.Code == PathAmbiguous:
				refused++
				var buf [4]string
				w, _ := split(path, buf[:0])
				if r := p.exact.find(&w, method); r == nil || r.Match != want && want != redirected {
					t.Fatalf("%s %s: ambiguous, but the route would be %v, and ServeMux says %q", method, path, r, want)
				}
				// With one rule there is nothing to confuse but a route with none.
				if oneRule && !strings.HasSuffix(path, "/") && !slices.ContainsFunc(routes, func(r Route) bool { return len(r.AllowInPath) > 0 }) {
					t.Fatalf("%s %s: %s\n%+v", method, path, d.Reason, routes)
				}
			case want != "" && want != redirected:
				t.Fatalf("%s %s: %s, ServeMux says %q\n%+v", method, path, d.Code, want, routes)
			case (d.Code == MethodNotAllowed) != (len(d.Allow) > 0):
				t.Fatalf("%s %s: %+v", method, path, d)
			}
		}
	}
	if selected < 1000 || refused < 300 {
		t.Errorf("%d selected, %d refused: the paths and patterns do not meet", selected, refused)
	}
}

// New refuses a set of patterns if ServeMux does, or if two differ in letter case only, and no other.
func TestNewAgreesWithServeMux(t *testing.T) {
	g := generator{rand.New(rand.NewPCG(11, 11))}
	conflicts := 0
	for range 5000 {
		a := Route{Name: "a", Match: g.method() + " " + g.pattern(), AnyCaller: true}
		b := Route{Name: "b", Match: g.method() + " " + g.pattern(), AnyCaller: true}
		mux := http.NewServeMux()
		if err := register(mux, a.Match); err != nil {
			t.Fatal(err)
		}
		conflict := register(mux, b.Match) != nil
		_, err := New([]Route{a, b})
		caseOnly := err != nil && strings.Contains(err.Error(), "letter case only")
		if (err != nil) != (conflict || caseOnly) {
			t.Fatalf("%s beside %s: ServeMux conflict %t, New says %v", a.Match, b.Match, conflict, err)
		}
		if conflict {
			conflicts++
			if text := err.Error(); !strings.Contains(text, a.Match) || !strings.Contains(text, b.Match) {
				t.Fatalf("the error does not name both: %v", err)
			}
		}
	}
	if conflicts < 100 {
		t.Errorf("only %d conflicts", conflicts)
	}
}

// services are ways in which a service may find the handler of a path, each written without this package's matcher.
// The handler at a route's pattern is what that route decides for.
func services() map[string]func(routes []Route, method, path string) []string {
	lower := func(path string) string { return strings.ToLower(strings.ReplaceAll(path, "%C3%89", "%C3%A9")) }
	trim := func(path string) string {
		if len(path) > 1 {
			return strings.TrimSuffix(path, "/")
		}
		return path
	}
	routed := func(routes []Route, method, path string) []string {
		path = strings.ReplaceAll(path, "%2f", "%2F")
		mux := serveMux(routes)
		if pattern, _ := mux(method, path); pattern != "" && pattern != redirected {
			return []string{pattern}
		}
		return nil
	}
	lowered := func(routes []Route) []Route {
		var all []Route
		mux := http.NewServeMux()
		for _, r := range routes {
			method, path, _ := strings.Cut(r.Match, " ")
			parts := strings.Split(path, "/")
			for i, part := range parts {
				if !strings.HasPrefix(part, "{") {
					parts[i] = strings.ReplaceAll(strings.ToLower(part), "%c3%a9", "%C3%A9")
				}
			}
			r.Match = method + " " + strings.Join(parts, "/")
			if register(mux, r.Match) == nil { // which of two that overlap wins is tried by the order of the routes
				all = append(all, r)
			}
		}
		return all
	}
	return map[string]func([]Route, string, string) []string{
		"strict": routed,
		"without letter case": func(routes []Route, method, path string) []string {
			return routed(lowered(routes), method, strings.ReplaceAll(lower(path), "%c3%a9", "%C3%A9"))
		},
		"without trailing slash": func(routes []Route, method, path string) []string { return routed(routes, method, trim(path)) },
		"without either": func(routes []Route, method, path string) []string {
			return routed(lowered(routes), method, trim(strings.ReplaceAll(lower(path), "%c3%a9", "%C3%A9")))
		},
		"HEAD by the handler of GET": func(routes []Route, method, path string) []string {
			if method != "HEAD" {
				return routed(routes, method, path)
			}
			withoutHead := slices.DeleteFunc(slices.Clone(routes), func(r Route) bool { return strings.HasPrefix(r.Match, "HEAD ") })
			return routed(withoutHead, "GET", path)
		},
		// Fastify's router: a wildcard takes the nothing behind a slash. "nothing" is no literal of any route; the root's
		// own route is sure to be more specific.
		"wildcard takes nothing": func(routes []Route, method, path string) []string {
			if !strings.HasSuffix(path, "/") || path == "/" && !slices.Equal(routed(routes, method, "/nothing"), routed(routes, method, "/")) &&
				strings.HasSuffix(strings.Join(routed(routes, method, "/"), ""), " /{$}") {
				return nil
			}
			return append(routed(routes, method, path+"nothing"), routed(routes, method, path+"nothing/")...)
		},
		"cut at semicolon": func(routes []Route, method, path string) []string {
			cut, _, _ := strings.Cut(path, ";")
			if cut == "/" || strings.HasSuffix(cut, "/") {
				return nil
			}
			return routed(routes, method, cut)
		},
		"decoded slash": func(routes []Route, method, path string) []string {
			return routed(routes, method, strings.ReplaceAll(path, "%2F", "/"))
		},
		// Express's app.use: all methods, everything below, letter case ignored; only literal prefixes.
		"mounted": func(routes []Route, method, path string) []string {
			var hit []string
			path = strings.ReplaceAll(lower(path), "%c3%a9", "%C3%A9") + "/"
			for _, r := range lowered(routes) {
				_, prefix, _ := strings.Cut(r.Match, " ")
				prefix = strings.TrimSuffix(strings.TrimSuffix(prefix, "{$}"), "{rest...}")
				if prefix = strings.TrimSuffix(prefix, "/"); prefix == "" || strings.Contains(prefix, "{") {
					continue
				}
				if strings.HasPrefix(path, prefix+"/") {
					hit = append(hit, r.Match)
				}
			}
			return hit
		},
	}
}

// The promise of Select: whichever of these services stands behind the gate, the handler that runs belongs to a route
// with the requirement that was decided on. A mount counts where the selected route does not itself name the prefix.
func TestSelectedRouteIsTheOneThatRuns(t *testing.T) {
	g := generator{rand.New(rand.NewPCG(3, 3))}
	words := []string{"a", "b", "c", "A", "B", "C", "caf%C3%A9", "caf%C3%89", "a!", "x", "a;b", "a%2Fb", "b;x", "c%2Fa", "B;b"}
	ran := make(map[string]int)
	for round := range 400 {
		routes := g.routes(2+g.IntN(7), false)
		p, err := New(routes)
		if err != nil {
			t.Fatal(err)
		}
		rules := make(map[string]string) // lower-case pattern to name
		for _, r := range routes {
			rules[strings.ToLower(r.Match)] = r.Name
		}
		for range 25 {
			method, path := g.method(), g.path(words...)
			s, _ := p.Select(Request{Method: method, Path: path})
			if s.Route == nil {
				continue
			}
			for name, service := range services() {
				for _, handler := range service(routes, method, path) {
					ran[name]++
					if rules[strings.ToLower(handler)] == s.Route.Name || name == "mounted" && names(s.Route.Match, handler) {
						continue
					}
					t.Fatalf("round %d, %s %s: selected %s, but a service %q runs %s\n%+v", round, method, path, s.Route.Match, name, handler, routes)
				}
			}
		}
	}
	for name := range services() {
		if ran[name] < 50 {
			t.Errorf("service %q ran %d handlers: nothing was tried", name, ran[name])
		}
	}
}

// names reports whether a pattern begins with the literals of another, case aside.
func names(match, other string) bool {
	_, path, _ := strings.Cut(strings.ToLower(match), " ")
	_, prefix, _ := strings.Cut(strings.ToLower(other), " ")
	prefix = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(prefix, "{$}"), "{rest...}"), "/")
	return strings.HasPrefix(path+"/", prefix+"/")
}

// Select is total: whatever it is given, it selects a route that matches or denies with a code of its own.
func FuzzSelect(f *testing.F) {
	for _, seed := range []string{"/", "/a/b", "/A/", "/graphql/x", "/files/a%2Fb;c", "/%zz", "//", "/a/%C3%89", "/files/;%2F"} {
		f.Add("GET", seed)
	}
	p, err := New(table("GET /a/{x} one", "GET /files/{rest...} two %2F ;", "POST /graphql three", "GET /{rest...} public ;", "HEAD /a/b four", "GET /caf%C3%A9 five"))
	if err != nil {
		f.Fatal(err)
	}
	codes := []Code{NoRoute, MethodNotAllowed, PathAmbiguous, PathSpecial}
	f.Fuzz(func(t *testing.T, method, path string) {
		s, d := p.Select(Request{Method: method, Path: path})
		if d.Allowed() || (s.Route == nil) != slices.Contains(codes, d.Code) {
			t.Fatalf("%q %q: %+v %+v", method, path, s, d)
		}
		if s.Route == nil {
			return
		}
		for name := range s.Captures {
			if !strings.Contains(s.Route.Match, "{"+name) {
				t.Fatalf("%q: capture %q of another route than %s", path, name, s.Route.Match)
			}
		}
		again, _ := p.Select(Request{Method: method, Path: path})
		if again.Route != s.Route {
			t.Fatalf("%q selects two routes", path)
		}
	})
}
