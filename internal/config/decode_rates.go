package config

import (
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/limit"
)

// rateLimits decodes what is not a route's own.
func (r *reader) rateLimits(v *value, in *Ingress) ingress.RateLimits {
	failures := v.get("failures")
	limits := ingress.RateLimits{
		Source: r.rate(v.get("source")),
		Caller: r.rate(v.get("caller")),
		Failures: limit.Lockout{
			Count: int(failures.get("count").number()), Within: failures.get("within").duration(), For: failures.get("lockout").duration(),
		},
	}
	limits.Shared = v.get("shared").yes()
	for _, by := range []*value{v.get("source"), failures} {
		if by.isSet && isUnix(in.Listen) && in.ProxyProtocol == nil {
			r.fail(by, "set ingress.proxy_protocol and ingress.peers, and have the proxy in front send its header",
				"the peers of a unix socket have no address: all would be one source")
		}
	}
	return limits
}

// rate decodes one rate. What no single key shows is wrong with it is found here.
func (r *reader) rate(v *value) limit.Rate {
	rate := limit.Rate{Requests: int(v.get("requests").number()), Per: v.get("per").duration(), Burst: int(v.get("burst").number())}
	if !v.isSet || !v.ok {
		return limit.Rate{}
	}
	if err := rate.Check(); err != nil {
		r.fail(v, "lower `burst`, or `per`", "%s", oneLine(err.Error()))
	}
	return rate
}
