package policy

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ending is how a pattern goes on after its segments.
type ending int

const (
	endsHere  ending = iota // "/a/b": no more
	endsSlash               // "/a/b/{$}": exactly one "/"
	endsRest                // "/a/b/" and "/a/b/{rest...}": "/" and anything
)

// segment is one of a pattern's segments between slashes: a literal or a wildcard that takes one segment.
type segment struct {
	literal string // as written, which is canonical; empty for a wildcard
	folded  string // the literal decoded and without letter case
	capture string // the wildcard's name; empty for a literal
}

func (s segment) wild() bool { return s.capture != "" }

// pattern is a route's Match, taken apart.
type pattern struct {
	method   string
	path     string // as written
	segments []segment
	ending   ending
	rest     string // name of {rest...}; empty when the pattern ends in a plain "/"
}

// methods that a route may have. TRACE echoes what it receives and CONNECT opens a tunnel: neither has a place behind a gate.
func methods() []string {
	return []string{http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut}
}

// parsePattern reads "METHOD /path". The syntax of the path is that of http.ServeMux, which is asked; besides, the
// method must be a known one, there is no host, and literals are in their canonical spelling.
func parsePattern(match string) (pattern, error) {
	method, path, found := strings.Cut(match, " ")
	switch {
	case match == "":
		return pattern{}, errors.New("a route needs a method and a path")
	case strings.HasPrefix(match, "/"):
		return pattern{}, fmt.Errorf("%q has no method", match)
	case !slices.Contains(methods(), method):
		return pattern{}, fmt.Errorf("%q is not a method that a route can have (%s)", method, strings.Join(methods(), ", "))
	case !found || !strings.HasPrefix(path, "/"):
		return pattern{}, fmt.Errorf("after the method comes one space and a path that begins with \"/\" (no host), not %q", path)
	}
	if err := register(http.NewServeMux(), match); err != nil {
		return pattern{}, err
	}
	p := pattern{method: method, path: path}
	for part, rest := "", path; rest != ""; {
		part, rest = cutSegment(rest)
		name, wild := strings.CutPrefix(part, "{")
		name = strings.TrimSuffix(name, "}")
		multi := strings.TrimSuffix(name, "...")
		switch {
		case part == "":
			p.ending = endsRest
		case wild && name == "$":
			p.ending = endsSlash
		case wild && !plainName(multi):
			return pattern{}, fmt.Errorf("capture %q: a name is made of ASCII letters, digits and \"_\"", multi)
		case wild && multi != name:
			p.ending, p.rest = endsRest, multi
		case wild:
			p.segments = append(p.segments, segment{capture: name})
		default:
			if err := checkLiteral(part); err != nil {
				return pattern{}, fmt.Errorf("segment %q: %w", part, err)
			}
			folded, _ := fold(part)
			p.segments = append(p.segments, segment{literal: part, folded: folded})
		}
	}
	return p, nil
}

// captures are the names that the pattern gives to parts of a path, in their order.
func (p *pattern) captures() []string {
	var names []string
	for _, s := range p.segments {
		if s.wild() {
			names = append(names, s.capture)
		}
	}
	if p.rest != "" {
		names = append(names, p.rest)
	}
	return names
}

// register asks a ServeMux for its opinion of a pattern: a syntax error, or a conflict with those it has.
func register(mux *http.ServeMux, match string) (err error) {
	defer func() {
		if said := recover(); said != nil {
			text := fmt.Sprint(said)
			text = strings.TrimPrefix(text, fmt.Sprintf("parsing %q: ", match))
			if _, explanation, ok := strings.Cut(text, "):\n"); ok {
				text = strings.ReplaceAll(explanation, "\n", " ")
			}
			err = errors.New(text)
		}
	}()
	mux.Handle(match, http.NotFoundHandler())
	return nil
}

// checkConflicts names the routes that match the same requests without one being more specific than the other.
func checkConflicts(routes []*route) []*RouteError {
	var errs []*RouteError
	all := http.NewServeMux()
	for i, r := range routes {
		if r.pattern.path == "" || register(all, r.Match) == nil {
			continue
		}
		for j, earlier := range routes[:i] {
			if earlier.pattern.path == "" {
				continue
			}
			pair := http.NewServeMux()
			if register(pair, earlier.Match) != nil {
				continue
			}
			if err := register(pair, r.Match); err != nil {
				errs = append(errs, &RouteError{
					Index: i, Field: "match",
					Err:  fmt.Errorf("route %q (%s) conflicts with route %q (route %d, %s): %w", r.Name, r.Match, earlier.Name, j, earlier.Match, err),
					Hint: "make one of the two patterns more specific than the other in every part, or remove one",
				})
				break
			}
		}
	}
	return errs
}

