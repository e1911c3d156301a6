package wire

import "bytes"

// splitField takes "name: value" apart. A name is letters, digits and "-": of the other bytes that RFC 9110 allows,
// "_" and "." become "-" or each other in CGI, WSGI and some frameworks, so that two names would be one.
func splitField(line []byte) (name, value []byte, code Code) {
	if line[0] == ' ' || line[0] == '\t' {
		return nil, nil, ObsFold
	}
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return nil, nil, HeaderMalformed
	}
	name, value = line[:colon], bytes.Trim(line[colon+1:], " \t")
	for _, c := range name {
		switch {
		case isAlnum(c) || c == '-':
		case c <= ' ' || c >= 0x7f:
			return nil, nil, HeaderMalformed
		default:
			return nil, nil, HeaderName
		}
	}
	if !isValue(value) {
		return nil, nil, HeaderValue
	}
	return name, value, ""
}

func isMethod(b []byte) bool {
	for i, c := range b {
		if (c < 'A' || c > 'Z') && (i == 0 || c != '-') {
			return false
		}
	}
	return true
}

// isValue accepts field-vchar, obs-text, SP and HTAB (RFC 9110, section 5.5).
func isValue(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isHost accepts the bytes of a name, an address and a port; what they mean is judged later.
func isHost(b []byte) bool {
	for _, c := range b {
		switch {
		case isAlnum(c), c == '-', c == '.', c == ':', c == '[', c == ']', c == '_':
		default:
			return false
		}
	}
	return len(b) > 0
}

// isTrailerList accepts a list of field names, none of which net/http refuses to see in a trailer section.
func isTrailerList(v []byte) bool {
	for len(v) > 0 {
		name, rest, _ := bytes.Cut(v, []byte{','})
		name = bytes.Trim(name, " \t")
		if isName(name, "transfer-encoding") || isName(name, "content-length") || isName(name, "trailer") {
			return false
		}
		v = rest
	}
	return true
}

// isName reports whether b is the name, which is in lower case, in any case.
func isName(b []byte, name string) bool {
	if len(b) != len(name) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != name[i] {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isHex(c byte) bool {
	_, ok := hexDigit(c)
	return ok
}

func hexDigit(c byte) (value byte, ok bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return (c | 0x20) - 'a' + 10, true
	}
	return 0, false
}
