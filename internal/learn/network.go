package learn

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/safedial"
)

// destination is one of egress.destinations.
type destination struct {
	name, protocol string
	hosts          []string // "host:port"
	kept           string   // its text, where it is in the file already
}

const portDNS = 53

// sockets chooses the unix sockets that may be connected to.
func (p *profile) sockets() {
	for _, s := range p.seen.Sockets {
		err := p.given.Guard.CheckSocket(s)
		switch {
		case err != nil:
			p.warn(s, "connect: "+reason(err))
		case !plain(s):
			p.leave(s, "its name cannot be written in the file")
		case slices.ContainsFunc(p.given.Private, func(q string) bool { return within(s, q) }):
			p.warn(s, "connect: it is sallyport's own")
		default:
			p.unix = append(p.unix, s)
		}
	}
	slices.Sort(p.unix)
	p.unix = slices.Compact(p.unix)
}

// connections chooses the destinations. One that the file names and that was used is kept as it stands, since it may say
// more than can be seen.
func (p *profile) connections() error {
	present, err := p.present()
	if err != nil {
		return err
	}
	used := map[int]bool{}
	for _, c := range p.seen.Connects {
		switch {
		case p.named(present, used, c):
		case c.To.Port() == portDNS: // led to our own name server
		case c.To.Port() == 0: // nobody is there
		default:
			p.connection(c)
		}
	}
	for i, d := range present {
		if used[i] {
			p.old = append(p.old, d)
		} else {
			p.unused = append(p.unused, d)
		}
	}
	p.nameThem()
	return nil
}

// named marks the destinations of the file that a connection belongs to.
func (p *profile) named(present []destination, used map[int]bool, c Connect) (found bool) {
	port := strconv.Itoa(int(c.To.Port()))
	for _, host := range append(slices.Clone(c.Names), c.To.Addr().String()) {
		for i, d := range present {
			if slices.Contains(d.hosts, net.JoinHostPort(host, port)) {
				used[i], found = true, true
			}
		}
	}
	return found
}

// connection judges one that the file does not name.
func (p *profile) connection(c Connect) {
	var hosts []string
	for _, n := range c.Names {
		if _, err := netip.ParseAddr(n); err == nil || n != strings.ToLower(n) || strings.HasSuffix(n, ".") || safedial.Host(n) != nil {
			continue // nobody can have looked that up; an address is known by itself
		}
		if err := p.given.Guard.Check(n, c.To); locked(err) {
			p.warn(at(n, c.To), "connect: "+reason(err))
			return
		}
		hosts = append(hosts, n)
	}
	err := p.given.Guard.Check("", c.To)
	where := c.To.String()
	switch {
	case locked(err):
		p.warn(where, "connect: "+reason(err))
		return
	case len(hosts) > 0: // a name may lead to a private address, if it is written down
		where = at(hosts[0], c.To)
	case err != nil:
		p.warn(where, fmt.Sprintf("connect: %s; it was asked for without a name, and whoever has the address tomorrow would be trusted. If it was meant: {name: %s, hosts: [%q], for: any, protocol: %s}",
			reason(err), slug(c.To.Addr().String()), where, protocol(c.To.Port())))
		return
	default:
		hosts = []string{c.To.Addr().String()}
	}
	if c.Refused {
		p.leave(where, "connect: it was refused while learning; the audit log says why")
		return
	}
	for _, h := range hosts {
		p.add(h, c.To.Port())
	}
}

// locked reports whether a refusal is one that no destination lifts.
func locked(err error) bool {
	d, ok := err.(*safedial.DeniedError)
	return err != nil && (!ok || d.Code != safedial.CodeSpecialAddress)
}

func reason(err error) string {
	if d, ok := err.(*safedial.DeniedError); ok && d.Reason != "" {
		return d.Reason
	}
	return err.Error()
}

func at(host string, to netip.AddrPort) string {
	return fmt.Sprintf("%s (%s)", net.JoinHostPort(host, strconv.Itoa(int(to.Port()))), to.Addr())
}

// add puts a host beside the others of its name and protocol.
func (p *profile) add(host string, port uint16) {
	where := net.JoinHostPort(host, strconv.Itoa(int(port)))
	name, proto := slug(host), protocol(port)
	for i := range p.fresh {
		if d := &p.fresh[i]; d.name == name && d.protocol == proto {
			if !slices.Contains(d.hosts, where) {
				d.hosts = append(d.hosts, where)
			}
			return
		}
	}
	p.fresh = append(p.fresh, destination{name: name, protocol: proto, hosts: []string{where}})
}

// protocol is a guess by the port, which a person must look at.
func protocol(port uint16) string {
	switch port {
	case 443:
		return "tls"
	case 80:
		return "http"
	}
	return "tcp"
}

// slug makes a destination's name of a host.
func slug(host string) string {
	s := strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			return r
		}
		return '-'
	}, host)
	s = strings.Trim(s, "-")
	return cmp.Or(s[:min(len(s), 60)], "host")
}

// nameThem makes the new names unique, and puts them in order.
func (p *profile) nameThem() {
	slices.SortFunc(p.fresh, func(a, b destination) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.protocol, b.protocol))
	})
	taken := map[string]bool{}
	for _, d := range p.old {
		taken[d.name] = true
	}
	for i := range p.fresh {
		d := &p.fresh[i]
		slices.Sort(d.hosts)
		base := d.name
		for n := 2; taken[d.name]; n++ {
			d.name = fmt.Sprintf("%s-%d", base, n)
		}
		taken[d.name] = true
	}
}

// hosts are those of all destinations.
func (p *profile) hosts() (list []string) {
	for _, d := range slices.Concat(p.old, p.fresh) {
		list = append(list, d.hosts...)
	}
	return list
}
