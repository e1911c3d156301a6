package egress

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/leak"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/wire"
)

const (
	copyBuffer = 32 << 10
	overWait   = 10 * time.Millisecond
	maxInterim = 8 // answers before the answer (RFC 9110, section 15.2)
)

var (
	errBodyTooLarge = errors.New("the body is over the limit")
	errNoise        = errors.New("more interim answers than one can want")
	errSwitched     = errors.New("the destination switched protocols unasked")
	errLeaving      = errors.New("the body carries an inbound token")
	errEncoded      = errors.New("the answer has a content encoding, in which the credential could not be masked")
	errClosing      = errors.New("the egress is shutting down")
)

// exchange sends the request over the link and the answer to the client. It reports whether the request is to be sent
// once more, over another link: the kept one had ended, and nothing was lost.
func (x *passage) exchange(w http.ResponseWriter, r *http.Request, c *wire.Conn) (again bool) {
	l := x.link
	reuse := false
	defer func() {
		if reuse {
			x.rules.kept.put(x.out.Host, l)
		} else {
			l.close()
		}
	}()
	stop := context.AfterFunc(r.Context(), func() { l.raw.Close() }) // a deadline would be set anew by who reads
	defer stop()
	unguard := x.guard(false, func(code policy.Code) {
		x.cut.Store(&code)
		l.raw.Close()
	})
	defer unguard()
	up := x.send(w, r, c)
	l.any = false
	res, err := x.await(r)
	if err == nil && x.scrub != nil && len(res.Header["Content-Encoding"]) > 0 {
		err = errEncoded
	}
	if err != nil {
		up.abandon(w, c, l)
		if l.used && !l.any && x.cut.Load() == nil && r.ContentLength == 0 && isIdempotent(r.Method) && r.Context().Err() == nil {
			x.failure = codeStale
			return true
		}
		x.failed(r, up, err)
		x.refuseRequest(w, r, c)
		return false
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		unguard()
		x.switched(w, r, c, res)
		return false
	}
	over := up.over()
	x.relay(w, r, over, up, res)
	reuse = over && !res.Close && x.waived == "" && x.cut.Load() == nil && stop() // what was waived is to be waived again
	if !reuse {
		up.abandon(w, c, l)
	}
	if up.tooLarge.Load() {
		x.fail(codeTooLarge, errBodyTooLarge)
	}
	if up.leaving.Load() {
		x.fail(codeLeaving, errLeaving)
	}
	return false
}

// send writes the request. Its body, if it has one, goes on while the answer is awaited: a destination may answer early.
func (x *passage) send(w http.ResponseWriter, r *http.Request, c *wire.Conn) *upload {
	up := &upload{limit: x.p.config.Limits.BodyBytes, search: x.body, done: make(chan struct{})}
	b := x.link.requests()
	x.writeHead(b, r)
	up.err = b.Flush() // the client may wait for an answer with its body
	if r.ContentLength == 0 || up.err != nil {
		close(up.done)
		return up
	}
	http.NewResponseController(w).EnableFullDuplex()
	buffers := &x.p.buffers
	go func() {
		defer close(up.done)
		defer func() {
			if p := recover(); p != nil {
				x.fault(p)
				up.err = errors.New("panic")
			}
		}()
		buffer := buffers.get()
		defer buffers.Put(buffer)
		up.err = up.copy(b, r, buffer[:])
		if up.tooLarge.Load() || up.leaving.Load() || up.broken.Load() {
			x.link.raw.Close() // no answer is to be awaited
		}
	}()
	return up
}

