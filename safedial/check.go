package safedial

import (
	"fmt"
	"net/netip"
	"strings"
)

// Check decides about one address: nil, or a *DeniedError. host is the name that
// led to it; it is "" or the address itself when there was none. The order is that
// of strength: what the caller may lift with Allow comes last.
func (g *Guard) Check(host string, to netip.AddrPort) error {
	r, err := g.prepared()
	if err != nil {
		return err
	}
	if host != "" {
		if err := Host(host); err != nil {
			return err
		}
	}
	return r.check(host, to)
}

func (r *rules) check(host string, to netip.AddrPort) error {
	to = plain(to)
	refuse := func(code, entry, reason string) error {
		return &DeniedError{Host: shown(host, to.Addr()), Address: to.Addr(), Port: to.Port(), Code: code, Entry: entry, Reason: reason}
	}
	if !to.Addr().IsValid() {
		return refuse(CodeSpecialAddress, "", "not an address")
	}
	all := readings(to.Addr())
	if own, err := r.isOwn(all, to.Port()); err != nil {
		return err
	} else if own.IsValid() {
		return refuse(CodeOwnAddress, "", fmt.Sprintf("leads back to our own listener %s", own))
	}
	if entry, err := r.escape(host, all, to.Port()); err != nil {
		return err
	} else if entry.Name != "" {
		reason := entry.reason()
		if block := special(to.Addr()); block != "" {
			reason += "; " + block
		}
		return refuse(CodeEscapeTarget, entry.Name, reason)
	}
	if block := r.denied(all); block.IsValid() {
		return refuse(CodeDeniedAddress, "", fmt.Sprintf("in %s, which is denied", block))
	}
	if r.allowsHost(host, to) || r.allowsAddress(to.Addr()) {
		return nil
	}
	if reason := special(to.Addr()); reason != "" {
		return refuse(CodeSpecialAddress, "", reason)
	}
	return nil
}

// shown is the host of an error about address.
func shown(host string, address netip.Addr) string {
	if host == "" && address.IsValid() {
		return address.String()
	}
	return host
}

// denied returns the block of Deny that holds one of the readings.
func (r *rules) denied(all []netip.Addr) netip.Prefix {
	for _, block := range r.deny {
		for _, address := range all {
			if block.Contains(address) {
				return block
			}
		}
	}
	return netip.Prefix{}
}

// allowsHost is about what was asked for: a name that the operator wrote down, or
// an address that he did, if it was not a name that led there.
func (r *rules) allowsHost(host string, to netip.AddrPort) bool {
	if host != "" {
		literal, err := netip.ParseAddr(host)
		if err != nil {
			return r.names[destination{strings.ToLower(host), to.Port()}]
		}
		if literal.Unmap() != to.Addr() {
			return false
		}
	}
	return r.addresses[to]
}

func (r *rules) allowsAddress(address netip.Addr) bool {
	for _, block := range r.blocks {
		if block.Contains(address) {
			return true
		}
	}
	return false
}

// isOwn returns the listener of ours that one of the readings leads to.
func (r *rules) isOwn(all []netip.Addr, port uint16) (netip.AddrPort, error) {
	for _, own := range r.own {
		if own.Port() != 0 && own.Port() != port {
			continue
		}
		for _, address := range all {
			same := own.Addr() == address
			if own.Addr().IsUnspecified() {
				local, err := r.around.isLocal(address)
				if err != nil {
					return netip.AddrPort{}, err
				}
				same = same || local
			}
			if same {
				return own, nil
			}
		}
	}
	return netip.AddrPort{}, nil
}
