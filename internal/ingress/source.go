package ingress

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// maxForwarded bounds how many addresses of X-Forwarded-For are looked at.
const maxForwarded = 32

// clientAddress is who sent the request: the peer, unless it is a trusted proxy, which tells in X-Forwarded-For (and
// nowhere else). From the right, each trusted address vouches for the one before it; the first that is not trusted is
// the client. What is left of it, the client may have written.
func clientAddress(peer netip.Addr, h http.Header, trusted []netip.Prefix) (netip.Addr, error) {
	if !isTrusted(peer, trusted) {
		return peer, nil
	}
	client, seen := peer, 0
	lines := h["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		rest := lines[i]
		for more := true; more; {
			var last string
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				rest, last = rest[:comma], rest[comma+1:]
			} else {
				last, more = rest, false
			}
			if seen++; seen > maxForwarded {
				return netip.Addr{}, errors.New("X-Forwarded-For has too many addresses")
			}
			a, err := netip.ParseAddr(strings.Trim(last, " \t"))
			if err != nil || a.Zone() != "" {
				return netip.Addr{}, errors.New("X-Forwarded-For of a trusted proxy holds what is no address")
			}
			client = a.Unmap()
			if !isTrusted(client, trusted) {
				return client, nil
			}
		}
	}
	return client, nil
}

func isTrusted(a netip.Addr, trusted []netip.Prefix) bool {
	if !a.IsValid() {
		return false
	}
	for _, p := range trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// checkTrusted refuses what would make everybody a trusted proxy.
func checkTrusted(trusted []netip.Prefix) error {
	for _, p := range trusted {
		if !p.IsValid() || p.Bits() == 0 {
			return fmt.Errorf("trusted_proxies: %s would trust everybody", p)
		}
		if p.Addr().Is4In6() {
			return fmt.Errorf("trusted_proxies: write %s as an IPv4 prefix", p)
		}
	}
	return nil
}
