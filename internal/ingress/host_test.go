package ingress

import (
	"errors"
	"strings"
	"testing"
)

type hostVector struct {
	in   string
	tls  bool
	want string // canonicalHost.String(); empty: refused
}

func hostVectors() []hostVector {
	return []hostVector{
		{"admin.example.com", false, "admin.example.com"},
		{"ADMIN.Example.COM", false, "admin.example.com"},
		{"admin.example.com.", false, "admin.example.com"},
		{"admin.example.com:80", false, "admin.example.com"},
		{"admin.example.com:443", true, "admin.example.com"},
		{"admin.example.com.:443", true, "admin.example.com"},
		{"admin.example.com:443", false, "admin.example.com:443"},
		{"admin.example.com:80", true, "admin.example.com:80"},
		{"localhost:3000", false, "localhost:3000"},
		{"xn--bcher-kva.example", false, "xn--bcher-kva.example"},
		{"1und1.example", false, "1und1.example"},
		{"127.0.0.1:8080", false, "127.0.0.1:8080"},
		{"[::1]:8080", false, "[::1]:8080"},
		{"[2001:DB8:0::1]", false, "[2001:db8::1]"},
		{"", false, ""},
		{".", false, ""},
		{":80", false, ""},
		{"a.example..", false, ""},
		{"a..example", false, ""},
		{".example", false, ""},
		{"a:", false, ""},
		{"a:0", false, ""},
		{"a:00080", false, ""},
		{"a:65536", false, ""},
		{"a:+80", false, ""},
		{"a:80:80", false, ""},
		{"a:http", false, ""},
		{"user@a.example", false, ""},
		{"user:pass@a.example:80", false, ""},
		{"a.example/admin", false, ""},
		{"a.example?x", false, ""},
		{"a example", false, ""},
		{"a_b.example", false, ""},
		{"-a.example", false, ""},
		{"a-.example", false, ""},
		{"a%2eexample", false, ""},
		{"b\u00fccher.example", false, ""},
		{"\u212Aelvin.example", false, ""},
		{"127.1", false, ""},
		{"0x7f.1", false, ""},
		{"0x7f000001", false, ""},
		{"2130706433", false, ""},
		{"127.0.0.01", false, ""},
		{"1.2.3.4.5", false, ""},
		{"example.0x1", false, ""},
		{"::1", false, ""},
		{"[::1", false, ""},
		{"[fe80::1%25eth0]", false, ""},
		{"[fe80::1%eth0]", false, ""},
		{"[127.0.0.1]", false, ""},
		{"[::1]x", false, ""},
		{strings.Repeat("a", 64) + ".example", false, ""},
		{strings.Repeat("a.", 127) + "aa", false, ""},
		{"a\x00.example", false, ""},
		{"a\r\nx", false, ""},
	}
}

// H08: letter case, one trailing dot and the default port make no other host; what is no host is refused.
func TestCanonicaliseHost(t *testing.T) {
	for _, v := range hostVectors() {
		h, err := canonicaliseHost(v.in, v.tls)
		if v.want == "" {
			var refusal *canonicalError
			if !errors.As(err, &refusal) || refusal.Code != codeHostInvalid {
				t.Errorf("canonicaliseHost(%q, %t) = %q, %v; want %s", v.in, v.tls, h, err, codeHostInvalid)
			}
			continue
		}
		if err != nil || h.String() != v.want {
			t.Errorf("canonicaliseHost(%q, %t) = %q, %v; want %q", v.in, v.tls, h, err, v.want)
		}
	}
}
