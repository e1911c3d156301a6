package ingress

import (
	"net/netip"
	"strconv"
	"strings"
)

// canonicalHost is a Host field value or authority in its one spelling.
type canonicalHost struct {
	Name string // lower-case, without trailing dot; an IPv6 address stands in brackets
	Port uint16 // 0 when absent or the default of the scheme
}

// String is the authority as it is forwarded.
func (h canonicalHost) String() string {
	if h.Port == 0 {
		return h.Name
	}
	return h.Name + ":" + strconv.Itoa(int(h.Port))
}

// canonicaliseHost reads a Host field value (RFC 9110, 7.2). Letter case, one trailing dot and the default port (443
// with TLS, 80 without) make no difference; what else could be read as another host is refused with a *canonicalError:
// user information, a port that is none, a name that is not made of letters, digits and hyphens (an underscore, an
// escape, anything beyond ASCII), and numbers that some parsers take for an IPv4 address (0x7f.1, 127.1).
func canonicaliseHost(host string, tls bool) (canonicalHost, error) {
	if host == "" {
		return canonicalHost{}, refuse(codeHostInvalid, "there is no host")
	}
	name, port, found := host, "", false
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		name, port, found = host[:i], host[i+1:], true
	}
	var h canonicalHost
	if found {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port != strconv.FormatUint(n, 10) {
			return canonicalHost{}, refuse(codeHostInvalid, "the host has a port that is none")
		}
		if !(tls && n == 443 || !tls && n == 80) {
			h.Port = uint16(n)
		}
	}
	var err *canonicalError
	if h.Name, err = canonicalName(name); err != nil {
		return canonicalHost{}, err
	}
	return h, nil
}

func canonicalName(name string) (string, *canonicalError) {
	if literal, ok := strings.CutPrefix(name, "["); ok {
		literal, closed := strings.CutSuffix(literal, "]")
		addr, err := netip.ParseAddr(literal)
		if err != nil || !closed || !addr.Is6() || addr.Zone() != "" {
			return "", refuse(codeHostInvalid, "the host is not an IPv6 address")
		}
		return "[" + addr.String() + "]", nil
	}
	name = strings.TrimSuffix(name, ".")
	if len(name) > 253 {
		return "", refuse(codeHostInvalid, "the host has more than 253 bytes")
	}
	name = lowerASCII(name)
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if !ldhLabel(label) {
			return "", refuse(codeHostInvalid, "the host is not a name of letters, digits and hyphens")
		}
		last = label
	}
	// The WHATWG URL standard takes a name whose last label is a number for an IPv4 address, in octal and hex too.
	if last[0] >= '0' && last[0] <= '9' && (strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x")) {
		if addr, err := netip.ParseAddr(name); err != nil || !addr.Is4() {
			return "", refuse(codeHostInvalid, "the host is neither a name nor an IPv4 address of four decimal numbers")
		}
	}
	return name, nil
}

// ldhLabel is a label of letters, digits and hyphens (RFC 1123, 2.1), in lower case.
func ldhLabel(label string) bool {
	if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for _, c := range []byte(label) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// lowerASCII leaves bytes beyond ASCII alone, which strings.ToLower would change.
func lowerASCII(s string) string {
	for i := range len(s) {
		if s[i] >= 'A' && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if b[i] >= 'A' && b[i] <= 'Z' {
					b[i] |= 0x20
				}
			}
			return string(b)
		}
	}
	return s
}
