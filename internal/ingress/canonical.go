package ingress

import (
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/wire"
)

// The codes of a request target that is refused before a route is looked for. Most are of wire too, which refuses the
// bytes that no target has.
const (
	codeTargetForm                    = policy.Code(wire.TargetForm)        // not origin-form (RFC 9112, 3.2.1)
	codeTargetTooLong     policy.Code = "target_too_long"                   // more than maxTarget bytes
	codePathNoncanonical              = policy.Code(wire.PathNoncanonical)  // a path that two parsers may read differently
	codeQueryNoncanonical             = policy.Code(wire.QueryNoncanonical) // the same of a query
	codeHostInvalid                   = policy.Code(wire.HostInvalid)       // no host, or not one
)

// maxTarget bounds a request target, in bytes.
const maxTarget = 8 << 10

// canonical is a request target in the one spelling that is judged and forwarded.
type canonical struct {
	Path       string   // begins with "/"; its only escapes are those of bytes that cannot stand for themselves, in upper-case hex
	RawQuery   string   // as received, without "?"
	ForceQuery bool     // the target ends in "?" with nothing behind
	Specials   []string // "%2F" (escaped slash) and ";" (plain or escaped): in the path, where only a route that allows them takes them
}

// Target is what is forwarded: a request line's target.
func (c canonical) Target() string {
	if c.RawQuery == "" && !c.ForceQuery {
		return c.Path
	}
	return c.Path + "?" + c.RawQuery
}

// canonicalError is why a target or a host is refused. It quotes no more of it than one byte or letter.
type canonicalError struct {
	Code   policy.Code
	Reason string
}

// Error is the reason.
func (e *canonicalError) Error() string { return e.Reason }

