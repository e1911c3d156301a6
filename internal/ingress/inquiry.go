package ingress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"iter"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/wire"
)

// Where a request came in. The words are those of records and metrics.
const (
	EntryProxy       = "proxy"        // it came to us, and we forward it
	EntryForwardAuth = "forward_auth" // a proxy asks over HTTP
	EntryExtAuthz    = "ext_authz"    // Envoy asks over gRPC
)

// The codes of an inquiry that cannot be judged, beside those of wire. Both are answered 403.
const (
	// AskerRefused is the code of one that nobody asked who may.
	AskerRefused policy.Code = "asker_refused"
	// InquiryMalformed is the code of one that does not say, or says twice or in two ways, what the request is.
	InquiryMalformed policy.Code = "inquiry_malformed"
)

// Inquiry is what a proxy in front of the service says of a request that it has. Whoever makes one has established that it is
// that proxy which speaks, and has taken from the client nothing that is the proxy's to say.
type Inquiry struct {
	Entry       string            // EntryForwardAuth or EntryExtAuthz
	Method      string            // as the client sent it
	Target      string            // the same: the path and query of its request line, not decoded
	Host        string            // the same
	Header      http.Header       // its other fields, by canonical name; X-Forwarded-For as far as the proxy has it from others
	Source      netip.Addr        // the proxy's peer; invalid: it has no address
	TLS         bool              // the client speaks TLS to the proxy
	Certificate *x509.Certificate // that the client has shown in the handshake with it; nil: none
	Fault       *Fault            // nil: none
}

// Fault is why an inquiry is denied without being judged. What else it says is recorded, and believed in nothing.
type Fault struct {
	Code   policy.Code
	Reason string // for the operator
}

// Verdict is what the proxy is told. The zero Verdict denies.
type Verdict struct {
	ID      string // of the record
	Allowed bool
	Code    policy.Code
	Status  int         // that answers a denied request; 0 where even that could not be found out
	Header  http.Header // of the answer: to a denied request ours, to an allowed one what belongs into the service's
	Body    []byte      // of the answer to a denied request

	// Of an allowed request:
	Target  string      // in its one spelling: what was judged
	Forward http.Header // to be set, each in place of whatever the client sent
	Remove  []string    // fields of the client's that must not reach the service
}

// Ask runs the line for a request that somebody else forwards, from canonical to assert. What it answers is on record, and so
// is that it is not we who forward the request: what becomes of it then we neither see nor end.
func (g *Gateway) Ask(ctx context.Context, q Inquiry) (v Verdict) {
	defer func() {
		if p := recover(); p != nil { // outcome has said why
			v = Verdict{}
		}
	}()
	answer := &answer{header: http.Header{}}
	x := g.begin(answer, q.request(ctx))
	x.asked, x.wire, x.w.wire = &q, nil, nil // the connection is the proxy's, not the client's
	func() {
		defer x.outcome()
		x.judge()
		switch {
		case !x.record():
		case !x.decision.Allowed():
			x.answer(x.decision, x.status)
		case x.assert():
			v = x.verdict()
			x.w.status = http.StatusOK
		}
	}()
	if v.Allowed {
		return v
	}
	for _, name := range []string{"Connection", "Date"} { // of a connection that is not ours
		answer.header.Del(name)
	}
	return Verdict{ID: x.id, Code: x.toldCode(), Status: answer.status, Header: answer.header, Body: answer.body}
}

// Attend does until ctx ends what Serve does beside serving, where there is nothing to serve: it notices what is not known any
// more of revocations, and says so.
func (g *Gateway) Attend(ctx context.Context) { g.watch(ctx) }

