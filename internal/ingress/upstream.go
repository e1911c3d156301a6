package ingress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	dialTimeout    = 5 * time.Second
	continueWait   = time.Second     // for the service's 100 Continue, before the body is sent without
	idleHTTP2      = time.Minute     // a service that has had enough says so
	idleUpstream   = 4 * time.Second // Node closes an idle connection after 5 s: we are first, or a request meets the close
	maxAnswerBytes = 64 << 10        // of a response header
	copyBuffer     = 32 << 10
)

// transport is the one way to the service. It follows no redirect, uses no proxy of the environment, asks for no
// compression of its own, and repeats only what it has sent nothing of, or what is safe to repeat (RFC 9110, 9.2.2);
// for the latter its requests must have gone through sendOnce.
type transport struct {
	http    *http.Transport
	calls   *http.Transport // for gRPC: it waits for an answer's header as long as the client does
	grpc    bool            // the service speaks HTTP/2
	scheme  string
	host    string
	buffers buffers
	hygiene hygiene
}

func newTransport(c Config) (*transport, error) {
	u, l := c.Upstream, c.Limits
	if c.AskOnly && u == nil {
		none := &http.Transport{DialContext: nowhere}
		return &transport{http: none, calls: none, scheme: "http", host: "service", hygiene: newHygiene()}, nil
	}
	to, err := dialTarget(u)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	t := &transport{scheme: "http", host: "service", grpc: to.http2, hygiene: newHygiene()}
	if to.network == "tcp" {
		t.host = u.Host
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!to.http2)
	protocols.SetUnencryptedHTTP2(to.http2)
	t.http = &http.Transport{
		Proxy: nil,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, to.network, to.address)
			if err != nil {
				return nil, err
			}
			return &patientConn{c, l.UpstreamTimeout}, nil
		},
		Protocols:              protocols,
		DisableCompression:     true,
		MaxIdleConns:           0,
		MaxIdleConnsPerHost:    l.Requests,
		IdleConnTimeout:        idleUpstream,
		ResponseHeaderTimeout:  l.UpstreamTimeout,
		ExpectContinueTimeout:  continueWait,
		MaxResponseHeaderBytes: maxAnswerBytes,
	}
	t.calls = t.http
	if to.http2 {
		t.http.IdleConnTimeout = idleHTTP2
		t.calls = t.http.Clone()
		t.calls.ResponseHeaderTimeout = 0
	}
	return t, nil
}

// of is the way that a request takes.
func (t *transport) of(x *exchange) http.RoundTripper {
	if x.grpc {
		return t.calls
	}
	return t.http
}

// close lets go of connections that nobody uses.
func (t *transport) close() {
	t.http.CloseIdleConnections()
	t.calls.CloseIdleConnections()
}

// sendOnce keeps http.Transport from sending a request twice because of a header: by its key Idempotency-Key or
// X-Idempotency-Key it would take any request without a body for one that it may repeat when a kept connection breaks,
// and the service may have acted on the first already. It looks for the canonical spelling alone; the service, to which
// case means nothing (RFC 9110, section 5.1), receives the field in lower case.
func sendOnce(h http.Header) {
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if values, ok := h[name]; ok {
			delete(h, name)
			h[strings.ToLower(name)] = values
		}
	}
}

// nowhere is the way to a service that there is none of.
func nowhere(context.Context, string, string) (net.Conn, error) {
	return nil, &net.OpError{Op: "dial", Err: errors.New("there is no upstream")}
}

// place is where the service is, and whether it speaks HTTP/2, which it then does without having been asked (RFC 9113, section
// 3.3).
type place struct {
	network, address string
	http2            bool
}

// dialTarget reads http://host:port, unix:///path, h2c://host:port or unix+h2c:///path.
func dialTarget(u *url.URL) (place, error) {
	if u == nil {
		return place{}, errors.New("there is no upstream")
	}
	p := place{http2: u.Scheme == "h2c" || u.Scheme == "unix+h2c"}
	switch {
	case (u.Scheme == "unix" || u.Scheme == "unix+h2c") && u.Host == "" && len(u.Path) > 1:
		p.network, p.address = "unix", u.Path
		return p, nil
	case (u.Scheme == "http" || u.Scheme == "h2c") && u.Hostname() != "" && (u.Path == "" || u.Path == "/") && u.RawQuery == "" && u.User == nil:
		p.network, p.address = "tcp", u.Host
		if u.Port() == "" {
			p.address = net.JoinHostPort(u.Hostname(), "80")
		}
		return p, nil
	}
	return place{}, fmt.Errorf("upstream %s is none of http://HOST:PORT, unix:///PATH, h2c://HOST:PORT and unix+h2c:///PATH", u.Redacted())
}

// patientConn gives the service a bounded time to take each write: one that stops reading would hold us for ever.
type patientConn struct {
	net.Conn
	patience time.Duration
}

func (c *patientConn) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.patience)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// CloseWrite ends one direction of a tunnel.
func (c *patientConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// buffers is the pool that answers are copied through. It implements httputil.BufferPool.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if a, ok := b.pool.Get().(*[copyBuffer]byte); ok {
		return a[:]
	}
	return make([]byte, copyBuffer)
}

func (b *buffers) Put(s []byte) { b.pool.Put((*[copyBuffer]byte)(s)) }