// checkLetterCase names routes whose paths differ in letter case only: most services would not tell them apart.
func checkLetterCase(routes []*route) []*RouteError {
	var errs []*RouteError
	seen := make(map[string]*route)
	for i, r := range routes {
		if r.pattern.path == "" {
			continue
		}
		written, folded := r.pattern.shape(func(s segment) string { return s.literal }), r.pattern.shape(func(s segment) string { return s.folded })
		other, ok := seen[folded]
		if !ok {
			seen[folded] = r
			continue
		}
		if other.pattern.shape(func(s segment) string { return s.literal }) != written {
			errs = append(errs, &RouteError{
				Index: i, Field: "match",
				Err:  fmt.Errorf("the paths of route %q (%s) and route %q (%s) differ in letter case only", r.Name, r.Match, other.Name, other.Match),
				Hint: "many services ignore letter case in paths; write both alike",
			})
		}
	}
	return errs
}

// shape is the path of a pattern with its wildcards' names left out.
func (p *pattern) shape(key func(segment) string) string {
	var b strings.Builder
	for _, s := range p.segments {
		b.WriteByte('/')
		if s.wild() {
			b.WriteString("{}")
		} else {
			b.WriteString(key(s))
		}
	}
	switch p.ending {
	case endsSlash:
		b.WriteString("/{$}")
	case endsRest:
		b.WriteString("/{...}")
	}
	return b.String()
}

// cutSegment takes the first segment, without its "/", off a path that begins with "/".
func cutSegment(path string) (first, rest string) {
	path = path[1:]
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

// plainName reports whether CEL can say path.NAME.
func plainName(name string) bool {
	for i, c := range []byte(name) {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// checkLiteral reports whether a literal segment is written as the canonical path writes it: the bytes that need no
// escape plain, letters and digits beyond ASCII (and spaces inside) escaped in upper-case hex, and nothing else.
func checkLiteral(literal string) error {
	var canonical strings.Builder
	decoded, err := url.PathUnescape(literal)
	if err != nil || !utf8.ValidString(decoded) {
		return errors.New("not a valid escape, or not UTF-8")
	}
	if strings.TrimSpace(decoded) != decoded || decoded == "." || decoded == ".." {
		return errors.New("no request can have this segment: it begins or ends with a space, or is \".\" or \"..\"")
	}
	for _, r := range decoded {
		switch {
		case r < utf8.RuneSelf && plainByte(byte(r)):
			canonical.WriteRune(r)
		case r == ' ' || isWord(r):
			for _, c := range []byte(string(r)) {
				fmt.Fprintf(&canonical, "%%%02X", c)
			}
		default:
			return fmt.Errorf("a literal cannot hold %q", r)
		}
	}
	if canonical.String() != literal {
		return fmt.Errorf("not in its canonical spelling, which is %q", canonical.String())
	}
	return nil
}

// plainByte reports whether a byte stands for itself in a canonical path: unreserved and sub-delims without ";",
// and ":" and "@" (RFC 3986, 3.3).
func plainByte(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("-._~!$&'()*+,=:@", c) >= 0
}

// isWord reports whether a rune beyond ASCII has one reading: a letter, mark or digit.
func isWord(r rune) bool {
	return r >= utf8.RuneSelf && !foldsIntoASCII(r) && (unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsDigit(r))
}

// foldsIntoASCII names the letters beyond ASCII that become ASCII letters when case is changed: KELVIN SIGN, LONG S and
// the two Turkish i.
func foldsIntoASCII(r rune) bool { return r == 0x212A || r == 0x017F || r == 0x0130 || r == 0x0131 }

// fold decodes a segment of a canonical path and takes its letter case away. It does not allocate for a segment that
// has neither escapes nor upper-case letters. ok is false if an escape is not one.
func fold(segment string) (folded string, ok bool) {
	plain := true
	for i := 0; i < len(segment); i++ {
		if c := segment[i]; c == '%' || c >= utf8.RuneSelf || c >= 'A' && c <= 'Z' {
			plain = false
			break
		}
	}
	if plain {
		return segment, true
	}
	decoded, err := url.PathUnescape(segment)
	if err != nil {
		return "", false
	}
	return strings.Map(foldRune, decoded), true
}

// foldRune picks one rune for all that differ from r in case only: the lower-case letter in ASCII, else the least of
// its simple folds (Unicode CaseFolding.txt).
func foldRune(r rune) rune {
	if r < utf8.RuneSelf {
		return unicode.ToLower(r)
	}
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	return unicode.ToLower(least)
}
