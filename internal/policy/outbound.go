package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The codes of an outgoing attempt.
const (
	DestinationUnknown Code = "destination_unknown"
	OutMethod          Code = "method_not_allowed"
	OutPath            Code = "path_not_allowed"
	HostMismatch       Code = "host_mismatch"
	SNIMissing         Code = "sni_missing"
	SNIMismatch        Code = "sni_mismatch"
	EncryptedHello     Code = "encrypted_hello"
	NotJudged          Code = "not_judged"
	SocketNotAllowed   Code = "socket_not_allowed"

	CauseNotAllowed      Code = "cause_not_allowed"
	BackgroundNotAllowed Code = "background_not_allowed"
	StandingLost         Code = "standing_lost"

	WouldDeny Code = "would_deny"
)

// OutboundCodes lists every code that Select, DecideCause, Decide, DecideSocket and Waive give, for the documentation.
func OutboundCodes() []CodeMeaning {
	return []CodeMeaning{
		{Allowed, "A destination names the place, and what can be seen of the attempt is what the destination allows."},
		{WouldDeny, "Report mode let pass what would be denied; the record's detail says by which code."},
		{DestinationUnknown, "No destination has this host and port."},
		{OutMethod, "The destination does not allow this method."},
		{OutPath, "The destination does not allow this path, or the path has more than one reading."},
		{HostMismatch, "The request's Host is not a destination's at the address that was connected to."},
		{SNIMissing, "The ClientHello names no server, where the destination is known by its name."},
		{SNIMismatch, "The ClientHello names another server than the destination."},
		{EncryptedHello, "The ClientHello has an encrypted part, which may name another server."},
		{NotJudged, "What must be judged was not: there is no address that was found safe to dial, or no request."},
		{CauseNotAllowed, "A request that may have caused it is none that the destination is for."},
		{BackgroundNotAllowed, "No request caused it, and the destination is for requests."},
		{StandingLost, "A request that may have caused it has lost its standing: its token was revoked, or its route is gone."},
		{SocketNotAllowed, "The path is not among the sockets that may be connected to."},
	}
}

// Host is a name and a port, in the one spelling that is compared: a lower-case name without trailing dot, or an
// address as netip writes it.
type Host struct {
	Name string
	Port uint16
}

// String is the host as it is written in a configuration.
func (h Host) String() string {
	return net.JoinHostPort(h.Name, strconv.Itoa(int(h.Port)))
}

// IsAddress reports whether the host is written as an address.
func (h Host) IsAddress() bool {
	_, err := netip.ParseAddr(h.Name)
	return err == nil
}

// Destination is one place that may be reached, and what may be asked of it there.
type Destination struct {
	Name    string // required, unique, [a-z0-9-]
	Hosts   []Host
	For     For      // what may cause an attempt to reach it; required
	Named   bool     // its clients say in a ClientHello which host they want, and that must be the one
	Seen    bool     // requests can be seen: Methods and Paths hold
	Methods []string // empty: all
	Paths   []string // "/v1/{id}", "/v1/{rest...}"; empty: all
}

// DestinationError is one thing wrong with one destination.
type DestinationError struct {
	Index int    // in the list
	Field string // the yaml key: name, hosts, for, protocol, methods, paths, direct, tls, ca_file
	Err   error
	Hint  string
}

// Error is "destination 3: hosts: ...", counting from 0 as Index does.
func (e *DestinationError) Error() string {
	return fmt.Sprintf("destination %d: %s: %v", e.Index, e.Field, e.Err)
}

// Unwrap returns Err.
func (e *DestinationError) Unwrap() error { return e.Err }

// Exits is a compiled list of destinations. It does not change and is safe for concurrent use.
type Exits struct {
	byHost map[Host]*exit
	report bool
}

// exit is a Destination, compiled.
type exit struct {
	Destination
	paths []*Policy // one for each of Paths: they may overlap in any way
}

// Exit is the destination that an attempt selected by name. Only Select makes one that Decide believes.
type Exit struct {
	Destination *Destination // must not be changed; nil: none

	exit *exit
}

// Outbound is one attempt to reach a host, as far as it is known.
type Outbound struct {
	Host    Host
	Request bool // Method and Path are those of a request that was read
	Method  string
	Path    string // as sent, no query
	Hello   *Hello // nil: none was read
	Causes  Causes
	// Addresses are those that were found safe to dial for this host.
	Addresses []netip.AddrPort
}

// Hello is what a TLS client says in plain text of where it wants to go.
type Hello struct {
	ServerName string // lower-case; empty: none
	Encrypted  bool   // it says more that we cannot read (Encrypted Client Hello)
}

