package config

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/state"
)

// decode fills a File from what was read. It runs even where something is wrong, so that errors about two keys at once
// are reported together with those about one; each such check looks only at values that are ok.
func (r *reader) decode(v *value, now time.Time) *File {
	f := &File{
		Ingress: r.ingress(v.get("ingress"), now),
		Audit:   r.audit(v.get("audit")),
		State:   r.state(v.get("state")),
		Watch:   watch(v.get("watch")),
		Admin:   Admin{Listen: v.get("admin").get("listen").text()},

		Reload:    reload(v.get("reload")),
		Telemetry: telemetry(v.get("telemetry")),
		AccessLog: AccessLog{File: v.get("access_log").get("file").text()},
	}
	f.Keys = r.keys(v.get("keys"), f.Ingress.Assertion != nil)
	f.Sandbox = r.sandbox(v.get("sandbox"), f.Ingress.Upstream)
	f.Preload = v.get("sandbox").get("preload").text()
	f.Egress = r.egress(v.get("egress"), v.get("sandbox").get("sockets"), f.Sandbox)
	r.together(v, f)
	return f
}

func (r *reader) ingress(v *value, now time.Time) Ingress {
	in := Ingress{
		Listen:    v.get("listen").text(),
		Upstream:  v.get("upstream").url(),
		Protocols: r.protocols(v),
		Issuers:   r.issuers(v.get("issuers")),
		CORS:      r.cors(v.get("cors")),
		Limits:    limits(v.get("limits")),
		Realm:     v.get("realm").text(),
		KeepKeys:  v.get("keep_keys").text(),

		TokenCache: r.tokenCache(v.get("token_cache")),
		PublicURL:  strings.TrimSuffix(v.get("public_url").raw, "/"),
	}
	if t := v.get("tls"); t.isSet {
		in.TLS = &TLS{
			Cert: t.get("cert").text(), Key: t.get("key").text(), ClientCA: t.get("client_ca").text(), ClientCertificates: t.get("client_certificates").text(),
		}
		in.SPIFFE = r.spiffe(t.get("spiffe"), t.get("client_ca"))
		if c := t.get("client_certificates"); c.isSet && t.get("client_ca").isSet {
			r.fail(c, "remove it: `client_ca` requires a certificate already", "excludes ingress.tls.client_ca")
		}
	}
	in.Engine = r.engine(v, &in)
	in.Events = events(v.get("issuers"))
	in.TrustedProxies = prefixes(v.get("trusted_proxies"))
	r.doors(v, &in)
	in.RateLimits = r.rateLimits(v.get("rate_limits"), &in)
	if a := v.get("assertion"); a.isSet {
		in.Assertion = assertion(a)
		r.reuse(a.get("reuse"), in.Assertion)
	}
	r.entries(v, &in)
	r.proofs(v, &in)
	in.Hops = r.hops(v.get("hops"), in.Assertion)
	r.opaque(v.get("issuers"))
	in.Routes, in.Policy = r.routes(v.get("routes"), now, r.metadata(v, &in))
	in.tell(v)
	if u := in.Upstream; u != nil && !onSocket(u) {
		u.Path = "" // "/" and nothing are the same place
		if !loopback(u.Hostname()) {
			r.warn(v.get("upstream"), "`serve` only: `run` confines its program to loopback, and could not reach it there",
				"the service is not on this machine's loopback: make sure that it can be reached through this gate alone")
		}
	}
	return in
}

// proofs refuses routes that ask for what nobody could show here.
func (r *reader) proofs(v *value, in *Ingress) {
	keys := in.PublicURL != "" || v.get("public_url").wrong()
	certificates := v.get("tls").wrong() || in.TLS != nil && (in.TLS.ClientCA != "" || in.TLS.ClientCertificates != "")
	for _, e := range v.get("routes").entries {
		if c := e.get("sender_constrained"); c.text() == "required" && !keys && !certificates {
			r.fail(c, "set ingress.public_url for DPoP; or ingress.tls.client_certificates or client_ca for bound certificates", "nobody could prove anything here: there is neither a public_url nor a client certificate")
		}
		if c := e.get("dpop_nonce"); c.ok && !keys {
			r.fail(c, "set ingress.public_url", "without ingress.public_url no DPoP proof is accepted")
		}
	}
}

// prefixes are the entries of a list that are right.
func prefixes(v *value) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range v.entries {
		if p.ok {
			out = append(out, p.prefix())
		}
	}
	return out
}

func (r *reader) issuers(v *value) []bearer.Issuer {
	var out []bearer.Issuer
	first := make(map[string]int)
	for i, e := range v.entries {
		is := bearer.Issuer{
			Audience:    e.get("audience").texts(),
			Algorithms:  e.get("algorithms").texts(),
			TokenTypes:  e.get("token_types").texts(),
			MaxLifetime: e.get("max_lifetime").duration(),
			Leeway:      e.get("leeway").duration(),
			Required:    e.get("claims").get("required").texts(),
			Only:        e.get("claims").get("only").texts(),
			ScopeClaim:  e.get("scope_claim").text(),
		}
		if u := e.get("issuer"); u.ok {
			is.Issuer = u.raw
			if before, again := first[is.Issuer]; again {
				r.fail(u, "one issuer is described once: join the two", "the same as ingress.issuers[%d]", before)
			} else {
				first[is.Issuer] = i
			}
		}
		is.Keys = issuerKeys(e.get("keys"))
		r.privateKeys(e.get("keys"))
		r.kindOf(e, &is)
		is.Introspection = r.introspection(e)
		out = append(out, is)
	}
	r.trustDomains(v, out)
	return out
}

