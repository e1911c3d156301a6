package safedial

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// everywhere is what an operator must not write and might.
var everywhere = []string{"0.0.0.0/0", "::/0"}

// alone makes g forget the machine that the test runs on.
func alone(t testing.TB, g *Guard) *Guard {
	t.Helper()
	r, err := g.prepared()
	if err != nil {
		t.Fatal(err)
	}
	r.around = &surroundings{read: func() here { return here{} }, period: time.Hour}
	return g
}

// verdict is the code and the registry's entry of an error, "" for nil.
func verdict(t testing.TB, err error) (code, entry string) {
	t.Helper()
	var denied *DeniedError
	if err != nil && !errors.As(err, &denied) {
		t.Fatalf("not a denial: %v", err)
	}
	if denied == nil {
		return "", ""
	}
	if denied.Reason == "" || (denied.Code == CodeEscapeTarget) != (denied.Entry != "") {
		t.Errorf("an incomplete denial: %+v", denied)
	}
	return denied.Code, denied.Entry
}

// Each address that must be refused is, as a literal and as an answer; the registry's
// are under every Allow, the others are the operator's to open.
func TestEveryAddressAsLiteralAndAsAnswer(t *testing.T) {
	list := vectors(t, "special")
	names := map[string][]string{}
	nameOf := func(i int) string { return "n" + string(rune('a'+i%26)) + string(rune('a'+i/26)) + ".example" }
	for i, v := range list {
		names[nameOf(i)+"."] = []string{v.Host}
	}
	dns := newResolver(t, names)
	zero := alone(t, &Guard{Resolver: dns.resolver()})
	open := alone(t, &Guard{Resolver: dns.resolver(), Allow: everywhere})
	for i, v := range list {
		address := netip.MustParseAddr(v.Host)
		want := CodeSpecialAddress
		if v.Entry != "" {
			want = CodeEscapeTarget
		}
		for _, port := range []uint16{80, 443, 32526} {
			if code, entry := verdict(t, zero.Check("", netip.AddrPortFrom(address, port))); code != want || entry != v.Entry {
				t.Errorf("%s: %s %q", v.Host, code, entry)
			}
			if _, entry := verdict(t, open.Check("", netip.AddrPortFrom(address, port))); entry != v.Entry {
				t.Errorf("%s under any allow: %q", v.Host, entry)
			}
		}
		_, err := zero.Dial(t.Context(), "tcp", net.JoinHostPort(v.Host, "80"))
		if code, _ := verdict(t, err); code != want {
			t.Errorf("%s dialled: %v", v.Host, err)
		}
		_, err = zero.Resolve(t.Context(), nameOf(i), 80)
		if code, entry := verdict(t, err); code != want || entry != v.Entry {
			t.Errorf("a name at %s: %v", v.Host, err)
		}
		_, err = open.Resolve(t.Context(), nameOf(i), 80)
		if _, entry := verdict(t, err); entry != v.Entry {
			t.Errorf("a name at %s under any allow: %v", v.Host, err)
		}
	}
	for _, control := range vectors(t, "ordinary") {
		to := netip.AddrPortFrom(netip.MustParseAddr(control.Host).Unmap(), 443)
		if err := zero.Check("", to); err != nil {
			t.Errorf("%s is refused: %v", to, err)
		}
		if got, err := zero.Resolve(t.Context(), control.Host, 443); err != nil || !slices.Equal(got, []netip.AddrPort{to}) {
			t.Errorf("%s is resolved to %v: %v", to, got, err)
		}
	}
}

// One name, at an ordinary and a private address: whichever the check looks at, the
// other may be used.
func TestMixedAnswersAreRefused(t *testing.T) {
	dns := newResolver(t, map[string][]string{
		"mixed.example.":  {"93.184.216.34", "10.0.0.5"},
		"mixed6.example.": {"93.184.216.34", "fd00::5"},
		"mapped.example.": {"93.184.216.34", "::ffff:10.0.0.5"},
		"escape.example.": {"93.184.216.34", "10.0.0.5", "169.254.169.254"},
		"public.example.": {"93.184.216.34", "1.1.1.1", "2606:4700::1111"},
		"inside.example.": {"10.0.0.5", "10.0.0.6", "fd00::5"},
	})
	for _, test := range []struct {
		name, want  string
		allow, deny []string
	}{
		{name: "mixed", want: CodeMixedAnswer},
		{name: "mixed6", want: CodeMixedAnswer},
		{name: "mapped", want: CodeMixedAnswer},
		{name: "mixed", want: CodeMixedAnswer, allow: []string{"mixed.example:443"}},
		{name: "mixed", want: "", allow: []string{"10.0.0.0/8"}},
		{name: "mixed", want: CodeDeniedAddress, allow: []string{"10.0.0.0/8"}, deny: []string{"10.0.0.5"}},
		{name: "mixed", want: CodeDeniedAddress, allow: []string{"10.0.0.0/8"}, deny: []string{"93.184.216.34"}},
		{name: "escape", want: CodeEscapeTarget},
		{name: "escape", want: CodeEscapeTarget, allow: []string{"escape.example:443"}, deny: []string{"10.0.0.5"}},
		{name: "public", want: ""},
		{name: "public", want: CodeDeniedAddress, deny: []string{"1.1.1.1"}},
		{name: "inside", want: CodeSpecialAddress},
		{name: "inside", want: "", allow: []string{"inside.example:443"}},
		{name: "inside", want: CodeSpecialAddress, allow: []string{"inside.example:80"}},
	} {
		guard := alone(t, &Guard{Resolver: dns.resolver(), Allow: test.allow, Deny: test.deny})
		before := dns.asked(test.name+".example.", dnsmessage.TypeA)
		to, err := guard.Resolve(t.Context(), test.name+".example", 443)
		if code, _ := verdict(t, err); code != test.want || (err == nil) != (len(to) > 1) {
			t.Errorf("%s, allow %q, deny %q: %v, %v", test.name, test.allow, test.deny, to, err)
		}
		if n := dns.asked(test.name+".example.", dnsmessage.TypeA) - before; n != 1 {
			t.Errorf("%s was asked for %d times", test.name, n)
		}
	}
}

