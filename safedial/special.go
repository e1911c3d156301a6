package safedial

import (
	_ "embed"
	"encoding/binary"
	"encoding/csv"
	"fmt"
	"net/netip"
	"strings"
	"sync"
)

// block is one line of special.csv.
type block struct {
	prefix       netip.Prefix
	name, source string
}

func (b block) String() string { return fmt.Sprintf("in %s, %s (%s)", b.prefix, b.name, b.source) }

//go:embed special.csv
var specialCSV string

// blocks reads special.csv once. The file is part of the program: a line that
// cannot be read is a defect that the first use shows.
var blocks = sync.OnceValue(func() []block {
	list, err := readBlocks(specialCSV)
	if err != nil {
		panic("safedial: special.csv: " + err.Error())
	}
	return list
})

func readBlocks(text string) ([]block, error) {
	r := csv.NewReader(strings.NewReader(text))
	r.Comment, r.FieldsPerRecord, r.LazyQuotes = '#', 3, true
	records, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	var list []block
	for _, record := range records {
		prefix, err := netip.ParsePrefix(record[0])
		if err != nil {
			return nil, err
		}
		list = append(list, block{prefix, record[1], record[2]})
	}
	return list, nil
}

// globalUnicast is all of IPv6 that IANA has given out for ordinary use (RFC 4291,
// section 2.4, and the IPv6 address space registry).
var globalUnicast = netip.MustParsePrefix("2000::/3")

// special says why an address is no ordinary destination, or "". An IPv6 address
// that carries an IPv4 address is judged by that one first, since a translator
// on the way would deliver it there.
func special(address netip.Addr) string {
	address = address.WithZone("").Unmap()
	inner, form := embedded(address)
	if inner.IsValid() {
		if b, ok := lookup(inner); ok {
			return fmt.Sprintf("%s carries %s, %s", form, inner, b)
		}
		if form == nat64 {
			return "" // how a network without IPv4 reaches a public IPv4 address
		}
	}
	if b, ok := lookup(address); ok {
		return b.String()
	}
	if address.Is6() && !globalUnicast.Contains(address) {
		return "not in 2000::/3, Global Unicast (RFC 4291)"
	}
	return ""
}

// lookup returns the narrowest block that holds address.
func lookup(address netip.Addr) (block, bool) {
	var best block
	for _, b := range blocks() {
		if b.prefix.Contains(address) && (!best.prefix.IsValid() || b.prefix.Bits() > best.prefix.Bits()) {
			best = b
		}
	}
	return best, best.prefix.IsValid()
}

// The forms in which an IPv6 address carries an IPv4 address. The mapped form is
// not among them: netip takes it off.
const (
	nat64      = "NAT64"           // 64:ff9b::/96, RFC 6052
	sixToFour  = "6to4"            // 2002::/16, RFC 3056
	teredo     = "Teredo"          // 2001::/32, RFC 4380: the client's address, inverted
	compatible = "IPv4-compatible" // ::/96, RFC 4291
	translated = "IPv4-translated" // ::ffff:0:0:0/96, RFC 2765
)

// embedded returns the IPv4 address inside an IPv6 address, if its form has one.
func embedded(address netip.Addr) (inner netip.Addr, form string) {
	if !address.Is6() {
		return netip.Addr{}, ""
	}
	b := address.As16()
	low := netip.AddrFrom4([4]byte(b[12:16]))
	high, middle := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint32(b[8:12])
	switch {
	case high == 0x0064_ff9b<<32 && middle == 0:
		return low, nat64
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:6])), sixToFour
	case high>>32 == 0x2001_0000:
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}), teredo
	case high == 0 && middle == 0 && b[12]|b[13]|b[14] != 0:
		return low, compatible // but not :: and ::1, which have lines of their own
	case high == 0 && middle == 0xffff_0000:
		return low, translated
	}
	return netip.Addr{}, ""
}
