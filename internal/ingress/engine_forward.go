package ingress

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/http1"
)

const (
	maxInformational = 16                    // before one answer
	settleTime       = 50 * time.Millisecond // for the last bytes of a body whose answer is whole
)

// flow is a request on its way through the engine, and its answer on the way back.
type flow struct {
	x      *exchange
	c      *http1.Conn // the client's
	client *http1.Client
	link   *http1.Link
	answer http1.Answer

	upgrade   string        // what the client asks to switch to; empty: nothing
	expecting bool          // the body is sent when the service says so
	done      chan struct{} // closed when the body has been sent, or has not; nil: nobody is sending
	sent      atomic.Int64  // when there was nothing more to send, Unix nanoseconds; 0: there is
	all       atomic.Bool   // was sent
	failed    atomic.Pointer[error]
	settled   bool
}

// forwardDirect is forward by the engine.
func (x *exchange) forwardDirect(c *http1.Conn) {
	x.direct, x.number = c, c.Number()
	x.g.fly(x)
	if x.r.ContentLength != 0 {
		x.upload = upload{body: x.r.Body, limit: x.g.config.Limits.BodyBytes, length: x.r.ContentLength}
	}
	f := &flow{x: x, c: c, client: x.g.client}
	defer f.settle(false) // if a panic has kept it from that: nobody may read a body whose request is over
	if err := f.ask(); err != nil {
		f.fail(err)
		return
	}
	f.answerClient()
}

// answerClient hands the answer on, and ends the exchange.
func (f *flow) answerClient() {
	x := f.x
	err := f.pass()
	if err == nil {
		f.settle(true)
		return
	}
	if failed := f.failed.Load(); failed != nil {
		err = *failed // which came first
	}
	x.readErr = err
	if x.failure = x.reason(err); x.w.err == nil && x.failure != codeClientGone {
		x.w.FlushError() // what came of it, before the end that says that it is not whole
	}
	f.settle(false)
	panic(http.ErrAbortHandler)
}

// fail answers in the service's place.
func (f *flow) fail(err error) {
	x := f.x
	code := x.reason(err)
	f.settle(false)
	if code == codeClientGone {
		x.failure = code
		panic(http.ErrAbortHandler)
	}
	x.g.log.Debug("forward a request", "request", x.id, "code", string(code), "error", err)
	x.fail(code)
}

// ask sends the request and reads the head of its answer. It sends it again, on a new connection, if the one that it had was
// kept and broke before anything of an answer came, and the service can have acted on nothing or may act twice: a safe
// method (RFC 9110, section 9.2.2).
func (f *flow) ask() error {
	head := f.request()
	kept := f.client.Reused()
	for {
		if f.link = kept; f.link == nil {
			if err := f.dial(); err != nil {
				return err
			}
		}
		if !f.c.Attach(f.link) {
			return errInterrupted
		}
		n, err := f.link.Write(head)
		if err == nil || n > 0 && !isTimeout(err) { // the service may have answered and hung up
			if err = f.await(); err == nil {
				return nil
			}
		}
		if kept == nil || f.done != nil || isTimeout(err) || f.link.Heard() || n > 0 && !f.safe() || !f.c.Attach(nil) {
			return err
		}
		f.link.Close()
		kept = nil
	}
}

// safe reports whether the service may be asked twice.
func (f *flow) safe() bool {
	switch f.x.r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return f.x.upload.body == nil
	}
	return false
}

func (f *flow) dial() (err error) {
	ctx, cancel := context.WithCancel(f.x.r.Context())
	defer cancel()
	if !f.c.Attach(dialing{cancel}) {
		return errInterrupted
	}
	f.link, err = f.client.Fresh(ctx)
	return err
}

// await reads the answer's head, and has the body sent meanwhile.
func (f *flow) await() error {
	c, limits := f.c, &f.x.g.config.Limits
	if !f.expecting {
		f.begin()
	}
	for informed := 0; informed <= maxInformational; {
		until := time.Now().Add(limits.UpstreamTimeout)
		if sent := f.sent.Load(); sent != 0 {
			until = time.Unix(0, sent).Add(limits.UpstreamTimeout)
		}
		if f.expecting {
			until = time.Now().Add(continueWait)
		}
		c.Waits(f.done == nil || f.sent.Load() != 0)
		err := f.link.ReadAnswer(&f.answer, f.x.r.Method, f.x.w.Header(), until)
		switch {
		case isTimeout(err) && !f.link.Interrupted() && f.mayWait():
			f.goOn()
		case err != nil:
			if failed := f.failed.Load(); failed != nil {
				return *failed
			}
			return err
		case f.answer.Status == http.StatusSwitchingProtocols && f.upgrade == "":
			return errSwitched
		case f.answer.Status == http.StatusSwitchingProtocols:
			return nil
		case f.answer.Status == http.StatusContinue:
			clear(f.x.w.Header())
			f.goOn()
			informed++
		case f.answer.Status < 200:
			f.inform()
			informed++
		default:
			c.Waits(true)
			return nil
		}
	}
	return errors.New("too many informational answers")
}

