package sandbox

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// freePort is a TCP port that nobody listens on, below those that the kernel gives to clients.
func freePort(t testing.TB) uint16 {
	t.Helper()
	for port := 20000 + os.Getpid()%10000; port < 32000; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err == nil {
			l.Close()
			return uint16(port)
		}
	}
	t.Fatal("no port is free")
	return 0
}

func on(port uint16) []Listen { return []Listen{{Port: port}} }

// otherAddress is an address of this machine beside loopback, or one that is nobody's.
func otherAddress() string {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	return "192.0.2.1"
}

func TestListenersAreOnLoopback(t *testing.T) {
	needKernel(t, 4)
	port := freePort(t)
	at := func(host string) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
	other := at(otherAddress())
	for _, verb := range custodies() {
		r := checkAs(t, verb, Profile{Listen: on(port)}, map[string]string{"tcp *": "direct"}, [][2]string{
			{"listen " + at("0.0.0.0"), "ok"},
			{"listen " + at("127.0.0.1"), "ok"},
			{"listen " + at("127.0.0.2"), "ok"},
			{"listen " + at("::"), "ok"},
			{"listen " + at("::1"), "ok"},
			{"listen " + at("::ffff:0.0.0.0"), "ok"},
			{"listen " + other, "permission denied"},
			{"listen " + at("fd00::2"), "permission denied"},
			{"listen 127.0.0.1:1", "permission denied"},
			{"listen 127.0.0.1:0", "permission denied"},
			{"listen 0.0.0.0:0", "permission denied"},
			{"bind 127.0.0.1:0", "ok"},
			{"autobind", "permission denied"},
			{"backlog " + at("0.0.0.0"), "ok"},
			{"rebind " + at("127.0.0.1"), "ok"},
			{"relisten " + at("0.0.0.0"), "ok"},
			{"badaddr", "ok"},
			{"interfaces", "ok"},
			{"undumpable", "ok"}, // said to be done; the bind after it shows that it was not
			{"udp 127.0.0.1:0", "permission denied"},
			{"dial tcp " + at("127.0.0.1"), "refused"},
		})
		// Twice each: 0.0.0.0 in the line of the probe and as the name that getsockname gave.
		if strings.Contains(r.out, "name=0.0.0.0:"+strconv.Itoa(int(port))) || strings.Contains(r.out, "name=[::]:") {
			t.Errorf("something is bound on every address:\n%s", r.out)
		}
		if n := strings.Count(r.out, "name="+at("127.0.0.1")+"\n"); n != 2 {
			t.Errorf("%d names are 127.0.0.1, want 2:\n%s", n, r.out)
		}
		if n := strings.Count(r.out, "name="+at("::ffff:127.0.0.1")+"\n"); n != 2 {
			t.Errorf("%d names are ::ffff:127.0.0.1, want 2:\n%s", n, r.out)
		}
		for _, w := range []string{
			"asked=" + at("0.0.0.0") + " given=" + at("127.0.0.1"), "asked=" + other,
			fmt.Sprintf("await app.listen(%d, '127.0.0.1')", port), "had not bound",
		} {
			if strings.Count(r.err, w) == 0 {
				t.Errorf("not in the log: %s\n%s", w, r.err)
			}
		}
		if n := strings.Count(r.err, "asked="+at("0.0.0.0")+" given"); n != 1 {
			t.Errorf("said %d times that 0.0.0.0 was led, want once", n)
		}
	}
}

// The program listens on every address, as it thinks; the machine's own other address must find nobody.
func TestGateReachesTheServiceAndOthersDoNot(t *testing.T) {
	needKernel(t, 4)
	port := freePort(t)
	addresses := []string{"0.0.0.0", "::"}
	for _, address := range addresses {
		j := probe(Profile{Listen: on(port)}, "serve "+net.JoinHostPort(address, strconv.Itoa(int(port))))
		j.during = func(p *os.Process) {
			gate := fmt.Sprintf("127.0.0.1:%d", port)
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if c, err := net.Dial("tcp", gate); err == nil {
					c.Close()
					break
				} else if time.Now().After(deadline) {
					t.Errorf("%s: the gate does not reach the service: %v", address, err)
					break
				}
			}
			outside := net.JoinHostPort(otherAddress(), strconv.Itoa(int(port)))
			if c, err := net.DialTimeout("tcp", outside, time.Second); err == nil {
				c.Close()
				t.Errorf("%s: the service is reachable at %s", address, outside)
			}
			p.Signal(syscall.SIGTERM)
		}
		if r := j.run(t); r.code != 128+15 {
			t.Errorf("exit code %d\n%s%s", r.code, r.out, r.err)
		}
	}
}

