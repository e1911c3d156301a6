package ingress

import (
	"errors"
	"net/http"
	"net/textproto"
	"strings"
)

// ours is why a header of the client does not reach the service: only we may say that. Names are in canonical form; one
// that ends in "*" stands for all that begin so. Hop-by-hop headers, and those that Connection names, are dropped by
// ReverseProxy before (RFC 9110, section 7.6.1).
func ours() []struct{ name, why string } {
	return []struct{ name, why string }{
		{"Authorization", "the token; our assertion takes its place"},
		{"Dpop", "the proof of the token; it is for us and has been used"},
		{"Txn-Token", "another gate's word; our assertion takes its place"},
		{"Proxy-*", "for us, not for the service; Proxy: becomes HTTP_PROXY in CGI"},
		{"Te", "trailers are dropped"},
		{"Keep-Alive", "hop by hop"},
		{"Http2-Settings", "hop by hop, with Upgrade: h2c"},

		{"X-Sallyport-*", "ours"},
		{"X-Request-Id", "ours: it is in the record"},

		{"Forwarded", "who is the client, by what scheme and name"},
		{"X-Forwarded-*", "who is the client; with -User, -Email, -Groups, -Access-Token: who is the caller"},
		{"X-Forwarded", "the same"},
		{"X-Forwarder-For", "the same, misspelt"},
		{"X-Real-Ip", "who is the client"},
		{"X-Client-Ip", "who is the client"},
		{"X-Cluster-Client-Ip", "who is the client"},
		{"X-Originating-Ip", "who is the client"},
		{"Client-Ip", "who is the client"},
		{"True-Client-Ip", "who is the client (Akamai, Cloudflare)"},
		{"Cf-Connecting-Ip*", "who is the client (Cloudflare)"},
		{"Fastly-Client-Ip", "who is the client (Fastly)"},
		{"X-Azure-*", "who is the client (Azure Front Door)"},

		{"Remote-*", "who is the caller (Authelia, CGI)"},
		{"X-Remote-*", "who is the caller (Kubernetes request-header authentication)"},
		{"X-Auth-*", "who is the caller (oauth2-proxy)"},
		{"X-Authenticated-*", "who is the caller"},
		{"X-Authentik-*", "who is the caller (authentik)"},
		{"X-User*", "who is the caller"},
		{"X-Webauth-*", "who is the caller (Grafana)"},
		{"X-Vouch-*", "who is the caller (Vouch)"},
		{"X-Goog-*", "who is the caller (Google IAP)"},
		{"X-Amzn-Oidc-*", "who is the caller (AWS ALB)"},
		{"X-Ms-Client-Principal*", "who is the caller (Azure App Service)"},
		{"X-Ms-Token-*", "a second credential (Azure App Service)"},
		{"Cf-Access-*", "who is the caller (Cloudflare Access)"},
		{"X-Pomerium-*", "who is the caller (Pomerium)"},
		{"X-Tailscale-*", "who is the caller (Tailscale)"},
		{"Tailscale-*", "who is the caller (Tailscale)"},
		{"X-Envoy-*", "orders to a mesh"},
		{"X-Jwt-*", "who is the caller, verified by somebody"},
		{"X-Id-Token", "who is the caller"},
		{"X-Access-Token", "a second credential"},
		{"X-Impersonate-*", "who is the caller instead"},
		{"Impersonate-*", "who is the caller instead (Kubernetes)"},

		{"Client-Cert*", "a client certificate (RFC 9440)"},
		{"X-Client-Cert*", "a client certificate"},
		{"X-Client-Dn*", "a client certificate"},
		{"X-Client-Subject*", "a client certificate"},
		{"X-Client-Verify*", "a client certificate"},
		{"X-Ssl-*", "a client certificate"},
		{"Ssl-*", "a client certificate (ingress-nginx)"},

		{"Baggage", "what belongs to a trace; ours takes the place of the client's (trace.go)"},
		{"B3", "a trace (Zipkin)"},
		{"X-B3-*", "a trace (Zipkin)"},
		{"Uber-Trace-Id", "a trace (Jaeger)"},
		{"Uberctx-*", "a trace (Jaeger)"},
		{"X-Datadog-*", "a trace (Datadog)"},
		{"X-Amzn-Trace-Id", "a trace (AWS)"},
		{"X-Cloud-Trace-Context", "a trace (Google)"},
		{"Sentry-Trace", "a trace (Sentry)"},
		{"X-Ot-Span-Context", "a trace (OpenTracing)"},
		{"Ot-Tracer-*", "a trace (OpenTracing)"},
		{"Grpc-Trace-Bin", "a trace (gRPC, OpenCensus)"},
		{"Grpc-Tags-Bin", "what belongs to one (gRPC, OpenCensus)"},

		{"X-Original-*", "another path, host or method than the one decided on"},
		{"X-Rewrite-*", "another path than the one decided on"},
		{"X-Http-Method*", "another method than the one decided on"},
		{"X-Method-Override", "another method than the one decided on"},
		{"X-Host", "another host than the one decided on"},
		{"X-Http-Host-Override", "another host than the one decided on"},
		{"X-Accel-*", "orders to nginx"},
		{"X-Sendfile*", "orders to a server"},
	}
}

// hygiene is the table, ready for look-up.
type hygiene struct {
	names    map[string]bool
	prefixes []string
}

func newHygiene() hygiene {
	h := hygiene{names: map[string]bool{}}
	for _, o := range ours() {
		if prefix, ok := strings.CutSuffix(o.name, "*"); ok {
			h.prefixes = append(h.prefixes, prefix)
		} else {
			h.names[o.name] = true
		}
	}
	return h
}

// drops reports whether the header, by its canonical name, must not reach the service.
func (h *hygiene) drops(name string) bool {
	if h.names[name] {
		return true
	}
	for _, p := range h.prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// clean drops from a request's header what only we may say.
func (h *hygiene) clean(header http.Header) {
	for name := range header {
		if h.drops(name) {
			delete(header, name)
		}
	}
}

// Reaches reports whether a field that a client sends can reach the service as it was sent. Of one that cannot, whatever a
// client says is nobody's word: no condition may read it. The name may be in any case.
func Reaches(name string) bool {
	name = textproto.CanonicalMIMEHeaderKey(name)
	switch name {
	case "Connection", "Upgrade", "Trailer", "Transfer-Encoding":
		return false // hop by hop (RFC 9110, section 7.6.1)
	}
	h := newHygiene()
	return !h.drops(name)
}

func isAlnum(c byte) bool { return unreserved(c) && strings.IndexByte("-._~", c) < 0 }

// isValue accepts what may stand in a field value (RFC 9110, section 5.5).
func isValue(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) < 0
}

// checkAssertHeader returns the canonical name of the header that carries the assertion.
func checkAssertHeader(name string) (string, error) {
	if name == "" {
		return headerTransaction, nil
	}
	for _, c := range []byte(name) {
		if !isAlnum(c) && c != '-' {
			return "", errors.New("assertion header: a name is letters, digits and \"-\"")
		}
	}
	name = textproto.CanonicalMIMEHeaderKey(name)
	switch name {
	case "Connection", "Upgrade", "Te", "Trailer", "Transfer-Encoding", "Keep-Alive", "Content-Length", "Content-Type",
		"Host", "Cookie", "Expect", "Origin", "X-Request-Id", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto":
		return "", errors.New("assertion header: " + name + " has a meaning already")
	}
	if strings.HasPrefix(name, "Proxy-") || strings.HasPrefix(name, "Sec-") {
		return "", errors.New("assertion header: " + name + " has a meaning already")
	}
	return name, nil
}
