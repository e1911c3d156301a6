package sandbox

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// greeter says hello to whoever connects, reads until the end, and counts.
type greeter struct {
	address string
	calls   atomic.Int64
}

func newGreeter(t testing.TB, network, address string) *greeter {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	g := &greeter{address: l.Addr().String()}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.calls.Add(1)
			go func() {
				defer c.Close()
				io.WriteString(c, "hello")
				io.Copy(io.Discard, c)
			}()
		}
	}()
	return g
}

// closedPort is a port where nobody listens, and nobody will soon.
func closedPort(t testing.TB) string {
	return fmt.Sprintf("127.0.0.1:%d", freePort(t))
}

func TestConnections(t *testing.T) {
	needKernel(t, 4)
	up := newGreeter(t, "tcp4", "127.0.0.1:0")
	six := newGreeter(t, "tcp6", "[::1]:0")
	denied := newGreeter(t, "tcp4", "127.0.0.1:0")
	closed := closedPort(t)
	_, port, _ := net.SplitHostPort(up.address)
	_, deniedPort, _ := net.SplitHostPort(denied.address)
	mapped := "[::ffff:127.0.0.1]:" + port
	ways := map[string]string{
		"tcp " + up.address: "direct", "tcp " + six.address: "direct", "tcp " + closed: "direct",
		"tcp 192.0.2.7:80": up.address, "tcp [2001:db8::7]:80": up.address, "tcp 192.0.2.8:80": "later " + up.address, "tcp 192.0.2.9:80": "busy",
	}
	p := Profile{Execute: []string{filepath.Dir(walls())}}
	for _, verb := range custodies() {
		r := checkAs(t, verb, p, ways, [][2]string{
			{"hello " + up.address, "ok"},
			{"hello " + mapped, "ok"},
			{"hello " + six.address, "ok"},
			{"hello 0.0.0.0:" + port, "ok"}, // this host is loopback
			{"hello 192.0.2.7:80", "ok"},
			{"hello [2001:db8::7]:80", "ok"},
			{"hello 192.0.2.8:80", "ok"},
			{"connect-only [2001:db8::7]:80", "ok"},
			{"epoll " + up.address, "ok"},
			{"epoll " + mapped, "ok"},
			{"epoll 192.0.2.7:80", "ok"},
			{"epoll 192.0.2.8:80", "ok"},
			{"dial tcp 192.0.2.7:80", "ok"},
			{"again " + up.address, "ok"},
			{"again 192.0.2.7:80", "ok"},
			{"errors " + up.address, "ok"},
			{"options 192.0.2.7:80", "ok"},
			{"fin " + up.address, "ok"},
			{"fin 192.0.2.7:80", "ok"},
			{"passed " + up.address, "ok"},
			{"forked hello " + up.address, "ok"},
			{"daemonised hello 192.0.2.7:80", "ok"},
			{"forked hello " + denied.address, "permission denied"},
			{"daemonised hello " + denied.address, "permission denied"},
			{"connect " + denied.address, "permission denied"},
			{"connect [::ffff:127.0.0.1]:" + deniedPort, "permission denied"},
			{"connect 0.0.0.0:" + deniedPort, "permission denied"},
			{"connect [::]:" + deniedPort, "permission denied"},
			{"dial tcp " + denied.address, "permission denied"},
			{"epoll " + denied.address, "permission denied"},
			{"connect 169.254.169.254:80", "permission denied"},
			{"connect 192.0.2.9:80", "connection refused"},
			{"connect " + closed, "connection refused"},
			{"epoll " + closed, "connection refused"},
			{"leak 1500", "ok"},
			{"hello " + up.address, "ok"},
			{"many " + up.address + " 300", "ok"},
			{"many 192.0.2.7:80 300", "ok"},
			{"sendto " + up.address, "permission denied"},
			{"sendmsg " + up.address, "permission denied"},
		})
		for _, w := range []string{"begun: tcp 192.0.2.7:80 127.0.0.1\n", "ended: tcp 192.0.2.7:80 <nil>\n", "ended: tcp " + closed + " connection refused\n", `"Level":"broker"`} {
			if !strings.Contains(r.err, w) {
				t.Errorf("%s: not said: %s", verb, w)
			}
		}
	}
	if n := denied.calls.Load(); n != 0 {
		t.Errorf("%d connections arrived where none was allowed", n)
	}
}

