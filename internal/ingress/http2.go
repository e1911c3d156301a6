package ingress

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/sallyport/sallyport/internal/h2"
)

const (
	frameBytes      = 16 << 10  // the least that may be configured: a frame is held whole
	uploadPerConn   = 512 << 10 // bytes of bodies that a connection may have sent and the service not taken
	uploadPerStream = 256 << 10
)

// protocols are what the listener speaks.
type protocols struct{ http1, http2 bool }

// newProtocols reads names: http/1.1; h2, over TLS by ALPN; h2c, on a plain listener by prior knowledge.
func newProtocols(names []string, onTLS bool) (protocols, error) {
	if len(names) == 0 {
		return protocols{http1: true}, nil
	}
	var p protocols
	for _, name := range names {
		switch {
		case name == speaksHTTP1:
			p.http1 = true
		case name == speaksHTTP2 && onTLS, name == speaksH2C && !onTLS:
			p.http2 = true
		case name == speaksHTTP2:
			return protocols{}, errors.New("protocols: h2 is negotiated in TLS, and there is none")
		case name == speaksH2C:
			return protocols{}, errors.New("protocols: h2c is without TLS, and there is TLS: that is h2")
		default:
			return protocols{}, fmt.Errorf("protocols: %q is none that the gate speaks", name)
		}
	}
	return p, nil
}

// alpn is what is offered in a handshake, the best first.
func (p protocols) alpn() []string {
	var names []string
	if p.http2 {
		names = append(names, speaksHTTP2)
	}
	if p.http1 {
		names = append(names, speaksHTTP1)
	}
	return names
}

// orNothing is what a client speaks that did not say HTTP/2.
func (p protocols) orNothing() string {
	if p.http1 {
		return speaksHTTP1
	}
	return speaksNothing
}

// http2Config bounds what net/http lets one connection hold.
func (g *Gateway) http2Config() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams:          g.config.Limits.Streams,
		MaxReadFrameSize:              frameBytes,
		MaxReceiveBufferPerConnection: uploadPerConn,
		MaxReceiveBufferPerStream:     uploadPerStream,
		CountError:                    g.metrics.malformed,
	}
}

// h2 is the part that holds on an HTTP/2 connection. A header block is compressed, but need not be.
func (l Limits) h2() h2.Limits {
	return h2.Limits{HeaderBytes: l.wire().MaxHeaderBytes(), HeaderTimeout: l.HeaderTimeout, BodyTimeout: l.BodyTimeout}
}
