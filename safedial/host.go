package safedial

import (
	"net/netip"
	"strings"
)

// Host says whether a host, without port and brackets, has one reading: nil, or a
// *DeniedError with CodeAmbiguousHost. It is an address in its usual notation, or
// a name in DNS syntax (RFC 1123, section 2.1, with the underscores that are in
// use) that no reader takes for an address. Resolvers, libraries and the URL
// standard read the rest differently: 127.1, 0177.0.0.1, 0x7f000001 and 2130706433
// are loopback to some, a name to others, and an error to a third. Names in other
// scripts are written in their ASCII form (xn--...).
func Host(host string) error {
	if reason := ambiguous(host); reason != "" {
		return &DeniedError{Host: host, Code: CodeAmbiguousHost, Reason: reason}
	}
	return nil
}

// ambiguous says why host must not reach a resolver, or "".
func ambiguous(host string) string {
	if address, err := netip.ParseAddr(host); err == nil {
		if address.Zone() != "" {
			return "an address with a zone"
		}
		return ""
	}
	if host == "" || len(host) > 253 {
		return "not a name of 1 to 253 bytes"
	}
	last := ""
	for label := range strings.SplitSeq(host, ".") {
		if !isLabel(label) {
			return "not a name in DNS syntax"
		}
		last = label
	}
	if isNumber(last) {
		return "neither an address in its usual notation nor a name"
	}
	return ""
}

// isLabel refuses the empty label too: a trailing dot gives a second spelling to
// every name, and lists of names miss it.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// isNumber is the URL standard's "ends in a number": decimal and octal digits, or
// 0x and hexadecimal ones, of which there may be none.
func isNumber(label string) bool {
	digits := "0123456789"
	if len(label) >= 2 && label[0] == '0' && (label[1] == 'x' || label[1] == 'X') {
		label, digits = label[2:], "0123456789abcdefABCDEF"
	}
	return strings.Trim(label, digits) == ""
}
