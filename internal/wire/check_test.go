package wire

import (
	"maps"
	"strings"
	"testing"
	"time"
)

// What Check says of a request told is what a Conn says of the same request sent.
func TestCheckIsTheConn(t *testing.T) {
	limits := Limits{HeaderBytes: 512, HeaderFields: 5, HeaderTimeout: time.Second, BodyTimeout: time.Second}
	for name, c := range map[string]struct {
		method, target, host string
		fields               map[string]string
		want                 Code
	}{
		"good":                {"GET", "/a?b", "api.example.com", map[string]string{"Accept": "*/*"}, ""},
		"lower-case method":   {"get", "/", "h", nil, MethodInvalid},
		"method of two words": {"GET X", "/", "h", nil, RequestLineMalformed},
		"no method":           {"", "/", "h", nil, RequestLineMalformed},
		"no target":           {"GET", "", "h", nil, RequestLineMalformed},
		"space in the target": {"GET", "/a b", "h", nil, RequestLineMalformed},
		"line in the target":  {"GET", "/a\nX: y", "h", nil, BareLF},
		"absolute":            {"GET", "http://h/", "h", nil, TargetForm},
		"asterisk":            {"OPTIONS", "*", "h", nil, TargetForm},
		"half an escape":      {"GET", "/%4", "h", nil, PathNoncanonical},
		"byte of a query":     {"GET", "/?\xff", "h", nil, QueryNoncanonical},
		"no host":             {"GET", "/", "", nil, HostInvalid},
		"host with a path":    {"GET", "/", "h/x", nil, HostInvalid},
		"two hosts":           {"GET", "/", "h", map[string]string{"Host": "h"}, HostInvalid},
		"underscore":          {"GET", "/", "h", map[string]string{"X_User": "root"}, HeaderName},
		"space in a name":     {"GET", "/", "h", map[string]string{"X User": "root"}, HeaderMalformed},
		"no name":             {"GET", "/", "h", map[string]string{"": "root"}, HeaderMalformed},
		"control in a value":  {"GET", "/", "h", map[string]string{"X-A": "a\x00b"}, HeaderValue},
		"line in a value":     {"GET", "/", "h", map[string]string{"X-A": "a\nX-B: b"}, BareLF},
		"CR in a value":       {"GET", "/", "h", map[string]string{"X-A": "a\rb"}, BareCR},
		"bad length":          {"POST", "/", "h", map[string]string{"Content-Length": "1, 1"}, ContentLength},
		"length and chunks":   {"POST", "/", "h", map[string]string{"Content-Length": "1", "Transfer-Encoding": "chunked"}, TransferEncoding},
		"other coding":        {"POST", "/", "h", map[string]string{"Transfer-Encoding": "gzip"}, TransferEncoding},
		"expectation":         {"POST", "/", "h", map[string]string{"Expect": "wonders"}, ExpectationUnknown},
		"upgrade with a body": {"GET", "/", "h", map[string]string{"Upgrade": "websocket", "Content-Length": "1"}, UpgradeRefused},
		"too many fields":     {"GET", "/", "h", map[string]string{"A": "", "B": "", "C": "", "D": "", "E": ""}, HeaderTooLarge},
		"too many bytes":      {"GET", "/", "h", map[string]string{"A": strings.Repeat("a", 512)}, HeaderTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Check(limits, c.method, c.target, c.host, maps.All(c.fields)); got != c.want {
				t.Errorf("Check says %q, want %q", got, c.want)
			}
			raw := c.method + " " + c.target + " HTTP/1.1\r\n"
			if c.host != "" {
				raw += "Host: " + c.host + "\r\n"
			}
			for name, value := range c.fields {
				raw += name + ": " + value + "\r\n"
			}
			f := framer{maxBytes: limits.HeaderBytes, maxFields: limits.HeaderFields}
			_, code := f.step([]byte(raw + "\r\n"))
			if code != c.want {
				t.Errorf("a connection says %q, want %q", code, c.want)
			}
		})
	}
	if got := Check(limits, "GET", "/", "h", maps.All(map[string]string{"X-A": "a\r\nX-B: b"})); got != HeaderValue {
		t.Errorf("a value of two lines: %q", got)
	}
}
