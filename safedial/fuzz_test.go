package safedial

import (
	"bytes"
	"encoding/csv"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

// FuzzHost: a host that is not refused is an address that every reader takes for the
// same address, or a name that no reader takes for one.
func FuzzHost(f *testing.F) {
	for _, v := range vectors(f, "ambiguous") {
		f.Add(v.Host)
	}
	for _, seed := range []string{"127.0.0.1", "example.com", "::1", "fe80::1%lo", "a..b", "0x7g.example", "1.example", "::ffff:127.0.0.1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if Host(host) != nil {
			return
		}
		address, err := netip.ParseAddr(host)
		if classic, ok := aton(host); ok && (err != nil || classic != address) {
			t.Errorf("%q passes, and inet_aton reads %s in it", host, classic)
		}
		if err == nil {
			return
		}
		last := host[strings.LastIndexByte(host, '.')+1:]
		if last == "" || strings.Trim(last, "0123456789") == "" || strings.ContainsAny(host, " \t\r\n\x00/@#?\\%:[]") {
			t.Errorf("%q passes as a name", host)
		}
		for i := range len(host) {
			if host[i] >= 0x80 {
				t.Errorf("%q passes, and is not ASCII", host)
			}
		}
	})
}

// aton reads an IPv4 address as the C library always has: one to four numbers,
// decimal, octal or hexadecimal, of which the last fills what is left.
func aton(s string) (netip.Addr, bool) {
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var n uint64
	for i, part := range parts {
		base, digits := 10, part
		switch {
		case strings.HasPrefix(part, "0x") || strings.HasPrefix(part, "0X"):
			base, digits = 16, part[2:]
		case len(part) > 1 && part[0] == '0':
			base, digits = 8, part[1:]
		}
		v, err := strconv.ParseUint(digits, base, 64)
		limit := uint64(256)
		if i == len(parts)-1 {
			limit = 1 << (8 * (5 - len(parts)))
			n <<= 8 * (5 - len(parts))
		} else {
			n <<= 8
		}
		if err != nil || v >= limit {
			return netip.Addr{}, false
		}
		n |= v
	}
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), true
}

