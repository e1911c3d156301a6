package config

func describeProtocols() key {
	return key{name: "protocols", kind: sequence, least: 1, def: "[http/1.1]", example: "[http/1.1, h2]",
		doc: "What callers may speak: `http/1.1`; `h2`, which is HTTP/2 over `tls`; `h2c`, which is HTTP/2 without, from the first byte and never by an upgrade. " +
			"gRPC needs one of the two, and an `upstream` that begins with `h2c:` or `unix+h2c:`.",
		unset: "they speak HTTP/1.1", item: &key{kind: text, enum: []string{"http/1.1", "h2", "h2c"}}}
}

const (
	upstreamPattern = `^((http|h2c)://[^ /?#@]+:[0-9]+/?|unix(\+h2c)?:///[^ ?#]+)$`
	upstreamShape   = "http://HOST:PORT, unix:///PATH, h2c://HOST:PORT or unix+h2c:///PATH"
)
