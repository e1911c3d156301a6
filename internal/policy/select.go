package policy

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// stackSegments is how many segments of a path are taken apart without an allocation.
const stackSegments = 16

// Select finds the one route for the request. When Selection.Route is nil there is none, and the Decision says why:
// no_route, method_not_allowed, path_special, or path_ambiguous. Otherwise the Decision is zero, which allows nothing:
// Decide does.
func (p *Policy) Select(r Request) (Selection, Decision) {
	var buf [stackSegments]string
	w, ok := split(r.Path, buf[:0])
	if !ok {
		return Selection{}, Deny(NoRoute, "the path is not canonical")
	}
	s := p.exact.find(&w, r.Method)
	if s == nil {
		return Selection{}, p.unselected(&w)
	}
	if special := s.forbiddenSpecial(r.Path); special != "" {
		return Selection{}, Deny(PathSpecial, fmt.Sprintf("route %q does not list %q in allow_in_path", s.Name, special))
	}
	if reason := p.disagreement(s, r.Method, &w, r.Path); reason != "" {
		return Selection{}, Deny(PathAmbiguous, reason)
	}
	return Selection{Route: &s.Route, Captures: s.pattern.capture(&w, r.Path), route: s}, Decision{}
}

// unselected is the denial of a path for which there is no route with the method.
func (p *Policy) unselected(w *words) Decision {
	allow := p.exact.methods(w)
	if len(allow) == 0 {
		return Deny(NoRoute, "no route has this path")
	}
	d := Deny(MethodNotAllowed, "the routes with this path have other methods")
	d.Allow = allow
	return d
}

// forbiddenSpecial returns "%2F" or ";" if the path holds it and the route does not allow that.
func (r *route) forbiddenSpecial(path string) string {
	switch {
	case strings.Contains(path, "%2F") && !slices.Contains(r.AllowInPath, "%2F"):
		return "%2F"
	case hasSemicolon(path) && !slices.Contains(r.AllowInPath, ";"):
		return ";"
	}
	return ""
}

func hasSemicolon(path string) bool {
	return strings.IndexByte(path, ';') >= 0 || strings.Contains(path, "%3B")
}

// disagreement says in which other spelling the path is another rule's, or nothing if it is s's in all of them.
func (p *Policy) disagreement(s *route, method string, w *words, path string) string {
	var buf [stackSegments]string
	folded, ok := foldAll(w, buf[:0])
	if !ok {
		return "the path has an escape that is none"
	}
	if reason := p.otherwise(s, method, &folded, "without regard to letter case", false); reason != "" {
		return reason
	}
	if strings.IndexByte(path, '%') < 0 && strings.IndexByte(path, ';') < 0 {
		return ""
	}
	return p.specialDisagreement(s, method, w)
}

// otherwise compares one spelling of the path, already folded: it, and what services make of its trailing slash, must
// select s's rule, and no other may claim it. noneIsFine says whether it may select nothing.
func (p *Policy) otherwise(s *route, method string, w *words, spelling string, noneIsFine bool) string {
	if reason := p.rival(s, method, w, spelling, noneIsFine); reason != "" {
		return reason
	}
	longest := w
	switch {
	case !w.slash && s.pattern.ending == endsRest:
		slashed := *w
		slashed.slash = true
		if reason := p.rival(s, method, &slashed, spelling+" and with a trailing slash", true); reason != "" {
			return reason
		}
	case w.slash && len(w.segments) > 0:
		trimmed := *w
		trimmed.slash = false
		noneIsFine = noneIsFine || s.pattern.writesSlash(len(w.segments))
		if reason := p.rival(s, method, &trimmed, spelling+" and without its trailing slash", noneIsFine); reason != "" {
			return reason
		}
		fallthrough
	case w.slash && s.pattern.ending == endsRest:
		// Fastify's router lets a wildcard take the nothing behind a slash: "/a/" runs "/a/:id". Only a "/{$}" for the
		// root is sure to be the handler of "/".
		empty := w.withEmptySegment()
		for _, empty.slash = range []bool{true, false} {
			if reason := p.rival(s, method, &empty, spelling+" and with an empty segment behind its slash", true); reason != "" {
				return reason
			}
		}
		longest = &empty
	}
	if r := p.folded.claimant(longest, 0, s, false); r != nil {
		return fmt.Sprintf("%s the path begins with what route %q (%s) names and route %q takes by a wildcard",
			spelling, r.Name, r.Match, s.Name)
	}
	return ""
}