// While one thread changes the address, and another the descriptor, only what was judged is connected.
func TestConnectRacesAreLost(t *testing.T) {
	needKernel(t, 4)
	up := newGreeter(t, "tcp4", "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(up.address)
	bad := newGreeter(t, "tcp4", "127.0.0.2:"+port)
	for _, verb := range custodies() {
		r := checkAs(t, verb, Profile{}, map[string]string{"tcp " + up.address: "direct"}, [][2]string{
			{fmt.Sprintf("race-connect %s %s 3000", up.address, bad.address), "ok"},
			{fmt.Sprintf("race-socket %s 200", up.address), "ok"},
		})
		i := strings.Index(r.out, "allowed=")
		t.Log(verb, strings.SplitN(r.out[i:], "\n", 2)[0])
	}
	if n := bad.calls.Load(); n != 0 {
		t.Errorf("%d connections arrived where none was allowed", n)
	}
}

func TestUnixConnections(t *testing.T) {
	needKernel(t, 4)
	base := folder(t)
	in := func(p string) string { return filepath.Join(base, p) }
	for _, d := range []string{"given", "other", "write"} {
		if err := os.Mkdir(in(d), 0o755); err != nil {
			t.Fatal(err)
		}
		own(t, in(d))
	}
	given, other := newGreeter(t, "unix", in("given/s")), newGreeter(t, "unix", in("other/docker.sock"))
	for _, g := range []*greeter{given, other} {
		if err := os.Chmod(g.address, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"given/link": other.address, "write/link": other.address, "write/good": given.address} {
		if err := os.Symlink(to, in(link)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, in("given/file"), "x", 0o644)
	p := Profile{Sockets: []string{in("write/good")}, Write: []string{in("write")}, Read: []string{base + "/given"}}
	for _, verb := range custodies() {
		for _, network := range []string{networkBroker, networkNone} {
			p.Network = network
			checkAs(t, verb, p, map[string]string{"unix *": "allow"}, [][2]string{
				{"unix-connect " + given.address, "ok"},
				{"unix-connect " + in("write/good"), "ok"},
				{"unix-connect " + in("given/../given/s"), "ok"},
				{"unix-chdir " + in("given") + " s", "ok"},
				{"unix-connect " + other.address, "permission denied"},
				{"unix-connect " + in("given/link"), "permission denied"},
				{"unix-connect " + in("write/link"), "permission denied"},
				{"unix-connect " + in("given/../other/docker.sock"), "permission denied"},
				{"unix-connect //" + other.address, "permission denied"},
				{"unix-connect /proc/self/root" + other.address, "permission denied"},
				{"unix-connect /proc/thread-self/root" + other.address, "permission denied"},
				{"unix-chdir " + in("given") + " ../other/docker.sock", "permission denied"},
				{"unix-connect @sallyport", "permission denied"},
				{"unix-connect " + in("given/absent"), "no such file"},
				{"unix-connect " + in("given/file"), "connection refused"},
				{"unix " + in("write/mine"), "ok"}, // it speaks to itself
				{"rename " + in("write/link") + " " + in("write/link"), "ok"},
			})
		}
		// The hook has the last word, and the profile the first.
		checkAs(t, verb, p, nil, [][2]string{{"unix-connect " + given.address, "permission denied"}})
	}
	p.Network, p.Sockets = networkPorts, nil
	check(t, p, [][2]string{{"unix-connect " + other.address, "permission denied"}})
	if n := other.calls.Load(); n != 0 {
		t.Errorf("%d connections arrived where none was allowed", n)
	}
}

// A socket that somebody outside made and sent is unknown to who keeps copies, and connects to nobody; who can fetch it
// judges it like any other.
func TestReceivedSockets(t *testing.T) {
	needKernel(t, 4)
	up, bad := newGreeter(t, "tcp4", "127.0.0.1:0"), newGreeter(t, "tcp4", "127.0.0.1:0")
	path := filepath.Join(folder(t), "sender")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				c.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(fd), nil)
				unix.Close(fd)
			}
		}
	}()
	p := Profile{Sockets: []string{path}}
	ways := map[string]string{"unix " + path: "allow", "tcp " + up.address: "direct"}
	checkAs(t, "contained", p, ways, [][2]string{{"received " + path + " " + up.address, "permission denied"}, {"received " + path + " " + bad.address, "permission denied"}})
	checkAs(t, "supervise", p, ways, [][2]string{{"received " + path + " " + up.address, "ok"}, {"received " + path + " " + bad.address, "permission denied"}})
	if n := bad.calls.Load(); n != 0 {
		t.Errorf("%d connections arrived where none was allowed", n)
	}
}

