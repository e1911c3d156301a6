// Package egress is the gate behind a service: nothing leaves that no destination names.
//
//	p, err := egress.New(egress.Config{
//		Rules: egress.Rules{Destinations: []egress.Destination{{
//			Name: "billing", Hosts: []string{"billing.example.com:443"}, For: policy.For{Routes: []string{"create-order"}},
//		}}},
//		Audit: log, Flight: flight,
//	})
//	if err != nil {
//		return err
//	}
//	go p.ServeLed(ctx)             // for connections that a broker leads here, and their DNS
//	return p.Serve(ctx, listener)  // a forward proxy: plain HTTP and CONNECT
//
// # The line
//
// Every attempt goes down one line, Proxy.open, the only function here that dials:
//
//	destination ─ cause ─ decide by name ─ search ─ resolve once ─ decide by address ─ hello ─ record ─ credential ─ dial ─ outcome
//
// cause is which requests in flight the attempt may come from (package cause): every one of them must be one that the
// destination is for. A name that is denied is never looked up. The addresses that were judged are the addresses that are
// dialled, and they are judged once more on the socket (package safedial). hello is where the service speaks TLS: the server
// that its ClientHello asks for must be the destination. credential is what is attached to a request, obtained when the
// decision is on record (package credential). Each attempt has one record, written before the dial, and one outcome.
//
// # Three ways in
//
// A program that knows of proxies sends requests (absolute-form) and CONNECT to Serve's listener. A program that does not
// is led here by a broker, which also vouches for those that come to ServeProgram's listener: Connect says where a
// connection goes in place of its address, and ServeLed takes it up; what is looked at then is what the destination's
// protocol says. A connection with nothing to look at may go directly. Requests are read strictly (package wire), each is judged, on every connection.
//
// Names are resolved by Answer, a DNS server for the destinations' names only, so that a question carries nothing
// out and an address is known by its name.
//
// # Limits
//
// HTTP/1.0 and 1.1. What is inside TLS is not seen: a server that serves other names behind the allowed one (domain
// fronting) is that destination's matter; Originate shows requests to us. Of a connection with protocol tcp nothing is
// looked at. Answers are passed on as they are, but for a credential that we attached, which is masked. UDP is not led anywhere but to Answer.
package egress

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sallyport/sallyport/internal/credential"
	"github.com/sallyport/sallyport/internal/leak"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/safedial"
)

// Proxy is the gate.
type Proxy struct {
	config    Config
	log       *slog.Logger
	metrics   *metrics
	buffers   buffers
	names     *names   // what the resolver said lately
	search    []string // the system's search domains, each with a leading dot
	denials   denials
	led       led
	entrances atomic.Pointer[entrances]
	rules     atomic.Pointer[rules]
	inFlight  atomic.Int64 // attempts that have no outcome yet
	watch     watch
	tokens    *leak.Set // inbound ones, known again in what leaves; nil where no request is known

	mu  sync.Mutex       // held to change the rules, the entrances, and own
	own []netip.AddrPort // Config.Own and the listeners that we opened or were given
}

// rules are Rules, checked and made ready.
type rules struct {
	Rules
	exits        *policy.Exits
	destinations map[string]*destination
	byPort       map[uint16][]policy.Host // every host, those of one port together
	names        map[string]uint16        // that may be looked up, with a port of theirs
	kept         *kept

	allow, unlock []string
	resolver      *net.Resolver   // nil: the system's
	guard         *safedial.Guard // of these rules' destinations
	lenient       *safedial.Guard // in report mode, for what the guard refuses; nil otherwise
}

// destination is a Destination, made ready.
type destination struct {
	Destination
	roots  *x509.CertPool     // of Originate; nil: the system's
	source *credential.Source // of what is attached; nil: nothing is
}

