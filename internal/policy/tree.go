package policy

import (
	"slices"
	"strings"
)

// node is a place in the tree of patterns. Its depth is the number of segments that lead to it.
type node struct {
	literal map[string]*node
	single  *node    // one segment of any text
	exact   []*route // patterns that end here
	slash   []*route // ... that end after one more "/"
	rest    []*route // ... that go on with "/" and anything
	ends    []*route // all three
}

// insert adds a route. key says how its literals are written in this tree.
func (n *node) insert(r *route, key func(segment) string) {
	for _, s := range r.pattern.segments {
		next := n.single
		if !s.wild() {
			next = n.literal[key(s)]
		}
		if next == nil {
			next = &node{}
			switch {
			case s.wild():
				n.single = next
			default:
				if n.literal == nil {
					n.literal = make(map[string]*node)
				}
				n.literal[key(s)] = next
			}
		}
		n = next
	}
	n.ends = append(n.ends, r)
	switch r.pattern.ending {
	case endsHere:
		n.exact = append(n.exact, r)
	case endsSlash:
		n.slash = append(n.slash, r)
	case endsRest:
		n.rest = append(n.rest, r)
	}
}

// words is a path taken apart.
type words struct {
	segments []string
	slash    bool  // the path ends in "/"; "/" itself has no segments and a slash
	origin   []int // for each segment, which of the request's it came from; nil: the same one
}

// split takes a path apart into buf. ok is false if it is no canonical path: no "/" in front, or an empty segment.
func split(path string, buf []string) (w words, ok bool) {
	if path == "" || path[0] != '/' {
		return words{}, false
	}
	w.segments = buf
	for rest := path[1:]; ; {
		i := strings.IndexByte(rest, '/')
		switch {
		case rest == "":
			w.slash = true
			return w, true
		case i == 0:
			return words{}, false
		case i < 0:
			w.segments = append(w.segments, rest)
			return w, true
		}
		w.segments, rest = append(w.segments, rest[:i]), rest[i+1:]
	}
}

// withEmptySegment is a path that ends in "/" with that slash read as the beginning of one more segment, empty.
func (w *words) withEmptySegment() words {
	longer := words{segments: append(slices.Clip(w.segments), "")}
	if w.origin != nil {
		longer.origin = append(slices.Clip(w.origin), len(w.segments))
	}
	return longer
}

// find returns the most specific route for the path and the method; a GET route serves HEAD where no HEAD route does.
func (n *node) find(w *words, method string) *route {
	r := n.match(w, 0, method)
	if r == nil && method == "HEAD" {
		r = n.match(w, 0, "GET")
	}
	return r
}

// match walks the tree: a literal is more specific than a wildcard, and that than "the rest". Because conflicts do not
// load, the first found is the most specific. Each node is visited once at most.
func (n *node) match(w *words, i int, method string) *route {
	if n == nil {
		return nil
	}
	if i == len(w.segments) {
		if !w.slash {
			return withMethod(n.exact, method)
		}
		if r := withMethod(n.slash, method); r != nil {
			return r
		}
		return withMethod(n.rest, method)
	}
	if r := n.literal[w.segments[i]].match(w, i+1, method); r != nil {
		return r
	}
	if r := n.single.match(w, i+1, method); r != nil {
		return r
	}
	return withMethod(n.rest, method)
}

// claimant returns a route with another requirement than s's that names the path, or a part that the path begins with:
// one whose pattern matches there, with a literal where s has a wildcard. Methods and what follows the pattern's
// segments do not count, since a handler mounted at a prefix takes all of it.
func (n *node) claimant(w *words, i int, s *route, named bool) *route {
	if n == nil {
		return nil
	}
	if named {
		for _, r := range n.ends {
			if r.rule != s.rule {
				return r
			}
		}
	}
	if i == len(w.segments) {
		return nil
	}
	origin := i
	if w.origin != nil {
		origin = w.origin[i]
	}
	swallowed := origin >= len(s.pattern.segments) || s.pattern.segments[origin].wild()
	if r := n.literal[w.segments[i]].claimant(w, i+1, s, named || swallowed); r != nil {
		return r
	}
	return n.single.claimant(w, i+1, s, named)
}

// methods are those that have a route for the path, sorted.
func (n *node) methods(w *words) []string {
	var found []string
	for _, m := range methods() {
		if n.find(w, m) != nil {
			found = append(found, m)
		}
	}
	slices.Sort(found)
	return found
}

func withMethod(routes []*route, method string) *route {
	for _, r := range routes {
		if r.pattern.method == method {
			return r
		}
	}
	return nil
}
