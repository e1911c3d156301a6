package ingress

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/http1"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/wire"
)

var (
	errDraining = errors.New("the gateway is shutting down")
	errSwitched = errors.New("the service switched protocols unasked")
	errTooLarge = errors.New("the body is over the limit")
)

// forward hands the request to the service and its answer to the client. It is the only function that does, and the
// caller has established that the decision allows and is on record.
func (x *exchange) forward() {
	x.entry = x.g.config.Flight.Begin(cause.Request{
		ID: x.id, Route: x.selection.Route.Name, Caller: x.caller, Token: x.token, Source: x.request.Source, Began: x.began,
		Continues: x.spans.Trace, Sampled: x.spans.Sampled,
	})
	answered := false
	defer func() {
		if answered {
			x.entry.Done()
		} else { // the service may be at work on it still: it is not told that nobody waits
			x.entry.Abandon()
		}
	}()
	switch c, ok := x.w.ResponseWriter.(*http1.Conn); {
	case ok && x.upgrades():
		x.forwardUpgrade(c)
	case ok:
		x.forwardDirect(c)
	default:
		x.forwardByProxy()
	}
	if x.wire != nil && !x.upload.ended() {
		x.wire.HangUp(x.wire.Broken()) // the client has its answer: nobody wants the rest
	}
	switch {
	case x.failure != "":
	case x.readErr != nil || x.w.err != nil:
		x.failure = x.reason(x.readErr)
	case x.w.status == http.StatusSwitchingProtocols:
		x.failure = x.ended()
	}
	// What is streamed has no last answer. What the service could not be reached for it does not know of.
	answered = x.failure == "" && x.w.status != http.StatusSwitchingProtocols || x.failure == codeUnreachable
}

// forwardByProxy is forward by the standard library.
func (x *exchange) forwardByProxy() {
	ctx, cancel := x.lifetime()
	defer cancel()
	x.ctx = ctx
	x.g.fly(x)
	in := x.r.WithContext(ctx)
	if in.ContentLength != 0 {
		x.upload = upload{body: in.Body, limit: x.g.config.Limits.BodyBytes, length: in.ContentLength}
		defer x.hold(ctx, &x.upload)()
		in.Body = &x.upload
		// A service may answer while it still reads; without this, net/http would first read the body to its end.
		http.NewResponseController(x.w.ResponseWriter).EnableFullDuplex()
	}
	proxy := httputil.ReverseProxy{
		Rewrite:        x.rewrite,
		ModifyResponse: x.respond,
		ErrorHandler:   x.failed,
		Transport:      x.g.transport.of(x),
		BufferPool:     &x.g.transport.buffers,
		ErrorLog:       log.New(io.Discard, "", 0), // what goes wrong is in the outcome
	}
	proxy.ServeHTTP(&x.w, in)
}

// ended is why it was we who ended a request, or the stream that it became; empty: it was not.
func (x *exchange) ended() policy.Code {
	if lost := x.lost.Load(); lost != nil {
		return policy.Code(lost.Code)
	}
	return endedBy(x.ctx)
}

func endedBy(ctx context.Context) policy.Code {
	if lost := cause.Why(ctx); lost != nil {
		return policy.Code(lost.Code)
	}
	if context.Cause(ctx) == errDraining {
		return codeStreamEnded
	}
	return ""
}

// lifetime bounds a request, and with it every stream that it becomes, by the life of its token, for as long as the token
// would be accepted, and by its standing.
func (x *exchange) lifetime() (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(x.r.Context())
	x.end = end
	standing := x.entry.Standing()
	stop := context.AfterFunc(standing, func() { end(context.Cause(standing)) })
	cancel := func() { stop(); end(nil) }
	if x.caller != nil {
		var expire context.CancelFunc
		left := x.caller.Expires.Add(x.rules.leewayOf(x.caller)).Sub(x.g.now())
		ctx, expire = context.WithTimeoutCause(ctx, left, &cause.Lost{Code: lostExpired, Reason: "the token has expired"})
		before := cancel
		cancel = func() { expire(); before() }
	}
	if x.upgrades() {
		return ctx, cancel // the tunnel ends itself
	}
	// A client that does not read would keep a write, and with it the request, for as long as it likes.
	unblock := context.AfterFunc(ctx, func() {
		switch {
		case endedBy(ctx) == "":
		case x.r.ProtoMajor == 2: // a deadline is a reset there, and a call can still be told why it ends
			x.w.cut.writing(time.Now().Add(closePatience))
		default:
			x.w.cut.writing(time.Now())
		}
	})
	return ctx, func() { unblock(); cancel() }
}

