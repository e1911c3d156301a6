package sandbox

import (
	"os"
	"path/filepath"
	"testing"
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
