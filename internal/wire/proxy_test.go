package wire

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func proxyFramer() framer { return framer{maxBytes: 32 << 10, maxFields: 100, proxy: true} }

func TestProxyTargets(t *testing.T) {
	for _, s := range []sample{
		{"connect", "", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"},
		{"connect without Host", "", "CONNECT example.com:443 HTTP/1.0\r\n\r\n"},
		{"connect to IPv6", "", "CONNECT [::1]:443 HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"connect and a length of nothing", "", "CONNECT a:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"},
		{"absolute", "", "GET http://example.com/a?b HTTP/1.1\r\nHost: example.com\r\n\r\n"},
		{"absolute, no path", "", "GET http://example.com HTTP/1.1\r\nHost: example.com\r\n\r\n"},
		{"absolute, query only", "", "GET http://example.com?a HTTP/1.1\r\nHost: example.com\r\n\r\n"},
		{"absolute, https", "", "GET https://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"},
		{"absolute, old, no Host", "", "GET http://example.com/ HTTP/1.0\r\n\r\n"},
		{"origin-form", TargetForm, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"asterisk", TargetForm, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"another scheme", TargetForm, "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"a scheme in upper case", TargetForm, "GET HTTP://a/ HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"a name in brackets", HostInvalid, "GET http://[denied.com]/ HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"connect to an absolute target", HostInvalid, "CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"connect to a path", HostInvalid, "CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"user information", HostInvalid, "GET http://a@b/ HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"a backslash", HostInvalid, "GET http://a\\b/ HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"a fragment", HostInvalid, "GET http://a#b/ HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"NUL", HostInvalid, "CONNECT evil.com\x00.allowed.com:443 HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"escaped NUL", HostInvalid, "CONNECT evil.com%00.allowed.com:443 HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"not ASCII", HostInvalid, "CONNECT ｅvil.com:443 HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"two ports", HostInvalid, "GET http://a:1:2/ HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"no host", HostInvalid, "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"a space in the path", RequestLineMalformed, "GET http://a/b c HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"half an escape", PathNoncanonical, "GET http://a/%4 HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"no Host", HostInvalid, "GET http://a/ HTTP/1.1\r\n\r\n"},
		{"connect with a body", TargetForm, "CONNECT a:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"},
		{"both lengths", TransferEncoding, "POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"},
	} {
		f := proxyFramer()
		n, code := f.step([]byte(s.raw))
		if code != s.code || code == "" && n != len(s.raw) {
			t.Errorf("%s: %d of %d bytes, code %q, want %q", s.name, n, len(s.raw), code, s.code)
		}
	}
}

// FuzzProxyTarget: what passes is what net/http reads without an answer of its own, with a host of plain bytes.
func FuzzProxyTarget(f *testing.F) {
	for _, seed := range []string{"CONNECT a:443", "CONNECT [::1]:1", "GET http://a/b?c", "GET http://[a]/", "GET https://a?b", "POST http://a:b/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		head := line + " HTTP/1.1\r\nHost: a\r\n\r\n"
		framer := proxyFramer()
		if n, code := framer.step([]byte(head)); code != "" || n != len(head) {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
		if err != nil {
			t.Fatalf("%q passes, and net/http says %v", line, err)
		}
		if !isHost([]byte(r.URL.Host)) || r.URL.User != nil {
			t.Errorf("%q: host %q", line, r.URL.Host)
		}
	})
}

func TestTake(t *testing.T) {
	client, server := net.Pipe()
	c := NewProxy(server, testLimits(), nil)
	defer c.Close()
	defer client.Close()
	go io.WriteString(client, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nearly")
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil || r.Host != "a:443" {
		t.Fatal(r, err)
	}
	held, below := c.Take()
	if string(held) != "early" || below != server {
		t.Errorf("held %q", held)
	}
}
