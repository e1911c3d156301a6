package config

import (
	"net"
	"net/netip"
	"strings"
)

// ForwardAuth is the listener at which a proxy asks over HTTP.
type ForwardAuth struct {
	Listen  string         // "host:port" or "unix:PATH"
	From    []netip.Prefix // who may ask; empty at a unix socket only
	Dialect string         // "nginx", "traefik", "caddy" or "envoy"
}

// ExtAuthz is the listener at which Envoy asks over gRPC.
type ExtAuthz struct {
	Listen string         // "host:port" or "unix:PATH"
	From   []netip.Prefix // who may ask; empty at a unix socket and on loopback only
}

func (r *reader) entries(v *value, in *Ingress) {
	if f := v.get("forward_auth"); f.isSet {
		in.ForwardAuth = &ForwardAuth{Listen: f.get("listen").text(), From: prefixes(f.get("from")), Dialect: f.get("dialect").text()}
		r.from(f, false)
	}
	if e := v.get("ext_authz"); e.isSet {
		in.ExtAuthz = &ExtAuthz{Listen: e.get("listen").text(), From: prefixes(e.get("from"))}
		r.from(e, true)
	}
	listen, upstream := v.get("listen"), v.get("upstream")
	asks := v.get("forward_auth").isSet || v.get("ext_authz").isSet
	switch {
	case !asks: // both are required
	case listen.isSet && !upstream.isSet:
		r.fail(listen, "write `upstream: http://127.0.0.1:3000`, or remove `listen` where a proxy forwards", "without ingress.upstream there is nowhere to forward to")
	case upstream.isSet && !listen.isSet:
		r.fail(upstream, "write `listen: \":8080\"`, or remove `upstream` where a proxy forwards", "without ingress.listen nothing comes in that could be forwarded")
	case v.get("tls").isSet && !listen.isSet:
		r.fail(v.get("tls"), "remove it: the proxy that asks speaks TLS to clients", "is of ingress.listen, and there is none")
	}
}

// from refuses a listener at which anybody could ask.
func (r *reader) from(v *value, loopbackMayAsk bool) {
	listen, from := v.get("listen"), v.get("from")
	if !listen.ok || from.wrong() {
		return
	}
	host, _, err := net.SplitHostPort(listen.text())
	switch {
	case strings.HasPrefix(listen.text(), "unix:"):
		if from.isSet {
			r.fail(from, "remove it: who may open the socket's file may ask", "on a unix socket nobody has an address")
		}
	case from.isSet:
	case err == nil && loopbackMayAsk && loopback(host):
	default:
		r.fail(v, "name the proxies: `from: [10.1.2.3/32]`", "without from anybody could ask, and say that they are anyone")
	}
}

// door is a listener of ours: its key, and where it is.
type door struct{ key, address string }

// asked are the listeners at which proxies ask, as far as they are there.
func (in *Ingress) asked() []door {
	var out []door
	if f := in.ForwardAuth; f != nil {
		out = append(out, door{"ingress.forward_auth.listen", f.Listen})
	}
	if e := in.ExtAuthz; e != nil {
		out = append(out, door{"ingress.ext_authz.listen", e.Listen})
	}
	return out
}

// apart checks that a listener at which proxies ask is no other door of ours, nor the service's.
func (r *reader) apart(v *value, f *File) {
	others := []door{{"ingress.listen", f.Ingress.Listen}, {"admin.listen", f.Admin.Listen}, {"egress.listen", f.Egress.Listen}}
	if u := f.Ingress.Upstream; u != nil {
		others = append(others, door{"ingress.upstream", addressOf(u)})
	}
	for _, d := range f.Ingress.asked() {
		section, _ := strings.CutPrefix(strings.TrimSuffix(d.key, ".listen"), "ingress.")
		at := v.get("ingress").get(section).get("listen")
		for _, o := range others {
			if at.ok && o.address != "" && samePlace(d.address, o.address) {
				r.fail(at, "give it a port or a socket of its own", "the same as %s", o.key)
			}
		}
		others = append(others, d)
	}
}
