package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/safedial"
)

const (
	rememberFor   = 10 * time.Minute // an address by its name, since it was last answered; programs keep answers beyond their TTL
	freshFor      = 5 * time.Second  // an answer; getaddrinfo asks for A and AAAA one after the other
	lookUpEvery   = 5 * time.Second  // all hosts of a port, for an address that is not known
	maxAddresses  = 8192
	maxAnswers    = 1024
	maxPerAddress = 16
)

// names is what the resolver has said lately: which names an address has, so that a connection to it is known by name.
// Only what was asked for a destination, or in report mode, gets in.
type names struct {
	mu      sync.Mutex
	known   map[netip.Addr][]knownAs
	answers map[string]*lookup
	ports   map[uint16]*lookup // of all hosts with the port
}

type knownAs struct {
	name  string
	until time.Time
}

// lookup is one resolution, that all who ask for the name at the time share.
type lookup struct {
	done      chan struct{}
	addresses []netip.Addr
	err       error
	at        time.Time
}

func newNames() *names {
	return &names{known: map[netip.Addr][]knownAs{}, answers: map[string]*lookup{}, ports: map[uint16]*lookup{}}
}

// learn remembers that the name has the address.
func (n *names) learn(name string, address netip.Addr) {
	address = address.Unmap()
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	list := n.known[address]
	if i := slices.IndexFunc(list, func(k knownAs) bool { return k.name == name }); i >= 0 {
		list[i].until = now.Add(rememberFor)
		return
	}
	list = slices.DeleteFunc(list, func(k knownAs) bool { return now.After(k.until) })
	if len(list) >= maxPerAddress {
		list = list[1:]
	}
	if len(n.known) >= maxAddresses {
		n.forget(now)
	}
	n.known[address] = append(list, knownAs{name, now.Add(rememberFor)})
}

// forget makes room: what is over goes, and if that is nothing, whatever comes first.
func (n *names) forget(now time.Time) {
	for a, list := range n.known {
		if now.After(list[len(list)-1].until) {
			delete(n.known, a)
		}
	}
	for a := range n.known {
		if len(n.known) < maxAddresses*3/4 {
			return
		}
		delete(n.known, a)
	}
}

// hosts appends what the address and port are known as among the rules' destinations: names that it was resolved from,
// and itself.
func (n *names) hosts(r *rules, to netip.AddrPort) (hosts []policy.Host) {
	for _, h := range r.byPort[to.Port()] {
		if a, err := netip.ParseAddr(h.Name); err == nil && a == to.Addr() {
			hosts = append(hosts, h)
		}
	}
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range n.known[to.Addr()] {
		h := policy.Host{Name: k.name, Port: to.Port()}
		if now.Before(k.until) && slices.Contains(r.byPort[to.Port()], h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Names are those that an address was resolved from lately, the latest last.
func (p *Proxy) Names(address netip.Addr) (names []string) {
	n := p.names
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range n.known[address.Unmap()] {
		if now.Before(k.until) {
			names = append(names, k.name)
		}
	}
	return names
}

// lookUp resolves a name for the service. The answers have been judged: the error may be a *safedial.DeniedError.
func (p *Proxy) lookUp(ctx context.Context, r *rules, name string) ([]netip.Addr, error) {
	n := p.names
	n.mu.Lock()
	l, ok := n.answers[name]
	if ok && !l.at.IsZero() && time.Since(l.at) > freshFor {
		ok = false
	}
	if !ok {
		if len(n.answers) >= maxAnswers {
			clear(n.answers)
		}
		l = &lookup{done: make(chan struct{})}
		n.answers[name] = l
	}
	n.mu.Unlock()
	if !ok {
		n.ask(ctx, r, name, l)
	}
	select {
	case <-l.done:
		return l.addresses, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ask resolves a name for all who wait for l. What went wrong on the way is not kept.
func (n *names) ask(ctx context.Context, r *rules, name string, l *lookup) {
	l.err = errLookUp
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		l.at = time.Now()
		if n.answers[name] == l && l.err != nil && !errors.As(l.err, new(*safedial.DeniedError)) {
			delete(n.answers, name)
		}
		close(l.done)
	}()
	l.addresses, l.err = resolve(ctx, r, name)
	for _, a := range l.addresses {
		n.learn(name, a)
	}
}

var errLookUp = errors.New("the look-up did not end")

func resolve(ctx context.Context, r *rules, name string) ([]netip.Addr, error) {
	port := r.names[name]
	found, err := r.guard.Resolve(ctx, name, port)
	var denied *safedial.DeniedError
	if errors.As(err, &denied) && r.lenient != nil {
		found, err = r.lenient.Resolve(ctx, name, port)
	}
	var addresses []netip.Addr
	for _, f := range found {
		addresses = append(addresses, f.Addr())
	}
	return addresses, err
}

// lookUpPort resolves every destination's name with the port, so that an address that came from elsewhere is known by
// its name, if it has one. Not more often than it can help.
func (p *Proxy) lookUpPort(ctx context.Context, r *rules, port uint16) {
	n := p.names
	n.mu.Lock()
	l := n.ports[port]
	recent := l != nil && time.Since(l.at) < lookUpEvery
	if !recent {
		l = &lookup{done: make(chan struct{}), at: time.Now()}
		n.ports[port] = l
	}
	n.mu.Unlock()
	if recent {
		select {
		case <-l.done:
		case <-ctx.Done():
		}
		return
	}
	defer close(l.done)
	var all sync.WaitGroup
	for _, h := range r.byPort[port] {
		if !h.IsAddress() {
			all.Go(func() { p.lookUp(ctx, r, h.Name) })
		}
	}
	all.Wait()
}

// newResolver asks the name servers in turn; nil, the system's, if there are none.
func newResolver(servers []string) (*net.Resolver, error) {
	if len(servers) == 0 {
		return nil, nil
	}
	for _, s := range servers {
		if _, err := netip.ParseAddrPort(s); err != nil {
			return nil, fmt.Errorf("resolvers: %q is not address:port", s)
		}
	}
	var turn atomic.Uint32
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		// The one connection here that does not go down the line: to a server that the operator named, for a name that
		// a destination has.
		var d net.Dialer
		return d.DialContext(ctx, network, servers[int(turn.Add(1)-1)%len(servers)])
	}}, nil
}

// searchDomains are those of a resolv.conf, each with a leading dot.
func searchDomains(file string) (domains []string) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(content)) {
		f := strings.Fields(line)
		if len(f) > 1 && (f[0] == "search" || f[0] == "domain") {
			domains = nil // the last line counts (resolv.conf(5))
			for _, d := range f[1:] {
				domains = append(domains, "."+strings.ToLower(strings.Trim(d, ".")))
			}
		}
	}
	return domains
}
