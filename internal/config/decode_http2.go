package config

import (
	"net/url"
	"slices"
	"strings"
)

// protocols decodes what the listener speaks, which must fit whether it speaks it over TLS.
func (r *reader) protocols(v *value) []string {
	p := v.get("protocols")
	onTLS := v.get("tls").isSet
	var seen []string
	for _, e := range p.entries {
		switch name := e.text(); {
		case !e.ok:
			continue
		case name == "h2" && !onTLS:
			r.fail(e, "add `tls`; without it HTTP/2 is `h2c`, for a network that nobody listens on", "h2 is negotiated in TLS, and there is no ingress.tls")
		case name == "h2c" && onTLS:
			r.fail(e, "write `h2`", "h2c is HTTP/2 without TLS, and there is ingress.tls")
		}
		seen = append(seen, e.text())
	}
	if u := v.get("upstream"); u.ok && speaksHTTP2(u.url()) && !slices.Contains(seen, "h2") && !slices.Contains(seen, "h2c") && !p.wrong() {
		r.warn(u, "add `protocols: [http/1.1, h2]` (with `tls`), or `[http/1.1, h2c]`", "the service speaks HTTP/2 and callers may not: no gRPC client can reach it")
	}
	return seen
}

// speaksHTTP2 reports whether a service is spoken to in HTTP/2.
func speaksHTTP2(u *url.URL) bool { return u.Scheme == "h2c" || u.Scheme == "unix+h2c" }

// onSocket reports whether a service listens on a unix socket.
func onSocket(u *url.URL) bool { return strings.HasPrefix(u.Scheme, "unix") }
