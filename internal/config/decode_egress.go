package config

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/credential"
	"github.com/sallyport/sallyport/internal/egress"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sandbox"
)

// egress decodes the gate behind. The sockets that it admits are the profile's, by the one name that a connection is
// judged by: who may connect to what is said once.
func (r *reader) egress(v, sockets *value, box sandbox.Profile) Egress {
	limits := v.get("limits")
	e := Egress{
		Listen: v.get("listen").text(),
		Rules: egress.Rules{
			Destinations: r.destinations(v.get("destinations")),
			Unlock:       r.unlock(v.get("unlock")),
			Deny:         v.get("deny").texts(),
			Sockets:      realPaths(box.Sockets),
			Report:       v.get("mode").text() == "report",
			Resolvers:    v.get("resolvers").texts(),
		},
		Limits: egress.Limits{
			DialTimeout:    limits.get("dial_timeout").duration(),
			HeaderTimeout:  limits.get("header_timeout").duration(),
			IdleTimeout:    limits.get("idle_timeout").duration(),
			TunnelLifetime: limits.get("tunnel_lifetime").duration(),
			Tunnels:        int(limits.get("tunnels").number()),
			HeaderBytes:    limits.get("header_bytes").number(),
			BodyBytes:      limits.get("body_bytes").number(),
		},
	}
	if e.Rules.Report {
		r.warn(v.get("mode"), "read the records with the code `would_deny`, write down what was meant, and remove `mode`", "what no destination names is recorded, and passes")
	}
	r.escapes(v, e.Rules, sockets)
	return e
}

func (r *reader) destinations(v *value) []egress.Destination {
	var out []egress.Destination
	names, hosts := make(map[string]int), make(map[string]int)
	for i, e := range v.entries {
		d := r.destination(e)
		if n := e.get("name"); n.ok {
			if before, again := names[d.Name]; again {
				r.fail(n, "a record must say which one it was", "the same as egress.destinations[%d]", before)
			} else {
				names[d.Name] = i
			}
		}
		for _, h := range e.get("hosts").entries {
			if !h.ok {
				continue
			}
			if before, again := hosts[h.text()]; again && before != i {
				r.fail(h, "name a place in one destination: which of the two would decide?", "also in egress.destinations[%d]", before)
			} else {
				hosts[h.text()] = i
			}
		}
		out = append(out, d)
	}
	return out
}

func (r *reader) destination(v *value) egress.Destination {
	d := egress.Destination{
		Name:      v.get("name").text(),
		Hosts:     v.get("hosts").texts(),
		For:       r.forWhom(v.get("for")),
		Protocol:  v.get("protocol").text(),
		Originate: v.get("tls").text() == "originate",
		CA:        v.get("ca_file").text(),
		Methods:   v.get("methods").texts(),
		Paths:     v.get("paths").texts(),
		Public:    v.get("addresses").text() == "public",
		Direct:    v.get("direct").yes(),

		Credential: credentialOf(v.get("credential")),
	}
	if p := v.get("protocol"); p.wrong() || v.get("tls").wrong() {
		return d // what follows would be about a protocol that nobody meant
	}
	if d.Originate && (d.Protocol == egress.ProtocolHTTP || d.Protocol == egress.ProtocolTCP) {
		r.fail(v.get("tls"), "remove `protocol`: the service speaks plain HTTP to us by itself then", "with `protocol: %s` nobody speaks TLS to the destination", d.Protocol)
		return d
	}
	if seen := d.Originate || d.Protocol == egress.ProtocolHTTP; !seen {
		for _, name := range []string{"methods", "paths"} {
			if k := v.get(name); k.isSet {
				r.fail(k, "`tls: originate`, if the service can speak plain HTTP to us; or remove it", "requests are not seen with `protocol: %s`, so nothing could be refused by this", protocolOf(d))
			}
		}
	}
	if ca := v.get("ca_file"); ca.isSet && !d.Originate {
		r.fail(ca, "add `tls: originate`, or remove it", "it is the service that verifies the destination, not we")
	}
	if c := v.get("credential"); d.Credential.Kind != "" && !d.Originate && d.Protocol != egress.ProtocolHTTP {
		r.fail(c, "`tls: originate`, if the service can speak plain HTTP to us; or remove it", "requests are not seen with `protocol: %s`, so nothing could be attached to them", protocolOf(d))
	}
	if e := v.get("credential").get("exchange"); e.ok && d.Credential.Audience+d.Credential.Resource == "" {
		r.fail(e, "add `audience` or `resource`, as the authorization server knows the destination", "does not say whom the token is for")
	}
	if direct := v.get("direct"); d.Direct && d.Protocol != egress.ProtocolTCP {
		r.fail(direct, "remove it, or write `protocol: tcp`", "what goes straight there is not seen, and `protocol: %s` is about what is sent", protocolOf(d))
	}
	if direct := v.get("direct"); d.Direct && v.get("for").ok && d.For.Narrow() {
		r.fail(direct, "remove it, or write `for: any`", "what goes straight there cannot be ended when a request begins that may not cause it")
	}
	for _, h := range v.get("hosts").entries {
		if _, err := netip.ParseAddrPort(h.text()); err == nil && d.Public {
			r.fail(v.get("addresses"), "remove it, or write the destination's name", "it says where names may be, and %s is an address", h.text())
		}
	}
	return d
}

