package egress

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/policy"
)

// ours is why a header of the service does not reach a destination. Names are in canonical form; one that ends in "*"
// stands for all that begin so.
func ours() []struct{ name, why string } {
	return []struct{ name, why string }{
		{"Proxy-*", "for us, not for the destination"},
		{"X-Sallyport-*", "ours"},
		{"X-Smokescreen-*", "orders to a proxy behind us: who the client is, which rules hold"},
		{"X-Upstream-*", "orders to a proxy behind us: where to connect"},
		{"Expect", "we have sent 100 Continue, or send the body without"},
		{"Http2-Settings", "hop by hop, with Upgrade: h2c"},
		{"Content-Length", "we say how long the body is"},
	}
}

// cleanRequest drops from a request's header what does not reach the destination.
func cleanRequest(h http.Header) {
	clean(h)
	for name := range h {
		for _, o := range ours() {
			prefix, ok := strings.CutSuffix(o.name, "*")
			if name == o.name || ok && strings.HasPrefix(name, prefix) {
				delete(h, name)
			}
		}
	}
}

// credentials are the headers in which services send credentials. Cookie is not among them: what a destination has set is
// the destination's own, and nothing that we attach takes its place.
func credentials() []string {
	return []string{
		"Authorization", "Dpop", "Txn-Token", "X-Authorization", "X-Forwarded-Authorization", "X-Original-Authorization",
		"X-Api-Key", "Api-Key", "Apikey", "X-Apikey", "X-Api-Token", "Ocp-Apim-Subscription-Key", "X-Functions-Key", "X-Goog-Api-Key",
		"X-Auth-Token", "X-Access-Token", "Access-Token", "X-Id-Token", "X-Token", "X-Jwt-Assertion", "X-Forwarded-Access-Token",
		"X-Subject-Token", "X-Service-Token", "X-Vault-Token", "X-Consul-Token", "X-Nomad-Token",
		"Private-Token", "Job-Token", "Deploy-Token", "X-Gitlab-Token", "X-Github-Token",
		"X-Amz-Security-Token", "X-Aws-Ec2-Metadata-Token", "X-Goog-Iam-Authorization-Token", "X-Ms-Token-Aad-Access-Token", "X-Ms-Token-Aad-Id-Token",
		"X-Shopify-Access-Token", "X-Session-Token", "Dd-Api-Key", "Dd-Application-Key", "X-Auth-Key",
	}
}

// dropCredentials takes those out of a request: what a destination accepts is attached by us, or it is none of the
// service's. It returns them, and their names in lower case and sorted.
func dropCredentials(h http.Header) (removed http.Header, dropped []string) {
	for _, name := range credentials() {
		values, ok := h[name]
		if !ok {
			continue
		}
		if removed == nil {
			removed = http.Header{}
		}
		removed[name] = values
		delete(h, name)
		dropped = append(dropped, strings.ToLower(name))
	}
	slices.Sort(dropped)
	return removed, dropped
}

// clean drops what is between two neighbours only, and what Connection names (RFC 9110, section 7.6.1).
func clean(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = textproto.TrimString(name); name != "" {
				delete(h, textproto.CanonicalMIMEHeaderKey(name))
			}
		}
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
		delete(h, name)
	}
}

// override is the name of a header by which frameworks let a request have another method or path than its own, where the
// destination does not allow that method, or not all paths. Empty: there is none.
func override(h http.Header, d *policy.Destination) string {
	for _, name := range []string{"X-Http-Method", "X-Http-Method-Override", "X-Method-Override", "X-Original-Method"} {
		v := h[name]
		if len(v) > 0 && len(d.Methods) > 0 && (len(v) > 1 || !slices.Contains(d.Methods, strings.ToUpper(v[0]))) {
			return name
		}
	}
	for _, name := range []string{"X-Original-Url", "X-Original-Uri", "X-Original-Path", "X-Rewrite-Url", "X-Rewrite-Uri"} {
		if len(h[name]) > 0 && len(d.Paths) > 0 {
			return name
		}
	}
	return ""
}

// isWebSocket reports whether a request is the handshake of RFC 6455, section 4.1.
func isWebSocket(r *http.Request) bool {
	return r.Method == http.MethodGet && r.ProtoAtLeast(1, 1) && r.ContentLength == 0 &&
		len(r.Header["Upgrade"]) == 1 && strings.EqualFold(r.Header["Upgrade"][0], "websocket") &&
		hasToken(r.Header["Connection"], "upgrade")
}

// hasToken reports whether the comma-separated lists hold the token, in any case.
func hasToken(lists []string, token string) bool {
	for _, list := range lists {
		for element := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.Trim(element, " \t"), token) {
				return true
			}
		}
	}
	return false
}
