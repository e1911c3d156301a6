package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/safedial"
)

const dnsPort = 53

// Connect decides where a connection goes that a broker holds: to us, directly, or nowhere. done is called once: at
// once, if nothing has to be awaited, or later by another goroutine. What goes directly, and what is refused, is on record
// by then; what is led to us is recorded when it is opened, since only then all is known of it.
func (p *Proxy) Connect(a Attempt, done func(Way)) {
	answered := false
	defer func() {
		if v := recover(); v != nil {
			p.begin(viaLed).fault(v)
			if !answered {
				done(Way{})
			}
		}
	}()
	if a.Network == "tcp" {
		w, ok := p.leads(a)
		if !ok && p.decidesAtOnce(a) {
			w, ok = p.address(a), true
		}
		if ok {
			answered = true
			done(w)
			return
		}
	}
	answered = true // by the goroutine
	go func() {
		var w Way
		defer func() {
			if v := recover(); v != nil {
				p.begin(viaLed).fault(v)
				w = Way{}
			}
			done(w)
		}()
		w = p.way(a)
	}()
}

// leads answers for what needs neither a record nor a look at a name server: a connection to us.
func (p *Proxy) leads(a Attempt) (Way, bool) {
	r := p.rules.Load()
	if p.isEntrance(a.To) {
		return Way{Via: a.To}, true
	}
	if slices.Contains(p.entrances.Load().program, a.To) {
		return p.lead(&errand{to: a.To, process: a.Process, proxy: true}), true
	}
	select {
	case <-p.led.ready:
	default:
		return Way{}, false
	}
	hosts := p.names.hosts(r, a.To)
	e := &errand{to: a.To, process: a.Process, hosts: hosts}
	switch {
	case len(hosts) == 0 && a.To.Port() == dnsPort && len(r.byPort[dnsPort]) == 0:
		e.dns = true
	case len(hosts) == 0, p.inFlight.Load() >= int64(p.config.Limits.Tunnels):
		return Way{}, false
	default:
		for _, h := range hosts {
			if r.direct(h) || r.guard.Check(h.Name, a.To) != nil {
				return Way{}, false
			}
		}
	}
	return p.lead(e), true
}

// decidesAtOnce reports whether a direct connection can be decided and recorded without waiting for anything. Then the
// broker's own thread does it: another would have to be woken, and that takes longer than the rest.
func (p *Proxy) decidesAtOnce(a Attempt) bool {
	if !p.Led().IsValid() || !p.config.Audit.Prompt() {
		return false
	}
	r := p.rules.Load()
	hosts := p.names.hosts(r, a.To)
	return len(hosts) > 0 && !slices.ContainsFunc(hosts, func(h policy.Host) bool { return !r.direct(h) })
}

// lead is the way to us, where the errand is taken up.
func (p *Proxy) lead(e *errand) Way {
	var from netip.AddrPort
	via := p.led.address
	if e.proxy {
		via = e.to
	}
	return Way{
		Via:   via,
		Begun: func(a netip.AddrPort) { from = a; p.led.announce(a, e) },
		Ended: func(err error) {
			if err != nil && from.IsValid() {
				p.led.withdraw(from)
			}
		},
	}
}

// direct reports whether a host's connections go by themselves.
func (r *rules) direct(h policy.Host) bool {
	exit, _ := r.exits.Select(policy.Outbound{Host: h})
	return exit.Destination != nil && r.destinations[exit.Destination.Name].Direct
}

// isEntrance reports whether a listener of ours serves as a proxy there.
func (p *Proxy) isEntrance(to netip.AddrPort) bool {
	for _, e := range p.entrances.Load().tcp {
		if e == to || e.Addr().IsUnspecified() && to.Addr().IsLoopback() && e.Port() == to.Port() {
			return true
		}
	}
	return false
}

// way is Connect for what takes time.
func (p *Proxy) way(a Attempt) Way {
	switch a.Network {
	case "unix":
		return p.socket(a)
	case "udp":
		if a.To.Port() == dnsPort && p.Led().IsValid() {
			return Way{Via: p.led.dns}
		}
		x := p.begin(viaLed)
		x.process = a.Process
		x.out.Host = policy.Host{Name: a.To.Addr().String(), Port: a.To.Port()}
		x.denyAs(codeNetwork, "UDP is let out nowhere")
		x.record()
		return x.refuseConnect()
	case "tcp":
		return p.address(a)
	}
	return Way{}
}

