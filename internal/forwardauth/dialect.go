package forwardauth

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/sallyport/sallyport/internal/ingress"
)

// dialect is how one kind of proxy says what a request is. The names are of headers, in canonical form; where there is none,
// the question's own request line or Host says it.
type dialect struct {
	method, target, host, scheme string
	twoDenials                   bool // 401 and 403 are all that it knows
	removes                      bool // it takes a list of fields that must not reach the service
}

// dialects are those that there are. Which is spoken is configured: a client could send the headers of another.
func dialects() map[string]dialect {
	forwarded := dialect{method: "X-Forwarded-Method", target: "X-Forwarded-Uri", host: "X-Forwarded-Host", scheme: "X-Forwarded-Proto"}
	return map[string]dialect{
		"nginx":   {method: "X-Original-Method", target: "X-Original-Uri", host: "X-Original-Host", scheme: "X-Original-Proto", twoDenials: true},
		"traefik": forwarded,
		"caddy":   forwarded,
		"envoy":   {scheme: "X-Forwarded-Proto", removes: true},
	}
}

const headerFor = "X-Forwarded-For"

// read makes of a question what is asked about. What it cannot read is a fault, and nothing else that it says is believed.
func (d dialect) read(r *http.Request) ingress.Inquiry {
	q := ingress.Inquiry{Entry: ingress.EntryForwardAuth, Header: r.Header, Method: r.Method, Target: r.RequestURI, Host: r.Host}
	if r.ContentLength != 0 {
		return malformed("a question has no body: the proxy must not send that of the request")
	}
	for _, part := range []struct {
		name string
		into *string
	}{{d.method, &q.Method}, {d.target, &q.Target}, {d.host, &q.Host}} {
		if part.name == "" {
			continue
		}
		value, fault := once(r.Header, part.name)
		if fault != "" {
			return malformed(fault)
		}
		*part.into = value
		delete(r.Header, part.name)
	}
	scheme, fault := once(r.Header, d.scheme)
	switch {
	case fault != "":
		return malformed(fault)
	case scheme != "https" && scheme != "http":
		return malformed(d.scheme + " is neither http nor https")
	}
	q.TLS = scheme == "https"
	delete(r.Header, d.scheme)
	source, before, fault := lastOf(r.Header)
	if fault != "" {
		return malformed(fault)
	}
	q.Source = source
	delete(r.Header, headerFor)
	if before != "" {
		r.Header[headerFor] = []string{before} // what the proxy has it from: believed as far as trusted_proxies says
	}
	return q
}

// once takes a header that must be there once, and say something.
func once(h http.Header, name string) (value, fault string) {
	switch values := h[name]; {
	case len(values) == 0 || values[0] == "":
		return "", name + " is not there: does the proxy's configuration set it?"
	case len(values) > 1:
		return "", fmt.Sprintf("%s is there %d times", name, len(values))
	default:
		return values[0], ""
	}
}

// lastOf takes the proxy's own peer off X-Forwarded-For, where it stands last.
func lastOf(h http.Header) (source netip.Addr, before, fault string) {
	list, fault := once(h, headerFor)
	if fault != "" {
		return source, "", fault
	}
	last := list
	if comma := strings.LastIndexByte(list, ','); comma >= 0 {
		before, last = strings.TrimRight(list[:comma], " \t"), list[comma+1:]
	}
	source, err := netip.ParseAddr(strings.Trim(last, " \t"))
	if err != nil || source.Zone() != "" {
		return netip.Addr{}, "", headerFor + " does not end in an address"
	}
	return source.Unmap(), before, ""
}

func malformed(reason string) ingress.Inquiry {
	return ingress.Inquiry{Entry: ingress.EntryForwardAuth, Fault: &ingress.Fault{Code: ingress.InquiryMalformed, Reason: reason}}
}
