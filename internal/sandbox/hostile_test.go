package sandbox

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a program tries that knows how its supervisor works, and how a kernel does.

// No option leads the packets of a socket elsewhere than to what was judged.
func TestSocketOptionsDoNotRoute(t *testing.T) {
	needKernel(t, 4)
	for _, verb := range custodies() {
		checkAs(t, verb, Profile{}, nil, [][2]string{
			{"option 1 25", "operation not permitted"},  // SO_BINDTODEVICE
			{"option 1 62", "operation not permitted"},  // SO_BINDTOIFINDEX
			{"option 0 4", "operation not permitted"},   // IP_OPTIONS
			{"option 41 57", "operation not permitted"}, // IPV6_RTHDR
			{"option 41 6", "operation not permitted"},  // IPV6_2292PKTOPTIONS
			{"option 1 9", "ok"},                        // SO_KEEPALIVE
		})
	}
}

// A folder on the way to a unix socket's name may become a link while the supervisor binds.
func TestUnixBindRaceIsLost(t *testing.T) {
	needKernel(t, 4)
	for _, verb := range custodies() {
		base := folder(t)
		in := func(p string) string { return filepath.Join(base, p) }
		for _, d := range []string{"mine", "other", "other/in"} {
			if err := os.Mkdir(in(d), 0o755); err != nil {
				t.Fatal(err)
			}
			own(t, in(d))
		}
		checkAs(t, verb, Profile{Write: []string{in("mine")}}, nil, [][2]string{{"swapped-bind " + in("mine") + " " + in("other"), "ok"}})
	}
}

// The number of a socket's file that the program bound and removed is another one's afterwards, who is not the program.
func TestRecycledFileIsNotTheProgramsOwn(t *testing.T) {
	needKernel(t, 4)
	for range 50 { // whether the file system gives the number out again at once is its own affair
		dir := folder(t)
		mine, other := filepath.Join(dir, "mine"), filepath.Join(dir, "other")
		come := make(chan struct{})
		go func() {
			defer close(come)
			for _, there := range []bool{true, false} {
				for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
					if _, err := os.Lstat(mine); (err == nil) == there {
						break
					}
				}
			}
			if g := newGreeter(t, "unix", other); os.Chmod(g.address, 0o777) != nil {
				t.Error("nobody may connect to it")
			}
		}()
		j := probe(Profile{Write: []string{dir}}, "recycled "+other)
		r := j.run(t)
		<-come
		switch got := r.answers()["recycled "+other]; {
		case strings.Contains(got, "permission denied"):
			return
		case got != "another inode":
			t.Fatalf("got %q\n%s%s", got, r.out, r.err)
		}
	}
	t.Skip("the file system here gives no number out twice")
}

// deaf is where connections are begun and never answered: its queue is full.
func deaf(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	at, err := localAddress(fd)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		c, err := net.DialTimeout("tcp", at.String(), 200*time.Millisecond)
		if err != nil {
			return at.String()
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("somebody listens")
	return ""
}

// Of connections that were begun and closed, however long their peer is silent, the supervisor keeps no copy: a program
// must not be able to use up its descriptors.
func TestAbandonedConnectionsAreForgotten(t *testing.T) {
	needKernel(t, 4)
	needRoot(t) // to count the descriptors of a non-dumpable process
	address := deaf(t)
	for _, verb := range custodies() {
		j := probe(Profile{}, "abandon "+address+" 3000", "sleep 1h")
		j.Ways, j.Quiet = map[string]string{"tcp *": "direct"}, true
		j.during = func(p *os.Process) {
			most, n := 0, 0
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
				n = socketsOf(p.Pid)
				if most = max(most, n); most > 100 && n < 10 {
					break
				}
			}
			if most < 100 || most > 2*maxHeld+100 || n >= 10 {
				t.Errorf("%s: %d sockets were held, %d are", verb, most, n)
			}
			p.Signal(syscall.SIGTERM)
		}
		j.start(t, verb)
	}
}

// A worker that begins anew listens once more on the socket that it was given, however many connections later.
func TestListenersAreRemembered(t *testing.T) {
	b := &broker{held: map[uint64]*twin{}, past: map[uint64]past{}}
	b.retire(&twin{fd: nothing, inode: 1, refs: 1}, pastListening)
	for i := range uint64(3 * maxPast) {
		b.retire(&twin{fd: nothing, inode: 2 + i, refs: 1}, pastConnected)
	}
	if b.past[1] != pastListening || len(b.past) > maxPast {
		t.Errorf("the listener is %d, of %d remembered", b.past[1], len(b.past))
	}
	for i := range uint64(3 * maxPast) {
		b.retire(&twin{fd: nothing, inode: 2 + i, refs: 1}, pastListening)
	}
	if len(b.past) > maxPast {
		t.Errorf("%d are remembered", len(b.past))
	}
}