// New checks the configuration and builds a proxy. One without audit log does not build.
func New(c Config) (*Proxy, error) {
	if c.Audit == nil {
		return nil, errors.New("egress: there is no audit log")
	}
	if err := c.Limits.check(); err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	c.Limits = c.Limits.withDefaults()
	p := &Proxy{config: c, log: c.Logger, names: newNames(), own: slices.Clone(c.Own), search: searchDomains("/etc/resolv.conf")}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.led.ready = make(chan struct{})
	p.watch.open = map[*guarded]struct{}{}
	p.led.announced, p.led.waiting = map[netip.AddrPort]*errand{}, map[netip.AddrPort]chan *errand{}
	p.entrances.Store(&entrances{})
	if err := p.Swap(c.Rules); err != nil {
		return nil, err
	}
	var err error
	if p.metrics, err = newMetrics(c.Metrics, p); err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	if c.Flight != nil {
		p.tokens = leak.NewSet(maxTokens)
		c.Flight.Watch(p.changed)
	}
	return p, nil
}

// Swap replaces the rules for attempts that begin from now on, whole or, if an error is returned, not at all. Open
// connections stay. The error joins one *policy.DestinationError for each thing wrong with a destination.
func (p *Proxy) Swap(r Rules) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.swap(r)
}

func (p *Proxy) swap(r Rules) error {
	made, err := p.compile(r)
	old := p.rules.Load()
	if err == nil {
		err = p.sourcesFor(made, old)
	}
	if err != nil {
		made.closeSources(old)
		return fmt.Errorf("egress: %w", err)
	}
	if p.rules.Store(made); old != nil {
		old.kept.close()
		old.closeSources(made)
	}
	return nil
}

// Close ends what is being obtained for requests. Serve and ServeLed have returned.
func (p *Proxy) Close() { p.rules.Load().closeSources(nil) }