// Network "ports": no address is judged, but only one port can be connected to, and nothing but TCP.
func TestPorts(t *testing.T) {
	needKernel(t, 4)
	proxy, other := newGreeter(t, "tcp4", "127.0.0.1:0"), newGreeter(t, "tcp4", "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(proxy.address)
	var n uint16
	fmt.Sscan(port, &n)
	for _, verb := range custodies() {
		r := checkAs(t, verb, Profile{Network: networkPorts, Proxy: n}, nil, [][2]string{
			{"hello " + proxy.address, "ok"},
			{"epoll " + proxy.address, "ok"},
			{"fin " + proxy.address, "ok"},
			{"connect " + other.address, "permission denied"},
			{"socket 1 1 0", "permission denied"},
			{"socket 2 2 0", "permission denied"},
			{"socket 2 1 262", "protocol not supported"},
			{"fastopen", "operation not supported"},
		})
		if !strings.Contains(r.err, `"Level":"ports"`) {
			t.Error("the level is not said")
		}
	}
}

// Profile.UDP "dns": whatever is sent, only the name server of the supervisor hears it.
func TestUDPForNames(t *testing.T) {
	needKernel(t, 4)
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		b := make([]byte, 512)
		for {
			_, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			server.WriteTo([]byte("hello"), from)
		}
	}()
	elsewhere, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	ways := map[string]string{"udp *": server.LocalAddr().String(), "resolve": "hello"}
	r := checkAs(t, "supervise", Profile{UDP: "dns"}, ways, [][2]string{
		{"dns-connect 192.0.2.53:53", "ok"},
		{"dns-connect 127.0.0.53:53", "ok"},
		{"sendto " + elsewhere.LocalAddr().String(), "permission denied"},
		{"sendmsg " + elsewhere.LocalAddr().String(), "permission denied"},
		{"sendmsg 127.0.0.53:53", "permission denied"},
		{"dial udp " + elsewhere.LocalAddr().String(), "permission denied"},
		{"dns-sendto 192.0.2.53:53", "temporarily unavailable"}, // nobody can answer in its name
		{"udp 127.0.0.1:0", "ok"},
		{"udp 192.0.2.1:0", "permission denied"},
		{"interfaces", "ok"},
	})
	if !strings.Contains(r.err, "docker run --dns 127.0.0.1") {
		t.Error("not said what a resolver needs that looks where its answer comes from")
	}
	elsewhere.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, _, err := elsewhere.ReadFrom(make([]byte, 16)); err == nil {
		t.Error("a datagram got away")
	}
}

