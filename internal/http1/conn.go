package http1

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/wire"
)

// A Conn is a client's connection, and the http.ResponseWriter of the request at hand. What its request is made of is used
// again for the next: nothing of it may be kept but strings.
type Conn struct {
	server *Server
	wire   *wire.Conn
	remote string          // as http.Request has it
	ctx    context.Context // ends with the connection, and when the client has gone
	end    context.CancelFunc
	work   *work // nil: idle

	number  atomic.Int64 // of the request at hand, from 1; 0: there is none
	count   int64
	waiting atomic.Int64 // since when the client has nothing to do but wait for its answer, Unix nanoseconds; 0: it does not
	looked  int64        // the watch's

	mu      sync.Mutex
	cut     bool
	other   Interrupter // whom Interrupt interrupts too
	retired bool
}

// An Interrupter is somebody who may be waited for.
type Interrupter interface{ Interrupt() }

// wait waits for a request. It reports whether there is one.
func (c *Conn) wait() bool {
	c.mu.Lock()
	retired := c.retired || c.server.draining.Load()
	c.mu.Unlock()
	return !retired && c.wire.Wait() == nil
}

// retire ends a connection that is idle.
func (c *Conn) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = true
	if c.number.Load() == 0 && c.work == nil {
		c.wire.InterruptRead()
	}
}

// take gives the connection what it needs while it is not idle.
func (c *Conn) take() {
	if c.work != nil {
		return
	}
	w, ok := c.server.works.Get().(*work)
	if !ok {
		w = newWork()
	}
	w.body.conn = c.wire
	c.mu.Lock()
	defer c.mu.Unlock()
	c.work = w
	if c.retired { // too late: this one is read yet
		c.wire.ResumeRead()
	}
}

func (c *Conn) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.work != nil {
		c.work.reset()
		c.work.body.conn = nil
		c.server.works.Put(c.work)
		c.work = nil
	}
}

// serve reads a request, has it handled, and reports whether another may follow.
func (c *Conn) serve() (again bool) {
	c.take()
	defer c.drop()
	w := c.work
	if err := c.wire.ReadHead(&w.head); err != nil {
		return false
	}
	w.make(c)
	c.begin()
	whole := true
	func() {
		defer c.server.rescue(&whole)
		c.server.Handler.ServeHTTP(c, &w.request)
	}()
	c.waiting.Store(0)
	if w.hijacked {
		c.finish()
		return false
	}
	if whole {
		whole = c.emit(nil, true) == nil
	}
	return c.finish() && whole && !w.close && !w.head.Old && c.wire.Rested()
}

// begin makes the request one that can be interrupted.
func (c *Conn) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	c.number.Store(c.count)
}

// finish ends that. It reports whether the request was not interrupted.
func (c *Conn) finish() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number.Store(0)
	c.other = nil
	return !c.cut
}

// Number is that of the request at hand, for Interrupt.
func (c *Conn) Number() int64 { return c.number.Load() }

// Interrupt ends all that the handler of a request waits for. If the request has ended it does nothing.
func (c *Conn) Interrupt(number int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number == 0 || number != c.number.Load() {
		return
	}
	c.cut = true
	c.wire.Interrupt()
	if c.other != nil {
		c.other.Interrupt()
	}
}

// Attach has Interrupt interrupt somebody else too; nil: nobody. It reports whether the request has not been interrupted yet.
func (c *Conn) Attach(other Interrupter) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.other = other
	return !c.cut
}

// Resume lets a request that was interrupted be answered.
func (c *Conn) Resume() { c.wire.Resume() }

// Waits says whether the client has nothing to do but wait: then it is looked whether it has gone.
func (c *Conn) Waits(is bool) {
	var since int64
	if is {
		since = time.Now().UnixNano()
	}
	c.waiting.Store(since)
}

// look reports whether to look for the client now: less often the longer it has been waiting, once a second in the end.
func (c *Conn) look(now int64) bool {
	since := c.waiting.Load()
	if since == 0 {
		return false
	}
	if c.looked < since {
		c.looked = since
	}
	if now-c.looked < min(max((now-since)/4, int64(sweepEvery)/2), int64(time.Second)) {
		return false
	}
	c.looked = now
	return true
}

// Wire is the connection below.
func (c *Conn) Wire() *wire.Conn { return c.wire }

// Head is what the request at hand said.
func (c *Conn) Head() *wire.Head { return &c.work.head }

