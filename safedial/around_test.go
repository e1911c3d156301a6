package safedial

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// native is an IPv4 address as /proc/net/route writes it on this machine.
func native(address netip.Addr) string {
	b := address.As4()
	return fmt.Sprintf("%08X", binary.NativeEndian.Uint32(b[:]))
}

// A container on two networks, one of them without a way out: a route of each kind.
func TestGatewaysOfRoutes(t *testing.T) {
	line := func(destination, gateway, mask string, flags int) string {
		return fmt.Sprintf("eth0\t%s\t%s\t%04X\t0\t0\t0\t%s\t0\t0\t0\n",
			native(netip.MustParseAddr(destination)), native(netip.MustParseAddr(gateway)), flags, native(netip.MustParseAddr(mask)))
	}
	text := "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n" +
		line("0.0.0.0", "172.17.0.1", "0.0.0.0", 3) +
		line("172.17.0.0", "0.0.0.0", "255.255.0.0", 1) + // its first address is the gateway again
		line("172.20.4.0", "0.0.0.0", "255.255.255.0", 1) + // an internal network: no route leads out, and yet the host is on it
		line("10.9.0.0", "172.17.0.9", "255.255.0.0", 3) +
		line("192.168.7.7", "0.0.0.0", "255.255.255.255", 5) + // one machine
		line("192.168.8.0", "0.0.0.0", "255.255.255.254", 1) + // a pair
		line("192.168.9.0", "0.0.0.0", "255.255.255.0", 0x201) + // rejected
		line("0.0.0.0", "172.17.0.8", "0.0.0.0", 2) // down
	list, err := gateways4(text)
	want := []string{"172.17.0.1", "172.17.0.1", "172.20.4.1", "172.17.0.9"}
	if err != nil || fmt.Sprint(list) != fmt.Sprint(want) {
		t.Errorf("got %v, %v; want %v", list, err, want)
	}

	line6 := func(destination string, bits int, gateway string, flags uint32) string {
		return fmt.Sprintf("%x %02x %032x 00 %x 00000400 00000001 00000000 %08x eth0\n", netip.MustParseAddr(destination).As16(), bits, 0, netip.MustParseAddr(gateway).As16(), flags)
	}
	list, err = gateways6(line6("::", 0, "fd00:1::1", 3) + line6("fd00:2::", 64, "::", 1) + line6("fe80::", 64, "::", 1) + line6("ff00::", 8, "::", 1) +
		line6("::", 0, "::", 0x200200) + line6("fd00:2::5", 128, "::", 0x80200001) + line6("::", 0, "fe80::7", 3))
	want = []string{"fd00:1::1", "fd00:2::1", "fe80::7"}
	if err != nil || fmt.Sprint(list) != fmt.Sprint(want) {
		t.Errorf("got %v, %v; want %v", list, err, want)
	}

	for _, broken := range []string{"Iface\neth0\t0\n", "Iface\neth0\t0\tzz\t1\t0\t0\t0\t0\n"} {
		if _, err := gateways4(broken); err == nil {
			t.Errorf("%q is read", broken)
		}
	}
	for _, broken := range []string{"00 00\n", strings.Repeat("zz ", 10) + "\n", "00 00 00 00 00 00 00 00 00 eth0\n"} {
		if _, err := gateways6(broken); err == nil {
			t.Errorf("%q is read", broken)
		}
	}
}

// On this machine's own routes: each gateway is refused under any Allow, until it is
// unlocked.
func TestGatewaysOfThisMachine(t *testing.T) {
	if _, err := os.Stat("/proc/net/route"); err != nil {
		t.Skipf("no routes to read here: %v", err)
	}
	gateways, err := readGateways()
	if err != nil {
		t.Fatal(err)
	}
	everywhere := []string{"0.0.0.0/0", "::/0"}
	for _, gateway := range gateways {
		to := netip.AddrPortFrom(gateway, 80)
		var denied *DeniedError
		if err := (&Guard{Allow: everywhere}).Check("", to); !errors.As(err, &denied) || denied.Entry != "node-gateway" {
			t.Errorf("%s: %v", to, err)
		}
		if err := (&Guard{Allow: everywhere, Unlock: []string{"node-gateway"}}).Check("", to); err != nil {
			t.Errorf("%s, unlocked: %v", to, err)
		}
	}
}

