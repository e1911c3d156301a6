package config

import (
	"net/url"
	"strings"

	"github.com/sallyport/sallyport/internal/ingress"
)

// doors decodes who may connect, and who says who has connected.
func (r *reader) doors(v *value, in *Ingress) {
	listen, protocol, peers := v.get("listen"), v.get("proxy_protocol"), v.get("peers")
	if peers.isSet {
		in.Peers = &ingress.Peers{UIDs: ids(peers.get("uids")), GIDs: ids(peers.get("gids"))}
		if listen.ok && !isUnix(in.Listen) {
			r.fail(peers, "remove it, or listen on `unix:PATH`", "only a unix socket tells which process has connected")
		}
		if peers.ok && len(in.Peers.UIDs)+len(in.Peers.GIDs) == 0 {
			r.fail(peers, "name at least one, or remove the key: then "+peers.key.unset, "names nobody: no process could connect")
		}
	}
	if protocol.isSet {
		in.ProxyProtocol = &ingress.ProxyProtocol{From: prefixes(protocol.get("from"))}
		from := protocol.get("from")
		switch {
		case !listen.ok || from.wrong():
		case isUnix(in.Listen) && len(from.entries) > 0:
			r.fail(from, "remove it, and name the processes in ingress.peers", "the peers of a unix socket have no address")
		case isUnix(in.Listen) && !peers.isSet:
			r.fail(protocol, "name the proxy's user: `peers: {uids: [1000]}`", "without ingress.peers whoever reaches the socket could say who they are")
		case !isUnix(in.Listen) && len(from.entries) == 0:
			r.fail(protocol, "for example `from: [10.1.2.0/24]`", "must say in `from` whose headers are believed")
		}
	}
}

// spiffe decodes what a client's certificate must be.
func (r *reader) spiffe(v *value, ca *value) *ingress.SPIFFE {
	if !v.isSet {
		return nil
	}
	s := &ingress.SPIFFE{TrustDomain: v.get("trust_domain").text(), IDs: v.get("ids").texts()}
	if !ca.isSet {
		r.fail(v, "write `client_ca: FILE`, with the authorities of the trust domain", "needs ingress.tls.client_ca: nothing else says who may issue an SVID")
	}
	for _, e := range v.get("ids").entries {
		if u, err := url.Parse(e.text()); e.ok && v.get("trust_domain").ok && (err != nil || u.Host != s.TrustDomain) {
			r.fail(e, "begin it with `spiffe://"+s.TrustDomain+"/`", "is not of the trust domain")
		}
	}
	return s
}

func spiffeID(s string) (problem, hint string) {
	if err := ingress.CheckSPIFFEID(s); err != nil {
		return "is no SPIFFE ID: " + oneLine(err.Error()), "for example `spiffe://example.org/ns/shop/sa/cart`"
	}
	return "", ""
}

func ids(v *value) []uint32 {
	var out []uint32
	for _, e := range v.entries {
		if e.ok {
			out = append(out, uint32(e.number())) // its bounds are those of an id
		}
	}
	return out
}

func isUnix(address string) bool { return strings.HasPrefix(address, "unix:") }