// request is the inquiry as the steps read a request.
func (q *Inquiry) request(ctx context.Context) *http.Request {
	r := &http.Request{
		Method: q.Method, RequestURI: q.Target, Host: q.Host, Header: q.Header, URL: &url.URL{},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody,
	}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	_, r.URL.RawQuery, _ = strings.Cut(q.Target, "?")
	if q.Source.IsValid() {
		r.RemoteAddr = netip.AddrPortFrom(q.Source, 0).String()
	}
	if q.TLS {
		r.TLS = &tls.ConnectionState{HandshakeComplete: true}
		if q.Certificate != nil {
			r.TLS.PeerCertificates = []*x509.Certificate{q.Certificate}
		}
	}
	switch {
	case len(r.Header["Transfer-Encoding"]) > 0:
		r.ContentLength = -1
	case len(r.Header["Content-Length"]) == 1:
		if n, err := strconv.ParseInt(r.Header["Content-Length"][0], 10, 64); err == nil {
			r.ContentLength = n
		}
	}
	return r.WithContext(ctx)
}

// heed denies what was not asked as it must be, and what no connection of ours would have let pass.
func (x *exchange) heed() bool {
	q := x.asked
	if q == nil {
		return true
	}
	if f := q.Fault; f != nil {
		return x.deny(f.Code, f.Reason)
	}
	if code := wire.Check(x.g.config.Limits.wire(), q.Method, q.Target, q.Host, fieldsOf(q.Header)); code != "" {
		x.g.metrics.refuse(policy.Code(code))
		return x.deny(policy.Code(code), "it would have been refused on the wire")
	}
	return x.alive()
}

// fieldsOf lists the fields of a header, in an order that is always the same.
func fieldsOf(h http.Header) iter.Seq2[string, string] {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	return func(yield func(name, value string) bool) {
		for _, name := range names {
			for _, value := range h[name] {
				if !yield(name, value) {
					return
				}
			}
		}
	}
}

// verdict is the allow that has been recorded: what rewrite and respond would have made of the request and its answer.
func (x *exchange) verdict() Verdict {
	v := Verdict{
		ID: x.id, Allowed: true, Code: x.decision.Code, Target: x.target.Target(),
		Header: http.Header{}, Forward: http.Header{},
	}
	if source := x.request.Source; source.IsValid() {
		v.Forward["X-Forwarded-For"] = []string{source.String()}
	}
	v.Forward["X-Forwarded-Host"] = []string{x.host.String()}
	v.Forward["X-Forwarded-Proto"] = []string{x.scheme()}
	v.Forward["X-Request-Id"] = []string{x.id}
	x.asserts(func(name, value string) { v.Forward[name] = []string{value} })
	hygiene := &x.g.transport.hygiene
	for name := range x.r.Header {
		if hygiene.drops(name) || name == x.rules.AssertHeader {
			if _, set := v.Forward[name]; !set {
				v.Remove = append(v.Remove, name)
			}
		}
	}
	slices.Sort(v.Remove)
	x.rules.cors.allow(v.Header, x.r)
	x.identify(v.Header)
	if x.nonce != "" {
		v.Header["DPoP-Nonce"] = []string{x.nonce}
	}
	if x.selection.Route.Public == nil {
		v.Header["Cache-Control"] = []string{"no-store"}
		x.varies(v.Header)
	}
	return v
}

// toldCode is the code that the client is told: that of the decision, unless something went wrong behind it.
func (x *exchange) toldCode() policy.Code {
	if x.failure != "" {
		return x.failure
	}
	return x.decision.Code
}

// entryPoint is where the request came in.
func (x *exchange) entryPoint() string {
	if x.asked == nil {
		return EntryProxy
	}
	return x.asked.Entry
}

// forwardedElsewhere is what an outcome says of a request that was allowed and is somebody else's to forward.
func (x *exchange) forwardedElsewhere(o *audit.Outcome) {
	if x.asked != nil && x.decision.Allowed() && x.failure == "" {
		o.Detail = map[string]any{"forwarded": false}
	}
}

// answer is an answer on its way to whoever asked for it.
type answer struct {
	header http.Header
	status int
	body   []byte
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.body = append(a.body, p...)
	return len(p), nil
}