// ours makes a listener one of our own, to which no destination leads.
func (p *Proxy) ours(address net.Addr) {
	a, err := netip.ParseAddrPort(address.String())
	if err != nil {
		return // a unix socket
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.own = append(p.own, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
	made := *p.rules.Load()
	p.protect(&made)
	p.rules.Store(&made)
}

// protect gives rules their guards, which know our listeners of now.
func (p *Proxy) protect(r *rules) {
	own := slices.Clone(p.own)
	r.guard = &safedial.Guard{Allow: r.allow, Deny: r.Deny, Unlock: r.unlock, Own: own, Timeout: p.config.Limits.DialTimeout, Resolver: r.resolver}
	if r.Report {
		r.lenient = &safedial.Guard{Allow: []string{"0.0.0.0/0", "::/0"}, Unlock: r.unlock, Own: own, Timeout: p.config.Limits.DialTimeout, Resolver: r.resolver}
	}
}

// compile checks the rules and makes them ready.
func (p *Proxy) compile(r Rules) (*rules, error) {
	made := &rules{
		Rules: r, destinations: map[string]*destination{}, byPort: map[uint16][]policy.Host{}, names: map[string]uint16{},
		kept: newKept(),
	}
	var list []policy.Destination
	var errs []error
	for i, d := range r.Destinations {
		compiled, spec, err := compileDestination(i, d)
		errs = append(errs, err)
		made.destinations[d.Name] = compiled
		list = append(list, spec)
		for _, h := range spec.Hosts {
			made.byPort[h.Port] = append(made.byPort[h.Port], h)
			if !h.IsAddress() {
				made.names[h.Name] = h.Port
			}
		}
	}
	exits, err := policy.NewExits(list, r.Report)
	errs = append(errs, err)
	made.exits = exits
	made.unlock, err = checkUnlock(r.Unlock)
	errs = append(errs, err)
	for _, s := range r.Sockets {
		if !strings.HasPrefix(s, "/") {
			errs = append(errs, fmt.Errorf("sockets: %q is not an absolute path", s))
		}
	}
	made.resolver, err = newResolver(r.Resolvers)
	errs = append(errs, err)
	for _, d := range list {
		if made.destinations[d.Name] != nil && made.destinations[d.Name].Public {
			continue // whatever the guard refuses for a name that nobody wrote down
		}
		for _, h := range d.Hosts {
			made.allow = append(made.allow, h.String())
		}
	}
	p.protect(made)
	errs = append(errs, made.guard.Validate())
	return made, errors.Join(errs...)
}

// compileDestination checks what policy.NewExits does not: hosts, protocol and what depends on it.
func compileDestination(index int, d Destination) (*destination, policy.Destination, error) {
	var errs []error
	wrong := func(field, hint string, err error) {
		errs = append(errs, &policy.DestinationError{Index: index, Field: field, Err: err, Hint: hint})
	}
	if d.Protocol == "" {
		d.Protocol = ProtocolTLS
	}
	made := &destination{Destination: d}
	switch d.Protocol {
	case ProtocolTLS, ProtocolHTTP, ProtocolTCP:
	default:
		wrong("protocol", "tls, http or tcp", fmt.Errorf("%q is no protocol", d.Protocol))
	}
	if d.Originate && d.Protocol == ProtocolTCP {
		wrong("tls", "leave protocol out", errors.New("TLS is originated for requests, and with tcp there are none"))
	}
	if d.Direct && d.Protocol != ProtocolTCP {
		wrong("direct", "protocol: tcp", errors.New("a direct connection is not looked at"))
	}
	if d.Direct && d.For.Narrow() {
		wrong("direct", "remove it, or write for: any", errors.New("a direct connection could not be ended when a request begins that may not cause it"))
	}
	if seen := d.Originate || d.Protocol == ProtocolHTTP; d.Credential.Kind != "" && !seen {
		wrong("credential", "protocol: http, or tls: originate", errors.New("requests to this destination cannot be seen"))
	}
	if d.CA != "" && !d.Originate {
		wrong("ca_file", "tls: originate", errors.New("certificates are verified only where we speak TLS"))
	} else if d.CA != "" {
		roots, err := readRoots(d.CA)
		if err != nil {
			wrong("ca_file", "a PEM file of certificates", err)
		}
		made.roots = roots
	}
	seen := d.Originate || d.Protocol == ProtocolHTTP
	spec := policy.Destination{Name: d.Name, For: d.For, Named: d.Protocol == ProtocolTLS && !d.Originate, Seen: seen, Methods: d.Methods, Paths: d.Paths}
	for _, h := range d.Hosts {
		host, err := parseHost(h)
		if err != nil {
			wrong("hosts", `name:port, 192.0.2.1:5432 or "[2001:db8::1]:5432"`, fmt.Errorf("%q: %w", h, err))
			continue
		}
		spec.Hosts = append(spec.Hosts, host)
	}
	return made, spec, errors.Join(errs...)
}

// parseHost reads "host:port", of a configuration or of a CONNECT request: a port of plain digits, a name in the spelling
// that all parsers share, letter case aside, an address as it is usually written, an IPv6 address in brackets and
// nothing else in brackets.
func parseHost(s string) (policy.Host, error) {
	name, digits, err := net.SplitHostPort(s)
	if err != nil {
		return policy.Host{}, errors.New("not host:port")
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 || digits != strconv.FormatUint(port, 10) {
		return policy.Host{}, errors.New("the port is not a number from 1 to 65535")
	}
	if err := safedial.Host(name); err != nil {
		return policy.Host{}, err
	}
	address, err := netip.ParseAddr(name)
	if bracketed := s[0] == '['; bracketed != (err == nil && address.Is6()) {
		return policy.Host{}, errors.New("brackets are for IPv6 addresses")
	}
	if err == nil {
		return policy.Host{Name: address.Unmap().String(), Port: uint16(port)}, nil
	}
	return policy.Host{Name: strings.ToLower(name), Port: uint16(port)}, nil
}

func checkUnlock(list []Unlock) (entries []string, err error) {
	var errs []error
	known := map[string]bool{}
	for _, e := range safedial.Escapes() {
		known[e.Name] = true
	}
	for _, u := range list {
		if !known[u.Name] {
			errs = append(errs, fmt.Errorf("unlock: %q is not an entry of the escape-target registry", u.Name))
		}
		if strings.TrimSpace(u.Reason) == "" {
			errs = append(errs, fmt.Errorf("unlock: %q needs a reason", u.Name))
		}
		entries = append(entries, u.Name)
	}
	return entries, errors.Join(errs...)
}

func readRoots(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", file)
	}
	return roots, nil
}
