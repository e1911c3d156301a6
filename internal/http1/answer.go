package http1

import (
	"bytes"
	"errors"
	"net/http"
	"net/textproto"
	"time"

	"github.com/sallyport/sallyport/internal/wire"
)

// errAnswer is the one error of an answer that is not read further. What was wrong with it is the service's.
var errAnswer = errors.New("http1: the answer is malformed")

// An Answer is the head of what the service answered.
type Answer struct {
	Status int
	Length int64    // of the body; -1: not known
	Names  []string // of its fields, in canonical form and in their order, each once
}

// head is what framing must know of an answer.
type answerHead struct {
	old, chunked, close bool
	length              int64 // -1: none
}

// ReadAnswer reads the head of an answer, informational or final, into h, which is empty. A wait ends at until; it can then
// be called again.
//
// It takes what RFC 9112 writes and nothing else: one that two readers could frame in two ways is refused.
func (l *Link) ReadAnswer(a *Answer, method string, h http.Header, until time.Time) error {
	seen := 0
	for {
		if n := endOfHead(l.buf[l.r:l.w], seen); n > 0 {
			if n > l.client.MaxHead {
				return l.refuse()
			}
			text := string(l.buf[l.r : l.r+n])
			l.r += n
			return l.parse(a, method, h, text)
		}
		if seen = max(0, l.w-l.r-3); l.w-l.r >= l.client.MaxHead {
			return l.refuse()
		}
		if err := l.fill(until); err != nil {
			return err
		}
	}
}

func (l *Link) refuse() error {
	l.spent = true
	return errAnswer
}

// endOfHead returns the length of the head at the front of b, 0 while it has no end.
func endOfHead(b []byte, seen int) int {
	if i := bytes.Index(b[seen:], []byte("\r\n\r\n")); i >= 0 {
		return seen + i + 4
	}
	return 0
}

func (l *Link) parse(a *Answer, method string, h http.Header, text string) error {
	line, rest, _ := cutLine(text)
	f := answerHead{length: -1}
	status, ok := f.statusLine(line)
	if !ok {
		return l.refuse()
	}
	*a = Answer{Status: status, Length: -1, Names: a.Names[:0]}
	values := make([]string, 0, 16)
	for rest != "\r\n" {
		line, rest, ok = cutLine(rest)
		name, value, good := splitField(line)
		if !ok || !good || !f.field(name, value) {
			return l.refuse()
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if had := h[name]; had != nil {
			h[name] = append(had, value)
			continue
		}
		n := len(values)
		values = append(values, value)
		h[name] = values[n : n+1 : n+1]
		a.Names = append(a.Names, name)
	}
	return l.frame(a, &f, method)
}

// frame decides where the answer ends (RFC 9112, section 6.3).
func (l *Link) frame(a *Answer, f *answerHead, method string) error {
	s := a.Status
	switch {
	case f.chunked && (f.length >= 0 || f.old):
		return l.refuse()
	case (s < 200 || s == http.StatusNoContent) && (f.chunked || f.length > 0):
		return l.refuse()
	case s < 200:
		l.body = noBody
		return nil
	}
	l.spent = l.spent || f.close || f.old
	switch {
	case method == http.MethodHead, s == http.StatusNoContent, s == http.StatusNotModified:
		l.body, a.Length = noBody, f.length
	case f.chunked:
		l.body = byChunks
		l.chunks = wire.Chunks{Field: l.takeTrailer}
	case f.length == 0:
		l.body, a.Length = noBody, 0
	case f.length > 0:
		l.body, l.left, a.Length = byLength, f.length, f.length
	default:
		l.body, l.spent = byClose, true
	}
	return nil
}

// statusLine reads "HTTP/1.x SP 3DIGIT SP reason" (RFC 9112, section 4).
func (f *answerHead) statusLine(line string) (status int, ok bool) {
	const start = len("HTTP/1.1 ")
	if len(line) < start+4 || line[start+3] != ' ' || !isValue(line[start+4:]) {
		return 0, false
	}
	switch line[:start] {
	case "HTTP/1.1 ":
	case "HTTP/1.0 ":
		f.old = true
	default:
		return 0, false
	}
	for _, c := range []byte(line[start : start+3]) {
		if c < '0' || c > '9' {
			return 0, false
		}
		status = status*10 + int(c-'0')
	}
	return status, status >= 100 && status <= 599
}

// field reads what a field says of framing.
func (f *answerHead) field(name, value string) bool {
	switch len(name) {
	case len("connection"):
		if textproto.CanonicalMIMEHeaderKey(name) == "Connection" {
			f.close = f.close || hasToken(value, "close")
		}
	case len("content-length"):
		if textproto.CanonicalMIMEHeaderKey(name) == "Content-Length" {
			return f.contentLength(value)
		}
	case len("transfer-encoding"):
		if textproto.CanonicalMIMEHeaderKey(name) == "Transfer-Encoding" {
			if f.chunked || textproto.CanonicalMIMEHeaderKey(value) != "Chunked" {
				return false
			}
			f.chunked = true
		}
	}
	return true
}

// contentLength takes 1*DIGIT, once.
func (f *answerHead) contentLength(v string) bool {
	if f.length >= 0 || len(v) == 0 || len(v) > 18 {
		return false
	}
	f.length = 0
	for _, c := range []byte(v) {
		if c < '0' || c > '9' {
			return false
		}
		f.length = f.length*10 + int64(c-'0')
	}
	return true
}

// cutLine takes the line up to its CRLF. CR and LF stand for nothing else.
func cutLine(s string) (line, rest string, ok bool) {
	for i := range len(s) {
		switch s[i] {
		case '\n':
			return "", "", false
		case '\r':
			if i+1 == len(s) || s[i+1] != '\n' {
				return "", "", false
			}
			return s[:i], s[i+2:], true
		}
	}
	return "", "", false
}

// splitField takes "name: value" apart: a name is a token (RFC 9110, section 5.1), right before its colon.
func splitField(line string) (name, value string, ok bool) {
	for i := range len(line) {
		if line[i] == ':' {
			value = line[i+1:]
			for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
				value = value[1:]
			}
			for n := len(value); n > 0 && (value[n-1] == ' ' || value[n-1] == '\t'); n-- {
				value = value[:n-1]
			}
			return line[:i], value, i > 0 && isValue(value)
		}
		if !isTokenByte(line[i]) {
			break
		}
	}
	return "", "", false
}

// takeTrailer takes a line of a trailer section. What has a meaning before the body only is dropped (RFC 9110, section 6.5.1).
func (l *Link) takeTrailer(line []byte) bool {
	name, value, ok := splitField(string(line))
	if !ok {
		return false
	}
	name = textproto.CanonicalMIMEHeaderKey(name)
	switch name {
	case "Transfer-Encoding", "Content-Length", "Trailer", "Connection", "Host", "Set-Cookie", "Cache-Control", "Content-Type",
		"Content-Encoding", "Content-Range", "Location", "Vary", "Www-Authenticate", "Date", "Age", "Expires", "Server":
		return true
	}
	if l.trailer == nil {
		l.trailer = http.Header{}
	}
	l.trailer[name] = append(l.trailer[name], value)
	return true
}

// isValue accepts field-vchar, obs-text, SP and HTAB (RFC 9110, section 5.5).
func isValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isTokenByte accepts tchar (RFC 9110, section 5.6.2).
func isTokenByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		return true
	case c == '!', c == '#', c == '$', c == '%', c == '&', c == '\'', c == '*', c == '+', c == '^', c == '`', c == '|', c == '~':
		return true
	}
	return false
}