func TestDenyIsStrongerThanAllow(t *testing.T) {
	guard := alone(t, &Guard{
		Allow: []string{"10.0.0.0/8", "db.example:5432", "10.1.2.3:80", "fd00::/8", "64:ff9b::/96"},
		Deny:  []string{"10.0.0.5", "10.1.0.0/16", "fd00:1::/32", "93.184.216.0/24"},
	})
	for _, test := range []struct{ host, to, want string }{
		{"", "10.0.0.4:80", ""},
		{"", "10.0.0.5:80", CodeDeniedAddress},
		{"", "[::ffff:10.0.0.5]:80", CodeDeniedAddress},
		{"", "[64:ff9b::a00:5]:80", CodeDeniedAddress},
		{"db.example", "10.0.0.5:5432", CodeDeniedAddress},
		{"db.example", "192.168.0.5:5432", ""},
		{"DB.example", "192.168.0.5:5432", ""},
		{"db.example", "192.168.0.5:5433", CodeSpecialAddress},
		{"db.example.", "192.168.0.5:5432", CodeAmbiguousHost},
		{"", "10.1.2.3:80", CodeDeniedAddress},
		{"", "[fd00:1::5]:80", CodeDeniedAddress},
		{"", "[fd00:2::5]:80", ""},
		{"", "93.184.216.34:443", CodeDeniedAddress},
		{"", "93.184.217.34:443", ""},
		{"", "127.0.0.1:80", CodeSpecialAddress},
		{"", "0.0.0.0:80", CodeSpecialAddress},
	} {
		if code, _ := verdict(t, guard.Check(test.host, netip.MustParseAddrPort(test.to))); code != test.want {
			t.Errorf("%q at %s: %q, want %q", test.host, test.to, code, test.want)
		}
	}
	if code, _ := verdict(t, guard.Check("", netip.AddrPort{})); code != CodeSpecialAddress {
		t.Errorf("no address at all: %q", code)
	}
}

// An address that was written down is for who asks for that address: a name of
// somebody else's that points there is not what the operator meant.
func TestAllowedAddressIsNotForNames(t *testing.T) {
	guard := alone(t, &Guard{Allow: []string{"10.0.0.5:5432", "[fd00::5]:5432"}})
	for _, test := range []struct{ host, to, want string }{
		{"", "10.0.0.5:5432", ""},
		{"10.0.0.5", "10.0.0.5:5432", ""},
		{"::ffff:10.0.0.5", "10.0.0.5:5432", ""},
		{"fd00:0::5", "[fd00::5]:5432", ""},
		{"evil.example", "10.0.0.5:5432", CodeSpecialAddress},
		{"10.0.0.6", "10.0.0.5:5432", CodeSpecialAddress},
		{"", "10.0.0.5:5433", CodeSpecialAddress},
	} {
		if code, _ := verdict(t, guard.Check(test.host, netip.MustParseAddrPort(test.to))); code != test.want {
			t.Errorf("%q at %s: %q, want %q", test.host, test.to, code, test.want)
		}
	}
}