// rival says which route with another requirement than s's a spelling selects. Many services answer HEAD by the handler
// of GET even where there is one for HEAD, so HEAD must agree with GET.
func (p *Policy) rival(s *route, method string, w *words, spelling string, noneIsFine bool) string {
	found := p.folded.find(w, method)
	if found == nil && !noneIsFine {
		return spelling + " the path selects no route"
	}
	if found != nil && found.rule == s.rule && method == http.MethodHead {
		if get := p.folded.match(w, 0, http.MethodGet); get != nil {
			found = get
		}
	}
	if found != nil && found.rule != s.rule {
		return fmt.Sprintf("%s the path selects route %q (%s)", spelling, found.Name, found.Match)
	}
	return ""
}

// writesSlash reports whether the slash behind a path of so many segments stands in the pattern itself.
func (p *pattern) writesSlash(segments int) bool {
	return len(p.segments) == segments && p.ending != endsHere && p.rest == ""
}

// spelling is one way in which a service may read a path that holds ";" or "%2F".
type spelling struct {
	words      words
	name       string
	noneIsFine bool // it may select no route at all
}

// specialDisagreement is disagreement for those spellings.
func (p *Policy) specialDisagreement(s *route, method string, w *words) string {
	for _, variant := range specialSpellings(w) {
		folded, ok := foldAll(&variant.words, nil)
		if !ok || slices.Contains(folded.segments, "") {
			return variant.name + " the path has an empty segment"
		}
		if reason := p.otherwise(s, method, &folded, variant.name, variant.noneIsFine); reason != "" {
			return reason
		}
	}
	return ""
}

// specialSpellings are the other readings of ";" (the end of the path, or of a segment's name) and of "%2F" ("/").
func specialSpellings(w *words) []spelling {
	var all []spelling
	// A copy, so that the path of a request without specials stays on the stack.
	base := words{segments: slices.Clone(w.segments), slash: w.slash}
	bases := []spelling{{words: base}}
	if decoded, changed := decodeSlashes(&base); changed {
		all = append(all, spelling{decoded, `with "/" for %2F`, true})
		bases = append(bases, spelling{decoded, `with "/" for %2F and `, true})
	}
	for _, base := range bases {
		if cut, changed := cutAtSemicolon(&base.words); changed {
			all = append(all, spelling{cut, base.name + `cut at ";"`, base.noneIsFine},
				spelling{dropParameters(&base.words), base.name + `without parameters behind ";"`, base.noneIsFine})
		}
	}
	return all
}

// decodeSlashes reads "%2F" as "/". changed is false if there is none.
func decodeSlashes(w *words) (decoded words, changed bool) {
	decoded.slash = w.slash
	for i, s := range w.segments {
		parts := strings.Split(s, "%2F")
		changed = changed || len(parts) > 1
		for _, part := range parts {
			decoded.segments, decoded.origin = append(decoded.segments, part), append(decoded.origin, i)
		}
	}
	return decoded, changed
}

// cutAtSemicolon ends the path at its first ";", as if a query began there. changed is false if there is none.
func cutAtSemicolon(w *words) (cut words, changed bool) {
	for i, s := range w.segments {
		name, _, found := cutParameters(s)
		if !found {
			continue
		}
		cut = words{segments: slices.Clone(w.segments[:i]), slash: true, origin: w.origin}
		if name != "" { // what is left of "/a/b;c" is "/a/b", and of "/a/;c" it is "/a/"
			cut.segments, cut.slash = append(cut.segments, name), false
		}
		return cut, true
	}
	return *w, false
}

// dropParameters takes ";" and what follows off every segment.
func dropParameters(w *words) words {
	dropped := words{slash: w.slash, origin: w.origin}
	for _, s := range w.segments {
		name, _, _ := cutParameters(s)
		dropped.segments = append(dropped.segments, name)
	}
	return dropped
}

func cutParameters(segment string) (name, parameters string, found bool) {
	return strings.Cut(strings.ReplaceAll(segment, "%3B", ";"), ";")
}

// foldAll is w with every segment folded.
func foldAll(w *words, buf []string) (folded words, ok bool) {
	folded = words{segments: buf, slash: w.slash, origin: w.origin}
	for _, s := range w.segments {
		f, ok := fold(s)
		if !ok {
			return words{}, false
		}
		folded.segments = append(folded.segments, f)
	}
	return folded, true
}

// capture takes the parts of the path that the pattern names, decoded. The path matches the pattern.
func (p *pattern) capture(w *words, path string) map[string]string {
	var captures map[string]string
	set := func(name, escaped string) {
		if captures == nil {
			captures = make(map[string]string, len(p.segments)+1)
		}
		decoded := escaped
		if strings.IndexByte(escaped, '%') >= 0 {
			decoded, _ = url.PathUnescape(escaped) // disagreement has decoded each segment before
		}
		captures[name] = decoded
	}
	consumed := 0
	for i, s := range p.segments {
		consumed += len("/") + len(w.segments[i])
		if s.wild() {
			set(s.capture, w.segments[i])
		}
	}
	if p.rest != "" {
		set(p.rest, path[consumed+len("/"):])
	}
	return captures
}