// The supervisor has the program's uid, and that suffices to have it scheduled after everybody else.
func TestSupervisorKeepsItsTime(t *testing.T) {
	needKernel(t, 4)
	check(t, Profile{}, [][2]string{
		{"slow-parent affinity", "operation not permitted"},
		{"slow-parent idle", "operation not permitted"},
		{"slow-parent parameters", "operation not permitted"},
		{"slow-parent attributes", "operation not permitted"},
		{"slow-parent nice", "operation not permitted"},
		{"slow-parent nice-user", "operation not permitted"},
		{"slow-parent io", "operation not permitted"},
		{"slow-parent own", "ok"},
	})
}

// A thread that waits no longer may have left its number to another process, whose socket is not the program's to use.
func TestListenForNobody(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := localAddress(fd)
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{custody: custodyFetch, ports: []uint16{at.Port()}, from: listener{nothing}}
	n := &notification{TID: uint32(os.Getpid())}
	n.Data.Args[0] = uint64(fd)
	if errno := b.listen(n); errno != unix.EINTR {
		t.Errorf("listen: %v, want %v", errno, unix.EINTR)
	}
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on != 0 {
		t.Errorf("it listens (%v)", err)
	}
}

// What SO_SNDTIMEO cuts short answers as a kernel does.
func TestConnectKeepsItsTimeout(t *testing.T) {
	needKernel(t, 4)
	address := deaf(t)
	for _, verb := range custodies() {
		checkAs(t, verb, Profile{}, map[string]string{"tcp *": "direct"}, [][2]string{{"patience " + address, "ok"}})
	}
}

// Nor does a thread of the supervisor's wait for a process that was killed.
func TestKilledCallersAreNotWaitedFor(t *testing.T) {
	needKernel(t, 4)
	needRoot(t)
	address := deaf(t)
	for _, verb := range custodies() {
		j := probe(Profile{Execute: []string{filepath.Dir(walls())}}, "killed "+address+" 40", "sleep 1h")
		j.Ways, j.Quiet = map[string]string{"tcp *": "direct"}, true
		j.during = func(p *os.Process) {
			most, n := 0, 0
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
				n = socketsOf(p.Pid)
				if most = max(most, n); most > 30 && n < 10 {
					break
				}
			}
			if most < 30 || n >= 10 {
				t.Errorf("%s: %d sockets were held, %d are", verb, most, n)
			}
			p.Signal(syscall.SIGTERM)
		}
		j.start(t, verb)
	}
}

// Where few descriptors may be open, the program's sockets leave the gates enough of them.
func TestCopiesLeaveDescriptors(t *testing.T) {
	needKernel(t, 4)
	needRoot(t)
	j := probe(Profile{}, "hoard 900", "sleep 1h")
	j.prep = func(c *exec.Cmd) {
		c.Args = append([]string{"sh", "-c", `ulimit -n 1024 && exec "$@"`, "sh"}, c.Args...)
		c.Path = "/bin/sh"
	}
	j.during = func(p *os.Process) {
		most := 0
		for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			most = max(most, socketsOf(p.Pid))
		}
		if most < 100 || most > 512 {
			t.Errorf("%d of 1024 descriptors were copies", most)
		}
		p.Signal(syscall.SIGTERM)
	}
	if r := j.start(t, "contained"); !strings.Contains(r.out, "hoard 900: ok") {
		t.Error(r.out, r.err)
	}
}

// Sockets of a process whose first thread has ended are still in use.
func TestSocketsWithoutAFirstThread(t *testing.T) {
	needKernel(t, 4)
	port := freePort(t)
	checkAs(t, "contained", Profile{Listen: on(port)}, nil, [][2]string{{fmt.Sprintf("headless 127.0.0.1:%d", port), "ok"}})
}

// To join a group is to send its address to the network.
func TestNoMulticastGroups(t *testing.T) {
	needKernel(t, 4)
	checkAs(t, "supervise", Profile{UDP: "dns"}, nil, [][2]string{
		{"join 239.1.2.3:0", "operation not permitted"},
		{"join [ff02::1234]:0", "operation not permitted"},
		{"option 0 42", "operation not permitted"},  // MCAST_JOIN_GROUP
		{"option 41 46", "operation not permitted"}, // MCAST_JOIN_SOURCE_GROUP
		{"option 41 27", "operation not permitted"}, // IPV6_JOIN_ANYCAST
	})
}

// A connection that was made and undone at once is told as one that was made: the audit log has it from there.
func TestShortConnectionsAreTold(t *testing.T) {
	needKernel(t, 4)
	up := newGreeter(t, "tcp4", "127.0.0.1:0")
	for _, verb := range custodies() {
		r := checkAs(t, verb, Profile{}, map[string]string{"tcp *": "direct"}, [][2]string{{"hide shutdown " + up.address, "ok"}, {"hide unspec " + up.address, "ok"}})
		if n := strings.Count(r.err, "ended: tcp "+up.address+" <nil>"); n != 100 {
			t.Errorf("%s: %d of 100 connections were told, and not: %s", verb, n, r.err[strings.LastIndex(r.err, "ended:"):])
		}
	}
}