// credentialOf is what is attached. The kind is the name of the key that is there.
func credentialOf(v *value) credential.Config {
	for _, kind := range []credential.Kind{credential.Forward, credential.Exchange, credential.Service, credential.File, credential.Assertion} {
		k := v.get(string(kind))
		if !k.isSet {
			continue
		}
		return credential.Config{
			Kind: kind, Audience: k.get("audience").text(), Scopes: k.get("scopes").texts(),
			TokenEndpoint: k.get("token_endpoint").raw, ClientID: k.get("client_id").text(), ClientSecretFile: k.get("client_secret_file").text(), Resource: k.get("resource").raw,
			Path: k.get("path").text(), Header: k.get("header").text(), Prefix: k.get("prefix").text(),
		}
	}
	return credential.Config{}
}

func (r *reader) forWhom(v *value) policy.For {
	if v.is(text) {
		return policy.For{Any: v.text() == "any", Background: v.text() == "background"}
	}
	f := policy.For{Routes: v.get("routes").texts(), Scopes: v.get("scopes").texts(), Background: v.get("background").yes()}
	if v.ok && !f.Background && len(f.Routes)+len(f.Scopes) == 0 {
		r.fail(v, "`{routes: [create-order]}`, `background` or `any`", "names no request, and nothing else: nothing could cause it")
	}
	return f
}

// causes checks that the routes that destinations are for are there, and that what is stated of a caller can be.
func (r *reader) causes(v *value, in Ingress) {
	var names []string
	for _, route := range in.Routes {
		names = append(names, route.Name)
	}
	for _, d := range v.get("destinations").entries {
		switch a := d.get("credential").get("assertion"); {
		case !a.ok:
		case in.Assertion == nil || in.Assertion.TrustDomain == "":
			r.fail(a, "`ingress: {assertion: {..., trust_domain: ...}}`", "two gates that believe each other are of one trust domain, and this one has none")
		case a.get("audience").text() == in.Assertion.Audience:
			r.fail(a.get("audience"), "the other service, as `ingress.assertion.audience` of the gate there names it", "is this service")
		}
		for _, name := range d.get("for").get("routes").entries {
			if name.ok && !slices.Contains(names, name.text()) {
				hint := suggest(name.text(), names)
				if hint == "" {
					hint = "the name of one of ingress.routes"
				}
				r.fail(name, hint, "there is no route of this name: no request could cause it")
			}
		}
	}
}