// events is under which names each issuer's security events are taken.
func events(v *value) map[string][]string {
	out := map[string][]string{}
	for _, e := range v.entries {
		if issuer := e.get("issuer"); issuer.ok && e.get("events").isSet {
			out[issuer.raw] = e.get("events").get("audience").texts()
		}
	}
	return out
}

func issuerKeys(v *value) bearer.Keys {
	if v.is(text) {
		return bearer.Keys{Discovery: v.text() == "discovery"}
	}
	return bearer.Keys{
		URI: v.get("jwks_uri").raw, File: v.get("jwks_file").text(), CAFile: v.get("ca_file").text(), TokenFile: v.get("token_file").text(),
	}
}

func assertion(v *value) *Assertion {
	a := &Assertion{
		Issuer:      v.get("issuer").text(),
		Audience:    v.get("audience").text(),
		TrustDomain: v.get("trust_domain").text(),
		Lifetime:    v.get("lifetime").duration(),
		Header:      v.get("header").text(),
		Claims:      v.get("claims").texts(),
	}
	if a.Lifetime == 0 {
		a.Lifetime = time.Minute
	}
	if a.Header == "" {
		a.Header = "Txn-Token"
	}
	return a
}

// hops decodes the gates whose word is taken, which takes a name of our own and a trust domain in common.
func (r *reader) hops(v *value, a *Assertion) []Hop {
	var out []Hop
	first := make(map[string]int)
	for i, e := range v.entries {
		h := Hop{
			Issuer:  e.get("issuer").text(),
			Keys:    bearer.Keys{URI: e.get("keys").get("jwks_uri").raw, File: e.get("keys").get("jwks_file").text()},
			Scopes:  e.get("scopes").texts(),
			Callers: e.get("callers").texts(),
		}
		if n := e.get("issuer"); n.ok {
			if before, again := first[h.Issuer]; again {
				r.fail(n, "one gate is described once: join the two", "the same as ingress.hops[%d]", before)
			} else {
				first[h.Issuer] = i
			}
			if a != nil && h.Issuer == cmp.Or(a.Issuer, "sallyport") {
				r.fail(n, "give each gate an `assertion.issuer` of its own", "our own name: what we tell our service would open this gate")
			}
		}
		out = append(out, h)
	}
	if v.isSet && (a == nil || a.TrustDomain == "") {
		r.fail(v, "write `assertion: {audience: NAME, trust_domain: DOMAIN}`, with the domain that the other gates write too",
			"without ingress.assertion.trust_domain nobody can say that a transaction is meant for this service")
	}
	return out
}

func (r *reader) cors(v *value) *ingress.CORS {
	if !v.isSet {
		return nil
	}
	c := &ingress.CORS{
		Origins:     v.get("origins").texts(),
		Methods:     v.get("methods").texts(),
		Headers:     v.get("headers").texts(),
		Expose:      v.get("expose").texts(),
		Credentials: v.get("credentials").yes(),
		MaxAge:      v.get("max_age").duration(),
	}
	if c.Credentials && slices.Contains(c.Origins, "*") {
		r.fail(v.get("credentials"), "name the origins, or remove `credentials`", "any origin, with the browser's credentials, is every site its user visits")
	}
	return c
}

func limits(v *value) ingress.Limits {
	return ingress.Limits{
		HeaderBytes:     int(v.get("header_bytes").number()),
		HeaderFields:    int(v.get("header_fields").number()),
		BodyBytes:       v.get("body_bytes").number(),
		HeaderTimeout:   v.get("header_timeout").duration(),
		BodyTimeout:     v.get("body_timeout").duration(),
		IdleTimeout:     v.get("idle_timeout").duration(),
		UpstreamTimeout: v.get("upstream_timeout").duration(),
		Requests:        int(v.get("requests").number()),
		Connections:     int(v.get("connections").number()),
		Streams:         int(v.get("streams").number()),
		DrainTimeout:    v.get("drain_timeout").duration(),
	}
}

