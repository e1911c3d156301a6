// Package safedial dials only addresses that are safe to dial.
//
// A program that fetches an address somebody else had a say in (a key set named
// by a metadata document, a webhook, an image) can be led to its own loopback,
// to the private network behind it or to the cloud's metadata service. A Guard
// refuses those addresses:
//
//	guard := &safedial.Guard{Allow: []string{"auth.internal:443"}}
//	response, err := guard.Client().Get(address)
//	var denied *safedial.DeniedError
//	if errors.As(err, &denied) {
//		log.Print(denied) // refused to dial "169.254.169.254": in 169.254.0.0/16, Link Local (RFC 3927)
//	}
//
// The check is made on the address the kernel is about to connect to, after the
// one name resolution of the connection: a name that resolves to something else
// the second time gains nothing. Hosts that parsers read differently
// (2130706433, 0x7f.1, 127.1) are refused before any resolution.
//
// # Limits
//
// An ordinary public address may still be a machine that must not be reached:
// which destinations a program needs is for its operator to list. A destination
// in Allow is dialled wherever its name points. Only TCP is dialled. A public
// address whose port leads back into a private network, by translation outside
// this machine, cannot be told apart.
package safedial

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// Guard decides which addresses may be dialled. The zero value refuses every
// special-purpose address (loopback, private, link-local, metadata, ...).
type Guard struct {
	// Allow names destinations the operator wrote down, as "host:port": they may be
	// at any address. Nothing else may.
	Allow []string
	// Timeout bounds resolution and connection together; zero means 5 s.
	Timeout time.Duration

	resolver *net.Resolver // nil means the system's
}

// DeniedError says which address was refused and which registry entry refuses it.
type DeniedError struct {
	Host    string     // as it was asked for, without the port
	Address netip.Addr // the zero Addr when Host was refused before it was resolved
	Reason  string
}

func (e *DeniedError) Error() string {
	if !e.Address.IsValid() || e.Host == e.Address.String() {
		return fmt.Sprintf("refused to dial %q: %s", e.Host, e.Reason)
	}
	return fmt.Sprintf("refused to dial %q at %s: %s", e.Host, e.Address, e.Reason)
}

// Client returns an HTTP client whose every connection goes through g. It follows no
// redirects (a 3xx answer is returned as it is), uses no proxy from the environment,
// keeps no cookies and asks for no compression. It sets no time limit on the answer:
// the request's context does.
func (g *Guard) Client() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  nil, // a proxy would resolve and dial in our place
			DialContext:            g.dial,
			TLSHandshakeTimeout:    g.timeout(),
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        30 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// dial connects to address ("host:port"): spelling, resolve once, decide by
// address, connect.
func (g *Guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", address, err)
	}
	if reason := ambiguous(host); reason != "" {
		return nil, &DeniedError{Host: host, Reason: reason}
	}
	dialer := net.Dialer{Timeout: g.timeout(), Resolver: g.resolver}
	// the dialer resolves once and calls this for each address it is about to
	// connect to, with that address
	dialer.ControlContext = func(_ context.Context, network, target string, _ syscall.RawConn) error {
		return g.check(host, address, network, target)
	}
	return dialer.DialContext(ctx, network, address)
}

// check decides about target, the address that the kernel is to connect to next
// in the place of address. What is not plainly an ordinary address is refused.
func (g *Guard) check(host, address, network, target string) error {
	if network != "tcp4" && network != "tcp6" {
		return &DeniedError{Host: host, Reason: "not TCP"}
	}
	to, err := netip.ParseAddrPort(target)
	if err != nil {
		return &DeniedError{Host: host, Reason: "not an address"}
	}
	if g.allows(address) {
		return nil
	}
	if reason := special(to.Addr()); reason != "" {
		return &DeniedError{Host: host, Address: to.Addr(), Reason: reason}
	}
	return nil
}

func (g *Guard) allows(address string) bool {
	for _, allowed := range g.Allow {
		if strings.EqualFold(allowed, address) {
			return true
		}
	}
	return false
}

func (g *Guard) timeout() time.Duration {
	if g.Timeout > 0 {
		return g.Timeout
	}
	return 5 * time.Second
}
