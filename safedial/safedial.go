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
// The check is made on the address the kernel is about to connect to, after the
// one name resolution of the connection: a name that resolves to something else
// the second time gains nothing. Hosts that parsers read differently
// (2130706433, 0x7f.1, 127.1, a trailing dot) are refused before any resolution.
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
