// Package wire reads HTTP/1.x requests on a connection strictly, before a lenient parser sees them.
//
// The parser of net/http takes what others read differently: bare LF, folded lines, Content-Length beside
// Transfer-Encoding. Two parsers that disagree about where a request ends let one client smuggle a request past a gate.
// A Conn stands between the connection and that parser and lets bytes pass once they have been read strictly, a head
// only whole:
//
//	server := &http.Server{
//		Handler:        handler,
//		ConnContext:    wire.ConnContext,
//		MaxHeaderBytes: limits.MaxHeaderBytes(),
//	}
//	err := server.Serve(listener) // whose Accept returns wire.New(conn, limits, onClose)
//
//	func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
//		c := wire.Of(r)
//		if refusal := c.Next(); refusal != nil {
//			h.refuse(w, refusal) // an answer, a record: like that of any other denial
//			return
//		}
//
// # What it refuses
//
// It is stricter than RFC 9112: where the RFC lets a recipient repair, it refuses. A line ends in CRLF, and CR and LF
// stand nowhere else. The request line has single spaces, an upper-case method, a target in origin-form, and HTTP/1.0
// or 1.1. A field name is letters, digits and "-", right before its colon; a value has no control characters and is not
// folded. There is one Host, in HTTP/1.0 too; at most one Content-Length, digits only; at most one Transfer-Encoding,
// "chunked", and not both; an expectation only of 100-continue; no body beside Upgrade. Chunks have a plain
// hexadecimal size and few extensions; a trailer section is short and made of fields. The Code constants are the whole
// list. What it lets pass reads the same to net/http.
//
// On a connection to a proxy (NewProxy) a target is in absolute-form, or in authority-form for CONNECT, and in no other;
// what follows CONNECT is held like what follows a request for an upgrade.
//
// In the place of a request that it refuses, the server receives a harmless one, for which Next returns the Refusal;
// behind it nothing passes. A body that goes wrong after its head has passed ends in an error, and Broken says why.
//
// # What the caller must do
//
// The server speaks HTTP/1 only. Its handler calls Next first, once, for every request: the count of its calls is how a
// Refusal finds its request. It answers a Refusal itself, whatever the request in its place asks for. It calls HangUp
// with an answer that leaves a body unread or an upgrade ungranted, and Open, or Take, on a connection that it has hijacked. It
// asks Peer and TLS, since net/http, which sees no *tls.Conn, leaves Request.TLS nil.
//
// # Without a parser behind it
//
// A server that wants no second reading calls Direct, and then Wait, ReadHead and ReadBody in the place of Read (package http1).
// A refused request is then a Head of the harmless one, and what was said of Next, HangUp and Open is as true. Deadlines are
// lazy there (Pace), and an idle connection holds no buffer.
//
// # Limits
//
// It reads requests; of answers only the framing of chunks (Chunks). It judges the form of a target and of a host, not their meaning. A body's length is
// not bounded, only its pace: a client that was waited for longer than BodyTimeout in all must have sent 500 bytes for
// each second more. Behind a request for an upgrade 64 KiB of what the client sends are held until the
// upgrade is settled; then everything passes. A TLS handshake happens in the first read, within HeaderTimeout.
package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound what a client can make a connection hold. Zero allows nothing: every field must be set.
type Limits struct {
	HeaderBytes   int           // of a request line and header fields, with the empty line
	HeaderFields  int           // of one head
	HeaderTimeout time.Duration // from the first byte of a request to the end of its header; from New for the first one
	BodyTimeout   time.Duration // without a single byte of progress, reading a body or writing an answer; and see minBodyRate
}

// MaxHeaderBytes is what to set http.Server's to, so that the limit that is met first is that of the Conn.
func (l Limits) MaxHeaderBytes() int { return 2*l.HeaderBytes + readAhead }

// A Code is the reason of a refusal.
type Code string

// Every reason. A body has ChunkMalformed, TrailerMalformed and BodyTimeout, a head the others.
const (
	RequestLineMalformed Code = "request_line_malformed"
	MethodInvalid        Code = "method_invalid"
	HTTPVersion          Code = "http_version"
	TargetForm           Code = "target_form"        // not origin-form (RFC 9112, 3.2.1), to a proxy not absolute- or authority-form
	PathNoncanonical     Code = "path_noncanonical"  // a byte that no path has, or half an escape
	QueryNoncanonical    Code = "query_noncanonical" // a byte that no query has
	HostInvalid          Code = "host_invalid"       // no Host, several, or a byte that no host has
	HeaderMalformed      Code = "header_malformed"   // no colon, or a space before it (RFC 9112, 5.1)
	HeaderName           Code = "header_name"        // "_", "." and what else is not a letter, a digit or "-"
	HeaderValue          Code = "header_value"       // a control character
	HeaderTooLarge       Code = "header_too_large"   // too many bytes or fields
	HeaderTimeout        Code = "header_timeout"
	BareLF               Code = "bare_lf"
	BareCR               Code = "bare_cr"
	ObsFold              Code = "obs_fold"
	ContentLength        Code = "content_length"    // not a number, or not one
	TransferEncoding     Code = "transfer_encoding" // not exactly "chunked", or beside Content-Length, or in HTTP/1.0
	ExpectationUnknown   Code = "expectation_unknown"
	UpgradeRefused       Code = "upgrade_refused" // Upgrade beside a body
	ChunkMalformed       Code = "chunk_malformed"
	TrailerMalformed     Code = "trailer_malformed" // or declares what must not stand there
	BodyTimeout          Code = "body_timeout"
)

