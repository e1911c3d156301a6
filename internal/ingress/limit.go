package ingress

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/limit"
	"github.com/sallyport/sallyport/internal/policy"
)

const (
	codeRateLimited policy.Code = "rate_limited"
	codeLockedOut   policy.Code = "locked_out" // the source has sent too many credentials that nobody could have been given
)

// RateLimits are how much may come from whom; zero values limit nothing. A route's own is in its policy.Route.
type RateLimits struct {
	Source   limit.Rate    // by the client's address, behind trusted proxies
	Caller   limit.Rate    // by issuer and subject, or client
	Failures limit.Lockout // of a source whose credentials were refused
	// Shared has replicas tell each other what they have counted (Config.Bus), routes' rates too: a limit then holds for all
	// together, but for what comes within the quarter of a second that telling takes. Replicas that cannot tell count alone.
	Shared bool
}

// How many are counted at once; what that means for who comes when a table is full, package limit says.
const (
	sourcePlaces = 1 << 17
	callerPlaces = 1 << 16
	routePlaces  = 1 << 16
)

// counters are what has been counted. They outlive the rules: a reload changes limits and forgets nothing.
type counters struct {
	keys                  limit.Keys
	began                 time.Time
	source, caller, route *limit.Meter // nil until there is something to count
	guard                 *limit.Guard
}

// limiter is what the rules in force limit, and where it is counted.
type limiter struct {
	RateLimits
	sourcePace, callerPace limit.Pace
	routePaces             map[string]limit.Pace // by the route's name, those that have one
	*counters
}

// limiter makes ready what rules limit. The caller holds live.swapping.
func (g *Gateway) limiter(r Rules) (*limiter, error) {
	l := &limiter{RateLimits: r.RateLimits, routePaces: map[string]limit.Pace{}}
	for _, c := range []struct {
		name string
		err  error
	}{{"source", r.RateLimits.Source.Check()}, {"caller", r.RateLimits.Caller.Check()}, {"failures", r.RateLimits.Failures.Check()}} {
		if c.err != nil {
			return nil, fmt.Errorf("rate_limits.%s: %w", c.name, c.err)
		}
	}
	for route := range r.Policy.Routes() {
		if p := route.Rate.Pace(); p.Limits() {
			l.routePaces[route.Name] = p
		}
	}
	l.sourcePace, l.callerPace = r.RateLimits.Source.Pace(), r.RateLimits.Caller.Pace()
	old := g.counters.Load()
	kept := counters{keys: limit.NewKeys(), began: g.now()}
	if old != nil {
		kept = *old
	}
	keep := func(m **limit.Meter, limits bool, places int) {
		if limits && *m == nil {
			*m = limit.NewMeter(places)
		}
	}
	keep(&kept.source, l.sourcePace.Limits(), sourcePlaces)
	keep(&kept.caller, l.callerPace.Limits(), callerPlaces)
	keep(&kept.route, len(l.routePaces) > 0, routePlaces)
	switch {
	case kept.guard != nil:
		kept.guard.Set(l.Failures)
	case l.Failures.Count > 0:
		kept.guard = limit.NewGuard(l.Failures)
	}
	l.counters = &kept
	g.counters.Store(&kept)
	return l, nil
}

// instant is a time as the counters have it. It does not jump when the clock is set.
func (c *counters) instant(t time.Time) int64 { return int64(t.Sub(c.began)) + int64(time.Second) }

// limited is what an exchange was refused for, by which limit; the zero value: it was not.
type limited struct {
	kind string // source, caller, route or lockout
	wait time.Duration
	rate limit.Rate
}

// source is who sent the request, once the forwarding headers of trusted proxies have been read. An error is for canonical to
// deny with.
func (x *exchange) source() error {
	if x.sourced {
		return x.sourceErr
	}
	x.sourced = true
	var source netip.Addr
	if source, x.sourceErr = clientAddress(x.request.Source, x.r.Header, x.g.config.TrustedProxies); x.sourceErr == nil {
		x.request.Source = source
	}
	return x.sourceErr
}

