package ingress

import (
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport/internal/policy"
)

// pathVector is one row of testdata/vectors/paths.json, which the npm tests read too.
type pathVector struct {
	Name     string      `json:"name"`
	Target   string      `json:"target"`
	Accept   bool        `json:"accept"`
	Path     string      `json:"path"`
	Query    *string     `json:"query"`
	Specials []string    `json:"specials"`
	Code     policy.Code `json:"code"`
}

func pathVectors(t testing.TB) []pathVector {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "testdata", "vectors", "paths.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []pathVector `json:"vectors"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 100 {
		t.Fatalf("%d vectors, want the whole file", len(file.Vectors))
	}
	return file.Vectors
}

func TestCanonicaliseVectors(t *testing.T) {
	seen := make(map[string]bool)
	for _, v := range pathVectors(t) {
		if seen[v.Name] {
			t.Errorf("two vectors are named %q", v.Name)
		}
		seen[v.Name] = true
		t.Run(v.Name, func(t *testing.T) {
			c, err := canonicalise(v.Target)
			if !v.Accept {
				var refusal *canonicalError
				if !errors.As(err, &refusal) {
					t.Fatalf("canonicalise(%.60q) = %+v, %v; want a refusal", v.Target, c, err)
				}
				if refusal.Code != v.Code {
					t.Errorf("code %q (%s), want %q", refusal.Code, refusal.Reason, v.Code)
				}
				return
			}
			if err != nil {
				t.Fatalf("canonicalise(%q): %v", v.Target, err)
			}
			query, force := "", false
			if v.Query != nil {
				query, force = *v.Query, *v.Query == ""
			}
			if c.Path != v.Path || c.RawQuery != query || c.ForceQuery != force || !slices.Equal(c.Specials, v.Specials) {
				t.Errorf("canonicalise(%q) = %+v, want path %q, query %q, specials %q", v.Target, c, v.Path, query, v.Specials)
			}
			checkCanonical(t, v.Target, c)
		})
	}
}

// Bytes that no JSON file can hold.
func TestCanonicaliseRawBytes(t *testing.T) {
	for b := range 256 {
		c := byte(b)
		plain := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,=:@/;?", c) >= 0
		if _, err := canonicalise("/a" + string([]byte{c}) + "b"); (err == nil) != plain {
			t.Errorf("byte 0x%02x in a path: %v, want accepted %t", c, err, plain)
		}
		printable := c > ' ' && c < 0x7f && strings.IndexByte(`;#\"<>%`, c) < 0
		if _, err := canonicalise("/a?b" + string([]byte{c}) + "zz"); (err == nil) != printable {
			t.Errorf("byte 0x%02x in a query: %v, want accepted %t", c, err, printable)
		}
	}
}

// Every escape of one byte: decoded if unreserved, kept or refused else. What is kept is what was sent.
func TestCanonicaliseEscapes(t *testing.T) {
	const hex = "0123456789ABCDEF"
	for b := range 256 {
		escape := "%" + hex[b>>4:b>>4+1] + hex[b&15:b&15+1]
		want := "/a" + escape + "b"
		switch {
		case b < 0x20 || b >= 0x7f || strings.IndexByte(`\%#?`, byte(b)) >= 0:
			want = "" // control; a lone byte beyond ASCII is not UTF-8; or one that starts another syntax
		case unicode.IsLetter(rune(b)) || unicode.IsDigit(rune(b)) || strings.IndexByte("-._~", byte(b)) >= 0:
			want = "/a" + string(rune(b)) + "b"
		}
		for _, spelling := range []string{escape, strings.ToLower(escape)} {
			c, err := canonicalise("/a" + spelling + "b")
			if c.Path != want || (err == nil) != (want != "") {
				t.Errorf("%s: %q, %v; want %q", spelling, c.Path, err, want)
			}
		}
	}
}

// A letter beyond ASCII that case mapping turns into an ASCII one would spell a route's name in another way.
func TestCanonicaliseLettersThatFoldIntoASCII(t *testing.T) {
	for r := rune(utf8.RuneSelf); r <= unicode.MaxRune; r++ {
		folds := unicode.ToLower(r) < utf8.RuneSelf || unicode.ToUpper(r) < utf8.RuneSelf || unicode.ToTitle(r) < utf8.RuneSelf
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			folds = folds || f < utf8.RuneSelf
		}
		if !folds || !utf8.ValidRune(r) {
			continue
		}
		if c, err := canonicalise("/a" + url.PathEscape(string(r)) + "b"); err == nil {
			t.Errorf("%U is accepted: %q", r, c.Path)
		}
	}
}