// A Refusal is what there is to record of a request that was refused before it was one. Any of its strings but Code is
// empty if it was not read that far, and is the client's, as sent.
type Refusal struct {
	Code   Code
	Method string
	Path   string // no query
	Host   string

	number int64 // of the request on its connection, from 1
}

// A Conn is a client's connection of which a server reads only what has been read strictly before.
//
// Reads come from one goroutine at a time, as net/http has it.
type Conn struct {
	net.Conn
	peer    netip.Addr
	onTLS   bool
	onClose func()
	closed  sync.Once

	headerTimeout time.Duration
	bodyTimeout   time.Duration
	accepted      time.Time

	framer framer
	buf    []byte // buf[r:ok] may pass, buf[ok:w] is not understood yet
	r      int
	ok     int
	w      int
	heads  int64         // requests passed, including the one in the place of a refused one
	at     int           // in buf: where the newest head begins, while it is there; else -1
	begun  time.Time     // when the first byte of the head at hand came
	taken  int64         // bytes of the body at hand
	waited time.Duration // for them
	tunnel bool          // an upgrade was granted: every byte passes
	fed    bool          // buf has bytes that nobody looked at

	refused  atomic.Pointer[Refusal] // the request that was refused, if any
	broken   atomic.Pointer[breach]
	lingers  atomic.Bool
	served   atomic.Int64 // calls of Next
	deadline deadlines
	direct   *direct // nil: a server of net/http reads
}

// breach is why a body ends with an error, and the number of its request.
type breach struct {
	code   Code
	number int64
}

// errBroken ends a request's body that does not end as it should.
var errBroken = errors.New("wire: the request's body is malformed")

// New puts a Conn before c, which may be a *tls.Conn. onClose, unless nil, is called once, when c has been closed.
func New(c net.Conn, l Limits, onClose func()) *Conn {
	w := &Conn{
		Conn:          c,
		onClose:       onClose,
		headerTimeout: l.HeaderTimeout,
		bodyTimeout:   l.BodyTimeout,
		accepted:      time.Now(),
		framer:        framer{maxBytes: l.HeaderBytes, maxFields: l.HeaderFields},
		at:            -1,
	}
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		w.peer = a.Addr().Unmap().WithZone("")
	}
	_, w.onTLS = c.(*tls.Conn)
	w.deadline.conn = c
	return w
}

// Feed gives a new Conn what was read from the connection before. It comes before the first Read, once.
func (c *Conn) Feed(b []byte) {
	if len(b) == 0 {
		return
	}
	c.begun, c.fed = time.Now(), true
	c.buf = make([]byte, readAhead)
	c.w = copy(c.buf, b)
}

// NewProxy is New for a connection on which a client speaks to a proxy.
func NewProxy(c net.Conn, l Limits, onClose func()) *Conn {
	w := New(c, l, onClose)
	w.framer.proxy = true
	return w
}

type contextKey struct{}

// ConnContext is http.Server's: it lets Of find the connection.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, contextKey{}, c)
}

// Of returns the connection that a request came by, nil if it did not come by a Conn.
func Of(r *http.Request) *Conn {
	c, _ := r.Context().Value(contextKey{}).(*Conn)
	return c
}

// Peer is the address at the other end, invalid if that has none, as on a unix socket. An IPv4 address is never in its
// IPv6 form, and none has a zone.
func (c *Conn) Peer() netip.Addr { return c.peer }

// TLS reports whether the connection below is one of TLS.
func (c *Conn) TLS() bool { return c.onTLS }

// TLSState is what the handshake of this connection left; false if the connection is not one of TLS.
func (c *Conn) TLSState() (tls.ConnectionState, bool) {
	t, ok := c.Conn.(*tls.Conn)
	if !ok {
		return tls.ConnectionState{}, false
	}
	return t.ConnectionState(), true
}

// Next takes the connection's next request, which the handler has just been given. It returns the refusal in whose
// place that request stands, nil if the request is the client's own.
func (c *Conn) Next() *Refusal {
	served := c.served.Add(1)
	if r := c.refused.Load(); r != nil && r.number == served {
		return r
	}
	return nil
}

// Broken is why the body at hand ended, or will end, with an error: a fault of the client, or what HangUp was told.
// Empty means that it has no such reason.
func (c *Conn) Broken() Code {
	if b := c.broken.Load(); b != nil && b.number == c.served.Load() {
		return b.code
	}
	return ""
}

// HangUp makes what is left of a body end at once, for a client that has its answer without it. The code is what Broken
// says from now on. That the answer says "Connection: close" is the caller's part.
func (c *Conn) HangUp(code Code) {
	c.lingers.Store(true)
	c.broken.Store(&breach{code, c.served.Load()})
}

// Open makes the connection a tunnel in which every byte passes, those first that were held behind the request for it.
// The caller has hijacked the connection: nobody reads.
func (c *Conn) Open() {
	c.tunnel = true
	c.deadline.own(time.Time{})
	if c.direct != nil {
		c.direct.read.set(time.Time{})
	}
}

// Take makes the connection a tunnel as Open does, and gives it away: what was read and has not passed, and the
// connection below, from which the rest is to be read. Close remains the caller's to call.
func (c *Conn) Take() (held []byte, below net.Conn) {
	c.Open()
	held = c.buf[c.r:c.w]
	c.r, c.ok, c.w = 0, 0, 0
	return held, c.Conn
}
