// Package safedial dials only addresses that are safe to dial.
//
// A program that fetches an address somebody else had a say in (a key set named
// by a metadata document, a webhook, an image) can be led to its own loopback,
// to the private network behind it, to the cloud's metadata service or to the
// engine that runs its container. A Guard refuses those addresses:
//
//	guard := &safedial.Guard{Allow: []string{"auth.internal:443"}}
//	response, err := guard.Client().Get(address)
//	var denied *safedial.DeniedError
//	if errors.As(err, &denied) {
//		log.Print(denied.Code, denied) // escape_target, refused to dial "169.254.169.254": ...
//	}
//
// # Redirects
//
// Guard.Client follows none. An http.Client of yours follows them safely with a
// Transport: each hop is judged like a first request, and credentials, among them
// headers that you name, stay with the origin that they were meant for.
//
//	client := &http.Client{Transport: &safedial.Transport{Guard: guard, Credentials: []string{"X-Acme-Ticket"}}}
//
// # What is refused
//
// In this order, which is that of strength:
//
//   - a host that parsers read differently (2130706433, 0x7f.1, 127.1, a trailing
//     dot), before any resolution;
//   - our own listeners (Guard.Own);
//   - escape targets: the sockets and ports of container engines, the kubelet, etcd,
//     the API server, the machine around the container, metadata services. Escapes
//     lists them. They stay refused under any Allow, until Guard.Unlock names them;
//   - what Guard.Deny lists;
//   - every special-purpose address by IANA's registries (loopback, private,
//     link-local, ...), unless Guard.Allow has the destination;
//   - a name at ordinary and special-purpose addresses at once.
//
// An IPv6 address that carries an IPv4 address (mapped, compatible, translated,
// NAT64, 6to4, Teredo, ISATAP) is judged by both. An error quotes the block and its
// RFC, or the registry's entry and its source.
//
// # One resolution
//
// The check is made on the address the kernel is about to connect to, after the
// one name resolution of the connection: a name that resolves to something else
// the second time gains nothing. Guard.Dial is all of it in one call, and fits
// http.Transport.DialContext. Guard.Resolve and Guard.DialAddr are its halves, for
// who records the addresses before they are dialled; Guard.Check decides about one
// address, Guard.CheckSocket about the path of a Unix socket.
//
// # Limits
//
// An ordinary public address may still be a machine that must not be reached:
// which destinations a program needs is for its operator to list. A name in Allow
// is dialled wherever it points, as long as that is no escape target. Only TCP is
// dialled. A public address that leads back into a private network, by translation
// outside this machine or by a NAT64 prefix of the network's own, cannot be told
// apart. The machine around the container is known by its routes: its other
// addresses are for Deny. A container engine or a kubelet at another port than its
// usual one is known only if the environment names it (DOCKER_HOST), and a socket
// that is mounted under another name is not known. Gateways and own addresses may be
// two seconds old. Where the routes cannot be read, everything is refused until
// node-gateway is unlocked; where there is no /proc, no gateway is known.
// A Transport does not drop the body that a 307 or 308 sends on, nor credentials in
// a URL's query, and cannot know a redirect that a client follows by hand.
package safedial

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Guard decides which addresses may be dialled. The zero value refuses every
// special-purpose address (loopback, private, link-local, ...) and every escape
// target. A Guard may be used by many goroutines; its fields must not change, and it
// must not be copied, once it has been used. An entry that cannot be read makes
// every method return an error: Validate says which.
type Guard struct {
	// Allow holds the destinations that the operator wrote down, which may be at
	// special-purpose addresses too: "name:port", wherever the name points;
	// "address:port" ("10.0.0.5:5432", "[fd00::5]:5432"), when it was asked for by
	// that address; "address/bits", every address in the block at every port,
	// whichever name led there. An escape target is in no Allow.
	Allow []string
	// Deny holds addresses and blocks ("10.0.0.5", "10.1.0.0/16") that are refused
	// even if Allow covers them, in all their spellings inside IPv6 addresses.
	Deny []string
	// Unlock names entries of the escape-target registry that no longer refuse. What
	// is at a special-purpose address needs its line in Allow as well.
	Unlock []string
	// Own holds our own listeners, to which no connection of ours may lead; port 0
	// means every port of that address, and an unspecified address every address of
	// this machine. Nothing lifts it.
	Own []netip.AddrPort
	// Timeout bounds resolution and connection together; zero means 5 s.
	Timeout time.Duration
	// Resolver resolves names; nil means the system's.
	Resolver *net.Resolver

	once   sync.Once
	rules  *rules
	broken error
}

// The codes of a DeniedError. They are stable.
const (
	CodeAmbiguousHost  = "ambiguous_host"  // parsers read the host differently
	CodeSpecialAddress = "special_address" // in a special-purpose block, and not in Allow
	CodeEscapeTarget   = "escape_target"   // in the escape-target registry, and not in Unlock
	CodeMixedAnswer    = "mixed_answer"    // a name at ordinary and special-purpose addresses at once
	CodeDeniedAddress  = "denied_address"  // in Deny
	CodeOwnAddress     = "own_address"     // in Own
	CodeNotTCP         = "not_tcp"         // another network than TCP
)

// DeniedError says what was refused and why.
type DeniedError struct {
	Host    string     // as it was asked for, without the port; the path, for a socket
	Address netip.Addr // the zero Addr when Host was refused before it was resolved
	Port    uint16     // 0 when it was refused for its spelling
	Code    string     // one of the Code constants
	Reason  string     // for people; quotes the block and its RFC, or the registry's entry
	Entry   string     // the registry's name, which Unlock takes, when Code is CodeEscapeTarget
}

func (e *DeniedError) Error() string {
	if !e.Address.IsValid() || e.Host == e.Address.String() {
		return fmt.Sprintf("refused to dial %q: %s", e.Host, e.Reason)
	}
	return fmt.Sprintf("refused to dial %q at %s: %s", e.Host, e.Address, e.Reason)
}

// Validate reports every entry of g that cannot be read, joined, before it is used.
func (g *Guard) Validate() error {
	_, err := g.prepared()
	return err
}

// prepared reads the entries once.
func (g *Guard) prepared() (*rules, error) {
	g.once.Do(func() { g.rules, g.broken = readRules(g) })
	return g.rules, g.broken
}

func (g *Guard) timeout() time.Duration {
	if g.Timeout > 0 {
		return g.Timeout
	}
	return 5 * time.Second
}
