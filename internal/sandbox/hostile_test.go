package sandbox

import "testing"

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