// routes decodes the routes and has the policy compile those that could be read, and our own: what the policy finds wrong is
// reported at the key that it names.
func (r *reader) routes(v *value, now time.Time, own *policy.Route) ([]policy.Route, *policy.Policy) {
	var routes []policy.Route
	var from []*value // the value of each route
	for _, e := range v.entries {
		route := r.route(e, now)
		if e.ok {
			routes, from = append(routes, route), append(from, e)
		}
	}
	if len(v.entries) == 0 && v.ok == v.isSet {
		r.warn(v, "name the ways in: `{name: read-order, match: \"GET /orders/{id}\", scopes: [orders:read]}`", "there is no route: every request is answered 404")
	}
	all := routes
	if own != nil {
		all = append(slices.Clone(routes), *own)
	}
	p, err := policy.New(all)
	for _, one := range flatten(err) {
		var re *policy.RouteError
		if !errors.As(one, &re) || re.Index < 0 || re.Index >= len(from) {
			r.fail(v, "", "%s", oneLine(one.Error()))
			continue
		}
		at := from[re.Index]
		switch f := at.get(re.Field); {
		case re.Field == "any_scope":
			at = at.get("scopes")
		case f.isSet:
			at = f
		}
		r.fail(at, oneLine(re.Hint), "%s", oneLine(re.Err.Error()))
	}
	return routes, p
}

func (r *reader) route(v *value, now time.Time) policy.Route {
	scopes, when, public := v.get("scopes"), v.get("when"), v.get("public")
	route := policy.Route{
		Name:        v.get("name").text(),
		Match:       v.get("match").text(),
		When:        strings.TrimSpace(when.text()),
		AllowInPath: v.get("allow_in_path").texts(),
		Upgrades:    v.get("upgrades").texts(),
		Headers:     v.get("headers").texts(),

		Bound:        v.get("sender_constrained").text() == "required",
		Nonce:        v.get("dpop_nonce").text() == "required",
		TokenID:      v.get("require_jti").yes(),
		Rate:         r.rate(v.get("rate_limit")),
		Unprivileged: v.get("privileged").ok && !v.get("privileged").yes(),

		ACR:    v.get("step_up").get("acr").texts(),
		MaxAge: v.get("step_up").get("max_age").duration(),
	}
	switch {
	case scopes.is(sequence) && len(scopes.entries) == 0:
		// Any verified caller; with a condition, any for whom it is true.
		route.AnyCaller = !when.isSet
	case scopes.is(sequence):
		route.Scopes = scopes.texts()
	default:
		route.Scopes, route.AnyScope = scopes.get("all").texts(), scopes.get("any").texts()
	}
	if public.isSet {
		route.Public = &policy.Public{Reason: public.get("reason").text(), Owner: public.get("owner").text(), Expires: public.get("expires").time()}
		if e := public.get("expires"); e.ok && !now.Before(e.time()) {
			r.warn(e, "give it a later date, or remove the route", "expired: the route is closed since %s", e.time().Format(time.DateOnly))
		}
	}
	if h := v.get("headers"); len(route.Headers) > 0 && !when.isSet {
		r.fail(h, "remove it", "headers are read by `when`, and there is none")
		v.ok = false
	}
	return route
}

// together checks what concerns more than one section.
func (r *reader) together(v *value, f *File) {
	listen, admin, upstream := v.get("ingress").get("listen"), v.get("admin").get("listen"), v.get("ingress").get("upstream")
	if listen.ok && admin.ok && samePlace(f.Ingress.Listen, f.Admin.Listen) {
		r.fail(admin, "give it a port or a socket of its own", "the same as ingress.listen: callers would reach what is for operators")
	}
	if upstream.ok {
		for _, l := range []*value{listen, admin} {
			if l.ok && samePlace(l.text(), addressOf(f.Ingress.Upstream)) {
				r.fail(l, "give it a port of its own", "the same as ingress.upstream: the gate would forward to itself")
			}
		}
	}
	r.apart(v, f)
	if log := v.get("access_log").get("file"); log.ok && f.AccessLog.File != "-" && f.AccessLog.File == f.Audit.File {
		r.fail(log, "give it a file of its own", "the same as audit.file: its lines would stand between those that are vouched for")
	}
	if shared := v.get("ingress").get("rate_limits").get("shared"); shared.yes() && f.State.Driver != state.NATS {
		r.warn(shared, "write `state: {driver: nats, url: [...]}` where there are several replicas", "there is nobody to count together with: the state is of this process alone")
	}
	r.behind(v, f)
	r.causes(v.get("egress"), f.Ingress)
	r.walls(v, f)
}

// addressOf is a URL's host and port, or its socket, as an address is written.
func addressOf(u *url.URL) string {
	if onSocket(u) {
		return "unix:" + u.Path
	}
	return u.Host
}

// samePlace reports whether two addresses would meet: the same socket, or the same port of the same or of every host.
func samePlace(a, b string) bool {
	if a == b {
		return !strings.HasSuffix(a, ":0")
	}
	if strings.HasPrefix(a, "unix:") || strings.HasPrefix(b, "unix:") {
		return false
	}
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	every := func(h string) bool { return h == "" || h == "0.0.0.0" || h == "::" }
	local := func(h string) bool { return loopback(h) || every(h) }
	return hostA == hostB || every(hostA) && local(hostB) || every(hostB) && local(hostA) ||
		loopback(hostA) && loopback(hostB) && (hostA == "localhost" || hostB == "localhost")
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

// oneLine folds what another package says into one line.
func oneLine(s string) string {
	return strings.Join(strings.Fields(s), " ")
}
