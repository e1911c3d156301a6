package config

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// maxText is the longest single value, in bytes. A CEL expression of this size is no longer read by anyone.
const maxText = 16 << 10

// patternOf is the form of a scalar's text, for the parser and for the JSON Schema alike. Empty: any text.
func (k *key) patternOf() string {
	if k.pattern != "" {
		return k.pattern
	}
	switch k.kind {
	case duration:
		return `^([0-9]{1,9}(ms|s|m|h))+$`
	case size:
		return `^[0-9]{1,9}(B|KiB|MiB|GiB)$`
	case date:
		return `^[0-9]{4}-[0-9]{2}-[0-9]{2}$`
	case address:
		return `^(unix:.+|[^ /]*:[0-9]{1,5})$`
	case link:
		return `^[a-z]+://[^ ]+$`
	case prefix:
		return `^[0-9A-Fa-f.:]+/[0-9]{1,3}$`
	case path:
		return `^[^~]`
	}
	return ""
}

// scalar reads a single value.
func (r *reader) scalar(v *value, n *yaml.Node) {
	k, tag := v.key, n.ShortTag()
	v.raw = n.Value
	switch k.kind {
	case integer:
		number, ok := digits(n.Value)
		switch {
		case tag == "!!str" && ok:
			r.fail(v, "remove the quotes", "must be a number, not text")
		case tag != "!!int" || !ok:
			r.fail(v, k.exampleHint(), "must be a whole decimal number")
		default:
			v.data = number
			r.bounds(v, number, func(n int64) string { return strconv.FormatInt(n, 10) })
		}
		return
	case boolean:
		if tag != "!!bool" || n.Value != "true" && n.Value != "false" {
			r.fail(v, "write `true` or `false`, without quotes", "must be true or false")
			return
		}
		v.data = n.Value == "true"
		return
	case fraction:
		f, err := strconv.ParseFloat(n.Value, 64)
		if tag != "!!int" && tag != "!!float" || err != nil || !fractional(n.Value) || f > 1 {
			r.fail(v, "for one in a hundred write `0.01`", "must be a decimal number from 0 to 1")
			return
		}
		v.data = f
		return
	}
	_, number := digits(n.Value)
	if tag != "!!str" && !(k.kind == date && tag == "!!timestamp") && !(k.number && tag == "!!int" && number) {
		switch {
		case k.kind == duration:
			r.fail(v, "a duration has a unit: `500ms`, `30s`, `5m`, `1h`", "must be a duration, not %s", describeNode(n))
		case k.kind == size:
			r.fail(v, "a size has a unit: `512B`, `64KiB`, `10MiB`, `1GiB`", "must be a size, not %s", describeNode(n))
		default:
			r.fail(v, "put it in quotes", "must be %s, not %s", k.describe(), describeNode(n))
		}
		return
	}
	if problem, hint := r.judge(k, n.Value); problem != "" {
		r.fail(v, hint, "%s", problem)
		return
	}
	r.convert(v, n.Value)
}

// fractional reports whether a number is written in digits with at most one point: what YAML takes besides, few people read.
func fractional(s string) bool {
	whole, part, _ := strings.Cut(s, ".")
	only := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	return len(s) <= 20 && only(whole) && (whole == s || only(part))
}

// judge checks a text against what the tree says of its key.
func (r *reader) judge(k *key, s string) (problem, hint string) {
	switch {
	case s == "" && !(k.kind == text && k.pattern == "" && k.enum == nil && k.check == nil):
		hint = k.exampleHint()
		if k.unset != "" {
			hint = "remove the key: then " + k.unset
		}
		return "is empty", hint
	case len(s) > maxText:
		return fmt.Sprintf("longer than %d bytes", maxText), ""
	case k.enum != nil && !slices.Contains(k.enum, s):
		return k.notInEnum(s)
	}
	if p := k.patternOf(); p != "" {
		re := r.patterns[p]
		if re == nil {
			re = regexp.MustCompile(p)
			r.patterns[p] = re
		}
		if !re.MatchString(s) {
			return k.notInForm(s)
		}
	}
	if k.check != nil {
		return k.check(s)
	}
	return "", ""
}

