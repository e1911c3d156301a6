package safedial

import (
	_ "embed"
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
	r.Comment, r.FieldsPerRecord = '#', 3
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
		if prefix != prefix.Masked() || record[1] == "" || record[2] == "" {
			return nil, fmt.Errorf("%q has bits after its prefix, or lacks name or source", record)
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
	carried := embedded(address)
	for _, c := range carried {
		// which bits of a local NAT64 address count is a guess: its own block refuses it
		if b, ok := lookup(c.inner); ok && c.form != localNAT64 {
			return fmt.Sprintf("%s carries %s, %s", c.form, c.inner, b)
		}
	}
	if len(carried) == 1 && carried[0].form == nat64 {
		return "" // how a network without IPv4 reaches a public IPv4 address
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