// What cannot be looked up refuses, as long as it would have to be looked up.
func TestUnreadableSurroundingsRefuse(t *testing.T) {
	broken := errors.New("no such luck")
	look := func() here {
		return here{targets: []target{{entries: registry().computed[computedRoutes], broken: broken}}, failed: broken}
	}
	for _, test := range []struct {
		guard *Guard
		want  error
	}{
		{&Guard{}, broken},
		{&Guard{Unlock: []string{"node-gateway"}}, nil},
		{&Guard{Unlock: []string{"node-gateway"}, Own: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:80")}}, broken},
	} {
		r, err := test.guard.prepared()
		if err != nil {
			t.Fatal(err)
		}
		r.around = &surroundings{read: look, period: time.Hour}
		if err := test.guard.Check("", netip.MustParseAddrPort("93.184.216.34:80")); !errors.Is(err, test.want) {
			t.Errorf("%+v: %v", test.guard.Unlock, err)
		}
	}
}

func TestSurroundingsAreCachedBriefly(t *testing.T) {
	n := 0
	s := &surroundings{read: func() here { n++; return here{} }, period: time.Hour}
	for range 3 {
		s.look()
	}
	if n != 1 {
		t.Errorf("looked %d times", n)
	}
	s.period = 0
	time.Sleep(time.Millisecond)
	s.look()
	if n != 2 {
		t.Errorf("looked %d times after the period", n)
	}
}

func TestTargetsOfTheEnvironment(t *testing.T) {
	for _, test := range []struct{ value, set, second, want string }{
		{"$A", "", "", ""},
		{"$A:$B", "10.96.0.1", "443", "10.96.0.1:443"},
		{"$A:$B", "10.96.0.1", "", "10.96.0.1:0"},
		{"$A:$B", "fd00::1", "443", "[fd00::1]:443"},
		{"$A:$B", "cluster.hcp.example", "443", "cluster.hcp.example:443"},
		{"$A", "tcp://dind:2375", "", "dind:2375"},
		{"$A", "tcp://10.1.2.3:12375", "", "10.1.2.3:12375"},
		{"$A", "tcp://10.1.2.3", "", "10.1.2.3:0"},
		{"$A", "http://169.254.170.23/v1/credentials", "", "169.254.170.23:80"},
		{"$A", "https://[fd00:ec2::23]/v1", "", "[fd00:ec2::23]:443"},
		{"$A", "127.0.0.1:9001", "", "127.0.0.1:9001"},
		{"$A", "metadata.example", "", "metadata.example:0"},
		{"$A", "http://localhost:42356/msi/token", "", "localhost:42356 127.0.0.1:42356 [::1]:42356"},
		{"$A", "unix:///run/x.sock", "", "/run/x.sock"},
		{"$A", "unix:path=/run/bus,guid=0", "", "/run/bus"},
		{"$A", "/run/y.sock", "", "/run/y.sock"},
		{"$A", "http://%zz", "", ""},
	} {
		var got []string
		for _, found := range fromEnvironment(test.value, func(name string) string { return map[string]string{"A": test.set, "B": test.second}[name] }) {
			switch {
			case found.path != "":
				got = append(got, found.path)
			case found.name != "":
				got = append(got, fmt.Sprintf("%s:%d", found.name, found.port))
			default:
				got = append(got, netip.AddrPortFrom(found.address, found.port).String())
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s = %q, %q: got %q, want %q", test.value, test.set, test.second, got, test.want)
		}
	}
}

func TestOwnAddressesAreFound(t *testing.T) {
	h := readHere()
	if h.failed != nil {
		t.Fatal(h.failed)
	}
	if !slices.Contains(h.locals, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("127.0.0.1 is not among %v", h.locals)
	}
}