// mayWait reports whether an answer may still take its time: it has, from when the whole request has been sent.
func (f *flow) mayWait() bool {
	sent := f.sent.Load()
	return f.expecting || sent == 0 || time.Since(time.Unix(0, sent)) < f.x.g.config.Limits.UpstreamTimeout
}

// goOn sends the body that the client was told to wait with.
func (f *flow) goOn() {
	if f.expecting {
		f.expecting = false
		f.x.w.WriteHeader(http.StatusContinue)
		f.begin()
	}
}

// inform passes an informational answer on, and of its fields the links, which are what there is to know early (RFC 8297).
func (f *flow) inform() {
	h := f.x.w.Header()
	link := h["Link"]
	clear(h)
	if link != nil {
		h["Link"] = link
	}
	f.x.w.WriteHeader(f.answer.Status)
	clear(h)
}

// begin sends the body, unless it went with the head.
func (f *flow) begin() {
	if f.x.upload.ended() {
		f.all.Store(true)
		f.sent.Store(time.Now().UnixNano())
		return
	}
	f.done = make(chan struct{})
	go f.send(f.link)
}

const chunkHead = 10 // "7ff0\r\n", and room

// send sends the body as it comes. What keeps it from ending well ends the request.
func (f *flow) send(link *http1.Link) {
	defer close(f.done)
	u, buf := &f.x.upload, f.x.g.transport.buffers.Get()
	defer f.x.g.transport.buffers.Put(buf)
	stop := func(err error) {
		f.failed.CompareAndSwap(nil, &err)
		link.Interrupt()
	}
	defer func() { // what the client sends is read here
		if p := recover(); p != nil {
			f.x.fault(p)
			stop(errPanicked)
		}
	}()
	for !u.ended() {
		n, err := u.Read(buf[chunkHead : len(buf)-2])
		if err != nil && err != io.EOF {
			stop(err)
			return
		}
		if _, err := link.Write(f.framed(buf, n, err == io.EOF)); err != nil {
			if isTimeout(err) {
				stop(err)
			}
			f.sent.Store(time.Now().UnixNano())
			return // it may have answered before it hung up
		}
	}
	f.all.Store(true)
	f.sent.Store(time.Now().UnixNano())
}

// framed is what is sent for n bytes of body in buf.
func (f *flow) framed(buf []byte, n int, last bool) []byte {
	data := buf[chunkHead : chunkHead+n]
	if f.x.r.ContentLength >= 0 {
		return data
	}
	if n > 0 {
		var size [chunkHead]byte
		line := append(strconv.AppendInt(size[:0], int64(n), 16), "\r\n"...)
		from := chunkHead - len(line)
		copy(buf[from:], line)
		data = append(buf[from:chunkHead+n], "\r\n"...)
	}
	if last {
		data = append(data, "0\r\n\r\n"...)
	}
	return data
}

// settle ends the exchange with the service. If all went well the connection is kept for another.
func (f *flow) settle(whole bool) {
	if f.settled {
		return
	}
	f.settled = true
	x := f.x
	f.c.Waits(false)
	if f.done != nil {
		if whole && x.upload.ended() {
			select {
			case <-f.done:
			case <-time.After(settleTime):
			}
		}
		select {
		case <-f.done:
		default:
			whole = false
			if !x.upload.ended() { // else nothing of it is read, and a next request may be
				x.wire.InterruptRead()
			}
			f.link.Interrupt()
			<-f.done
		}
		whole = whole && f.all.Load()
	}
	f.c.Attach(nil)
	switch {
	case f.link == nil:
	case whole && f.all.Load():
		f.link.Release()
	default:
		f.link.Close()
	}
}