// When the supervisor is gone nothing can be connected any more.
func TestConnectAfterTheSupervisorsDeath(t *testing.T) {
	needKernel(t, 4)
	up := newGreeter(t, "tcp4", "127.0.0.1:0")
	dir := folder(t)
	file := filepath.Join(dir, "answer")
	for _, verb := range custodies() {
		os.Remove(file)
		j := probe(Profile{Write: []string{dir}, Execute: []string{filepath.Dir(walls())}}, "leave connect-at-usr1 "+file+" "+up.address, "sleep 1m")
		j.Ways = map[string]string{"tcp *": "direct"}
		c := j.command(t, verb)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		left := 0
		for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "sleeping"; {
			fmt.Sscanf(lines.Text(), "left=%d", &left)
		}
		if left == 0 {
			t.Fatal("nobody is left")
		}
		before := up.calls.Load()
		c.Process.Kill()
		c.Wait()
		if err := unix.Kill(left, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			b, err := os.ReadFile(file)
			if err == nil && len(b) > 0 {
				if string(b) != "function not implemented" {
					t.Errorf("%s: a connect without a supervisor: %s", verb, b)
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		if up.calls.Load() != before {
			t.Errorf("%s: it was connected", verb)
		}
	}
}

// The supervisor keeps no copy of a socket that the program has closed.
func TestClosedSocketsAreForgotten(t *testing.T) {
	needKernel(t, 4)
	if os.Getuid() != 0 {
		t.Skip("only root may count the descriptors of a non-dumpable process")
	}
	j := probe(Profile{}, "leak 200", "sleep 1h")
	j.during = func(p *os.Process) {
		most := 0
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			n := socketsOf(p.Pid)
			if most = max(most, n); most > 100 && n < 10 {
				break
			}
		}
		if n := socketsOf(p.Pid); most < 100 || n >= 10 {
			t.Errorf("%d sockets were held, %d are", most, n)
		}
		p.Signal(syscall.SIGTERM)
	}
	j.start(t, "contained")
}

// socketsOf counts those that a process has.
func socketsOf(pid int) (n int) {
	names, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	for _, name := range names {
		if link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, name.Name())); strings.HasPrefix(link, "socket:") {
			n++
		}
	}
	return n
}

// Unmodified programs of other makers, where they are: each connects where it may, and nowhere else.
func TestOtherPrograms(t *testing.T) {
	needKernel(t, 6)
	up, denied := newUpstream(t), newUpstream(t)
	at := func(port string) string { return "http://127.0.0.1:" + port + "/" }
	ways := map[string]string{"tcp 127.0.0.1:" + up: "direct", "tcp 192.0.2.7:80": "127.0.0.1:" + up}
	app := folder(t)
	write(t, filepath.Join(app, "package.json"), "{}", 0o644)
	found := 0
	for _, c := range []struct {
		program string
		args    func(url string) []string
		refused string
	}{
		{"curl", func(url string) []string { return []string{"curl", "-sS", url} }, "connect"},
		{"wget", func(url string) []string { return []string{"wget", "-q", "-O", "-", "--tries=1", url} }, ""},
		{"python3", func(url string) []string {
			return []string{"python3", "-c", "import urllib.request,sys; print(urllib.request.urlopen(sys.argv[1]).read().decode())", url}
		}, "Permission denied"},
		{"perl", func(url string) []string {
			return []string{"perl", "-MHTTP::Tiny", "-e", "my $r = HTTP::Tiny->new->get($ARGV[0]); print $r->{content}; exit !$r->{success}", url}
		}, "Permission denied"},
		{"node", func(url string) []string {
			return []string{"node", "-e", "fetch(process.argv[1]).then(r => r.text()).then(console.log, e => { console.error(e.cause.code); process.exit(1) })", url}
		}, "EACCES"},
	} {
		path := "/usr/bin/" + c.program // not what stands in a home of root's
		if c.program == "node" {
			path = node(t)
		}
		if _, err := os.Stat(path); err != nil {
			continue
		}
		found++
		for _, verb := range custodies() {
			for url, ok := range map[string]bool{at(up): true, "http://192.0.2.7/": true, at(denied): false, "http://169.254.169.254/": false} {
				j := job{Path: path, Args: c.args(url), Profile: Profile{Dir: "/", Read: []string{"/usr/lib", "/usr/share"}}, Ways: ways}
				if c.program == "node" {
					j.Profile = Profile{Dir: app, Preset: presetNode}
				}
				r := j.start(t, verb)
				if good := r.code == 0 && strings.Contains(r.out, "hello"); good != ok || !ok && !strings.Contains(r.out+r.err, c.refused) {
					t.Errorf("%s %s %s: %d\n%.300s\n%.300s", verb, c.program, url, r.code, r.out, r.err)
				}
			}
		}
	}
	if found < 2 {
		t.Errorf("only %d programs are here", found)
	}
}
