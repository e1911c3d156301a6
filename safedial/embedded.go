package safedial

import (
	"encoding/binary"
	"net/netip"
)

// The forms in which an IPv6 address carries an IPv4 address. The mapped form is
// not among them: netip takes it off.
const (
	nat64      = "NAT64"           // 64:ff9b::/96, RFC 6052
	localNAT64 = "local NAT64"     // 64:ff9b:1::/48, RFC 8215
	sixToFour  = "6to4"            // 2002::/16, RFC 3056
	teredo     = "Teredo"          // 2001::/32, RFC 4380: the server's address, and the client's, inverted
	compatible = "IPv4-compatible" // ::/96, RFC 4291
	translated = "IPv4-translated" // ::ffff:0:0:0/96, RFC 2765
	isatap     = "ISATAP"          // the interface identifier [0200]:5efe:a.b.c.d of any prefix, RFC 5214
)

// carried is an IPv4 address inside an IPv6 address.
type carried struct {
	inner netip.Addr
	form  string
}

// embedded returns the IPv4 addresses to which an IPv6 address may be translated.
func embedded(address netip.Addr) []carried {
	if !address.Is6() || address.Is4In6() {
		return nil
	}
	b := address.As16()
	at := func(i, j, k, l int) netip.Addr { return netip.AddrFrom4([4]byte{b[i], b[j], b[k], b[l]}) }
	low := at(12, 13, 14, 15)
	high, middle := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint32(b[8:12])
	switch {
	case high == 0x0064_ff9b<<32 && middle == 0:
		return []carried{{low, nat64}}
	case high>>16 == 0x0064_ff9b_0001:
		// the network chooses a prefix in this block, whose length says where the
		// IPv4 address is (RFC 6052, section 2.2): byte 8 is always skipped
		return []carried{{low, localNAT64}, {at(9, 10, 11, 12), localNAT64}, {at(7, 9, 10, 11), localNAT64}, {at(6, 7, 9, 10), localNAT64}}
	case b[0] == 0x20 && b[1] == 0x02:
		return []carried{{at(2, 3, 4, 5), sixToFour}}
	case high>>32 == 0x2001_0000:
		return []carried{{netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}), teredo}, {at(4, 5, 6, 7), teredo}}
	case high == 0 && middle == 0 && b[12]|b[13]|b[14] != 0:
		return []carried{{low, compatible}} // but not :: and ::1, which have lines of their own
	case high == 0 && middle == 0xffff_0000:
		return []carried{{low, translated}}
	case middle == 0x0000_5efe || middle == 0x0200_5efe:
		return []carried{{low, isatap}}
	}
	return nil
}

// readings returns every address to which a connection to this one may lead: itself,
// what it carries, and loopback for the unspecified ones, as Linux reads them.
func readings(address netip.Addr) []netip.Addr {
	all := []netip.Addr{address}
	for _, c := range embedded(address) {
		all = append(all, c.inner)
	}
	for _, a := range all {
		if a.IsUnspecified() {
			all = append(all, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback())
		}
	}
	return all
}
