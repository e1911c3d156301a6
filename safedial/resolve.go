package safedial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Resolve resolves host once and judges all its answers: spelling, name and port,
// resolution, addresses. It returns all of them, in the order to try, or an error:
// a *DeniedError if one answer is refused. A name whose answers are ordinary and
// special-purpose addresses at once is refused (CodeMixedAnswer) even if Allow has
// it by name, because that is what an answer looks like that was made to pass a
// check with one address and be used with the other; blocks in Allow make the
// special-purpose ones ordinary.
func (g *Guard) Resolve(ctx context.Context, host string, port uint16) ([]netip.AddrPort, error) {
	r, err := g.prepared()
	if err != nil {
		return nil, err
	}
	if err := Host(host); err != nil {
		return nil, err
	}
	// before the resolver is asked, because a question can carry data out
	if entry, err := r.escape(host, nil, port); err != nil {
		return nil, err
	} else if entry.Name != "" {
		return nil, &DeniedError{Host: host, Port: port, Code: CodeEscapeTarget, Entry: entry.Name, Reason: entry.reason()}
	}
	answers, err := g.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	var to []netip.AddrPort
	for _, a := range answers {
		if t := netip.AddrPortFrom(a.Unmap(), port); !slices.Contains(to, t) {
			to = append(to, t)
		}
	}
	if err := r.judge(host, to); err != nil {
		return nil, err
	}
	return to, nil
}

// lookup asks the resolver, once, for both families.
func (g *Guard) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if literal, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{literal}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.timeout())
	defer cancel()
	resolver := g.Resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	answers, err := resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("resolve %q: %w", host, err)
	}
	return answers, nil
}

// judge decides about all answers of one resolution. The strongest refusal of any
// answer is that of all: a mixture must not hide that one of them was an escape.
func (r *rules) judge(host string, to []netip.AddrPort) error {
	var refused error
	var private, public netip.Addr
	for _, t := range to {
		err := r.check(host, t)
		var denied *DeniedError
		switch {
		case err == nil || errors.As(err, &denied) && denied.Code == CodeSpecialAddress:
		case errors.As(err, &denied) && denied.Code == CodeDeniedAddress:
			refused = err // an escape target among the others is worse
			continue
		default:
			return err
		}
		if special(t.Addr()) == "" || r.allowsAddress(t.Addr()) {
			public = t.Addr()
		} else if !private.IsValid() {
			private = t.Addr()
		}
	}
	switch {
	case refused != nil:
		return refused
	case private.IsValid() && public.IsValid():
		return &DeniedError{Host: host, Address: private, Port: to[0].Port(), Code: CodeMixedAnswer,
			Reason: fmt.Sprintf("%s, and the same name has the ordinary address %s", special(private), public)}
	case private.IsValid():
		return r.check(host, netip.AddrPortFrom(private, to[0].Port()))
	}
	return nil
}
