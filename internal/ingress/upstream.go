package ingress

import (
	"context"
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
	idleUpstream   = 4 * time.Second // Node closes an idle connection after 5 s: we are first, or a request meets the close
	maxAnswerBytes = 64 << 10        // of a response header
	copyBuffer     = 32 << 10
)

// transport is the one way to the service. It follows no redirect, uses no proxy of the environment, asks for no
// compression of its own, and repeats only what it has sent nothing of, or what is safe to repeat (RFC 9110, 9.2.2);
// for the latter its requests must have gone through sendOnce.
type transport struct {
	http    *http.Transport
	scheme  string
	host    string
	buffers buffers
	hygiene hygiene
}

func newTransport(u *url.URL, l Limits) (*transport, error) {
	network, address, err := dialTarget(u)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	t := &transport{scheme: "http", host: "service", hygiene: newHygiene()}
	if network == "tcp" {
		t.host = u.Host
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	t.http = &http.Transport{
		Proxy: nil,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
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
	return t, nil
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

// dialTarget reads http://host:port or unix:///path.
func dialTarget(u *url.URL) (network, address string, err error) {
	switch {
	case u == nil:
		return "", "", fmt.Errorf("there is no upstream")
	case u.Scheme == "unix" && u.Host == "" && len(u.Path) > 1:
		return "unix", u.Path, nil
	case u.Scheme == "http" && u.Hostname() != "" && (u.Path == "" || u.Path == "/") && u.RawQuery == "" && u.User == nil:
		if u.Port() == "" {
			return "tcp", net.JoinHostPort(u.Hostname(), "80"), nil
		}
		return "tcp", u.Host, nil
	}
	return "", "", fmt.Errorf("upstream %s is neither http://HOST:PORT nor unix:///PATH", u.Redacted())
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
