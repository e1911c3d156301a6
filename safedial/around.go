package safedial

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// computedRoutes is the value of the registry's entry for what the kernel's routes say.
const computedRoutes = "routes"

// target is one thing that the registry computes on this machine.
type target struct {
	entries []Escape
	address netip.Addr // or
	name    string     // or
	path    string     // of a socket
	port    uint16     // 0 means every port
	broken  error      // why nothing is known: whoever asks must refuse
}

// leads says whether a connection to host, at one of the readings of its address, is
// one to this target.
func (t target) leads(host string, all []netip.Addr, port uint16) bool {
	if t.port != 0 && t.port != port {
		return false
	}
	return t.address.IsValid() && slices.Contains(all, t.address) || t.name != "" && strings.EqualFold(t.name, host)
}

// surroundings is what is known of this machine, for as long as it is fresh: routes
// and addresses change while a process runs.
type surroundings struct {
	mu     sync.Mutex
	at     time.Time
	now    here
	read   func() here // a test's own surroundings
	period time.Duration
}

// here is what was found at one time.
type here struct {
	targets []target
	locals  []netip.Addr
	failed  error // of locals
}

func newSurroundings() *surroundings {
	return &surroundings{read: readHere, period: 2 * time.Second}
}

func (s *surroundings) look() here {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.IsZero() || time.Since(s.at) > s.period {
		s.now, s.at = s.read(), time.Now()
	}
	return s.now
}

// isLocal says whether an address is one of this machine's own.
func (s *surroundings) isLocal(address netip.Addr) (bool, error) {
	if address.IsLoopback() {
		return true, nil
	}
	h := s.look()
	return slices.Contains(h.locals, address), h.failed
}

func readHere() here {
	var h here
	for value, entries := range registry().computed {
		if value == computedRoutes {
			gateways, err := readGateways()
			if err != nil {
				h.targets = append(h.targets, target{entries: entries, broken: fmt.Errorf("guard: read the routes of this machine: %w", err)})
			}
			for _, address := range gateways {
				h.targets = append(h.targets, target{entries: entries, address: address})
			}
			continue
		}
		for _, t := range fromEnvironment(value, os.Getenv) {
			t.entries = entries
			h.targets = append(h.targets, t)
		}
	}
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		h.failed = fmt.Errorf("guard: read the addresses of this machine: %w", err)
	}
	for _, a := range interfaces {
		if block, err := netip.ParsePrefix(a.String()); err == nil {
			h.locals = append(h.locals, block.Addr().Unmap().WithZone(""))
		}
	}
	return h
}

// fromEnvironment reads "$NAME", whose variable holds a URL, a "host:port", a host or
// a path, or "$HOST:$PORT". A variable that is not set gives nothing.
func fromEnvironment(value string, getenv func(string) string) []target {
	first, second, pair := strings.Cut(strings.TrimPrefix(value, "$"), ":$")
	text := getenv(first)
	if text == "" {
		return nil
	}
	if pair {
		return placed(text, getenv(second))
	}
	if file, ok := strings.CutPrefix(text, "unix:path="); ok { // D-Bus
		file, _, _ = strings.Cut(file, ",")
		return []target{{path: file}}
	}
	if file := strings.TrimPrefix(text, "unix://"); strings.HasPrefix(file, "/") {
		return []target{{path: file}}
	}
	if strings.Contains(text, "://") {
		u, err := url.Parse(text)
		if err != nil {
			return nil
		}
		port := u.Port()
		switch {
		case port == "" && u.Scheme == "http":
			port = "80"
		case port == "" && u.Scheme == "https":
			port = "443"
		}
		return placed(u.Hostname(), port)
	}
	if host, port, err := net.SplitHostPort(text); err == nil {
		return placed(host, port)
	}
	return placed(text, "")
}

