package config

// describeProxyProtocol is ingress.proxy_protocol.
func describeProxyProtocol() key {
	return key{name: "proxy_protocol", kind: section, example: "{from: [10.1.2.0/24]}",
		doc: "Load balancers that say in a PROXY protocol header (version 1 or 2), before all else on a connection, who has connected to them. One without is closed. " +
			"The address stands for the peer's own, `trusted_proxies` included.",
		unset: "a header of that kind is a malformed request, whoever sends it",
		keys: []key{
			{name: "from", kind: sequence, example: "[10.1.2.0/24]",
				doc:   "Who must send the header, and is believed. Not on a unix socket, where whoever `peers` names must send it.",
				unset: "required, but on a unix socket", item: &key{kind: prefix, example: "10.1.2.0/24"}},
		}}
}

// describePeers is ingress.peers.
func describePeers() key {
	id := func(name, example, of, unset string) key {
		return key{name: name, kind: sequence, example: example, doc: "The " + of + " that may connect, as the kernel tells them (SO_PEERCRED).", unset: unset,
			item: &key{kind: integer, min: 0, max: 4294967294, example: "1000"}}
	}
	return key{name: "peers", kind: section, example: "{uids: [1000]}", either: [][]string{{"uids", "gids"}},
		doc:   "Which processes may connect to a unix socket (`listen: unix:PATH`); others are closed. A process may that is in either list.",
		say:   "`{uids: [1000]}` or `{gids: [1000]}`",
		unset: "whoever the file's mode and folder let",
		keys: []key{
			id("uids", "[1000]", "users", "only `gids` counts"),
			id("gids", "[1000]", "primary groups", "only `uids` counts"),
		}}
}

// describeSPIFFE is ingress.tls.spiffe.
func describeSPIFFE() key {
	return key{name: "spiffe", kind: section, example: "{trust_domain: example.org}",
		doc:   "The client's certificate must be an X.509-SVID of this trust domain. It needs `client_ca`: the authorities of the domain. Its SPIFFE ID is in the audit record.",
		unset: "any certificate that `client_ca` vouches for will do",
		keys: []key{
			{name: "trust_domain", kind: text, required: true, example: "example.org", pattern: `^[a-z0-9._-]{1,255}$`, shape: "made of a-z, 0-9, `.`, `_` and `-`", doc: "The trust domain's name."},
			{name: "ids", kind: sequence, least: 1, example: "[spiffe://example.org/ns/shop/sa/cart]", doc: "The SPIFFE IDs that may connect, byte for byte.", unset: "every ID of the trust domain may",
				item: &key{kind: text, check: spiffeID, example: "spiffe://example.org/ns/shop/sa/cart"}},
		}}
}