// NewExits compiles the destinations. The error joins one *DestinationError for each thing that is wrong. With report,
// Waive lets denials pass.
func NewExits(list []Destination, report bool) (*Exits, error) {
	e := &Exits{byHost: map[Host]*exit{}, report: report}
	var errs []*DestinationError
	names := map[string]int{}
	for i, d := range list {
		wrong := func(field, hint string, err error) {
			errs = append(errs, &DestinationError{Index: i, Field: field, Err: err, Hint: hint})
		}
		if err := checkName(d.Name); err != nil {
			wrong("name", "lower-case letters, digits and hyphens, for example: billing", err)
		} else if j, ok := names[d.Name]; ok {
			wrong("name", "", fmt.Errorf("destination %d is named %q too", j, d.Name))
		}
		names[d.Name] = i
		if len(d.Hosts) == 0 {
			wrong("hosts", `hosts: ["billing.example.com:443"]`, errors.New("a destination needs a host"))
		}
		x := compileExit(d, wrong)
		for _, h := range x.Hosts {
			if other, ok := e.byHost[h]; ok && other.Name == x.Name {
				wrong("hosts", "", fmt.Errorf("%s stands twice", h))
			} else if ok {
				wrong("hosts", "a host belongs to one destination", fmt.Errorf("%s is a host of destination %q too", h, other.Name))
			}
			e.byHost[h] = x
		}
	}
	if len(errs) > 0 {
		slices.SortStableFunc(errs, func(a, b *DestinationError) int { return cmp.Compare(a.Index, b.Index) })
		joined := make([]error, len(errs))
		for i, e := range errs {
			joined[i] = e
		}
		return nil, errors.Join(joined...)
	}
	return e, nil
}

func compileExit(d Destination, wrong func(field, hint string, err error)) *exit {
	d.Hosts, d.Methods, d.Paths = slices.Clone(d.Hosts), slices.Clone(d.Methods), slices.Clone(d.Paths)
	d.For.Routes, d.For.Scopes = slices.Clone(d.For.Routes), slices.Clone(d.For.Scopes)
	checkFor(d.For, wrong)
	x := &exit{Destination: d}
	if !d.Seen && len(d.Methods) > 0 {
		wrong("methods", "protocol: http, or tls: originate", errors.New("requests to this destination cannot be seen"))
	}
	if !d.Seen && len(d.Paths) > 0 {
		wrong("paths", "protocol: http, or tls: originate", errors.New("requests to this destination cannot be seen"))
	}
	for _, m := range d.Methods {
		if !slices.Contains(methods(), m) {
			wrong("methods", "", fmt.Errorf("%q is not one of %s", m, strings.Join(methods(), ", ")))
		}
	}
	for _, p := range d.Paths {
		compiled, err := New([]Route{{Name: "path", Match: http.MethodGet + " " + p, AnyCaller: true}})
		var why *RouteError
		if errors.As(err, &why) {
			err = why.Err
		}
		if err != nil {
			wrong("paths", "/v1/{id} or /v1/{rest...}, without a method", fmt.Errorf("%q: %w", p, err))
			continue
		}
		x.paths = append(x.paths, compiled)
	}
	return x
}

// Select is the decision by name: which destination this is (none: the Exit has no Destination), and whether what can be
// seen of the attempt is allowed there. A Decision with a code is the denial; the zero one allows nothing: Decide does.
func (e *Exits) Select(o Outbound) (Exit, Decision) {
	x := e.byHost[o.Host]
	if x == nil {
		return Exit{}, Deny(DestinationUnknown, "no destination has "+o.Host.String())
	}
	d := x.judge(o)
	if d.Code != "" {
		d.Route = x.Name
	}
	return Exit{Destination: &x.Destination, exit: x}, d
}

func (x *exit) judge(o Outbound) Decision {
	switch {
	case !x.Seen:
		return Decision{}
	case !o.Request:
		return Deny(NotJudged, "the destination's requests are judged, and this is none")
	case len(x.Methods) > 0 && !slices.Contains(x.Methods, o.Method):
		return Deny(OutMethod, "the destination allows "+strings.Join(x.Methods, ", "))
	case len(x.paths) > 0:
		if reason := x.refusesPath(o.Path); reason != "" {
			return Deny(OutPath, reason)
		}
	}
	return Decision{}
}

// Decide is the decision by all the rest, for an exit of this list's Select: what may have caused it, the server that
// the client asks for, and the addresses that were judged. It is the only place where an allow of an outgoing connection comes from.
func (e *Exits) Decide(s Exit, o Outbound) Decision {
	if s.exit == nil || e.byHost[o.Host] != s.exit {
		return Deny(DestinationUnknown, "no destination was selected")
	}
	d := s.exit.For.judge(o.Causes)
	if d.Code == "" {
		d = s.exit.judge(o)
	}
	switch {
	case d.Code != "":
	case len(o.Addresses) == 0:
		d = Deny(NotJudged, "no address was found safe to dial")
	case s.exit.Named:
		d = s.exit.decideHello(o)
	}
	if d.Code == "" {
		d = Decision{allowed: true, Code: Allowed, Reason: "the destination allows it"}
	}
	d.Route = s.exit.Name
	return d
}

