package ingress

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/wire"
)

const maxMethod = 32 // bytes of a method's name, as wire has it

// admitHTTP2 refuses of an HTTP/2 request what package wire refuses of one of HTTP/1: to the steps behind they are the same.
// What RFC 9113 forbids net/http has refused before, as a reset of the stream, or with 400 and no record: fields in upper
// case, pseudo-header fields that are unknown, repeated, missing or late, those of a connection, TE but for trailers, control
// characters, :protocol (RFC 8441).
func (x *exchange) admitHTTP2() bool {
	code, reason := readHTTP2(x.r, x.g.config.Limits)
	if code == "" {
		return true
	}
	x.g.metrics.refuse(policy.Code(code))
	return x.deny(policy.Code(code), reason)
}

// readHTTP2 returns why a request is refused; no code: it is not. It takes Host out of the header, where it is :authority.
func readHTTP2(r *http.Request, l Limits) (code wire.Code, reason string) {
	// net/http takes :authority, and Host only without it (RFC 9113, section 8.3.1): there must be nothing to choose from.
	if hosts, ok := r.Header["Host"]; ok {
		if len(hosts) != 1 || hosts[0] != r.Host {
			return wire.HostInvalid, ":authority and host are not the same"
		}
		delete(r.Header, "Host")
	}
	if len(r.Method) > maxMethod || !isMethod(r.Method) {
		return wire.MethodInvalid, "a method is upper-case letters"
	}
	size, fields := len(r.Method)+len(r.RequestURI)+len(r.Host), 0
	for name, values := range r.Header {
		for _, c := range []byte(name) {
			if !isAlnum(c) && c != '-' {
				return wire.HeaderName, "a header name has another byte than letters, digits and \"-\""
			}
		}
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
			fields++
			if !isValue(v) {
				return wire.HeaderValue, "a header value has a control character"
			}
		}
	}
	switch {
	case size > l.HeaderBytes || fields > l.HeaderFields:
		return wire.HeaderTooLarge, strconv.Itoa(fields) + " fields, " + strconv.Itoa(size) + " bytes"
	case len(r.Header["Expect"]) > 0: // 100-continue net/http has answered and taken out
		return wire.ExpectationUnknown, "an expectation of something else than 100-continue"
	}
	return checkLength(r)
}

// checkLength holds Content-Length against what net/http made of it, which is 0 where it is no number, and where the header
// ends the stream. That DATA keeps to it net/http sees to (RFC 9113, section 8.1.1).
func checkLength(r *http.Request) (wire.Code, string) {
	lengths, ok := r.Header["Content-Length"]
	if !ok {
		return "", ""
	}
	n := int64(0)
	digits := lengths[0]
	if len(lengths) == 1 && len(digits) <= 18 && digits != "" && strings.Trim(digits, "0123456789") == "" {
		n, _ = strconv.ParseInt(digits, 10, 64) // 18 digits
	} else {
		return wire.ContentLength, "Content-Length is not one number"
	}
	if n != r.ContentLength {
		return wire.ContentLength, "Content-Length says " + digits + ", and the stream ends with its header"
	}
	return "", ""
}

// isMethod accepts what package wire does.
func isMethod(s string) bool {
	for i, c := range []byte(s) {
		if (c < 'A' || c > 'Z') && (i == 0 || c != '-') {
			return false
		}
	}
	return s != ""
}
