package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// attempt is one raw request of the differential fuzz.
type attempt struct {
	id      int
	method  string
	target  string // as it stands in the request line, whatever it holds
	token   bool   // with a good token
	upgrade bool   // asks for a WebSocket
}

// bytes is the request as it is sent.
func (a attempt) bytes(host, token string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nX-Fuzz: %d\r\n", a.method, a.target, host, a.id)
	if a.token {
		fmt.Fprintf(&b, "Authorization: Bearer %s\r\n", token)
	}
	switch {
	case a.upgrade:
		b.WriteString("Connection: Upgrade\r\nUpgrade: websocket\r\n" +
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	case a.method == "POST" || a.method == "PUT" || a.method == "PATCH":
		b.WriteString("Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
	default:
		b.WriteString("\r\n")
	}
	return []byte(b.String())
}

// bases are honest requests: each handler of the backends is there.
var bases = []string{
	"GET /", "GET /admin", "GET /admin/secret", "GET /admin/secret/42", "GET /admin/queues", "GET /admin/queues/api/1",
	"GET /public/info", "GET /public/a", "GET /public/a/b", "GET /users/me", "GET /users/42", "GET /users/42/keys",
	"GET /orders", "POST /orders", "GET /orders/42", "DELETE /orders/42", "GET /tenants/acme",
	"GET /tenants/acme/export/csv", "GET /files/report.pdf", "GET /files/a%2Fb", "GET /files/a;b", "GET /keys",
	"GET /any", "POST /any", "POST /graphql", "GET /graphql", "GET /static/file.txt", "GET /static/sub/file.txt",
	"GET /docs-json", "GET /about", "GET /about/us", "UPGRADE /ws", "UPGRADE /socket",
}

// generator makes attempts from a seed: the same ones every time.
type generator struct {
	*rand.Rand
	n int
}

func newGenerator(seed uint64) *generator {
	return &generator{Rand: rand.New(rand.NewPCG(seed, 0))}
}

// honest is each base as it stands: what the fuzz mutates must be reached first.
func (g *generator) honest() []attempt {
	all := make([]attempt, 0, len(bases))
	for _, base := range bases {
		method, target, _ := strings.Cut(base, " ")
		all = append(all, g.attempt(method, target))
	}
	return all
}

// mutants are n attempts, each some mutations away from a base.
func (g *generator) mutants(n int) []attempt {
	all := make([]attempt, 0, n)
	for range n {
		method, target, _ := strings.Cut(pick(g, bases), " ")
		if g.IntN(3) == 0 {
			target = g.path()
		} else {
			target = g.mutate(target)
		}
		for g.IntN(2) == 0 {
			target = g.mutate(target)
		}
		if g.IntN(5) == 0 {
			method = pick(g, methods)
		}
		a := g.attempt(method, target)
		a.token = g.IntN(8) > 0
		all = append(all, a)
	}
	return all
}

func (g *generator) attempt(method, target string) attempt {
	g.n++
	a := attempt{id: g.n, method: method, target: target, token: true}
	if method == "UPGRADE" {
		a.method, a.upgrade = "GET", true
	}
	return a
}

var words = []string{
	"admin", "secret", "queues", "public", "info", "users", "me", "42", "keys", "orders", "tenants", "acme", "other", "export",
	"csv", "files", "any", "graphql", "static", "file.txt", "sub", "docs-json", "ws", "socket", "socket.io", "about", "api", "x",
	"Admin", "SECRET", "PUBLIC", "Info", "ME", "Tenants", "ACME", "GraphQL", "%61dmin", "adm%69n", "acm%65", "a;b", "a%2Fb", "%2e.",
	"a%20b", "caf%C3%A9", "CAF%C3%89", "_", "-", "~", ":id", "*",
}

var methods = []string{
	"GET", "GET", "HEAD", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "M-SEARCH",
	"get", "ALL", "UPGRADE", "UPGRADE",
}

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

// path is some known words in a row: most are paths that no parser stumbles over and no route names whole.
func (g *generator) path() string {
	var b strings.Builder
	for range 1 + g.IntN(4) {
		b.WriteString("/" + pick(g, words))
	}
	return b.String() + pick(g, []string{"", "", "", "/", "?x=y"})
}

// mutate applies one trick.
func (g *generator) mutate(s string) string {
	switch g.IntN(12) {
	case 0:
		return g.letter(s, func(c string) string { return swapCase(c) })
	case 1:
		return pick(g, []func(string) string{strings.ToUpper, strings.ToLower, swapCase})(s)
	case 2:
		return g.letter(s, func(c string) string { return fmt.Sprintf(pick(g, []string{"%%%02x", "%%%02X"}), c) })
	case 3:
		return g.letter(s, func(c string) string { return fmt.Sprintf("%%25%02x", c) })
	case 4:
		return g.slash(s, pick(g, slashes))
	case 5:
		return s + pick(g, suffixes)
	case 6:
		return pick(g, prefixes) + s
	case 7:
		return g.fold(s)
	case 8: // two paths, the second of which some parser might take for the whole
		_, other, _ := strings.Cut(pick(g, bases), " ")
		return s + pick(g, joints) + other
	case 9: // a parameter's value
		return g.segment(s, pick(g, values))
	case 10:
		i := g.IntN(len(s) + 1)
		return s[:i] + pick(g, insertions) + s[i:]
	default:
		i := g.IntN(len(s) + 1)
		return s[:i] + string([]byte{byte(0x21 + g.IntN(0xdf))}) + s[i:]
	}
}

var (
	slashes = []string{
		"%2f", "%2F", "%5c", "%5C", `\`, "//", "///", "/./", "/%2e/", "/;/", "/;a=b/", ";a=b/", "/%20/", "/.;/", "%252f",
		"/x/../", "/x/%2e%2e/", "/x%2f..%2f", "/%2f", "/%3b/", "%u002f", "%c0%af", "%ef%bc%8f", "/ /", "/\t/",
	}
	suffixes = []string{
		"/", "//", "/.", "/..", "/./", "/../", "%2f", "%2F", "%5c", `\`, ";", ";a=b", ";/", ";/x", "%3b", "%3B", "?", "??", "?x=y",
		"?/../../admin/secret", "?x;y", "?%00", "#", "#x", "#/admin/secret", "%23", "%3f", "%3F", "%00", "%20", "%09", "%0a",
		"%0d%0a", "+", ".", "..", "...", ".json", ".html", "~", "*", "!", "'", ",", ":", "@", "$", "&", "=", "(", ")", "/x", "/x/y",
		";/../../public/info", "/..;/", "/../public/info", "/%2e%2e/secret", "/.%2e/secret", "/..%2fsecret", "?#", "%", "%2", "%zz",
		" ", "\t", " HTTP/1.1", " HTTP/1.0\r\nX-Fuzz: 0\r\n", "\r\n", "\n", "\x00", "\x7f", "\x80", "é", "%e9", "%c3%a9", "e%cc%81",
	}
	prefixes = []string{
		"/", "//", "/.", "/./", "/../", "/%2e/", "/%2e%2e/", "/%2f", "/;", "/;/", "/x/..", "/x/%2e%2e", "/x/..;", "/x%2f..", "/public/..",
		"/public/%2e%2e", "/public/..%2f", "/public/a/..", "/graphql/..", "/graphql", "/GraphQL/..", "/static/..", "/static",
		"/socket/..", "/socket.io", "/ws/..", "/admin", "/admin/..", "/admin/queues/..", "/users/42/..", "/about/..", "http:",
		"http://orders.example", "HTTP://orders.example", "http://other.example", "http://orders.example:80", "http://a@orders.example",
		"http://orders.example?", "http://orders.example#", "http://orders.example/..", "https://orders.example", "javascript:", "ws://orders.example",
		"//orders.example", "//other.example/..", `\`, `\\`, "*", "?", "#", ";", " ", "\t", "x", "%20", "%00", "http:///", "://", "/http://orders.example",
	}
	joints = []string{"", "/..", "/../..", "%2f..%2f..", "/%2e%2e", ";", ";/..", "?", "#", "%3f", "%23", "%00", "%20", "//", `\..`, "%5c..", "&", ","}
	values = []string{
		"", ".", "..", "%2e", "%2e%2e", ".%2e", "me", "ME", "m%65", "info", "INFO", "secret", "keys", "queues", "acme", "ACME", "Acme", "acm%65", "acme ", "acme%20",
		"acme;x", "acme%3bx", "acme%2Fexport", "acme%2fexport%2fcsv", "other", "other%2F..%2Facme", "..%2Facme", "acme%00", "acme%2f", "acme.", "acme?", "42", "42%2Fkeys",
		"42%252fkeys", "a%2Fb", "a%2F..%2Fb", "..%2F..%2Fadmin", "a;b", ";", ";x", "%3b", "a%3Bb", "*", ":id", "{id}", "__proto__", "constructor", "%E2%84%AA", "true", "-1",
	}
	insertions = []string{
		"%", "%2f", "%2e", "%2e%2e", "..", "//", ";", "%3b", "#", "?", `\`, "%5c", "%00", "%0a", "%0d", "%20", "%25", "%252e", "%2525", "%c0%ae", "%c0%af", "%e0%80%af",
		"%ff", "%fe", "%u0041", "%C2%AD", "%E2%80%8B", "%EF%BB%BF", "%EF%BC%8F", "%E2%88%95", "%CC%81", "%CD%BE", "\u037e", "\u00ad", "\xc0\xaf", "\x01", "\x1f", "\x7f",
	}
	folds = map[rune][]string{
		'k': {"%E2%84%AA", "\u212a", "%e2%84%aa"}, 's': {"%C5%BF", "\u017f", "%c5%bf"}, 'i': {"%C4%B1", "%C4%B0", "\u0130", "\u0131"},
		'a': {"%C3%A0", "%EF%BD%81", "\u00aa"}, 'e': {"%C3%A9", "e%CC%81"}, '.': {"%EF%BC%8E", "\u2024"}, '/': {"%E2%81%84", "\u2215"},
	}
)

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return r
	}, s)
}

// letter changes one character that is no slash.
func (g *generator) letter(s string, change func(string) string) string {
	for range 8 {
		if s == "" {
			break
		}
		if i := g.IntN(len(s)); s[i] != '/' && s[i] != '%' {
			return s[:i] + change(s[i:i+1]) + s[i+1:]
		}
	}
	return s
}

// slash replaces one slash.
func (g *generator) slash(s, by string) string {
	n := strings.Count(s, "/")
	if n == 0 {
		return s + by
	}
	i, k := -1, g.IntN(n)
	for range k + 1 {
		i += 1 + strings.IndexByte(s[i+1:], '/')
	}
	return s[:i] + by + s[i+1:]
}

// segment replaces one segment.
func (g *generator) segment(s, by string) string {
	segments := strings.Split(s, "/")
	segments[g.IntN(len(segments))] = by
	joined := strings.Join(segments, "/")
	if !strings.HasPrefix(joined, "/") && g.IntN(4) > 0 {
		return "/" + joined
	}
	return joined
}

// fold replaces a letter by another one that some case folding or normal form makes equal to it.
func (g *generator) fold(s string) string {
	at := make([]int, 0, len(s))
	for i, r := range s {
		if folds[r] != nil {
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return s
	}
	i := pick(g, at)
	return s[:i] + pick(g, folds[rune(s[i])]) + s[i+1:]
}
