package wire

import (
	"bytes"
	"net/url"
)

// The state of a framer says what the next bytes of the stream are.
type state uint8

const (
	inHead      state = iota // request line and header fields
	inData                   // body bytes, which pass unread
	inChunkEnd               // the CRLF behind a chunk's data
	inChunkSize              // a chunk's size and extensions
	inTrailer                // the trailer section, up to its empty line
	held                     // behind a request for an upgrade: nothing passes until that is settled
)

const maxMethod = 32 // bytes of a method name

// A framer reads a client's stream as RFC 9112 writes it and finds where each request ends. It is stricter than
// the RFC: where the RFC lets a recipient repair, it refuses. It keeps offsets, no bytes: its caller holds the stream.
type framer struct {
	maxBytes  int // of a head
	maxFields int // of a head
	proxy     bool
	keep      bool // where the fields of a head are, in spans

	state      state
	data       int64 // in inData: what is left
	chunked    bool  // in inData: of a chunk, not of the whole body
	extensions int   // bytes of chunk extensions so far
	trailer    int   // bytes of trailer section so far

	// Offsets in the element at hand, which begins at b[0] of every call until it is complete.
	line int // where the line at hand begins
	seen int // up to where it was searched for its end

	head  head
	spans []fieldSpan
}

// head is what framing must know of one request, and where the names for a record stand.
type head struct {
	method, target span
	old            bool // HTTP/1.0
	fields         int
	host           span
	hosts          int
	length         int64 // -1: no Content-Length
	chunked        bool
	expects        bool
	upgrade        bool
	connect        bool
	absolute       bool // the target names the host
}

type span struct{ from, to int }

func (s span) of(b []byte) []byte { return b[s.from:s.to] }

// step consumes one element from the front of the stream: a whole head, a run of body bytes, a chunk's size line or
// a line of a trailer section. It returns its length, 0 while it is incomplete, or the code of what is wrong with it.
// Until it returns a length the caller must pass the same bytes again, with more behind them.
func (f *framer) step(b []byte) (n int, code Code) {
	switch f.state {
	case inHead:
		n, code = f.stepHead(b)
	case inData:
		n = f.pass(len(b))
	case inChunkEnd:
		n, code = f.stepChunkEnd(b)
	case inChunkSize:
		n, code = f.stepChunkSize(b)
	case inTrailer:
		n, code = f.stepTrailer(b)
	}
	if n > 0 {
		f.line, f.seen = 0, 0
	}
	return n, code
}

// pass consumes up to n body bytes and returns how many.
func (f *framer) pass(n int) int {
	if int64(n) >= f.data {
		n = int(f.data)
		f.state = inHead
		if f.chunked {
			f.state = inChunkEnd
		}
	}
	f.data -= int64(n)
	return n
}

// nextLine returns the index behind the CRLF that ends the line at hand, 0 while there is none. CR and LF stand
// for nothing but this pair (RFC 9112, section 2.2, which would let a recipient take LF alone).
func (f *framer) nextLine(b []byte) (int, Code) {
	i := bytes.IndexByte(b[f.seen:], '\n')
	if i < 0 {
		f.seen = len(b)
		return 0, ""
	}
	i += f.seen
	if i == f.line || b[i-1] != '\r' {
		return 0, BareLF
	}
	if bytes.IndexByte(b[f.line:i-1], '\r') >= 0 {
		return 0, BareCR
	}
	return i + 1, ""
}

func (f *framer) stepHead(b []byte) (int, Code) {
	if f.line == 0 {
		f.head, f.spans = head{length: -1}, f.spans[:0]
	}
	for {
		end, code := f.nextLine(b)
		switch {
		case code != "":
			return 0, code
		case end > f.maxBytes, end == 0 && len(b) > f.maxBytes:
			return 0, HeaderTooLarge
		case end == 0:
			return 0, ""
		}
		line := b[f.line : end-2]
		switch {
		case f.line == 0:
			code = f.requestLine(line)
		case len(line) == 0:
			return end, f.endHead(b)
		default:
			code = f.field(line, f.line)
		}
		if code != "" {
			return 0, code
		}
		f.line, f.seen = end, end
	}
}

// requestLine reads "METHOD SP target SP HTTP/1.x" (RFC 9112, section 3): single spaces, an upper-case method, and
// a target that net/http parses too. What the target means is not judged here.
func (f *framer) requestLine(line []byte) Code {
	sp := bytes.IndexByte(line, ' ')
	if sp <= 0 {
		return RequestLineMalformed
	}
	method := line[:sp]
	if len(method) > maxMethod || !isMethod(method) {
		return MethodInvalid
	}
	f.head.method = span{0, sp}
	last := bytes.LastIndexByte(line, ' ')
	if last == sp {
		return RequestLineMalformed
	}
	target, version := line[sp+1:last], line[last+1:]
	if len(target) == 0 || bytes.IndexByte(target, ' ') >= 0 {
		return RequestLineMalformed
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		f.head.old = true
	default:
		return HTTPVersion
	}
	f.head.target = span{sp + 1, last}
	if f.proxy {
		return f.proxyTarget(string(method), target)
	}
	return checkTarget(target)
}