func TestCanonicaliseBounds(t *testing.T) {
	if _, err := canonicalise("/" + strings.Repeat("a", maxTarget-1)); err != nil {
		t.Errorf("%d bytes: %v", maxTarget, err)
	}
	var refusal *canonicalError
	if _, err := canonicalise("/?" + strings.Repeat("a", maxTarget-1)); !errors.As(err, &refusal) || refusal.Code != codeTargetTooLong {
		t.Errorf("%d bytes: %v, want %s", maxTarget+1, err, codeTargetTooLong)
	}
}

// A refusal must not carry what was sent: it is logged.
func TestCanonicaliseRefusalsQuoteNothing(t *testing.T) {
	const secret = "eyJhbGciOiJub25lIn0"
	for _, target := range []string{secret, "/" + secret + "/../x", "/a?token=" + secret + ";", "/" + secret + "%zz", "/" + secret + "#"} {
		if _, err := canonicalise(target); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("canonicalise(%q): %v", target, err)
		}
	}
}

// The literals that a route can have are written as the canonical path writes them, so that they can match at all.
func TestCanonicalPathMatchesRouteLiterals(t *testing.T) {
	for _, literal := range []string{"orders", "a-b.c_d~", "!$&'()*+,=:@", "caf%C3%A9", "%E6%97%A5%E6%9C%AC", "my%20file", "Mixed"} {
		p, err := policy.New([]policy.Route{{Name: "a", Match: "GET /" + literal, AnyCaller: true}})
		if err != nil {
			t.Errorf("route literal %q: %v", literal, err)
			continue
		}
		c, err := canonicalise("/" + literal)
		if err != nil || c.Path != "/"+literal {
			t.Errorf("path /%s: %q, %v", literal, c.Path, err)
			continue
		}
		if s, d := p.Select(policy.Request{Method: "GET", Path: c.Path}); s.Route == nil {
			t.Errorf("path /%s does not select its route: %s", literal, d.Code)
		}
	}
}

// checkCanonical states what holds for every accepted target.
func checkCanonical(t *testing.T, target string, c canonical) {
	t.Helper()
	again, err := canonicalise(c.Target())
	if err != nil || again.Target() != c.Target() || !slices.Equal(again.Specials, c.Specials) {
		t.Errorf("not idempotent: %q became %q, then %q (%v)", target, c.Target(), again.Target(), err)
	}
	for _, b := range []byte(c.Target()) {
		if b <= ' ' || b >= 0x7f || b == '\\' || b == '#' {
			t.Errorf("%q became %q, which holds byte 0x%02x", target, c.Target(), b)
		}
	}
	// net/url reads it as we do: escaped and decoded.
	u, err := url.ParseRequestURI(c.Target())
	if err != nil {
		t.Fatalf("net/url does not read %q: %v", c.Target(), err)
	}
	if u.EscapedPath() != c.Path || u.RawQuery != c.RawQuery || u.ForceQuery != c.ForceQuery || u.Fragment != "" || u.Host != "" {
		t.Errorf("net/url reads %q as %+v", c.Target(), u)
	}
	// One decode of what was sent says the same as one decode of what is forwarded: nothing was repaired.
	rawPath, rawQuery, _ := strings.Cut(target, "?")
	sent, err := url.PathUnescape(rawPath)
	if err != nil || sent != u.Path || rawQuery != c.RawQuery {
		t.Errorf("%q says %q, but %q says %q", target, sent, c.Path, u.Path)
	}
	if strings.Count(rawPath, "/") != strings.Count(c.Path, "/") {
		t.Errorf("%q has not the segments of %q", c.Path, target)
	}
	// The WHATWG parser resolves dot segments (escaped ones too), turns backslashes, and reads "//" as a host.
	for i, segment := range strings.Split(u.Path[1:], "/") {
		name, _, _ := strings.Cut(segment, ";")
		if segment == "." || segment == ".." || name == "." || name == ".." || segment == "" && i != strings.Count(u.Path, "/")-1 {
			t.Errorf("%q became %q, which has segment %q", target, c.Path, segment)
		}
	}
	if strings.ContainsAny(u.Path, "\\%?#") || strings.ContainsFunc(u.Path, unicode.IsControl) || !utf8.ValidString(u.Path) {
		t.Errorf("%q became %q, which a second decode or another parser reads differently", target, c.Path)
	}
	if strings.Contains(c.Path, "%2F") != slices.Contains(c.Specials, "%2F") ||
		(strings.Contains(c.Path, ";") || strings.Contains(c.Path, "%3B")) != slices.Contains(c.Specials, ";") {
		t.Errorf("%q has specials %q", c.Path, c.Specials)
	}
}

func BenchmarkCanonicalise(b *testing.B) {
	for name, target := range map[string]string{"plain": "/orders/42/items?limit=10", "escapes": "/%6frders/caf%c3%a9/my%20file"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := canonicalise(target); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