// writeHead writes the request line and the header, with what is ours to say of where the body ends.
func (x *passage) writeHead(b *bufio.Writer, r *http.Request) {
	b.WriteString(r.Method)
	b.WriteByte(' ')
	b.WriteString(targetOf(r))
	b.WriteString(" HTTP/1.1\r\nHost: ")
	b.WriteString(x.host())
	b.WriteString("\r\n")
	cleanRequest(r.Header)
	x.left = x.p.untrace(r.Header)
	if x.scrub != nil { // what is compressed could not be masked, nor what is asked for a few bytes at a time
		r.Header["Accept-Encoding"] = []string{"identity"}
		delete(r.Header, "Range")
		delete(r.Header, "If-Range")
	}
	delete(r.Header, x.attached.Name)
	r.Header.Write(b)
	if x.attached.Name != "" {
		b.WriteString(x.attached.Name + ": " + x.attached.Reveal() + "\r\n")
	}
	switch {
	case x.websocket:
		b.WriteString("Connection: Upgrade\r\nUpgrade: websocket\r\n")
	case r.ContentLength > 0 || r.ContentLength == 0 && r.Method != http.MethodGet && r.Method != http.MethodHead && x.sized:
		b.WriteString("Content-Length: " + strconv.FormatInt(r.ContentLength, 10) + "\r\n")
	case r.ContentLength < 0:
		b.WriteString("Transfer-Encoding: chunked\r\n")
	}
	b.WriteString("\r\n")
}

// host is the Host of the request that the destination receives: the one that was judged.
func (x *passage) host() string {
	port := uint16(80)
	if x.destination != nil && x.destination.Originate {
		port = 443
	}
	s := x.out.Host.String()
	if x.out.Host.Port == port {
		s = s[:strings.LastIndexByte(s, ':')]
	}
	return s
}

// await reads the answer's header, passing over interim answers.
func (x *passage) await(r *http.Request) (*http.Response, error) {
	l := x.link
	for range maxInterim {
		l.head = maxAnswer
		res, err := http.ReadResponse(l.answers(), r)
		l.head = -1
		switch {
		case err != nil:
			return nil, err
		case res.StatusCode == http.StatusSwitchingProtocols && !x.websocket:
			return nil, errSwitched
		case res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols:
			return res, nil
		}
	}
	return nil, errNoise
}

// relay passes the answer on.
func (x *passage) relay(w http.ResponseWriter, r *http.Request, over bool, up *upload, res *http.Response) {
	x.scrub.Header(res.Header)
	if x.scrub != nil {
		res.Body = x.scrub.Body(res.Body)
	}
	h := w.Header()
	for name, values := range res.Header {
		h[name] = values
	}
	clean(h)
	delete(h, "Alt-Svc") // a way around us
	for _, name := range []string{"Content-Type", "Date"} {
		if _, ok := h[name]; !ok {
			h[name] = nil // net/http would invent one
		}
	}
	if len(res.Trailer) > 0 {
		for name := range res.Trailer {
			h.Add("Trailer", name)
		}
	}
	if !over || x.websocket {
		// net/http does not find the end of a body that somebody else reads still: it would take the rest for a request.
		h.Set("Connection", "close")
	}
	if x.websocket {
		wire.Of(r).HangUp("") // what follows is no request
	}
	x.status = res.StatusCode
	w.WriteHeader(res.StatusCode)
	var err error
	if res.ContentLength < 0 || !over {
		http.NewResponseController(w).Flush() // what follows may take its time
	}
	buffer := x.p.buffers.get()
	defer x.p.buffers.Put(buffer)
	if x.back, err = copyAnswer(w, res.Body, buffer[:], res.ContentLength); err != nil {
		x.failed(r, up, err)
		panic(http.ErrAbortHandler) // what was begun is not whole
	}
	x.in = up.n.Load()
	x.scrub.Header(res.Trailer)
	for name, values := range res.Trailer {
		h[name] = values
	}
}

// switched makes the connection a tunnel, for an upgrade that the destination has granted.
func (x *passage) switched(w http.ResponseWriter, r *http.Request, c *wire.Conn, res *http.Response) {
	client, early, err := hijack(w, c)
	defer c.Close()
	if err != nil {
		x.fail(codeInternal, err)
		return
	}
	x.status = http.StatusSwitchingProtocols
	b := bufio.NewWriter(client)
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	clean(res.Header)
	x.scrub.Header(res.Header)
	res.Header.Write(b)
	b.WriteString("Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if err := b.Flush(); err != nil {
		x.fail(codeClientGone, err)
		return
	}
	x.link.raw.SetDeadline(time.Time{})
	late, _ := x.link.read.Peek(x.link.read.Buffered())
	x.tunnel(r.Context(), client, early, x.link.Conn, late)
}