// proxyTarget reads "host:port" behind CONNECT, "http://host..." behind other methods (RFC 9112, sections 3.2.2 and
// 3.2.3). It refuses what net/http's own parser would, and what that would take for something else than a host.
func (f *framer) proxyTarget(method string, target []byte) Code {
	authority, rest, prefix := target, []byte("/"), "http://"
	f.head.connect = method == "CONNECT"
	if !f.head.connect {
		scheme, after, ok := bytes.Cut(target, []byte("://"))
		if !ok || string(scheme) != "http" && string(scheme) != "https" {
			return TargetForm
		}
		authority, rest, prefix = after, rest[:0], ""
		if i := bytes.IndexAny(after, "/?"); i >= 0 {
			authority, rest = after[:i], after[i:]
		}
		f.head.absolute = true
	}
	if len(rest) > 0 && rest[0] == '?' {
		rest = append([]byte{'/'}, rest...)
	}
	if len(rest) > 0 {
		if code := checkTarget(rest); code != "" {
			return code
		}
	}
	if _, err := url.ParseRequestURI(prefix + string(target)); err != nil || !isHost(authority) {
		return HostInvalid
	}
	return ""
}

// checkTarget refuses what net/http's own parser would: it answers by itself, and leaves no record.
func checkTarget(target []byte) Code {
	if target[0] != '/' {
		return TargetForm
	}
	code := PathNoncanonical
	for i, c := range target {
		switch {
		case c <= ' ' || c >= 0x7f:
			return code
		case c == '?':
			code = QueryNoncanonical
		case c == '%' && code == PathNoncanonical && (i+2 >= len(target) || !isHex(target[i+1]) || !isHex(target[i+2])):
			return code
		}
	}
	return ""
}

// field reads one field line that begins at offset at of the head (RFC 9112, section 5), and what it says of framing.
func (f *framer) field(line []byte, at int) Code {
	if f.head.fields++; f.head.fields > f.maxFields {
		return HeaderTooLarge
	}
	name, value, code := splitField(line)
	if code != "" {
		return code
	}
	if f.keep {
		from := at + len(line)
		if len(value) > 0 {
			from = at + cap(line) - cap(value)
		}
		f.spans = append(f.spans, fieldSpan{span{at, at + len(name)}, span{from, from + len(value)}})
	}
	switch len(name) {
	case len("host"):
		if isName(name, "host") {
			if f.head.hosts++; f.head.hosts > 1 || !isHost(value) {
				return HostInvalid
			}
			from := at + len(line) - len(bytes.TrimLeft(line[len(name)+1:], " \t"))
			f.head.host = span{from, from + len(value)}
		}
	case len("expect"):
		if isName(name, "expect") {
			if f.head.expects || !isName(value, "100-continue") {
				return ExpectationUnknown
			}
			f.head.expects = true
		}
	case len("upgrade"):
		if isName(name, "upgrade") {
			f.head.upgrade = true
		} else if isName(name, "trailer") && !isTrailerList(value) {
			return TrailerMalformed
		}
	case len("content-length"):
		if isName(name, "content-length") {
			return f.contentLength(value)
		}
	case len("transfer-encoding"):
		if isName(name, "transfer-encoding") {
			// Only "chunked", only once: whoever stands behind us must not have to know another coding.
			if f.head.chunked || !isName(value, "chunked") {
				return TransferEncoding
			}
			f.head.chunked = true
		}
	}
	return ""
}

// contentLength takes 1*DIGIT, once: not a list, even of equal values, which RFC 9112, section 6.3 would let pass.
func (f *framer) contentLength(v []byte) Code {
	if f.head.length >= 0 || len(v) == 0 || len(v) > 18 {
		return ContentLength
	}
	n := int64(0)
	for _, c := range v {
		if c < '0' || c > '9' {
			return ContentLength
		}
		n = n*10 + int64(c-'0')
	}
	f.head.length = n
	return ""
}

// endHead judges the head as a whole and says what follows it.
func (f *framer) endHead(b []byte) Code {
	h := &f.head
	switch {
	case h.hosts == 0 && !h.connect && !(h.absolute && h.old):
		return HostInvalid
	case h.connect && (h.chunked || h.length > 0):
		return TargetForm // CONNECT has no content (RFC 9110, section 9.3.6)
	case h.chunked && (h.length >= 0 || h.old):
		return TransferEncoding
	case h.upgrade && (h.chunked || h.length > 0):
		return UpgradeRefused
	case h.upgrade, h.connect:
		f.state = held
	case h.chunked:
		f.state, f.extensions, f.trailer = inChunkSize, 0, 0
	case h.length > 0:
		f.state, f.data, f.chunked = inData, h.length, false
	}
	return ""
}