// forms writes an IPv4 address into IPv6 addresses in every known way.
func forms(b [4]byte) map[string]netip.Addr {
	list := map[string]netip.Addr{}
	for name, bytes := range map[string][16]byte{
		"mapped":         {10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
		"compatible":     {12: b[0], 13: b[1], 14: b[2], 15: b[3]},
		"translated":     {8: 0xff, 9: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
		"nat64":          {1: 0x64, 2: 0xff, 3: 0x9b, 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
		"local nat64/96": {1: 0x64, 2: 0xff, 3: 0x9b, 5: 1, 7: 9, 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
		"local nat64/64": {1: 0x64, 2: 0xff, 3: 0x9b, 5: 1, 7: 9, 9: b[0], 10: b[1], 11: b[2], 12: b[3]},
		"local nat64/56": {1: 0x64, 2: 0xff, 3: 0x9b, 5: 1, 7: b[0], 9: b[1], 10: b[2], 11: b[3]},
		"local nat64/48": {1: 0x64, 2: 0xff, 3: 0x9b, 5: 1, 6: b[0], 7: b[1], 9: b[2], 10: b[3]},
		"6to4":           {0: 0x20, 1: 2, 2: b[0], 3: b[1], 4: b[2], 5: b[3]},
		"teredo":         {0: 0x20, 1: 1, 12: ^b[0], 13: ^b[1], 14: ^b[2], 15: ^b[3]},
		"teredo server":  {0: 0x20, 1: 1, 4: b[0], 5: b[1], 6: b[2], 7: b[3]},
		"isatap":         {0: 0x26, 1: 6, 2: 0x47, 10: 0x5e, 11: 0xfe, 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
		"isatap global":  {0: 0x26, 1: 6, 2: 0x47, 8: 2, 10: 0x5e, 11: 0xfe, 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
	} {
		list[name] = netip.AddrFrom16(bytes)
	}
	return list
}

// FuzzSpecial: the way an IPv4 address is written into an IPv6 address makes no
// ordinary destination of it, and takes it out of no Deny.
func FuzzSpecial(f *testing.F) {
	f.Add([]byte{169, 254, 169, 254})
	f.Add([]byte{93, 184, 216, 34})
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != 4 {
			return
		}
		inner := netip.AddrFrom4([4]byte(b))
		for name, address := range forms([4]byte(b)) {
			if special(inner) != "" && special(address) == "" {
				t.Errorf("%s as %s is ordinary", inner, name)
			}
			guard := &Guard{Allow: []string{"::/0", "0.0.0.0/0"}, Deny: []string{inner.String()}}
			if guard.Check("", netip.AddrPortFrom(address, 80)) == nil && b[0]|b[1]|b[2] != 0 { // ::2 is in ::/96, and no IPv4 address
				t.Errorf("%s as %s is not denied", inner, name)
			}
		}
	})
}

// FuzzSpecialRegistry: what is read as a registry is blocks whose address has no bits
// after the prefix, and says the same when it is written again.
func FuzzSpecialRegistry(f *testing.F) {
	f.Add(specialCSV)
	f.Add("10.0.0.0/8,Private-Use,RFC 1918\n")
	f.Add("10.0.0.1/8,a,b\n::/0,\"a,b\",c\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := readBlocks(text)
		if err != nil {
			return
		}
		var again strings.Builder
		w := csv.NewWriter(&again)
		for _, b := range list {
			if b.prefix != b.prefix.Masked() || b.name == "" || b.source == "" {
				t.Errorf("%q is read as %v", text, b)
			}
			w.Write([]string{b.prefix.String(), b.name, b.source})
		}
		w.Flush()
		if second, err := readBlocks(again.String()); err != nil || fmt.Sprint(second) != fmt.Sprint(list) {
			t.Errorf("%v is read again as %v: %v", list, second, err)
		}
	})
}

// FuzzEscapeRegistry: what is read as a registry refuses what it says, by its name,
// and says the same when it is written again.
func FuzzEscapeRegistry(f *testing.F) {
	f.Add(escapesCSV)
	f.Add("a,port,2375,w,s\nb,address,::1,w,s\nc,name,x.y,w,s\nd,socket,*/a.sock,w,s\ne,computed,$A:$B,w,s\n")
	f.Add("a,port,0,w,s\n")
	f.Add("a,socket,/[,w,s\n")
	f.Fuzz(func(t *testing.T, text string) {
		read, err := readEscapes(text)
		if err != nil {
			return
		}
		var again bytes.Buffer
		w := csv.NewWriter(&again)
		for _, e := range read.list {
			if !read.known[e.Name] || e.Name == "" || e.Value == "" || e.Why == "" || e.Source == "" {
				t.Errorf("%q is read as %+v", text, e)
			}
			w.Write([]string{e.Name, e.Kind, e.Value, e.Why, e.Source})
		}
		w.Flush()
		if second, err := readEscapes(again.String()); err != nil || fmt.Sprint(second.list) != fmt.Sprint(read.list) {
			t.Errorf("%v is read again as %v: %v", read.list, second, err)
		}
	})
}

// FuzzRules: an entry that is read means what it says: an "address:port" or "name:port"
// allows itself, a denied block refuses its first address.
func FuzzRules(f *testing.F) {
	for _, seed := range []string{"a:1", "10.0.0.1:80", "[fd00::1]:65535", "10.0.0.0/8", "10.0.0.1", "::ffff:10.0.0.1", "fe80::1%a", "a:080", "[a]:1", "::/0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, entry string) {
		if r, err := readRules(&Guard{Allow: []string{entry}}); err == nil {
			if len(r.names)+len(r.addresses)+len(r.blocks) != 1 {
				t.Errorf("%q is read as %+v", entry, r)
			}
			for d := range r.names {
				if back := d.name + ":" + strconv.Itoa(int(d.port)); !strings.EqualFold(back, entry) || Host(d.name) != nil {
					t.Errorf("%q is read as %q", entry, back)
				}
			}
			for to := range r.addresses {
				if !r.allowsHost("", to) || !r.allowsHost(to.Addr().String(), to) || r.allowsHost("a.example", to) {
					t.Errorf("%q does not allow just itself", entry)
				}
			}
		}
		if r, err := readRules(&Guard{Deny: []string{entry}, Allow: []string{"0.0.0.0/0", "::/0"}}); err == nil {
			if r.check("", netip.AddrPortFrom(r.deny[0].Addr(), 80)) == nil {
				t.Errorf("%q does not deny %s", entry, r.deny[0].Addr())
			}
		}
	})
}

// FuzzRoutes: any text gives addresses or an error, and a gateway that was written
// into a table is read out of it.
func FuzzRoutes(f *testing.F) {
	f.Add("Iface\tDestination\neth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", []byte{172, 17, 0, 1})
	f.Add("fd00000000000000000000000000000000 40 0 0 0 0 0 0 00000001 eth0\n", bytes.Repeat([]byte{0xfd}, 16))
	f.Fuzz(func(t *testing.T, text string, via []byte) {
		for _, read := range []func(string) ([]netip.Addr, error){gateways4, gateways6} {
			list, err := read(text)
			for _, address := range list {
				if err == nil && !address.IsValid() {
					t.Errorf("%q gives an invalid address", text)
				}
			}
		}
		address, ok := netip.AddrFromSlice(via)
		if !ok {
			return
		}
		var list []netip.Addr
		var err error
		if address.Is4() {
			list, err = gateways4("Iface\neth0\t00000000\t" + native(address) + "\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")
		} else {
			list, err = gateways6(strings.Repeat("0", 32) + " 00 " + strings.Repeat("0", 32) + " 00 " + hex.EncodeToString(via) + " 00000400 00000002 00000000 00000003 eth0\n")
		}
		if err != nil || len(list) != 1 || list[0] != address {
			t.Errorf("%s is read as %v: %v", address, list, err)
		}
	})
}
