package safedial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// Dial connects to address, a "host:port", over "tcp", "tcp4" or "tcp6": spelling,
// resolve once, decide by address, connect. It fits http.Transport.DialContext.
func (g *Guard) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, digits, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", address, err)
	}
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, &DeniedError{Host: host, Code: CodeNotTCP, Reason: fmt.Sprintf("network %q is not TCP", network)}
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("dial %q: port: %w", address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, g.timeout())
	defer cancel()
	to, err := g.Resolve(ctx, host, uint16(port))
	if err != nil {
		return nil, err
	}
	var fit []netip.AddrPort
	for _, t := range to {
		if network == "tcp" || network == networkOf(t) {
			fit = append(fit, t)
		}
	}
	if len(fit) == 0 {
		return nil, fmt.Errorf("dial %q: no %s address", address, network)
	}
	return g.DialAddr(ctx, host, fit)
}

// DialAddr connects to one of the addresses that Resolve returned for host, without
// another resolution. All are judged before the first is tried, and each once more
// on the address that the kernel is about to use.
func (g *Guard) DialAddr(ctx context.Context, host string, to []netip.AddrPort) (net.Conn, error) {
	if len(to) == 0 {
		return nil, fmt.Errorf("dial %q: no address", host)
	}
	for _, t := range to {
		if err := g.Check(host, t); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, g.timeout())
	defer cancel()
	dialer := net.Dialer{ControlContext: func(_ context.Context, network, target string, _ syscall.RawConn) error {
		return g.control(host, network, target)
	}}
	return race(ctx, to, func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
		return dialer.DialContext(ctx, networkOf(to), to.String())
	})
}

// control decides about target, the address that the kernel is to connect to next.
func (g *Guard) control(host, network, target string) error {
	to, err := netip.ParseAddrPort(target)
	if network != "tcp4" && network != "tcp6" {
		return &DeniedError{Host: host, Address: to.Addr(), Port: to.Port(), Code: CodeNotTCP, Reason: fmt.Sprintf("network %q is not TCP", network)}
	}
	if err != nil {
		return &DeniedError{Host: host, Code: CodeSpecialAddress, Reason: "not an address"}
	}
	return g.Check(host, to)
}

func networkOf(to netip.AddrPort) string {
	if to.Addr().Unmap().Is4() {
		return "tcp4"
	}
	return "tcp6"
}

// stagger is how long one attempt is alone before the next begins (RFC 8305, section 5).
const stagger = 250 * time.Millisecond

// race tries the addresses in turn, families alternating, and returns the first
// connection. It returns when all attempts have ended, and closes the connections
// that came too late.
func race(ctx context.Context, to []netip.AddrPort, dial func(context.Context, netip.AddrPort) (net.Conn, error)) (net.Conn, error) {
	if len(to) == 1 {
		return dial(ctx, to[0])
	}
	to = alternate(to)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type attempt struct {
		conn net.Conn
		err  error
	}
	ended := make(chan attempt)
	var winner net.Conn
	var first error
	timer := time.NewTimer(0)
	defer timer.Stop()
	for begun, open := 0, 0; ; {
		select {
		case <-timer.C:
			if begun < len(to) && winner == nil && ctx.Err() == nil {
				go func(t netip.AddrPort) {
					conn, err := dial(ctx, t)
					ended <- attempt{conn, err}
				}(to[begun])
				begun, open = begun+1, open+1
				timer.Reset(stagger)
			}
		case a := <-ended:
			open--
			switch {
			case a.err != nil:
				if first == nil || errors.As(a.err, new(*DeniedError)) {
					first = a.err
				}
				timer.Reset(0)
			case winner == nil:
				winner = a.conn
				cancel()
			default:
				a.conn.Close()
			}
		}
		if open > 0 {
			continue
		}
		if winner != nil {
			return winner, nil
		}
		if first != nil && (begun == len(to) || errors.As(first, new(*DeniedError))) {
			return nil, first
		}
		if err := ctx.Err(); err != nil {
			return nil, cmp.Or(first, err)
		}
	}
}

// alternate orders the addresses so that one unreachable family costs one attempt
// and not all of its own (RFC 8305, section 4).
func alternate(to []netip.AddrPort) []netip.AddrPort {
	var first, second, mixed []netip.AddrPort
	for _, t := range to {
		if networkOf(t) == networkOf(to[0]) {
			first = append(first, t)
		} else {
			second = append(second, t)
		}
	}
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			mixed = append(mixed, first[i])
		}
		if i < len(second) {
			mixed = append(mixed, second[i])
		}
	}
	return mixed
}

// Client returns an HTTP client whose every connection goes through g. It follows no
// redirects (a 3xx answer is returned as it is; a Transport in a client of yours
// follows them safely), uses no proxy from the environment, keeps no cookies and asks
// for no compression. It sets no time limit on the answer: the request's context does.
func (g *Guard) Client() *http.Client {
	return &http.Client{
		Transport:     &Transport{Guard: g},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