// A service that asks for 0.0.0.0 and for :: (ipv6only) on one port, as nginx does, gets both loopbacks.
func TestTwoWildcardsOnOnePort(t *testing.T) {
	needKernel(t, 4)
	port := strconv.Itoa(int(freePort(t)))
	n, _ := strconv.Atoi(port)
	for _, network := range []string{networkBroker, networkPorts} {
		for _, verb := range custodies() {
			r := checkAs(t, verb, Profile{Listen: on(uint16(n)), Network: network}, nil, [][2]string{{"both " + port, "ok"}})
			if !strings.Contains(r.out, "127.0.0.1:"+port+" [::1]:"+port) {
				t.Error(r.out)
			}
		}
	}
}

// Threads that change the address, or the descriptor, while it is being bound must gain nothing.
func TestRacesAreLost(t *testing.T) {
	needKernel(t, 4)
	port := freePort(t)
	for _, network := range []string{networkBroker, networkPorts} {
		for _, verb := range custodies() {
			r := checkAs(t, verb, Profile{Listen: on(port), Network: network}, nil, [][2]string{
				{fmt.Sprintf("race-address %d 2000", port), "ok"},
				{fmt.Sprintf("race-listen %d 100", port), "ok"},
			})
			t.Log(r.out)
		}
	}
}

func TestUnixSockets(t *testing.T) {
	needKernel(t, 6)
	base := folder(t)
	socket, other := filepath.Join(base, "run/app.sock"), filepath.Join(base, "other")
	for _, d := range []string{filepath.Dir(socket), filepath.Join(base, "run/sub"), other} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		own(t, d)
	}
	if err := os.Symlink(other, filepath.Join(base, "run/out")); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{{"", "supervise"}, {"", "contained"}, {networkNone, "contained"}, {networkPorts, "contained"}, {networkPorts, "supervise"}} {
		network := c[0]
		p := Profile{Listen: []Listen{{Unix: socket}}, Network: network}
		if network == networkPorts {
			p.AcceptGaps = []string{protUnixSockets} // before Landlock ABI 9
		}
		r := checkAs(t, c[1], p, nil, [][2]string{
			{"unix " + socket, "ok"},
			{"unixpacket " + socket + "p", "ok"},
			{"unixgram " + socket + "g", "permission denied"},
			{"unix " + filepath.Join(base, "run/sub/x.sock"), "ok"},
			{"unix " + filepath.Join(other, "x.sock"), "permission denied"},
			{"unix " + filepath.Join(base, "run/out/x.sock"), "permission denied"},
			{"unix " + filepath.Join(base, "run/../other/x.sock"), "permission denied"},
			{"unix @abstract", "permission denied"},
		})
		os.Remove(filepath.Join(base, "run/sub/x.sock")) // its name for itself is not the one it was given
		if e := r.enforced(t); network == networkNone && !e[protNoInet].InForce {
			t.Errorf("%+v", e[protNoInet])
		}
	}
	check(t, Profile{Listen: []Listen{{Unix: socket}}, Network: networkNone}, [][2]string{
		{"socket 2 1 0", "permission denied"}, {"socket 10 2 0", "permission denied"}, {"dial udp 127.0.0.1:9", "permission denied"},
	})
	// Without the supervisor's word on connect, whoever listens on a unix socket could connect to any.
	if r := probe(Profile{Listen: []Listen{{Unix: socket}}, Network: networkPorts}, "cwd").run(t); probeKernel().landlock < 9 && (r.code != 73 || !strings.Contains(r.err, "gap: unix-sockets\n")) {
		t.Errorf("%d %s", r.code, r.err)
	}
}

// Where somebody else's listener is installed the kernel gives us none: a gap, and if it is accepted the ports are
// Landlock's.
func TestAnotherListener(t *testing.T) {
	needKernel(t, 4)
	port := freePort(t)
	try := func(p Profile) result {
		j := probe(p, fmt.Sprintf("listen 127.0.0.1:%d", port), "listen 127.0.0.1:1", "dial tcp 127.0.0.1:"+newUpstream(t), "unix "+filepath.Join(folder(t), "s"))
		j.Ways = map[string]string{"tcp *": "direct"}
		return j.start(t, "listened")
	}
	r := try(Profile{Listen: on(port)})
	if r.code != 73 || !strings.Contains(r.err, "gap: listen-loopback\ngap: connection-broker\n") || !strings.Contains(r.err, "already installed") {
		t.Errorf("%d %s%s", r.code, r.out, r.err)
	}
	r = try(Profile{Listen: on(port), AcceptGaps: []string{protLoopback, protBroker}})
	if r.code != 0 || !strings.Contains(r.out, fmt.Sprintf("listen 127.0.0.1:%d: ok", port)) || !strings.Contains(r.out, "listen 127.0.0.1:1: permission denied") ||
		strings.Count(r.out, "connect: permission denied") != 1 || !strings.Contains(r.out, "socket: permission denied") || !strings.Contains(r.err, `"Level":"ports"`) {
		t.Errorf("%d %s%s", r.code, r.out, r.err)
	}
}