// address decides about a TCP connection by its address, with the names that it has now.
func (p *Proxy) address(a Attempt) Way {
	ctx, cancel := context.WithTimeout(context.Background(), p.config.Limits.DialTimeout)
	defer cancel()
	select {
	case <-p.led.ready:
	case <-ctx.Done():
	}
	r := p.rules.Load()
	hosts := p.names.hosts(r, a.To)
	if len(hosts) == 0 {
		p.lookUpPort(ctx, r, a.To.Port())
		hosts = p.names.hosts(r, a.To)
	}
	e := &errand{to: a.To, process: a.Process, hosts: hosts}
	if e.dns = len(hosts) == 0 && a.To.Port() == dnsPort; e.dns {
		return p.lead(e)
	}
	x := e.begin(p, viaLed)
	x.rules = r
	for i, h := range hosts {
		// The first that may be: what is led is decided on once more, with what can be seen of it.
		x.out.Host, x.refused = h, nil
		if err := r.guard.Check(h.Name, a.To); err == nil || i == len(hosts)-1 {
			break
		}
	}
	return x.lead(e)
}

// lead is the straight line up to the dial, which is the broker's: destination, decide by name, decide by address, cause,
// record. What is led to us is judged by its cause when it is opened, since only then it may present a capability.
func (x *passage) lead(e *errand) Way {
	defer x.leave() // what the broker connects is not ours to count
	x.fixed = e.to
	switch {
	case !x.admit():
	case !x.find():
	case !x.byAttempt():
	case !x.resolve(context.Background()):
	case !x.byAddress():
	case x.rules.direct(x.out.Host):
		if x.via = viaDirect; x.caused() {
			x.decide()
		}
	case !x.p.Led().IsValid():
		x.denyAs(codeClosing, "connections are not led anywhere: nobody serves them")
	default:
		return x.p.lead(e)
	}
	if x.record() && x.decision.Allowed() {
		return Way{Via: e.to, Ended: x.ended}
	}
	return x.refuseConnect()
}

// byAttempt is byName for a connection of which nothing can be seen yet: methods and paths are judged when they are there.
func (x *passage) byAttempt() bool {
	if x.destination == nil {
		return true // in report mode
	}
	_, d := x.rules.exits.Select(x.out)
	return d.Code == "" || d.Code == policy.NotJudged || x.deny(d)
}

// refuseConnect is the way of a denial, which is on record.
func (x *passage) refuseConnect() Way {
	x.outcome()
	if x.decision.Code == codeLimit {
		return Way{Errno: syscall.EAGAIN}
	}
	return Way{}
}

// ended is the outcome of a connection that the broker made.
func (x *passage) ended(err error) {
	if err != nil {
		x.unreachable(context.Background(), err)
	}
	x.outcome()
}

// socket decides about a unix socket, by its real path.
func (p *Proxy) socket(a Attempt) Way {
	if slices.Contains(p.entrances.Load().unix, a.Path) {
		return Way{Allow: true}
	}
	x := p.begin(viaSocket)
	x.process = a.Process
	x.out.Path = a.Path
	if err := x.rules.escapeSocket(a.Path); errors.As(err, &x.refused) {
		x.refuse()
	} else if err != nil {
		x.denyAs(codeInternal, err.Error())
	} else if d := x.rules.exits.DecideSocket(a.Path, x.rules.Sockets); d.Allowed() || !x.deny(d) {
		x.decision = d
	}
	if x.record() && x.decision.Allowed() {
		return Way{Allow: true, Ended: x.ended}
	}
	return x.refuseConnect()
}

// escapeSocket refuses a socket of the escape-target registry: by its path, or because it is the same socket under
// another path.
func (r *rules) escapeSocket(socket string) error {
	if err := r.guard.CheckSocket(socket); err != nil {
		return err
	}
	here, err := os.Stat(socket)
	if err != nil {
		return nil // there is nothing that could be another's
	}
	for _, e := range safedial.Escapes() {
		if e.Kind != "socket" {
			continue
		}
		if there, err := os.Stat(e.Value); err == nil && os.SameFile(here, there) {
			if err := r.guard.CheckSocket(e.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// entrances are the listeners of Serve. The service may connect to them, since what it says there is judged.
type entrances struct {
	tcp     []netip.AddrPort
	program []netip.AddrPort // of ServeProgram
	unix    []string
}

func (p *Proxy) enter(a net.Addr, program bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.entrances.Load()
	made := entrances{slices.Clone(old.tcp), slices.Clone(old.program), slices.Clone(old.unix)}
	if to, err := netip.ParseAddrPort(a.String()); err == nil && program {
		made.program = append(made.program, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
	} else if err == nil {
		made.tcp = append(made.tcp, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
	} else {
		made.unix = append(made.unix, a.String())
	}
	p.entrances.Store(&made)
}