// placed is the targets at host and port; a port that is no number is every port.
func placed(host, digits string) []target {
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		port = 0
	}
	if address, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return []target{{address: address.Unmap().WithZone(""), port: uint16(port)}}
	}
	list := []target{{name: strings.TrimSuffix(host, "."), port: uint16(port)}}
	if strings.EqualFold(host, "localhost") {
		list = append(list, target{address: netip.AddrFrom4([4]byte{127, 0, 0, 1}), port: uint16(port)}, target{address: netip.IPv6Loopback(), port: uint16(port)})
	}
	return list
}

// readGateways returns the addresses at which the machine around this one is found:
// the gateways of all routes, and the first address of each network that is attached,
// which container engines give to their end of it. Where there is no /proc (another
// system, IPv6 switched off) there are none.
func readGateways() ([]netip.Addr, error) {
	var all []netip.Addr
	for _, table := range []struct {
		file string
		read func(string) ([]netip.Addr, error)
	}{{"/proc/net/route", gateways4}, {"/proc/net/ipv6_route", gateways6}} {
		text, err := os.ReadFile(table.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list, err := table.read(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", table.file, err)
		}
		all = append(all, list...)
	}
	return all, nil
}

// The flags of a route (linux/route.h, linux/ipv6_route.h).
const (
	routeUp      = 0x1
	routeGateway = 0x2
	routeReject  = 0x200
	routeLocal   = 0x8000_0000 | 0x0010_0000 // RTF_LOCAL, RTF_ANYCAST
)

// gateways4 reads /proc/net/route: a line of headings, then interface, destination,
// gateway, flags, three numbers and mask, addresses as numbers in the machine's order.
func gateways4(text string) ([]netip.Addr, error) {
	var list []netip.Addr
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Scan()
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 8 {
			return nil, fmt.Errorf("not a route: %q", lines.Text())
		}
		var n [4]uint32 // destination, gateway, flags, mask
		for i, column := range []int{1, 2, 3, 7} {
			v, err := strconv.ParseUint(f[column], 16, 32)
			if err != nil {
				return nil, fmt.Errorf("not a route: %q", lines.Text())
			}
			n[i] = uint32(v)
		}
		at := func(n uint32) (b [4]byte) { binary.NativeEndian.PutUint32(b[:], n); return b }
		switch destination, mask := at(n[0]), at(n[3]); {
		case n[2]&routeUp == 0 || n[2]&routeReject != 0:
		case n[2]&routeGateway != 0:
			list = append(list, netip.AddrFrom4(at(n[1])))
		case mask != [4]byte{} && mask[3] < 0xfe && destination[0] != 127: // not one machine, nor a pair
			destination[3]++
			list = append(list, netip.AddrFrom4(destination))
		}
	}
	return list, lines.Err()
}

// gateways6 reads /proc/net/ipv6_route: destination, its bits, source, its bits,
// gateway, metric, two counts, flags and interface.
func gateways6(text string) ([]netip.Addr, error) {
	var list []netip.Addr
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 10 {
			return nil, fmt.Errorf("not a route: %q", lines.Text())
		}
		destination, err1 := hex.DecodeString(f[0])
		bits, err2 := strconv.ParseUint(f[1], 16, 8)
		gateway, err3 := hex.DecodeString(f[4])
		flags, err4 := strconv.ParseUint(f[8], 16, 32)
		if errors.Join(err1, err2, err3, err4) != nil || len(destination) != 16 || len(gateway) != 16 {
			return nil, fmt.Errorf("not a route: %q", lines.Text())
		}
		to, via := netip.AddrFrom16([16]byte(destination)), netip.AddrFrom16([16]byte(gateway))
		switch {
		case flags&routeUp == 0 || flags&(routeReject|routeLocal) != 0:
		case flags&routeGateway != 0:
			list = append(list, via)
		case bits > 0 && bits < 127 && !to.IsMulticast() && !to.IsLinkLocalUnicast():
			list = append(list, to.Next())
		}
	}
	return list, nil
}
