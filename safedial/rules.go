package safedial

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// rules is a Guard's entries, read.
type rules struct {
	names     map[destination]bool
	addresses map[netip.AddrPort]bool
	blocks    []netip.Prefix
	deny      []netip.Prefix
	unlocked  map[string]bool
	own       []netip.AddrPort
	around    *surroundings
}

// destination is a name and a port that the operator wrote down; the name in lower case.
type destination struct {
	name string
	port uint16
}

// readRules reads all entries of g and reports all that are wrong: an entry of Deny
// that said nothing would be silently weaker.
func readRules(g *Guard) (*rules, error) {
	r := &rules{
		names: map[destination]bool{}, addresses: map[netip.AddrPort]bool{}, unlocked: map[string]bool{},
		around: newSurroundings(),
	}
	var wrong []error
	for _, entry := range g.Allow {
		if err := r.allow(entry); err != nil {
			wrong = append(wrong, fmt.Errorf("guard: allow %q: %w", entry, err))
		}
	}
	for _, entry := range g.Deny {
		block, err := readBlock(entry)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("guard: deny %q: %w", entry, err))
			continue
		}
		r.deny = append(r.deny, block)
	}
	for _, name := range g.Unlock {
		if !registry().known[name] {
			wrong = append(wrong, fmt.Errorf("guard: unlock %q: not in the escape-target registry", name))
		}
		r.unlocked[name] = true
	}
	for _, own := range g.Own {
		if !own.Addr().IsValid() {
			wrong = append(wrong, errors.New("guard: own: an entry without an address"))
		}
		r.own = append(r.own, plain(own))
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return r, nil
}

// allow reads one entry of Allow.
func (r *rules) allow(entry string) error {
	if strings.Contains(entry, "/") {
		block, err := readBlock(entry)
		if err == nil {
			r.blocks = append(r.blocks, block)
		}
		return err
	}
	host, digits, err := net.SplitHostPort(entry)
	if err != nil {
		return errors.New(`neither "host:port" nor "address/bits"`)
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 || digits[0] == '0' {
		return errors.New("the port is not a number from 1 to 65535")
	}
	if reason := ambiguous(host); reason != "" {
		return errors.New(reason)
	}
	if address, err := netip.ParseAddr(host); err == nil {
		r.addresses[netip.AddrPortFrom(address.Unmap(), uint16(port))] = true
		return nil
	}
	if strings.HasPrefix(entry, "[") {
		return errors.New("brackets are for IPv6 addresses")
	}
	r.names[destination{strings.ToLower(host), uint16(port)}] = true
	return nil
}

// readBlock reads "address/bits" or an address. Bits that are set after the prefix
// are an error: one of the two is not what was meant.
func readBlock(entry string) (netip.Prefix, error) {
	address, err := netip.ParseAddr(entry)
	if err == nil && address.Zone() == "" {
		return netip.PrefixFrom(address.Unmap(), address.Unmap().BitLen()), nil
	}
	block, err := netip.ParsePrefix(entry)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New(`neither an address nor "address/bits"`)
	case block.Addr().Is4In6():
		return netip.Prefix{}, errors.New("an IPv4 block is written as one")
	case block != block.Masked():
		return netip.Prefix{}, fmt.Errorf("has bits after its prefix: %s is meant", block.Masked())
	}
	return block, nil
}

// plain takes off what does not change where a connection goes: the mapped form
// and, since what is judged is the address, the zone.
func plain(to netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())
}
