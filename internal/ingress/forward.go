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

	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/policy"
)

var (
	errExpired  = errors.New("the token has expired")
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
	defer x.entry.Done()
	ctx, cancel := x.lifetime()
	defer cancel()
	x.ctx = ctx
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
	case x.w.status == http.StatusSwitchingProtocols && ended(ctx):
		x.failure = codeStreamEnded
	}
}

// ended reports whether it was we who ended a stream.
func ended(ctx context.Context) bool {
	why := context.Cause(ctx)
	return why == errExpired || why == errDraining || cause.Why(ctx) != nil
}

// lifetime bounds a request, and with it every stream that it becomes, by the life of its token and by its standing.
func (x *exchange) lifetime() (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(x.r.Context())
	standing := x.entry.Standing()
	stop := context.AfterFunc(standing, func() { end(context.Cause(standing)) })
	cancel := func() { stop(); end(nil) }
	if x.caller == nil {
		return ctx, cancel
	}
	left := x.caller.Expires.Sub(x.g.now()) + x.g.leeway
	ctx, expire := context.WithTimeoutCause(ctx, max(left, x.g.leeway), errExpired)
	return ctx, func() { expire(); cancel() }
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
	delete(h, x.rules.AssertHeader)
	if x.assertion != "" {
		value := x.assertion
		if x.rules.AssertHeader == "Authorization" {
			value = "Bearer " + value
		}
		h[x.rules.AssertHeader] = []string{value}
	}
	sendOnce(h)
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
		addVary(h, "Authorization")
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
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
	switch {
	case ended(x.ctx):
		return codeStreamEnded
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
