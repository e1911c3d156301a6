package ingress

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/policy"
)

// canonical establishes that the request can be read in one way only, and makes of it what is decided on.
func (x *exchange) canonical() bool {
	var refused *canonicalError
	target, err := canonicalise(x.r.RequestURI)
	if errors.As(err, &refused) {
		return x.deny(refused.Code, refused.Reason)
	} else if err != nil {
		return x.deny(codePathNoncanonical, err.Error())
	}
	x.target, x.request.Path = target, target.Path
	host, err := canonicaliseHost(x.r.Host, x.onTLS())
	if errors.As(err, &refused) {
		return x.deny(refused.Code, refused.Reason)
	} else if err != nil {
		return x.deny(codeHostInvalid, err.Error())
	}
	x.host, x.request.Host = host, host.Name
	if x.r.Method == http.MethodConnect || x.r.Method == http.MethodTrace {
		return x.deny(codeMethodRefused, "CONNECT and TRACE are not served on any path")
	}
	if err := x.source(); err != nil {
		return x.deny(codeForwardedInvalid, err.Error())
	}
	if limit := x.g.config.Limits.BodyBytes; x.r.ContentLength > limit {
		return x.deny(codeBodyTooLarge, "Content-Length is over the limit")
	}
	// Txn-Token is dropped or, where hops are believed, a credential
	if h := x.rules.AssertHeader; h != "Authorization" && h != headerTransaction && len(x.r.Header[h]) > 0 {
		return x.deny(codeIdentitySpoof, "the client sent "+h+", which only we may")
	}
	return x.selectHeaders() && x.checkGRPC() && x.alive()
}

// selectHeaders takes the header fields that some condition reads.
func (x *exchange) selectHeaders() bool {
	header, fault := readHeaders(x.rules.headers, x.r.Header)
	if fault != nil {
		return x.deny(fault.code, fault.reason)
	}
	x.request.Header = header
	return true
}

// headerFault is why a field that a condition reads cannot be read.
type headerFault struct {
	code   policy.Code
	reason string
}

// readHeaders reads fields for conditions. One that is there twice has no one value, and one that Connection names stays with
// us (RFC 9110, section 7.6.1): the service would act without what was decided on.
func readHeaders(names []string, h http.Header) (read map[string]string, fault *headerFault) {
	for _, name := range names {
		values := h[name]
		if name == "Host" {
			continue // Request.Host
		}
		if len(values) > 1 {
			return nil, &headerFault{codeHeaderRepeated, name + " is there more than once"}
		}
		if len(values) == 1 {
			if hasToken(h["Connection"], name) {
				return nil, &headerFault{codeHeaderWithheld, name + " is there, and Connection keeps it from the service"}
			}
			if read == nil {
				read = make(map[string]string, len(names))
			}
			read[strings.ToLower(name)] = values[0]
		}
	}
	return read, nil
}

// route finds the one route of the request.
func (x *exchange) route() bool {
	if isPreflight(x.r) {
		return x.preflight()
	}
	selection, d := x.rules.Policy.Select(x.request)
	if selection.Route == nil {
		return x.refuse(d, status(d.Code))
	}
	x.selection = selection
	if x.upgrades() && !x.mayUpgrade() {
		return x.deny(codeUpgradeRefused, "not a WebSocket handshake, or not on a route with upgrades: [websocket]")
	}
	return x.alive()
}

// upgrades reports whether the client asks for another protocol on this connection.
func (x *exchange) upgrades() bool { return len(x.r.Header["Upgrade"]) > 0 }

// mayUpgrade accepts the handshake of RFC 6455, section 4.1, where the route allows it.
func (x *exchange) mayUpgrade() bool {
	return x.r.Method == http.MethodGet && x.r.ProtoAtLeast(1, 1) && x.r.ContentLength == 0 &&
		len(x.r.Header["Upgrade"]) == 1 && strings.EqualFold(x.r.Header["Upgrade"][0], "websocket") &&
		hasToken(x.r.Header["Connection"], "upgrade") &&
		slices.Contains(x.selection.Route.Upgrades, "websocket")
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

func (x *exchange) onTLS() bool {
	if x.wire != nil {
		return x.wire.TLS()
	}
	return x.r.TLS != nil
}

// pathOf is what of a target as sent may be recorded: no query, and nothing that is no path.
func pathOf(target string) string {
	if !strings.HasPrefix(target, "/") {
		return ""
	}
	path, _, _ := strings.Cut(target, "?")
	return path
}

func canonicalNames(names []string) []string {
	made := make([]string, len(names))
	for i, n := range names {
		made[i] = http.CanonicalHeaderKey(n)
	}
	return made
}
