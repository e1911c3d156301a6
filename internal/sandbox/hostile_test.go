package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
	for range 5 { // whether the file system gives the number out again at once is its own affair
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