// rewrite makes the request that the service receives. ReverseProxy has dropped hop-by-hop headers.
func (x *exchange) rewrite(p *httputil.ProxyRequest) {
	t := x.g.transport
	// Opaque is written as it is: the bytes that were judged are the bytes on the wire.
	p.Out.URL = &url.URL{Scheme: t.scheme, Host: t.host, Opaque: x.target.Path, RawQuery: x.target.RawQuery, ForceQuery: x.target.ForceQuery}
	p.Out.Host = x.host.String()
	p.Out.Trailer = nil
	h := p.Out.Header
	t.hygiene.clean(h)
	delete(h, "Tracestate") // of a trace that we do not believe
	delete(h, x.rules.AssertHeader)
	x.says(func(name, value string) { h[name] = []string{value} })
	if x.upload.cut != nil {
		p.Out.Body = &x.upload // without ReverseProxy's wrapper, whose Close does nothing
	}
	if x.grpc && t.grpc {
		h["Te"] = []string{"trailers"} // without it a service may think that we cannot read them
	}
	sendOnce(h)
}

// says is what we tell the service. Of these fields the client's own are dropped.
func (x *exchange) says(tell func(name, value string)) {
	if source := x.request.Source; source.IsValid() {
		tell("X-Forwarded-For", source.String())
	}
	tell("X-Forwarded-Host", x.host.String())
	tell("X-Forwarded-Proto", x.scheme())
	tell("X-Request-Id", x.id)
	tell("X-Sallyport-Capability", x.entry.Capability)
	x.traceparent(tell)
	x.asserts(tell)
}

// asserts is the assertion, in its header. In Authorization, where a guard that knows nothing of it looks, it stands in Txn-Token as
// well.
func (x *exchange) asserts(tell func(name, value string)) {
	switch name := x.rules.AssertHeader; {
	case x.assertion == "":
	case name == "Authorization":
		tell(name, "Bearer "+x.assertion)
		tell(headerTransaction, x.assertion)
	default:
		tell(name, x.assertion)
	}
}

func (x *exchange) scheme() string {
	if x.onTLS() {
		return "https"
	}
	return "http"
}

// respond makes of the service's answer what the client may see.
func (x *exchange) respond(res *http.Response) error {
	if res.StatusCode == http.StatusSwitchingProtocols && !x.upgrades() {
		return errSwitched
	}
	h := res.Header
	x.filter(h)
	if res.StatusCode == http.StatusSwitchingProtocols {
		if service, ok := res.Body.(io.ReadWriteCloser); ok {
			x.w.tunnel = newTunnel(&x.w, service)
			res.Body = &upgraded{x.w.tunnel, x}
		}
		return nil
	}
	if x.upgrades() {
		x.hangUp(h, codeUpgradeRefused)
	}
	if !x.upload.ended() {
		// net/http does not find the end of a body that somebody else reads still: it would take the rest for a request.
		x.lastOne(h)
	}
	x.w.length = res.ContentLength
	x.filterTrailer(res.Trailer)
	res.Body = &download{res.Body, x, res}
	return nil
}

// filter makes of the header of the service's answer what the client may see of it, and adds what we say.
func (x *exchange) filter(h http.Header) {
	for _, name := range []string{"Server", "X-Powered-By", "X-Aspnet-Version", "X-Aspnetmvc-Version", "Alt-Svc"} {
		delete(h, name) // what runs behind us, and ways around us
	}
	x.rules.cors.allow(h, x.r)
	x.identify(h)
	delete(h, "Dpop-Nonce") // the service has no proof to check
	if x.nonce != "" {
		h["DPoP-Nonce"] = []string{x.nonce}
	}
	if x.selection.Route.Public == nil {
		// A shared cache must not answer for us (RFC 9111, section 3.5); the service may have said so more exactly.
		if !hasToken(h["Cache-Control"], "no-store") && !hasToken(h["Cache-Control"], "private") {
			h["Cache-Control"] = []string{"no-store"}
		}
		for name := range h {
			if directsCaches(name) {
				delete(h, name)
			}
		}
		x.varies(h)
	}
}

