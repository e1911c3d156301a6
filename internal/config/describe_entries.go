package config

// entries are the other ways in than ingress.listen: where one of them is, that need not be.
func entries() []string { return []string{"forward_auth", "ext_authz"} }

func describeForwardAuth() key {
	return key{name: "forward_auth", kind: section, example: `{listen: "127.0.0.1:9191", from: [127.0.0.1/32], dialect: nginx}`,
		doc:   "A listener at which a proxy asks over HTTP whether a request may pass, and forwards it itself: nginx, Traefik, Caddy, Envoy with an `http_service`. See doc/entry-points.md.",
		unset: "no proxy is answered",
		keys: []key{
			{name: "listen", kind: address, required: true, example: `"127.0.0.1:9191"`,
				doc: "Where it asks: `host:port` or `unix:PATH`. Never where callers can: whoever asks says who the client is."},
			describeFrom("at a `host:port` the file is refused: whoever asks could say that they are anyone; a unix socket has no addresses"),
			{name: "dialect", kind: text, required: true, enum: []string{"nginx", "traefik", "caddy", "envoy"}, example: "nginx",
				doc: "How it says what the request is. Headers of another dialect, which a client can send, say nothing."},
		}}
}

func describeExtAuthz() key {
	return key{name: "ext_authz", kind: section, example: `{listen: "unix:/run/sallyport/authz.sock"}`,
		doc:   "A listener at which Envoy asks over gRPC (`envoy.service.auth.v3.Authorization`) whether a request may pass, and forwards it itself. See doc/entry-points.md.",
		unset: "Envoy is not answered",
		keys: []key{
			{name: "listen", kind: address, required: true, example: `"unix:/run/sallyport/authz.sock"`,
				doc: "Where it asks: `unix:PATH`, or `host:port`, on loopback or with `from`. Never where callers can: whoever asks says who the client is."},
			describeFrom("whoever reaches the unix socket or the loopback port may ask; at another `host:port` the file is refused"),
		}}
}

func describeFrom(unset string) key {
	return key{name: "from", kind: sequence, least: 1, example: "[10.1.2.3/32]",
		doc:   "The addresses of the proxies that may ask; any other is answered 403. An entry that is not a range, and one wider than any private network (/8, or /7 for IPv6), is an error.",
		unset: unset, item: &key{kind: prefix, example: "10.1.2.3/32"}}
}