// limitSource counts the request before anything of it is read but who sent it. Whoever is locked out is told so here,
// whatever it sends.
func (x *exchange) limitSource() bool {
	l := x.rules.limiter
	if l.guard == nil && !l.sourcePace.Limits() || x.source() != nil {
		return true
	}
	key, now := l.keys.Source(x.request.Source), l.instant(x.began)
	if l.guard != nil && l.Failures.Count > 0 {
		if wait := l.guard.Locked(key, now); wait > 0 {
			return x.tooMuch(codeLockedOut, limited{"lockout", time.Duration(wait), limit.Rate{}})
		}
	}
	if l.sourcePace.Limits() {
		if wait := l.source.Take(key, l.sourcePace, now); wait > 0 {
			return x.tooMuch(codeRateLimited, limited{"source", time.Duration(wait), l.Source})
		}
		x.spread(bySource, func() string { return sourceName(x.request.Source) })
	}
	return true
}

// limitCaller counts the request of a caller who is one, for the caller and for the route; on a public route for the source.
func (x *exchange) limitCaller() bool {
	l := x.rules.limiter
	now := l.instant(x.began)
	if l.callerPace.Limits() && x.caller != nil {
		who := x.counted("")
		if wait := l.caller.Take(l.keys.Of(who[:]...), l.callerPace, now); wait > 0 {
			return x.tooMuch(codeRateLimited, limited{"caller", time.Duration(wait), l.Caller})
		}
		x.spread(byCaller, func() string { return strings.Join(who[:], "\x00") })
	}
	route := x.selection.Route
	if pace, ok := l.routePaces[route.Name]; ok {
		who := x.counted(route.Name)
		if wait := l.route.Take(l.keys.Of(who[:]...), pace, now); wait > 0 {
			return x.tooMuch(codeRateLimited, limited{"route", time.Duration(wait), route.Rate})
		}
		x.spread(byRoute, func() string { return strings.Join(who[:], "\x00") })
	}
	return true
}

// counted is who is counted on a route, or on all, in words. None of them holds a NUL: no token does.
func (x *exchange) counted(route string) [4]string {
	switch c := x.caller; {
	case c == nil:
		return [4]string{route, "address", "", sourceName(x.request.Source)}
	case c.Subject != "":
		return [4]string{route, "subject", c.Issuer, c.Subject}
	default:
		return [4]string{route, "client", c.Issuer, c.Client}
	}
}

// sourceName is a source in words: of an IPv6 address its /64.
func sourceName(a netip.Addr) string {
	if a.Is6() {
		p, _ := a.Prefix(64) // fits every IPv6 address
		return p.String()
	}
	return a.String()
}

func (x *exchange) tooMuch(code policy.Code, l limited) bool {
	x.limited = l
	x.g.metrics.limited.WithLabelValues(l.kind).Inc()
	wait := l.wait.Round(time.Millisecond)
	if code == codeLockedOut {
		return x.deny(code, fmt.Sprintf("the source is locked out for another %s", wait))
	}
	return x.deny(code, fmt.Sprintf("%s: one more may come in %s", l.kind, wait))
}

// retryAfter tells the client when to come again (RFC 9110, section 10.2.3), and which limit it has met
// (draft-ietf-httpapi-ratelimit-headers-10).
func (l limited) retryAfter(h http.Header) {
	if l.kind == "" {
		return
	}
	seconds := strconv.FormatInt(int64((l.wait+time.Second-1)/time.Second), 10)
	h.Set("Retry-After", seconds)
	if l.rate.Requests > 0 {
		policy := `"` + l.kind + `";q=` + strconv.Itoa(l.rate.Requests)
		if l.rate.Per%time.Second == 0 {
			policy += ";w=" + strconv.FormatInt(int64(l.rate.Per/time.Second), 10)
		}
		h["RateLimit-Policy"] = []string{policy}
		h["RateLimit"] = []string{`"` + l.kind + `";r=0;t=` + seconds}
	}
}

// limits says what limits a request, for an explanation; empty: nothing does. What has been counted is not in it.
func (x *exchange) limits() string {
	l := x.rules.limiter
	var all []string
	add := func(who string, r limit.Rate) {
		if r.Requests > 0 {
			all = append(all, fmt.Sprintf("%s: %d in %s, %d at once", who, r.Requests, r.Per, cmp.Or(r.Burst, r.Requests)))
		}
	}
	add("each source", l.Source)
	if x.caller != nil {
		add("each caller", l.Caller)
		add("each caller on this route", x.selection.Route.Rate)
	} else {
		add("each source on this route", x.selection.Route.Rate)
	}
	if f := l.Failures; f.Count > 0 {
		all = append(all, fmt.Sprintf("%d forged credentials in %s lock a source out for %s", f.Count, f.Within, f.For))
	}
	return strings.Join(all, "; ")
}