// pass hands the answer to the client.
func (f *flow) pass() error {
	x, c := f.x, f.c
	h := x.w.Header()
	chunked := f.answer.Length < 0
	announced := h["Trailer"]
	f.withoutHops(h)
	x.filter(h)
	if chunked && announced != nil {
		h["Trailer"] = announced
	}
	if f.upgrade != "" {
		x.hangUp(h, codeUpgradeRefused)
	}
	if !x.upload.ended() {
		h["Connection"] = []string{"close"} // what is left of the body is not to be taken for a request
	}
	*c.Order() = append(*c.Order(), f.answer.Names...)
	x.w.WriteHeader(f.answer.Status)
	for {
		p, err := f.link.Next()
		if err == io.EOF {
			break
		}
		if err == nil && len(p) == 0 {
			if c.Pending() {
				err = x.w.FlushError()
			}
			if err == nil {
				err = f.link.Fill()
			}
		} else if err == nil {
			_, err = x.w.Write(p)
		}
		if err != nil {
			return err
		}
	}
	if chunked {
		trailer := f.link.Trailer()
		x.filterTrailer(trailer)
		for name, values := range trailer {
			h[http.TrailerPrefix+name] = values
		}
	}
	return nil
}

// withoutHops drops what is between us and the service (RFC 9110, section 7.6.1).
func (f *flow) withoutHops(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = http.CanonicalHeaderKey(strings.Trim(name, " \t")); name != "Content-Length" {
				delete(h, name)
			}
		}
	}
	for _, name := range hopByHop() {
		delete(h, name)
	}
}

// request is the head of the request that the service receives, and its body if that has come already.
func (f *flow) request() []byte {
	x, c := f.x, f.c
	b := (*c.Scratch())[:0]
	b = append(append(b, x.r.Method...), ' ')
	b = append(b, x.target.Path...)
	if x.target.RawQuery != "" || x.target.ForceQuery {
		b = append(append(b, '?'), x.target.RawQuery...)
	}
	b = append(append(append(b, " HTTP/1.1\r\nHost: "...), x.host.String()...), "\r\n"...)
	said := make([]string, 0, 16)
	x.says(func(name, value string) {
		said = append(said, name)
		b = appendField(b, name, value)
	})
	hops := x.r.Header["Connection"]
	for _, name := range c.Names() {
		if isHop(name) || name == "Expect" || name == "Content-Length" || name == "Tracestate" || x.g.transport.hygiene.drops(name) ||
			len(hops) > 0 && hasToken(hops, name) || slices.Contains(said, name) || name == x.rules.AssertHeader {
			continue
		}
		for _, value := range x.r.Header[name] {
			b = appendField(b, name, value)
		}
	}
	inHand := x.upload.body != nil && x.wire.InHand() && x.r.ContentLength <= maxInHand
	switch {
	case x.r.ContentLength > 0:
		b = append(strconv.AppendInt(append(b, "Content-Length: "...), x.r.ContentLength, 10), "\r\n"...)
	case x.r.ContentLength < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case x.r.Method == http.MethodPost, x.r.Method == http.MethodPut, x.r.Method == http.MethodPatch:
		b = append(b, "Content-Length: 0\r\n"...)
	}
	if f.expecting = c.Head().Expects && !c.Head().Old && x.upload.body != nil && !inHand; f.expecting {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	if f.upgrade != "" {
		b = appendField(append(b, "Connection: Upgrade\r\n"...), "Upgrade", f.upgrade)
	}
	b = append(b, "\r\n"...)
	if inHand && x.r.ContentLength > 0 {
		b = f.appendBody(b)
	}
	*c.Scratch() = b
	return b
}

const maxInHand = 64 << 10

// appendBody appends a body that has come whole.
func (f *flow) appendBody(b []byte) []byte {
	u := &f.x.upload
	b = slices.Grow(b, int(u.length))
	for !u.ended() {
		n, err := u.Read(b[len(b):min(cap(b), len(b)+int(u.length-u.n.Load()))])
		b = b[:len(b)+n]
		if err != nil && err != io.EOF {
			break // begin finds that it has not ended, and send why
		}
	}
	return b
}

func appendField(b []byte, name, value string) []byte {
	return append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
}

// hopByHop are the fields that are no part of a message (RFC 9110, section 7.6.1), in either direction.
func hopByHop() []string {
	return []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}
}

func isHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

func isTimeout(err error) bool {
	if err == nil {
		return false
	}
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