func (k *key) notInEnum(s string) (problem, hint string) {
	for word, why := range k.enumHint {
		if strings.EqualFold(word, s) {
			return fmt.Sprintf("must be %s, not %s", list(k.enum), quote(s)), why
		}
	}
	return fmt.Sprintf("must be %s, not %s", list(k.enum), quote(s)), suggest(s, k.enum)
}

// notInForm explains a text that has not the pattern of its key. Texts of a pattern of their own may be secrets in the
// wrong place, and are not repeated.
func (k *key) notInForm(s string) (problem, hint string) {
	if k.shape != "" {
		hint = k.exampleHint()
		if k.kind == link && strings.HasPrefix(s, "unix:") {
			hint = "three slashes: `unix:///run/app/app.sock`"
		}
		if k.kind == link && strings.HasPrefix(s, "https:") && !strings.Contains(k.pattern, "https") {
			hint = "TLS to the service is not in this version: let it listen on loopback or on a unix socket"
		}
		return "must be " + k.shape, hint
	}
	switch k.kind {
	case duration:
		hint = "units are ms, s, m and h: `500ms`, `30s`, `5m`, `1h30m`"
		if days, ok := strings.CutSuffix(s, "d"); ok {
			if n, ok := digits(days); ok && n < 100_000 {
				hint = fmt.Sprintf("write days in hours: `%dh`", n*24)
			}
		}
		return "not a duration: " + quote(s), hint
	case size:
		return "not a size: " + quote(s), "units are B, KiB, MiB and GiB: `64KiB`, `10MiB`"
	case date:
		return "not a date: " + quote(s), "a date is year, month and day: `2027-06-01`"
	case prefix:
		if a, err := netip.ParseAddr(s); err == nil {
			return "not an address range: " + quote(s), fmt.Sprintf("for the one address write `%s/%d`", s, a.BitLen())
		}
		return "not an address range: " + quote(s), "an address, a slash and the number of leading bits: `10.0.0.0/8`"
	case address:
		return "not an address", "`:8080`, `127.0.0.1:8080` or `unix:/run/app.sock`"
	case link:
		return "not an absolute URL", k.exampleHint()
	case path:
		return "`~` is not expanded", "write the path out"
	}
	return "has not the right form", k.exampleHint()
}