// failed finds out why there is no answer, or no more of it. The order matters: whatever was first, the rest follows.
func (x *passage) failed(r *http.Request, up *upload, err error) {
	var gone *writeError
	switch {
	case x.cut.Load() != nil:
		x.fail(*x.cut.Load(), err)
	case up.leaving.Load():
		x.fail(codeLeaving, errLeaving)
	case up.tooLarge.Load():
		x.fail(codeTooLarge, err)
	case wire.Of(r).Broken() != "":
		x.fail(policy.Code(wire.Of(r).Broken()), err)
	case context.Cause(r.Context()) == errClosing:
		x.fail(codeClosing, err)
	case errors.As(err, &gone), r.Context().Err() != nil, up.broken.Load():
		x.fail(codeClientGone, err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.fail(codeAnswerTimeout, err)
	default:
		x.fail(codeBadAnswer, err)
	}
	x.in = up.n.Load()
}

// upload is a request's body on its way: counted, and ended at the limit.
type upload struct {
	limit    int64
	n        atomic.Int64
	tooLarge atomic.Bool
	leaving  atomic.Bool // a piece held an inbound token, and was not sent
	search   *leak.Stream
	broken   atomic.Bool // it ended before its end, on the client's side
	done     chan struct{}
	err      error // to be read when done
}

func (u *upload) copy(b *bufio.Writer, r *http.Request, buffer []byte) error {
	var to io.Writer = b
	var chunks io.WriteCloser
	if r.ContentLength < 0 {
		chunks = httputil.NewChunkedWriter(b)
		to = chunks
	}
	for {
		n, err := r.Body.Read(buffer)
		if u.n.Add(int64(n)) > u.limit {
			u.tooLarge.Store(true)
			return errBodyTooLarge
		}
		if n > 0 && leaves(u.search, buffer[:n]) {
			u.leaving.Store(true)
			return errLeaving
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return err
		}
		switch {
		case err == io.EOF && chunks != nil:
			chunks.Close()
			b.WriteString("\r\n")
			return b.Flush()
		case err == io.EOF:
			return b.Flush()
		case err != nil:
			u.broken.Store(true)
			return err
		}
		if err := b.Flush(); err != nil {
			return err
		}
	}
}

// over reports whether all of the body has been sent. An answer that waited for all of it may be faster than our own word.
func (u *upload) over() bool {
	select {
	case <-u.done:
		return u.err == nil
	default:
	}
	timer := time.NewTimer(overWait)
	defer timer.Stop()
	select {
	case <-u.done:
		return u.err == nil
	case <-timer.C:
		return false
	}
}

// abandon ends what is left of the body, for a client that has its answer without it, and waits for that.
func (u *upload) abandon(w http.ResponseWriter, c *wire.Conn, l *link) {
	l.close()
	select {
	case <-u.done:
		return
	default:
	}
	c.HangUp("")
	http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	<-u.done
}

// writeError is the client's side of an answer going wrong.
type writeError struct{ error }

// copyAnswer copies a body of a length; negative: not known. Each piece but the last goes on at once: nobody knows when
// the next will come.
func copyAnswer(w http.ResponseWriter, body io.Reader, buffer []byte, length int64) (total int64, err error) {
	control := http.NewResponseController(w)
	for {
		n, readErr := body.Read(buffer)
		if n > 0 {
			written, err := w.Write(buffer[:n])
			total += int64(written)
			if err == nil && total != length {
				err = control.Flush()
			}
			if err != nil && !errors.Is(err, http.ErrBodyNotAllowed) {
				return total, &writeError{err}
			}
		}
		switch {
		case readErr == io.EOF:
			return total, nil
		case readErr != nil:
			return total, readErr
		}
	}
}

// isIdempotent is RFC 9110, section 9.2.2.
func isIdempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete, http.MethodTrace:
		return true
	}
	return false
}

// buffers is the pool that bodies are copied through.
type buffers struct{ sync.Pool }

func (b *buffers) get() *[copyBuffer]byte {
	if a, ok := b.Get().(*[copyBuffer]byte); ok {
		return a
	}
	return new([copyBuffer]byte)
}
