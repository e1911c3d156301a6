package wire

import (
	"iter"
	"strings"
)

// Check judges a request that somebody else has read, and tells us of: it establishes that a Conn would have let it pass, had
// its bytes come so, and returns the code with which it would not have. The fields do not hold the host.
func Check(l Limits, method, target, host string, fields iter.Seq2[string, string]) Code {
	f := framer{maxBytes: l.HeaderBytes, maxFields: l.HeaderFields, head: head{length: -1}}
	line := method + " " + target + " HTTP/1.1"
	if code := oneLine(line); code != "" {
		return code
	}
	if code := f.requestLine([]byte(line)); code != "" {
		return code
	}
	size := len(line) + len("\r\n\r\n")
	check := func(name, value string) Code {
		line := name + ": " + value
		if code := oneLine(line); code != "" {
			return code
		}
		if size += len(line) + len("\r\n"); size > l.HeaderBytes {
			return HeaderTooLarge
		}
		return f.field([]byte(line), 0)
	}
	if host != "" {
		if code := check("Host", host); code != "" {
			return code
		}
	}
	for name, value := range fields {
		if code := check(name, value); code != "" {
			return code
		}
	}
	return f.endHead(nil)
}

// oneLine refuses what would have been another line on a connection.
func oneLine(s string) Code {
	switch i := strings.IndexAny(s, "\r\n"); {
	case i < 0:
		return ""
	case s[i] == '\n':
		return BareLF
	case strings.HasPrefix(s[i:], "\r\n"):
		return HeaderValue // a line of its own there, and part of a value here
	default:
		return BareCR
	}
}
