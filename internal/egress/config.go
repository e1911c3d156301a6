package egress

import (
	"errors"
	"log/slog"
	"net/netip"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/credential"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/trace"
)

// Config is what a proxy is built from. Rules may change while it runs (Swap), the rest may not.
type Config struct {
	Rules   Rules
	Limits  Limits
	Audit   *audit.Log            // required: what cannot be recorded does not happen
	Metrics prometheus.Registerer // nil: none
	Logger  *slog.Logger          // nil: none
	Tracer  *trace.Tracer         // nil: nothing is traced
	Flight  *cause.Flight         // the requests in flight at the gate in front; nil: nothing is known of them, and only what is for any cause can be reached
	// Sign states a caller to the next gate, for credentials of the kind assertion; nil: there are none.
	Sign func(c credential.Cause, audience string, scopes []string) (string, error)
	Own  []netip.AddrPort // listeners of ours that no destination may lead to; port 0 is every port of the address
}

// Rules are the part of the configuration that a reload replaces, whole. The zero value refuses everything.
type Rules struct {
	Destinations []Destination
	Unlock       []Unlock // entries of the escape-target registry that may be dialled
	Deny         []string // addresses and prefixes that are refused wherever a destination leads
	Sockets      []string // paths of unix sockets that the service may connect to
	Report       bool     // record what would be denied, and let it pass
	Resolvers    []string // "address:port" of the name servers; empty: the system's
}

// The protocols of a destination.
const (
	ProtocolTLS  = "tls"  // the service speaks TLS, and asks for one of the destination's names
	ProtocolHTTP = "http" // plain HTTP/1.1: methods and paths are judged
	ProtocolTCP  = "tcp"  // bytes, which nobody looks at: a database
)

// Destination is one place that the service may reach, under a name for the record.
type Destination struct {
	Name       string
	Hosts      []string          // "name:port", "1.2.3.4:5432", "[::1]:5432"
	For        policy.For        // what may cause an attempt to reach it; required
	Protocol   string            // one of the above; empty means tls
	Originate  bool              // the service speaks plain HTTP to us, and we TLS to the destination, which must prove its name
	CA         string            // with Originate: a PEM file of roots beside the system's; empty: none
	Credential credential.Config // attached to each request, where requests can be seen; without Kind: none
	Methods    []string          // where requests can be seen; empty: all
	Paths      []string          // patterns as of a route, without method: "/v1/{id}", "/v1/{rest...}"; where requests can be seen; empty: all
	Public     bool              // its names may be at ordinary addresses only, as befits a name that somebody else answers for
	Direct     bool              // with tcp: a brokered connection goes straight to the judged address; nothing is copied
}

// Unlock names an entry of the escape-target registry that may be dialled, and says why.
type Unlock struct {
	Name   string
	Reason string
}

// Limits bound what the service can make us hold. Zero means the default in brackets.
type Limits struct {
	DialTimeout    time.Duration // [5 s] for resolving, connecting and the TLS handshake of Originate, each
	HeaderTimeout  time.Duration // [10 s] for a request's header or a ClientHello
	IdleTimeout    time.Duration // [5 min] without a byte in either direction
	TunnelLifetime time.Duration // [24 h] of one tunnel
	Tunnels        int           // [4096] connections at once; more are refused
	HeaderBytes    int64         // [32 KiB] of a request's header
	BodyBytes      int64         // [1 GiB] of a request's body
}

func (l Limits) withDefaults() Limits {
	setDefault(&l.DialTimeout, 5*time.Second)
	setDefault(&l.HeaderTimeout, 10*time.Second)
	setDefault(&l.IdleTimeout, 5*time.Minute)
	setDefault(&l.TunnelLifetime, 24*time.Hour)
	setDefault(&l.Tunnels, 4096)
	setDefault(&l.HeaderBytes, 32<<10)
	setDefault(&l.BodyBytes, 1<<30)
	return l
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// check refuses limits that are none.
func (l Limits) check() error {
	for _, v := range []int64{
		int64(l.DialTimeout), int64(l.HeaderTimeout), int64(l.IdleTimeout), int64(l.TunnelLifetime),
		int64(l.Tunnels), l.HeaderBytes, l.BodyBytes,
	} {
		if v < 0 {
			return errors.New("a limit is negative")
		}
	}
	return nil
}

// Attempt is one outgoing connection that the service asked for, and that a broker holds until there is a Way.
type Attempt struct {
	Process int            // the caller's thread
	Network string         // "tcp", "unix" or "udp"
	To      netip.AddrPort // of tcp and udp: unmapped, and loopback where the service wrote an unspecified address
	Path    string         // of unix: the socket's real path
}

// Way is the answer to an Attempt. The zero value refuses.
type Way struct {
	Errno syscall.Errno  // what the service is told in place of a connection; 0 beside an invalid Via means EACCES
	Via   netip.AddrPort // where the socket is connected in place of To; To itself: directly
	Allow bool           // of unix: connect
	// Begun, unless nil, is called right after the connect began, with the socket's own address.
	Begun func(from netip.AddrPort)
	// Ended, unless nil, is called once, when it is known how the connect ended; nil is connected.
	Ended func(error)
}
