package safedial

import (
	"net/http"
	"sync"
	"time"
)

// Transport is an http.RoundTripper for an http.Client that follows redirects.
type Transport struct {
	Guard *Guard // decides about every connection; nil means the zero Guard

	once  sync.Once
	inner *http.Transport
}

// RoundTrip makes one request through the guard.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.transport().RoundTrip(r)
}

// CloseIdleConnections closes the connections that no request uses.
func (t *Transport) CloseIdleConnections() { t.transport().CloseIdleConnections() }

func (t *Transport) transport() *http.Transport {
	t.once.Do(func() {
		guard := t.Guard
		if guard == nil {
			guard = &Guard{}
		}
		t.inner = &http.Transport{
			Proxy:                  nil, // a proxy would resolve and dial in our place
			DialContext:            guard.Dial,
			TLSHandshakeTimeout:    guard.timeout(),
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        30 * time.Second,
		}
	})
	return t.inner
}