// convert turns a text that has the right form into its value, and judges what only the value shows.
func (r *reader) convert(v *value, s string) {
	switch v.key.kind {
	case duration:
		d, err := time.ParseDuration(s)
		if err != nil {
			r.fail(v, "", "not a duration: %s", quote(s))
			return
		}
		v.data = d
		r.bounds(v, int64(d), func(n int64) string { return span(time.Duration(n)) })
	case size:
		if s == "0" {
			s = "0B" // where a key admits it
		}
		i := strings.IndexAny(s, "BKMG")
		n, err := strconv.ParseInt(s[:i], 10, 64)
		unit := map[string]int64{"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[s[i:]]
		if err != nil || n > math.MaxInt64/unit {
			r.fail(v, "", "not a size: %s", quote(s))
			return
		}
		v.data = n * unit
		r.bounds(v, n*unit, amount)
	case date:
		t, err := time.Parse(time.DateOnly, s)
		if err != nil {
			r.fail(v, "", "no such day: %s", quote(s))
			return
		}
		v.data = t
	case path:
		if v.key.dash && s == "-" {
			v.data = s
			return
		}
		if problem, hint := badPath(s); problem != "" {
			r.fail(v, hint, "%s", problem)
			return
		}
		v.data = r.absolute(s)
	case address:
		r.address(v, s)
	case link:
		u, problem, hint := parseURL(s)
		if problem != "" {
			r.fail(v, hint, "%s", problem)
			return
		}
		v.data = u
	case prefix:
		p, problem, hint := parsePrefix(s)
		if problem != "" {
			r.fail(v, hint, "%s", problem)
			return
		}
		v.data = p
	default:
		v.data = s
	}
}

// bounds checks a value against the least and the most that its key admits.
func (r *reader) bounds(v *value, n int64, show func(int64) string) {
	k := v.key
	if k.min == 0 && k.max == 0 || n >= k.min && n <= k.max {
		return
	}
	hint := ""
	if n == 0 && k.unset != "" {
		hint = "remove the key: then " + k.unset
	}
	if k.min == k.max {
		r.fail(v, hint, "must be %s, not %s", show(k.min), show(n))
		return
	}
	r.fail(v, hint, "must be %s to %s, not %s", show(k.min), show(k.max), show(n))
}

// span writes a duration as the file does: 30s, 1h, 720h.
func span(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// amount writes a number of bytes as the file does: 64KiB, 10MiB.
func amount(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// absolute makes a path absolute and clean. Links are not followed: nothing is read but the file itself.
func (r *reader) absolute(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(r.dir, p)
}

func badPath(s string) (problem, hint string) {
	switch {
	case strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return "a path holds no control characters", ""
	case strings.HasPrefix(s, "unix:"), strings.Contains(s, ":/"):
		return "must be a path, not a URL", "for example `/run/app/app.sock`"
	case strings.Contains(s, "${"), strings.HasPrefix(s, "$"):
		return "variables are not expanded", "write the path out"
	case strings.Contains(s, "*"):
		return "patterns are not expanded", "name the folder"
	case len(s) > 4095:
		return "longer than a path can be (4095 bytes)", ""
	}
	return "", ""
}

// maxSocketPath is the longest name of a unix socket, in bytes (unix(7): sun_path holds 108 with the final zero).
const maxSocketPath = 107

// address reads "host:port", ":port" or "unix:PATH".
func (r *reader) address(v *value, s string) {
	if p, ok := strings.CutPrefix(s, "unix:"); ok {
		if problem, hint := badPath(p); problem != "" {
			r.fail(v, hint, "%s", problem)
			return
		}
		if strings.HasPrefix(p, "//") {
			r.fail(v, "`unix:/run/app.sock`, or `unix:app.sock` beside this file", "the path begins with two slashes")
			return
		}
		abs := r.absolute(p)
		if len(abs) > maxSocketPath {
			r.fail(v, "", "the socket's path is %d bytes long, and the kernel takes %d", len(abs), maxSocketPath)
			return
		}
		v.data = "unix:" + abs
		return
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		r.fail(v, "an IPv6 address is written in brackets: `[::1]:8080`", "not an address")
		return
	}
	if problem := badPort(port); problem != "" {
		r.fail(v, "", "%s", problem)
		return
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		r.fail(v, "write the address itself, or `localhost`", "a listener's host is an IP address, not a name")
		return
	}
	v.data = s
}

func badPort(s string) string {
	if n, ok := digits(s); !ok || n > 65535 {
		return "a port is a number up to 65535"
	}
	return ""
}

// parseURL reads an absolute URL. Its errors never repeat the URL: it may hold a password.
func parseURL(s string) (u *url.URL, problem, hint string) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, "not a URL", ""
	case strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f }):
		return nil, "a URL holds printable ASCII only", "write other characters in their escaped form"
	case u.User != nil:
		return nil, "a URL here has no user name or password", "secrets are not written in this file"
	case u.Fragment != "", strings.HasSuffix(s, "#"):
		return nil, "a URL here has no fragment", "remove what follows `#`"
	}
	if p := u.Port(); p != "" {
		if problem := badPort(p); problem != "" {
			return nil, problem, ""
		}
	}
	return u, "", ""
}

// parsePrefix reads a range of peers to be believed.
func parsePrefix(s string) (p netip.Prefix, problem, hint string) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, "not an address range: " + quote(s), "an address, a slash and the number of leading bits: `10.0.0.0/8`"
	case p.Bits() == 0:
		return p, s + " is every address: anyone could say who they are", "name the proxies alone: `10.1.2.3/32`"
	case p.Addr().Is4In6():
		return p, "an IPv4 range is written as one", "`10.0.0.0/8`, not `::ffff:10.0.0.0/104`"
	case p != p.Masked():
		return p, "bits are set after the first " + strconv.Itoa(p.Bits()), fmt.Sprintf("`%s`, or `%s/%d` for the one address", p.Masked(), p.Addr(), p.Addr().BitLen())
	case p.Addr().Is4() && p.Bits() < 8, p.Addr().Is6() && p.Bits() < 7:
		return p, s + " is wider than any private network", "name the proxies alone: `10.1.2.3/32`"
	}
	return p, "", ""
}

// loopback reports whether a URL's host is this machine and nothing else.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback() && a.Zone() == ""
}