func protocolOf(d egress.Destination) string {
	if d.Protocol == "" {
		return egress.ProtocolTLS
	}
	return d.Protocol
}

func (r *reader) unlock(v *value) []egress.Unlock {
	var out []egress.Unlock
	first := make(map[string]int)
	for i, e := range v.entries {
		u := egress.Unlock{Name: e.get("name").text(), Reason: e.get("reason").text()}
		if n := e.get("name"); n.ok {
			if before, again := first[u.Name]; again {
				r.fail(n, "keep one of them", "the same as egress.unlock[%d]", before)
			} else {
				first[u.Name] = i
			}
		}
		out = append(out, u)
	}
	return out
}

// behind checks that the gate behind stands in nobody's way and leads to none of our own doors.
func (r *reader) behind(v *value, f *File) {
	listen := v.get("egress").get("listen")
	doors := []struct {
		key, address, why string
	}{
		{"ingress.listen", f.Ingress.Listen, "callers would reach the way out"},
		{"admin.listen", f.Admin.Listen, "the service would reach what is for operators"},
		{"ingress.upstream", "", "the gate in front would forward to the gate behind"},
	}
	if f.Ingress.Upstream != nil {
		doors[2].address = addressOf(f.Ingress.Upstream)
	}
	if listen.ok {
		for _, d := range doors {
			if d.address != "" && samePlace(f.Egress.Listen, d.address) {
				r.fail(listen, "give it a port or a socket of its own", "the same as %s: %s", d.key, d.why)
			}
		}
	}
	doors = append(doors, struct{ key, address, why string }{"egress.listen", f.Egress.Listen, ""})
	closed := doors[:2:2] // to the program
	for _, d := range f.Ingress.asked() {
		one := struct{ key, address, why string }{d.key, d.address, ""}
		doors, closed = append(doors, one), append(closed, one)
	}
	for _, e := range v.get("egress").get("destinations").entries {
		for _, h := range e.get("hosts").entries {
			for _, d := range doors {
				if h.ok && d.address != "" && samePlace(h.text(), d.address) {
					r.fail(h, "name the place that is meant; the service itself is reached through the gate in front", "is %s: a destination never leads to ourselves", d.key)
				}
			}
		}
	}
	for _, s := range v.get("sandbox").get("sockets").entries {
		for _, d := range closed {
			if s.ok && d.address == "unix:"+s.text() {
				r.fail(s, "remove it", "is %s: the program has no business there", d.key)
			}
		}
	}
	r.outgoing(v.get("sandbox"), f)
}

// outgoing checks what the profile says of connections against the gate that they would go through.
func (r *reader) outgoing(box *value, f *File) {
	network, udp, sockets := box.get("network"), box.get("udp"), box.get("sockets")
	p := f.Sandbox
	if network.wrong() {
		return
	}
	if udp.ok && p.UDP == "dns" && p.Network != "" && p.Network != "broker" {
		r.fail(udp, "remove it, or write `network: broker`", "with `network: %s` nobody leads names to our name server", p.Network)
	}
	if sockets.isSet && p.Network == "ports" {
		r.fail(sockets, "remove it, or write `network: broker`", "with `network: ports` the program has no unix socket at all: without the broker nobody can tell one from another")
	}
	switch {
	case p.Network == "ports" && f.Egress.Listen == "":
		r.warn(network, "`egress: {listen: 127.0.0.1:8081}`", "there is no egress.listen, so the program can connect to nobody")
	case p.Network == "ports" && strings.HasPrefix(f.Egress.Listen, "unix:"):
		r.warn(network, "`egress: {listen: 127.0.0.1:8081}`", "egress.listen is a unix socket, which the program cannot connect to")
	case p.Network == "none" && len(f.Egress.Rules.Destinations) > 0:
		r.warn(network, "`network: broker` leads the program to them", "egress.destinations are for others: the program has no internet socket")
	}
}
