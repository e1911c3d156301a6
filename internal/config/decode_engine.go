package config

import "slices"

// engine decodes what speaks HTTP/1, and warns where that has nothing to do.
func (r *reader) engine(v *value, in *Ingress) string {
	e := v.get("engine")
	if !e.ok || e.text() != "http1" {
		return e.text()
	}
	const remove = "remove `engine`"
	speaks := in.Protocols
	switch {
	case in.Upstream == nil:
		r.warn(e, remove, "says nothing here: without an upstream no request is forwarded")
	case speaksHTTP2(in.Upstream):
		r.warn(e, "remove `engine`, or write `upstream: http://...` where the service speaks HTTP/1 too",
			"says nothing here: to a service that speaks HTTP/2 the library of Go speaks, and to callers then too")
	case len(speaks) > 0 && !slices.Contains(speaks, "http/1.1"):
		r.warn(e, "remove `engine`, or add http/1.1 to `protocols`", "says nothing here: callers do not speak HTTP/1")
	}
	return e.text()
}