func TestOwnListenersAreNotReached(t *testing.T) {
	dns := newResolver(t, map[string][]string{"self.example.": {"127.0.0.1"}, "any.example.": {"0.0.0.0"}})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	own := netip.MustParseAddrPort(listener.Addr().String())
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	all := []string{"0.0.0.0/0", "::/0", "self.example:" + port, "any.example:" + port, "127.0.0.1:" + port}
	guard := alone(t, &Guard{Resolver: dns.resolver(), Allow: all, Own: []netip.AddrPort{own}})
	for _, host := range []string{"self.example", "any.example", "127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1"} {
		conn, err := guard.Dial(t.Context(), "tcp", net.JoinHostPort(host, port))
		if err == nil {
			conn.Close()
		}
		if code, _ := verdict(t, err); code != CodeOwnAddress {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := guard.Check("", netip.AddrPortFrom(own.Addr(), own.Port()+1)); err != nil {
		t.Errorf("another port: %v", err)
	}

	every := alone(t, &Guard{Allow: everywhere, Own: []netip.AddrPort{netip.MustParseAddrPort("10.7.0.1:0"), netip.MustParseAddrPort("[::]:8081")}})
	every.rules.around.read = func() here { return here{locals: []netip.Addr{netip.MustParseAddr("10.8.0.2")}} }
	for to, want := range map[string]string{
		"10.7.0.1:1": CodeOwnAddress, "10.7.0.2:1": "", "10.8.0.2:8081": CodeOwnAddress, "10.8.0.2:8082": "",
		"127.9.9.9:8081": CodeOwnAddress, "[::1]:8081": CodeOwnAddress, "[::]:8081": CodeOwnAddress, "10.8.0.3:8081": "",
	} {
		if code, _ := verdict(t, every.Check("", netip.MustParseAddrPort(to))); code != want {
			t.Errorf("%s: %q, want %q", to, code, want)
		}
	}
}

// net/http takes brackets off and maps other scripts to ASCII before it dials: the
// Transport must have looked before.
func TestClientRefusesSpellingsThatURLsHide(t *testing.T) {
	dns := newResolver(t, map[string][]string{})
	client := (&Guard{Resolver: dns.resolver()}).Client()
	for _, host := range []string{"[denied.example]", "[127.0.0.1]", "[127.0.0.1]:80", "[denied.example]:443", "１２７.0.0.1", "ｅｘａｍｐｌｅ.com",
		"denied.example.", "[fe80::1%25eth0]", "", ":80", "127.1", "0x7f.1:80", "2130706433", "a\x00.example", "a%00.example", "::1"} {
		body := &closed{Reader: strings.NewReader("x")}
		_, err := client.Do(&http.Request{Method: "POST", URL: &url.URL{Scheme: "http", Host: host, Path: "/"}, Body: body, Header: http.Header{}})
		var denied *DeniedError
		if !errors.As(err, &denied) && host != "" || err == nil {
			t.Errorf("%q: %v", host, err)
		} else if denied != nil && denied.Code != CodeAmbiguousHost {
			t.Errorf("%q: %s", host, denied.Code)
		}
		if !body.done {
			t.Errorf("%q: the body was left open", host)
		}
	}
	if n := dns.count(); n != 0 {
		t.Errorf("%d questions were asked", n)
	}
}

type closed struct {
	*strings.Reader
	done bool
}

func (c *closed) Close() error { c.done = true; return nil }

func TestEntriesThatCannotBeRead(t *testing.T) {
	guard := &Guard{
		Allow:  []string{"", "a.example", "a.example:", "a.example:0", "a.example:080", "a.example:65536", "127.1:80", "[a.example]:80", "*.example:80", "10.0.0.1/8", "ok.example:1"},
		Deny:   []string{"", "a.example", "10.0.0.5:80", "10.0.0.0/33", "fe80::1%eth0", "::ffff:10.0.0.0/104"},
		Unlock: []string{"docker", ""},
		Own:    []netip.AddrPort{{}},
	}
	err := guard.Validate()
	if err == nil {
		t.Fatal("all of it is read")
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 10+6+2+1 {
		t.Errorf("%d errors:\n%v", n, err)
	}
	// and nothing is dialled with half of its rules
	if _, err := guard.Dial(t.Context(), "tcp", "93.184.216.34:443"); err == nil || errors.As(err, new(*DeniedError)) {
		t.Errorf("dialled: %v", err)
	}
	if err := guard.CheckSocket("/run/x.sock"); err == nil {
		t.Error("a socket passes")
	}
	if err := (&Guard{}).Validate(); err != nil {
		t.Errorf("the zero Guard: %v", err)
	}
}

func BenchmarkCheck(b *testing.B) {
	guard := &Guard{Allow: []string{"db.example:5432"}, Deny: []string{"10.0.0.5"}, Own: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8081")}}
	for _, test := range []struct{ name, host, to string }{
		{"ordinary", "a.example", "93.184.216.34:443"}, {"allowed", "db.example", "10.0.0.7:5432"}, {"IPv6", "a.example", "[2606:4700::1111]:443"},
	} {
		to := netip.MustParseAddrPort(test.to)
		b.Run(test.name, func(b *testing.B) {
			for b.Loop() {
				if err := guard.Check(test.host, to); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSurroundings(b *testing.B) {
	for b.Loop() {
		readHere()
	}
}
