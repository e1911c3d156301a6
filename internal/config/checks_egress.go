package config

import (
	"errors"
	"net"
	"net/netip"
	"strings"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/safedial"
)

// hostPort admits one place, in its one spelling: what is compared with what a service asks for must not need a second
// look. What was written is not repeated: it may be a URL with a password.
func hostPort(s string) (problem, hint string) {
	const example = "`billing.internal:443`, `10.1.2.3:5432` or `[fd00::1]:5432`"
	switch {
	case strings.Contains(s, "*"):
		return "wildcards are not taken: whoever can make a name below it would be let through", "name each host: " + example
	case strings.Contains(s, "@"):
		return "a host here has no user name or password", "secrets are not written in this file"
	case strings.Contains(s, "://"):
		return "must be HOST:PORT, not a URL", example
	case strings.Contains(s, "/"):
		return "must be HOST:PORT, not an address range", example
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if _, err := netip.ParseAddr(s); err == nil && strings.Contains(s, ":") {
			return "has no port", "an IPv6 address is written in brackets: `[fd00::1]:5432`"
		}
		if strings.Count(s, ":") == 0 {
			return "has no port", "which one? " + example
		}
		return "is not HOST:PORT", example
	}
	if problem := badPort(port); problem != "" {
		return problem, ""
	}
	if port == "0" {
		return "port 0 cannot be connected to", ""
	}
	return oneHost(host, strings.HasPrefix(s, "["))
}

// oneHost judges a host that is a name or an address.
func oneHost(host string, brackets bool) (problem, hint string) {
	a, err := netip.ParseAddr(host)
	isAddress := err == nil
	switch {
	case host == "":
		return "has no host", ""
	case isAddress && a.Zone() != "":
		return "an address here has no zone", ""
	case isAddress && a.Is4In6():
		return "an IPv4 address is written as one", "`" + a.Unmap().String() + "`"
	case isAddress && a.IsUnspecified():
		return "is the address of no one", ""
	case brackets && !(isAddress && a.Is6()):
		return "only an IPv6 address stands in brackets", ""
	case isAddress && a.String() != host:
		return "an address is written in its usual notation", "`" + a.String() + "`"
	case isAddress:
		return "", ""
	case strings.ToLower(host) != host:
		return "a host is written in lower case", "`" + strings.ToLower(host) + "`"
	case strings.HasSuffix(host, "."):
		return "a host is written without the dot at its end", "`" + strings.TrimRight(host, ".") + "`"
	}
	if err := safedial.Host(host); err != nil {
		hint := "a name of letters, digits, `-` and `_`, or an address in its usual notation"
		if strings.ContainsFunc(host, func(c rune) bool { return c >= 0x80 }) {
			hint = "write the name as it is asked for in the DNS: `xn--...`"
		}
		return "is an ambiguous host: programs read it differently", hint
	}
	return "", ""
}

// addressOrRange admits "10.0.0.5" and "10.0.0.0/8", each in its one spelling.
func addressOrRange(s string) (problem, hint string) {
	if !strings.Contains(s, "/") {
		switch a, err := netip.ParseAddr(s); {
		case err != nil:
			return "must be an address or a range of addresses", "`10.0.0.5` or `10.1.0.0/16`"
		case a.Zone() != "":
			return "an address here has no zone", ""
		case a.Is4In6():
			return "an IPv4 address is written as one", "`" + a.Unmap().String() + "`"
		}
		return "", ""
	}
	switch p, err := netip.ParsePrefix(s); {
	case err != nil:
		return "must be an address or a range of addresses", "`10.0.0.5` or `10.1.0.0/16`"
	case p.Addr().Is4In6():
		return "an IPv4 range is written as one", "`10.0.0.0/8`, not `::ffff:10.0.0.0/104`"
	case p != p.Masked():
		return "bits are set after the first of the range", "`" + p.Masked().String() + "`, or `" + p.Addr().String() + "` for the one address"
	}
	return "", ""
}

// serverAddress admits the address and port of a name server: a name would have to be looked up first.
func serverAddress(s string) (problem, hint string) {
	switch a, err := netip.ParseAddrPort(s); {
	case err != nil:
		return "must be ADDRESS:PORT", "`10.0.0.2:53` or `[fd00::53]:53`"
	case a.Port() == 0:
		return "port 0 cannot be connected to", ""
	}
	return "", ""
}

// pathPattern admits what a route admits behind its method.
func pathPattern(s string) (problem, hint string) {
	if !strings.HasPrefix(s, "/") {
		return "a path begins with `/`; methods have a key of their own", "`/v1/invoices/{id}`"
	}
	_, err := policy.New([]policy.Route{{Name: "path", Match: "GET " + s, AnyCaller: true}})
	var wrong *policy.RouteError
	if errors.As(err, &wrong) {
		err = wrong.Err
	}
	if err != nil {
		return oneLine(err.Error()), "`/v1/{id}` or `/v1/{rest...}`"
	}
	return "", ""
}

// escapeName admits the names of the escape-target registry.
func escapeName(s string) (problem, hint string) {
	var names []string
	for _, e := range safedial.Escapes() {
		if e.Name == s {
			return "", ""
		}
		names = append(names, e.Name)
	}
	hint = suggest(s, names)
	if hint == "" {
		hint = "a refusal says the entry's name"
	}
	return "the escape-target registry has no entry of this name", hint
}