// filterTrailer drops what is ours to say in the head of an answer, or is taken away there, from what stands behind its body.
func (x *exchange) filterTrailer(h http.Header) {
	for name := range h {
		if x.answersOnly(name) {
			delete(h, name)
		}
	}
}

// answersOnly reports whether a field is one that we say, or take away, in the head of an answer.
func (x *exchange) answersOnly(name string) bool {
	h := http.Header{name: {""}}
	x.filter(h)
	values := h[name]
	return len(values) != 1 || values[0] != ""
}

// directsCaches reports whether a field tells a kind of shared cache what to do, over the head of Cache-Control: those of
// RFC 9213, which end in "-Cache-Control", and what there was before it.
func directsCaches(name string) bool {
	switch name {
	case "Surrogate-Control", "Edge-Control", "X-Accel-Expires":
		return true
	}
	return strings.HasSuffix(name, "-Cache-Control")
}

// identify names the request in an answer.
func (x *exchange) identify(h http.Header) { h["X-Request-Id"] = []string{x.id} }

// failed answers in the service's place, when it gave no answer or none that we pass on.
func (x *exchange) failed(_ http.ResponseWriter, _ *http.Request, err error) {
	code := x.reason(err)
	if code == codeClientGone {
		x.failure = code
		panic(http.ErrAbortHandler)
	}
	x.g.log.Debug("forward a request", "request", x.id, "code", string(code), "error", err)
	x.fail(code)
}

// reason finds out why a request that was being forwarded ended. The order matters: whatever ended it first, the
// rest follows from that.
func (x *exchange) reason(err error) policy.Code {
	if x.wire != nil {
		if code := x.wire.Broken(); code != "" {
			return policy.Code(code)
		}
	}
	switch {
	case err == errPanicked:
		return codeInternal
	case x.upload.tooLarge.Load():
		return codeBodyTooLarge
	case x.upload.malformed.Load():
		return codeGRPCMalformed
	case x.upload.late.Load():
		return policy.Code(wire.BodyTimeout)
	}
	code := x.ended()
	switch {
	case code != "":
		return code
	case x.r.Context().Err() != nil || x.upload.broken.Load() || x.w.err != nil:
		return codeClientGone
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return codeUnreachable
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return codeUpstreamSlow
	}
	return codeBadAnswer
}

// upload is a request's body on its way to the service: counted, and ended at the limit.
type upload struct {
	body     io.ReadCloser
	limit    int64
	length   int64 // announced; -1: not known
	n        atomic.Int64
	eof      atomic.Bool
	tooLarge atomic.Bool
	broken   atomic.Bool // it ended with an error before its end

	pace      *pace     // of HTTP/2; nil: none
	messages  *messages // of a gRPC call; nil: it is none
	malformed atomic.Bool
	late      atomic.Bool
	cut       func()      // ends a Read; nil: the service's connection is one of HTTP/1, and ends by itself
	over      atomic.Bool // nobody reads any more
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.wait(p)
	if total := u.n.Add(int64(n)); total > u.limit {
		u.tooLarge.Store(true)
		return 0, errTooLarge
	}
	if bad := u.follow(p[:n], err == io.EOF); bad != nil {
		return 0, bad
	}
	if err == io.EOF {
		u.eof.Store(true)
	}
	if err != nil && err != io.EOF && err != http.ErrBodyReadAfterClose && !u.over.Load() {
		u.broken.Store(true)
	}
	return n, err
}

// ended reports whether there is no more to read, which there never was of a request without a body.
func (u *upload) ended() bool {
	return u.body == nil || u.eof.Load() || u.n.Load() == u.length
}

// Close ends a Read that waits for the client. The transport of HTTP/2 has no end of a stream before that has returned: a call
// that the service ends first would stay open until its client spoke again.
func (u *upload) Close() error {
	switch {
	case u.cut == nil:
		return u.body.Close()
	case !u.ended():
		u.over.Store(true)
		u.cut()
	}
	return nil
}

// download is the service's answer on its way to the client. It remembers an error, which ReverseProxy forgets.
type download struct {
	io.ReadCloser
	x   *exchange
	res *http.Response
}

func (d *download) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err == io.EOF {
		d.x.filterTrailer(d.res.Trailer)
	}
	if err != nil && err != io.EOF {
		d.x.readErr = err
		if d.x.endGRPC(d.res) {
			return n, io.EOF
		}
	}
	return n, err
}