// Names are those of the request's fields, in canonical form and in their order, each once.
func (c *Conn) Names() []string { return c.work.names }

// Order has the answer's fields of these names come first, in this order.
func (c *Conn) Order() *[]string { return &c.work.order }

// Scratch is a buffer that is the handler's until it returns.
func (c *Conn) Scratch() *[]byte { return &c.work.scratch }

// Hijack gives the connection away: Interrupt has no power over it any more. It implements http.Hijacker.
func (c *Conn) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if !c.finish() {
		return nil, nil, net.ErrClosed
	}
	c.work.hijacked = true
	return c.wire, bufio.NewReadWriter(bufio.NewReader(c.wire), bufio.NewWriter(c.wire)), nil
}

// work is what a request and its answer are made of.
type work struct {
	head    wire.Head
	request http.Request
	url     url.URL
	header  http.Header
	values  []string // that header's are slices of
	names   []string
	body    body
	scratch []byte

	answer   http.Header
	order    []string
	status   int
	sent     bool // the head is
	close    bool // behind the answer
	chunked  bool
	bodyless bool
	left     int64 // of an announced body; -1: not announced
	hijacked bool
	eaten    int // of the body of an answer to HEAD
	err      error
	room     []byte // headroom, then what is to be sent: room[headroom:end]
	stop     int
}

const (
	roomSize = 32 << 10
	headroom = 2 << 10
	tailroom = 16
)

func newWork() *work {
	return &work{header: http.Header{}, answer: http.Header{}, room: make([]byte, roomSize), stop: headroom}
}

// reset forgets a request. What it keeps of it is room.
func (w *work) reset() {
	clear(w.header)
	clear(w.answer)
	clear(w.values)
	clear(w.head.Fields)
	clear(w.names)
	clear(w.order)
	if cap(w.scratch) > roomSize {
		w.scratch = nil
	}
	*w = work{
		head: wire.Head{Fields: w.head.Fields[:0]}, header: w.header, values: w.values[:0], names: w.names[:0], body: body{conn: w.body.conn},
		scratch: w.scratch[:0], answer: w.answer, order: w.order[:0], room: w.room, stop: headroom,
	}
}

// make makes the request of the head.
func (w *work) make(c *Conn) {
	h := &w.head
	w.close, w.left = h.Old, -1
	if n := len(h.Fields); cap(w.values) < n {
		w.values = make([]string, 0, max(n, 16))
	}
	w.readFields()
	path, query, _ := strings.Cut(h.Target, "?")
	w.url = url.URL{Path: path, RawQuery: query}
	if strings.IndexByte(path, '%') >= 0 {
		if u, err := url.ParseRequestURI(h.Target); err == nil {
			w.url = *u
		}
	}
	r := http.Request{
		Method: h.Method, URL: &w.url, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: w.header, Body: http.NoBody,
		ContentLength: h.Length, Host: h.Host, RequestURI: h.Target, RemoteAddr: c.remote, Close: w.close,
	}
	if h.Old {
		r.Proto, r.ProtoMinor = "HTTP/1.0", 0
	}
	if h.Length != 0 {
		r.Body = &w.body
	}
	if h.Length < 0 {
		r.TransferEncoding = []string{"chunked"}
	}
	w.request = *r.WithContext(c.ctx)
}

// readFields puts the fields into the header, as net/http would.
func (w *work) readFields() {
	for _, f := range w.head.Fields {
		name := textproto.CanonicalMIMEHeaderKey(f.Name)
		switch name {
		case "Host", "Transfer-Encoding", "Trailer":
			continue
		case "Connection":
			w.close = w.close || hasToken(f.Value, "close")
		}
		if had := w.header[name]; had != nil {
			w.header[name] = append(had, f.Value)
			continue
		}
		n := len(w.values)
		w.values = append(w.values, f.Value)
		w.header[name] = w.values[n : n+1 : n+1]
		w.names = append(w.names, name)
	}
}

// hasToken reports whether a comma-separated list holds the token, in any case.
func hasToken(list, token string) bool {
	for element := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(element, " \t"), token) {
			return true
		}
	}
	return false
}

// body is a request's.
type body struct{ conn *wire.Conn }

func (b *body) Read(p []byte) (int, error) {
	if b.conn == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.conn.ReadBody(p)
}

func (b *body) Close() error { return nil }

var _ io.ReadCloser = (*body)(nil)