func refuse(code policy.Code, format string, args ...any) *canonicalError {
	return &canonicalError{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// canonicalise reads the target of a request line. It establishes that a service, a URL library and a policy read the
// same segments in it, and refuses, with a *canonicalError, what it cannot establish that of. Nothing is repaired: the
// only change is that escapes of unreserved characters are decoded and the hex digits of others are in upper case,
// which RFC 3986, 6.2.2, calls the same URI. canonicalise(c.Target()) is c.
func canonicalise(target string) (canonical, error) {
	if len(target) > maxTarget {
		return canonical{}, refuse(codeTargetTooLong, "the target has more than %d bytes", maxTarget)
	}
	if target == "" || target[0] != '/' {
		return canonical{}, refuse(codeTargetForm, "the target is not in origin-form: it does not begin with \"/\"")
	}
	path, query, found := strings.Cut(target, "?")
	path, err := respell(path)
	if err != nil {
		return canonical{}, err
	}
	c := canonical{Path: path, RawQuery: query, ForceQuery: found && query == ""}
	if err := checkSegments(&c); err != nil {
		return canonical{}, err
	}
	if err := checkQuery(query); err != nil {
		return canonical{}, err
	}
	return c, nil
}

// respell decodes the escapes of unreserved characters and checks every other byte of a path.
func respell(path string) (string, *canonicalError) {
	var b strings.Builder
	copied := 0 // path[:copied] is in b
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c != '%' {
			if !literalByte(c) && c != '/' && c != ';' {
				return "", refuse(codePathNoncanonical, "byte 0x%02x cannot stand in a path", c)
			}
			continue
		}
		value, ok := unescape(path[i:])
		switch {
		case !ok:
			return "", refuse(codePathNoncanonical, "\"%%\" without two hex digits in the path")
		case value < ' ' || value == 0x7f || strings.IndexByte(`\%#?`, value) >= 0:
			return "", refuse(codePathNoncanonical, "%%%02X cannot stand in a path", value)
		}
		b.WriteString(path[copied:i])
		if unreserved(value) {
			b.WriteByte(value)
		} else {
			b.WriteByte('%')
			b.WriteString(strings.ToUpper(path[i+1 : i+3]))
		}
		i += 2
		copied = i + 1
	}
	if copied == 0 {
		return path, nil
	}
	b.WriteString(path[copied:])
	return b.String(), nil
}

// checkSegments judges a respelled path by what its segments say once decoded, and notes its specials.
func checkSegments(c *canonical) *canonicalError {
	decoded, escapes := c.Path, strings.IndexByte(c.Path, '%') >= 0
	if escapes {
		var err error
		if decoded, err = url.PathUnescape(c.Path); err != nil {
			return refuse(codePathNoncanonical, "the path has a bad escape")
		}
		if err := checkText(decoded); err != nil {
			return err
		}
		if strings.Contains(c.Path, "%2F") {
			c.Specials = append(c.Specials, "%2F")
		}
	}
	if strings.IndexByte(decoded, ';') >= 0 {
		c.Specials = append(c.Specials, ";")
	}
	// An escaped slash is taken for a slash here: "..%2Fadmin" must not climb in a service that decodes it.
	if strings.HasSuffix(c.Path, "%2F") {
		return refuse(codePathNoncanonical, "a segment ends in an escaped slash")
	}
	for rest := decoded[1:]; rest != ""; {
		segment, after, more := strings.Cut(rest, "/")
		name, _, _ := strings.Cut(segment, ";") // some services take parameters off first
		switch {
		case segment == "" || name == "":
			return refuse(codePathNoncanonical, "the path has an empty segment")
		case name == "." || name == ".." || segment == "." || segment == "..":
			return refuse(codePathNoncanonical, "the path has a dot segment")
		case escapes && (blankEdge(segment) || blankEdge(name)): // a plain space is refused before
			return refuse(codePathNoncanonical, "a segment begins or ends with a space")
		}
		if rest = after; !more {
			break
		}
	}
	return nil
}

// checkText refuses decoded text that is not UTF-8, that controls something, or in which a letter beyond ASCII becomes
// an ASCII character when a service changes case or normalises (NFC).
func checkText(decoded string) *canonicalError {
	if !utf8.ValidString(decoded) {
		return refuse(codePathNoncanonical, "the path is not UTF-8")
	}
	for _, r := range decoded {
		switch {
		case unicode.IsControl(r), r == 0x2028, r == 0x2029:
			return refuse(codePathNoncanonical, "%U cannot stand in a path", r)
		case r == 0x212A, // KELVIN SIGN: lower case and NFC "k"
			r == 0x017F, // LATIN SMALL LETTER LONG S: upper case "S"
			r == 0x0130, // LATIN CAPITAL LETTER I WITH DOT ABOVE: lower case "i"
			r == 0x0131, // LATIN SMALL LETTER DOTLESS I: upper case "I"
			r == 0x037E, // GREEK QUESTION MARK: NFC ";"
			r == 0x1FEF: // GREEK VARIA: NFC "`"
			return refuse(codePathNoncanonical, "%U can become an ASCII character", r)
		}
	}
	return nil
}

// blankEdge reports whether a service that trims would see another text.
func blankEdge(s string) bool {
	return strings.TrimFunc(s, func(r rune) bool { return unicode.IsSpace(r) || r == 0xFEFF }) != s
}

// checkQuery refuses bytes in a query that parsers treat differently: ";" separates or does not, "#" ends it or does
// not, a bad escape drops a parameter or keeps it. What browsers send plain, such as "[" and "|", passes.
func checkQuery(query string) *canonicalError {
	for i := 0; i < len(query); i++ {
		switch c := query[i]; {
		case c <= ' ' || c >= 0x7f || strings.IndexByte(`;#\"<>`, c) >= 0:
			return refuse(codeQueryNoncanonical, "byte 0x%02x cannot stand in a query", c)
		case c == '%':
			value, ok := unescape(query[i:])
			if !ok {
				return refuse(codeQueryNoncanonical, "\"%%\" without two hex digits in the query")
			}
			if value == 0 {
				return refuse(codeQueryNoncanonical, "%%00 cannot stand in a query")
			}
		}
	}
	return nil
}

// literalByte reports whether a byte stands for itself in a segment: unreserved, sub-delims without ";", ":" and "@"
// (RFC 3986, 3.3).
func literalByte(c byte) bool { return unreserved(c) || strings.IndexByte("!$&'()*+,=:@", c) >= 0 }

// unreserved is RFC 3986, 2.3.
func unreserved(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// unescape decodes the "%XX" at the beginning of s.
func unescape(s string) (value byte, ok bool) {
	if len(s) < 3 {
		return 0, false
	}
	high, okHigh := hexDigit(s[1])
	low, okLow := hexDigit(s[2])
	return high<<4 | low, okHigh && okLow
}

func hexDigit(c byte) (value byte, ok bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return (c | 0x20) - 'a' + 10, true
	}
	return 0, false
}
