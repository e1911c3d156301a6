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
	"github.com/sallyport/sallyport/internal/policy"
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
	})
	answered := false
	defer func() {
		if answered {
			x.entry.Done()
		} else { // the service may be at work on it still: it is not told that nobody waits
			x.entry.Abandon()
		}
	}()
	ctx, cancel := x.lifetime()
	defer cancel()
	x.ctx = ctx
	x.g.fly(x)
	in := x.r.WithContext(ctx)
	if in.ContentLength != 0 {
		x.upload = upload{body: in.Body, limit: x.g.config.Limits.BodyBytes, length: in.ContentLength}
		in.Body = &x.upload
		// A service may answer while it still reads; without this, net/http would first read the body to its end.
		http.NewResponseController(x.w.ResponseWriter).EnableFullDuplex()
	}
	proxy := httputil.ReverseProxy{
		Rewrite:        x.rewrite,
		ModifyResponse: x.respond,
		ErrorHandler:   x.failed,
		Transport:      x.g.transport.http,
		BufferPool:     &x.g.transport.buffers,
		ErrorLog:       log.New(io.Discard, "", 0), // what goes wrong is in the outcome
	}
	proxy.ServeHTTP(&x.w, in)
	if x.wire != nil && !x.upload.ended() {
		x.wire.HangUp(x.wire.Broken()) // the client has its answer: nobody wants the rest
	}
	switch {
	case x.failure != "":
	case x.readErr != nil || x.w.err != nil:
		x.failure = x.reason(x.readErr)
	case x.w.status == http.StatusSwitchingProtocols:
		x.failure = ended(ctx)
	}
	// What is streamed has no last answer. What the service could not be reached for it does not know of.
	answered = x.failure == "" && x.w.status != http.StatusSwitchingProtocols || x.failure == codeUnreachable
}

// ended is why it was we who ended a request, or the stream that it became; empty: it was not.
func ended(ctx context.Context) policy.Code {
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
		if ended(ctx) != "" {
			http.NewResponseController(x.w.ResponseWriter).SetWriteDeadline(time.Now())
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
	if source := x.request.Source; source.IsValid() {
		h["X-Forwarded-For"] = []string{source.String()}
	}
	h["X-Forwarded-Host"] = []string{p.Out.Host}
	h["X-Forwarded-Proto"] = []string{x.scheme()}
	h["X-Request-Id"] = []string{x.id}
	h["X-Sallyport-Capability"] = []string{x.entry.Capability}
	h["Traceparent"] = []string{"00-" + x.entry.Trace + "-" + x.entry.Trace[:16] + "-01"}
	delete(h, "Tracestate") // of the trace that ours takes the place of
	x.inject(h)
	sendOnce(h)
}

// inject puts the assertion into its header. In Authorization, where a guard that knows nothing of it looks, it stands in
// Txn-Token as well. The client's own have been dropped.
func (x *exchange) inject(h http.Header) {
	name := x.rules.AssertHeader
	delete(h, name)
	switch {
	case x.assertion == "":
	case name == "Authorization":
		h[name] = []string{"Bearer " + x.assertion}
		h[headerTransaction] = []string{x.assertion}
	default:
		h[name] = []string{x.assertion}
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
		h.Set("Connection", "close")
	}
	x.w.length = res.ContentLength
	res.Body = &download{res.Body, x}
	return nil
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
	if x.upload.tooLarge.Load() {
		return codeBodyTooLarge
	}
	code := ended(x.ctx)
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
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.body.Read(p)
	if total := u.n.Add(int64(n)); total > u.limit {
		u.tooLarge.Store(true)
		return 0, errTooLarge
	}
	if err == io.EOF {
		u.eof.Store(true)
	}
	if err != nil && err != io.EOF && err != http.ErrBodyReadAfterClose {
		u.broken.Store(true)
	}
	return n, err
}

// ended reports whether there is no more to read, which there never was of a request without a body.
func (u *upload) ended() bool {
	return u.body == nil || u.eof.Load() || u.n.Load() == u.length
}

func (u *upload) Close() error { return u.body.Close() }

// download is the service's answer on its way to the client. It remembers an error, which ReverseProxy forgets.
type download struct {
	io.ReadCloser
	x *exchange
}

func (d *download) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		d.x.readErr = err
	}
	return n, err
}
