package policy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func exits(t *testing.T, report bool) *Exits {
	t.Helper()
	e, err := NewExits([]Destination{
		{Name: "tls", For: For{Any: true}, Hosts: []Host{{"api.example", 443}, {"alias.example", 443}, {"192.0.2.1", 443}}, Named: true},
		{Name: "web", For: For{Any: true}, Hosts: []Host{{"web.example", 80}}, Seen: true, Methods: []string{"GET", "POST"}, Paths: []string{"/v1/{id}", "/v1/a/{rest...}", "/{$}"}},
		{Name: "open", For: For{Any: true}, Hosts: []Host{{"open.example", 80}}, Seen: true},
		{Name: "db", For: For{Any: true}, Hosts: []Host{{"db.example", 5432}}},
	}, report)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// decide goes down both steps, as a gate does.
func decide(e *Exits, o Outbound) Decision {
	x, d := e.Select(o)
	if d.Code != "" {
		return d
	}
	return e.Decide(x, o)
}

func TestOutboundDecisions(t *testing.T) {
	e := exits(t, false)
	at := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:443")}
	request := func(method, path string) Outbound {
		return Outbound{Host: Host{"web.example", 80}, Request: true, Method: method, Path: path, Addresses: at}
	}
	hello := func(name string) Outbound {
		return Outbound{Host: Host{"api.example", 443}, Hello: &Hello{ServerName: name}, Addresses: at}
	}
	literal := func(name string) Outbound {
		return Outbound{Host: Host{"192.0.2.1", 443}, Hello: &Hello{ServerName: name}, Addresses: at}
	}
	for _, c := range []struct {
		name string
		o    Outbound
		want Code
	}{
		{"nothing", Outbound{}, DestinationUnknown},
		{"another port", Outbound{Host: Host{"api.example", 80}, Addresses: at}, DestinationUnknown},
		{"no address", Outbound{Host: Host{"db.example", 5432}}, NotJudged},
		{"bytes", Outbound{Host: Host{"db.example", 5432}, Addresses: at}, Allowed},
		{"a request to a database is bytes", Outbound{Host: Host{"db.example", 5432}, Request: true, Method: "GET", Path: "/", Addresses: at}, Allowed},

		{"the name", hello("api.example"), Allowed},
		{"no hello", Outbound{Host: Host{"api.example", 443}, Addresses: at}, SNIMissing},
		{"a request where TLS is due", Outbound{Host: Host{"api.example", 443}, Request: true, Method: "GET", Path: "/", Addresses: at}, SNIMissing},
		{"no name", hello(""), SNIMissing},
		{"another name", hello("other.example"), SNIMismatch},
		{"another name of the destination", hello("alias.example"), SNIMismatch},
		{"encrypted", Outbound{Host: Host{"api.example", 443}, Hello: &Hello{ServerName: "api.example", Encrypted: true}, Addresses: at}, EncryptedHello},
		{"an address has no name", literal(""), Allowed},
		{"an address by a name of its destination", literal("api.example"), Allowed},
		{"an address by another name", literal("other.example"), SNIMismatch},

		{"path", request("GET", "/v1/7"), Allowed},
		{"escaped path", request("GET", "/v1/caf%C3%A9%20x"), Allowed},
		{"rest", request("POST", "/v1/a/b/c"), Allowed},
		{"root", request("GET", "/"), Allowed},
		{"method", request("DELETE", "/v1/7"), OutMethod},
		{"HEAD is not GET", request("HEAD", "/v1/7"), OutMethod},
		{"CONNECT in it", Outbound{Host: Host{"web.example", 80}, Method: "CONNECT", Addresses: at}, NotJudged},
		{"another path", request("GET", "/v2/7"), OutPath},
		{"no path", request("GET", ""), OutPath},
		{"letter case", request("GET", "/V1/7"), OutPath},
		{"trailing slash", request("GET", "/v1/7/"), OutPath},
		{"dots", request("GET", "/v1/a/../../admin"), OutPath},
		{"a dot", request("GET", "/v1/."), OutPath},
		{"escaped dots", request("GET", "/v1/%2e%2e"), OutPath},
		{"escaped dots, upper case", request("GET", "/v1/%2E%2E"), OutPath},
		{"escaped slash", request("GET", "/v1/a%2Fb"), OutPath},
		{"escaped backslash", request("GET", "/v1/a%5Cb"), OutPath},
		{"backslash", request("GET", `/v1/a\b`), OutPath},
		{"twice escaped", request("GET", "/v1/%252e"), OutPath},
		{"escaped NUL", request("GET", "/v1/%00"), OutPath},
		{"semicolon", request("GET", "/v1/a;b"), OutPath},
		{"dots in too many bytes", request("GET", "/v1/%C0%AE%C0%AE"), OutPath},
		{"a slash in too many bytes", request("GET", "/v1/a%C0%AFb"), OutPath},
		{"dots of full width", request("GET", "/v1/%EF%BC%8E%EF%BC%8E"), OutPath},
		{"a slash of full width", request("GET", "/v1/a%EF%BC%8Fb"), OutPath},
		{"two dots in one", request("GET", "/v1/%E2%80%A5"), OutPath},
		{"dots and what has no width", request("GET", "/v1/.%E2%80%8B."), OutPath},
		{"dots and a space", request("GET", "/v1/..%20"), OutPath},
		{"a space and dots", request("GET", "/v1/%20.."), OutPath},
		{"a letter that becomes another", request("GET", "/v1/%E2%84%AA"), OutPath},
		{"two slashes", request("GET", "/v1//a"), OutPath},
		{"half an escape", request("GET", "/v1/%4"), OutPath},
		{"no escape", request("GET", "/v1/%\x14\x14"), OutPath},
		{"where nothing is asked all passes", Outbound{Host: Host{"open.example", 80}, Request: true, Method: "PURGE", Path: "/..", Addresses: at}, Allowed},
	} {
		if d := decide(e, c.o); d.Code != c.want || d.Allowed() != (c.want == Allowed) {
			t.Errorf("%s: %s (%s), allowed %t; want %s", c.name, d.Code, d.Reason, d.Allowed(), c.want)
		}
	}
}

func TestExitsOfOthersAreNotBelieved(t *testing.T) {
	a, b := exits(t, false), exits(t, false)
	o := Outbound{Host: Host{"db.example", 5432}, Addresses: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:5432")}}
	x, _ := a.Select(o)
	if d := b.Decide(x, o); d.Allowed() {
		t.Error("an exit of another list was believed")
	}
	if d := a.Decide(Exit{}, o); d.Allowed() {
		t.Error("the zero exit was believed")
	}
	o.Host = Host{"api.example", 443}
	if d := a.Decide(x, o); d.Allowed() {
		t.Error("an exit was believed for another host")
	}
}

func TestWaive(t *testing.T) {
	denied := Deny(DestinationUnknown, "no destination")
	if d, ok := exits(t, false).Waive(denied); ok || d.Allowed() {
		t.Error("waived without report mode")
	}
	e := exits(t, true)
	if d, ok := e.Waive(denied); !ok || !d.Allowed() || d.Code != WouldDeny || !strings.Contains(d.Reason, "destination_unknown") {
		t.Errorf("%+v %t", d, ok)
	}
	if d, ok := e.Waive(Decision{}); ok || d.Allowed() {
		t.Error("the zero decision was waived")
	}
}

func TestDecideSocket(t *testing.T) {
	e := exits(t, false)
	if d := e.DecideSocket("/run/a.sock", []string{"/run/a.sock"}); !d.Allowed() {
		t.Error(d)
	}
	for _, path := range []string{"", "/run", "/run/a.sock/", "/run/b.sock"} {
		if d := e.DecideSocket(path, []string{"/run/a.sock"}); d.Allowed() || d.Code != SocketNotAllowed {
			t.Errorf("%q: %+v", path, d)
		}
	}
}

func TestBadDestinations(t *testing.T) {
	host := []Host{{"a.example", 443}}
	for field, list := range map[string][]Destination{
		"name":    {{Name: "A b", For: For{Any: true}, Hosts: host}},
		"hosts":   {{Name: "a", For: For{Any: true}}},
		"methods": {{Name: "a", For: For{Any: true}, Hosts: host, Seen: true, Methods: []string{"get"}}},
		"paths":   {{Name: "a", For: For{Any: true}, Hosts: host, Seen: true, Paths: []string{"v1"}}},
	} {
		_, err := NewExits(list, false)
		var wrong *DestinationError
		if !errors.As(err, &wrong) || wrong.Field != field || wrong.Index != 0 {
			t.Errorf("%s: %v", field, err)
		}
	}
	for what, list := range map[string][]Destination{
		"named":              {{Name: "a", For: For{Any: true}, Hosts: host}, {Name: "a", For: For{Any: true}, Hosts: []Host{{"b", 1}}}},
		"is a host of":       {{Name: "a", For: For{Any: true}, Hosts: host}, {Name: "b", For: For{Any: true}, Hosts: host}},
		"stands twice":       {{Name: "a", For: For{Any: true}, Hosts: append(host, host...)}},
		"cannot be seen":     {{Name: "a", For: For{Any: true}, Hosts: host, Methods: []string{"GET"}}, {Name: "b", For: For{Any: true}, Hosts: []Host{{"b", 1}}, Paths: []string{"/"}}},
		`"/a/{x}/{x}"`:       {{Name: "a", For: For{Any: true}, Hosts: host, Seen: true, Paths: []string{"/a/{x}/{x}"}}},
		`destination 1: hos`: {{Name: "a", For: For{Any: true}, Hosts: host}, {Name: "b", For: For{Any: true}}},
	} {
		if _, err := NewExits(list, false); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzOutboundPath: what passes a pattern of one wildcard segment has, decoded in any order and as often as anybody
// might, no way out of that segment.
func FuzzOutboundPath(f *testing.F) {
	for _, seed := range []string{"7", "..", "%2e", "a%2Fb", "%252e%252e", "a;b", `a\b`, "%20"} {
		f.Add(seed)
	}
	e, err := NewExits([]Destination{{Name: "web", For: For{Any: true}, Hosts: []Host{{"web.example", 80}}, Seen: true, Paths: []string{"/v1/{id}"}}}, false)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, segment string) {
		o := Outbound{Host: Host{"web.example", 80}, Request: true, Method: "GET", Path: "/v1/" + segment}
		if _, d := e.Select(o); d.Code != "" {
			return
		}
		for range 3 {
			if segment == "." || segment == ".." || segment == "" || strings.ContainsAny(segment, "/\\;?#\x00") {
				t.Fatalf("%q passes", o.Path)
			}
			segment = percentDecode(segment)
		}
	})
}

func percentDecode(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, ok := unhex(s[i+1], s[i+2]); ok {
				b.WriteByte(v)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