// decideHello returns the zero Decision if the hello asks for the host.
func (x *exit) decideHello(o Outbound) Decision {
	switch {
	case o.Hello == nil:
		return Deny(SNIMissing, "no ClientHello was read")
	case o.Hello.Encrypted:
		return Deny(EncryptedHello, "the ClientHello has an encrypted part, which may name another server")
	case o.Hello.ServerName == o.Host.Name:
		return Decision{}
	case o.Host.IsAddress() && o.Hello.ServerName == "":
		return Decision{} // RFC 6066, section 3: an address is not sent as a name
	case o.Host.IsAddress() && slices.Contains(x.Hosts, Host{o.Hello.ServerName, o.Host.Port}):
		return Decision{}
	case o.Hello.ServerName == "":
		return Deny(SNIMissing, "the ClientHello names no server")
	}
	return Deny(SNIMismatch, fmt.Sprintf("the ClientHello names another server than %s", o.Host.Name))
}

// DecideSocket decides about a unix socket, by its real path.
func (e *Exits) DecideSocket(path string, allowed []string) Decision {
	if !slices.Contains(allowed, path) {
		return Deny(SocketNotAllowed, "the path is not in sockets")
	}
	return Decision{allowed: true, Code: Allowed, Reason: "the path is in sockets"}
}

// Waive lets a denial pass in report mode, as an allow that says so. ok is false where it stays one.
func (e *Exits) Waive(d Decision) (waived Decision, ok bool) {
	if !e.report || d.allowed || d.Code == "" {
		return d, false
	}
	return Decision{allowed: true, Code: WouldDeny, Reason: string(d.Code) + ": " + d.Reason, Route: d.Route}, true
}

// refusesPath says why no pattern of the destination has the path, or nothing if one has.
func (x *exit) refusesPath(path string) string {
	if reason := unplain(path); reason != "" {
		return reason
	}
	for _, p := range x.paths {
		if s, _ := p.Select(Request{Method: http.MethodGet, Path: path}); s.Route != nil {
			return ""
		}
	}
	return "no pattern of it has the path"
}

// unplain says why a path may be read as another one, or nothing. The service wrote it, perhaps with text of a stranger
// in it: "../", however escaped, must not climb out of a pattern at the destination.
func unplain(path string) string {
	if path == "" || path[0] != '/' {
		return "the path does not begin with \"/\""
	}
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case c == '/' || plainByte(c):
		case c != '%' || i+2 >= len(path):
			return "the path has a byte that can be read in two ways"
		default:
			v, ok := unhex(path[i+1], path[i+2])
			if !ok || v < ' ' || v == 0x7f || plainByte(v) && strings.IndexByte("!$&'()*+,=:@", v) < 0 || strings.IndexByte(`/\%;?#`, v) >= 0 {
				return "the path has an escape that can be read in two ways"
			}
			i += 2
		}
	}
	for segment := range strings.SplitSeq(path[1:], "/") {
		if segment == "." || segment == ".." {
			return "the path has a dot segment"
		}
		if reason := unplainText(segment); reason != "" {
			return reason
		}
	}
	if strings.Contains(path, "//") {
		return "the path has an empty segment"
	}
	return ""
}

// unplainText says why the text of a segment may be read as another one, or nothing: as dots or slashes by who decodes
// more than UTF-8, normalises or trims. What a pattern's literal can hold beyond ASCII, a wildcard takes.
func unplainText(segment string) string {
	if strings.IndexByte(segment, '%') < 0 {
		return ""
	}
	decoded, err := url.PathUnescape(segment)
	if err != nil || !utf8.ValidString(decoded) {
		return "the path is not UTF-8"
	}
	if strings.TrimSpace(decoded) != decoded {
		return "the path has a segment that begins or ends with a space"
	}
	for _, r := range decoded {
		if r >= utf8.RuneSelf && !isWord(r) {
			return fmt.Sprintf("the path has %U, which can be read in two ways", r)
		}
	}
	return ""
}

func unhex(a, b byte) (byte, bool) {
	const digits = "0123456789abcdefABCDEF"
	high, low := strings.IndexByte(digits, a), strings.IndexByte(digits, b)
	if high > 15 {
		high -= 6
	}
	if low > 15 {
		low -= 6
	}
	return byte(high<<4 | low), high >= 0 && low >= 0
}
