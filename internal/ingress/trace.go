package ingress

import (
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/trace"
)

// spans is what is noted of a request for its trace. Of one that is not sampled it is no more than that.
type spans struct {
	trace.Context
	own       string    // 32 hex digits, of which the first half is the id of the upstream's span and the second ours
	verify    time.Time // when verify began
	verified  time.Time
	forwarded time.Time // when the request left for the service
}

// traced decides whether a request is sampled.
func (g *Gateway) traced(x *exchange) trace.Context {
	var peer netip.Addr
	if g.config.Tracer.Trusting() {
		peer = x.peer()
	}
	return g.config.Tracer.Begin(peer, x.r.Header)
}

// timedVerify is verify, with a span.
func (x *exchange) timedVerify() bool {
	if !x.spans.Sampled || x.selection.Route.Public != nil {
		return x.verify()
	}
	x.spans.verify = time.Now()
	defer func() { x.spans.verified = time.Now() }()
	return x.verify()
}

// traceparent tells the service the trace that it is in, and that it was caused by our span of it. What the client says of
// traces goes no further, unless it is one of those that are believed.
func (x *exchange) traceparent(tell func(name, value string)) {
	x.spans.own = x.entry.Own
	flags := "-01" // whoever traces nothing leaves that to the service
	if x.spans.Sampled {
		x.spans.forwarded = time.Now()
	} else if x.g.config.Tracer != nil {
		flags = "-00"
	}
	tell("Traceparent", "00-"+x.entry.Trace+"-"+x.entry.Own[:16]+flags)
	if x.spans.State != "" {
		tell("Tracestate", x.spans.State)
	}
}

// traceID is the trace of a sampled request; empty: it is not sampled.
func (x *exchange) traceID() string {
	if !x.spans.Sampled {
		return ""
	}
	if x.spans.own == "" { // it has gone nowhere
		var b [16]byte
		rand.Read(b[:])
		x.spans.own = hex.EncodeToString(b[:])
	}
	if x.spans.Trace != "" {
		return x.spans.Trace
	}
	return x.spans.own
}

// report sends the spans of a request that has ended. In them are names and codes of ours, and nothing that the client has sent
// but a method that we know and a status.
func (x *exchange) report(now time.Time) {
	id := x.traceID()
	if id == "" {
		return
	}
	// Wall clock and duration may come from a clock of a test; the spans are of the real one.
	took := now.Sub(x.began)
	ended := time.Now()
	upstream, us := x.spans.own[:16], x.spans.own[16:]
	method := knownMethod(x.request.Method)
	name, pattern := method, ""
	if route := x.selection.Route; route != nil {
		pattern = patternOf(route.Match)
		name += " " + pattern
	}
	failure := string(x.failure)
	t := x.g.config.Tracer
	s := trace.Span{
		Trace: id, ID: us, Parent: x.spans.Parent, State: x.spans.State, Kind: trace.Server, Name: name, Began: ended.Add(-took), Ended: ended,
		Failed: x.w.status >= 500,
		Attributes: []trace.Attribute{
			{Key: "http.request.method", Text: method}, {Key: "http.route", Text: pattern}, {Key: "url.scheme", Text: x.scheme()},
			{Key: "http.response.status_code", Number: int64(x.w.status)}, {Key: "network.protocol.version", Text: versionOf(x.r.Proto)},
			{Key: "error.type", Text: failure}, {Key: "sallyport.request_id", Text: x.id}, {Key: "sallyport.route", Text: x.decision.Route},
			{Key: "sallyport.code", Text: string(x.decision.Code)},
		},
	}
	if x.caller != nil { // whose tokens we take is written in the configuration
		s.Attributes = append(s.Attributes, trace.Attribute{Key: "sallyport.issuer", Text: x.caller.Issuer})
	}
	t.End(s)
	if !x.spans.verify.IsZero() {
		t.End(trace.Span{Trace: id, ID: newSpan(), Parent: us, Name: "verify", Began: x.spans.verify, Ended: x.spans.verified})
	}
	if !x.spans.forwarded.IsZero() {
		t.End(trace.Span{
			Trace: id, ID: upstream, Parent: us, Kind: trace.Client, Name: name, Began: x.spans.forwarded, Ended: ended, Failed: failure != "",
			Attributes: []trace.Attribute{
				{Key: "http.request.method", Text: method}, {Key: "http.response.status_code", Number: int64(x.w.status)}, {Key: "error.type", Text: failure},
			},
		})
	}
}

// newSpan draws the id of a span.
func newSpan() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// knownMethod is a method as OpenTelemetry names it: one that a client has made up is none.
func knownMethod(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE":
		return method
	}
	return "_OTHER"
}

// patternOf is a route's pattern without its method.
func patternOf(match string) string {
	if _, path, ok := strings.Cut(match, " "); ok {
		return strings.TrimLeft(path, " ")
	}
	return match
}

// versionOf is a protocol's version as OpenTelemetry writes it.
func versionOf(proto string) string {
	if proto == "HTTP/2.0" {
		return "2"
	}
	return strings.TrimPrefix(proto, "HTTP/")
}
