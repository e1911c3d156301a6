package config

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/policy"
)

// introspection decodes how an issuer is asked about tokens; nil: it is not.
func (r *reader) introspection(issuer *value) *bearer.Introspection {
	v := issuer.get("introspection")
	if !v.isSet {
		return nil
	}
	i := &bearer.Introspection{
		Endpoint:       v.get("endpoint").raw,
		ClientID:       v.get("client_id").text(),
		SecretFile:     v.get("client_secret_file").text(),
		KeyFile:        v.get("private_key_file").text(),
		CertFile:       v.get("client_certificate").get("cert").text(),
		CertificateKey: v.get("client_certificate").get("key").text(),
		CAFile:         v.get("ca_file").text(),
		Signed:         v.get("signed_response").yes(),
		Cache:          30 * time.Second,
		Prefix:         v.get("prefix").text(),
	}
	if c := v.get("cache"); c.ok {
		i.Cache = c.duration()
	}
	if c := v.get("client_certificate"); c.ok && strings.HasPrefix(i.Endpoint, "http://") {
		r.fail(c, "write an https endpoint", "the endpoint is http, where no certificate is shown")
	}
	if s := v.get("signed_response"); i.Signed && !issuer.get("keys").isSet {
		r.fail(s, "add `keys: discovery`", "the issuer has no keys that answers could be verified with")
	}
	if k := issuer.get("kind"); k.ok && k.text() != bearer.KindOAuth {
		r.fail(v, "remove it: its tokens are verified by their signatures", "an issuer of kind %s is no authorization server that could be asked", k.text())
	}
	if t := issuer.get("token_types"); t.isSet && !issuer.get("keys").isSet {
		r.warn(t, "remove it", "says nothing here: the issuer is asked about every token, and an answer has no `typ`")
	}
	return i
}

// opaque checks that it is clear which issuer is asked about an opaque token.
func (r *reader) opaque(issuers *value) {
	first := map[string]int{}
	for n, e := range issuers.entries {
		if ev := e.get("events"); ev.isSet && !e.get("keys").isSet && e.get("introspection").isSet {
			r.fail(ev, "add `keys: discovery`", "events are signed, and the issuer has no keys to verify them with")
		}
		v := e.get("introspection")
		if !v.ok {
			continue
		}
		prefix, at := v.get("prefix").text(), v
		if v.get("prefix").isSet {
			at = v.get("prefix")
		}
		for _, other := range slices.Sorted(maps.Keys(first)) {
			if other == prefix || prefix != "" && other != "" && (strings.HasPrefix(prefix, other) || strings.HasPrefix(other, prefix)) {
				r.fail(at, "write a `prefix` for each by which its tokens can be told apart", "also of ingress.issuers[%d].introspection: which of the two would be asked about an opaque token?", first[other])
				break
			}
		}
		if _, again := first[prefix]; !again {
			first[prefix] = n
		}
	}
}

// metadata decodes what the gate tells of itself, and the route on which it does; nil: it tells nothing.
func (r *reader) metadata(v *value, in *Ingress) *policy.Route {
	m := v.get("resource_metadata")
	switch {
	case !m.ok:
		return nil
	case m.is(text) && m.text() != "serve":
		in.ResourceMetadata = m.raw // as written: clients compare it
		return nil
	}
	public := v.get("public_url")
	if public.wrong() {
		return nil
	}
	route, err := ingress.MetadataRoute(in.PublicURL)
	at, _ := ingress.MetadataURL(in.PublicURL)
	if err != nil {
		r.fail(m, "write `public_url`, as clients know this API: `https://api.example.com`", "cannot be served: %s", oneLine(err.Error()))
		return nil
	}
	in.ResourceMetadata = at.String()
	in.Metadata = &ingress.Metadata{
		Resource: in.PublicURL, Name: m.get("name").text(),
		Certificates: in.TLS != nil && in.TLS.ClientCA+in.TLS.ClientCertificates != "",
	}
	for _, issuer := range in.Issuers {
		if issuer.Kind == "" || issuer.Kind == bearer.KindOAuth { // the others give tokens to nobody who asks
			in.Metadata.Servers = append(in.Metadata.Servers, issuer.Issuer)
		}
	}
	for _, e := range v.get("routes").entries {
		if match := e.get("match"); match.ok && takes(match.text(), at) {
			r.fail(match, "remove the route, or name another place in `resource_metadata`", "the gate answers there itself: ingress.resource_metadata")
			return nil
		}
		if name := e.get("name"); name.ok && name.text() == route.Name {
			r.fail(name, "give it another name", "is the name of the route that ingress.resource_metadata is served on")
			return nil
		}
	}
	return &route
}

// takes reports whether a route's pattern is that path, whatever its method.
func takes(match string, at *url.URL) bool {
	_, path, _ := strings.Cut(match, " ")
	return strings.EqualFold(strings.TrimSuffix(strings.TrimSpace(path), "/"), at.EscapedPath())
}

// tell adds the scopes of the routes to the metadata, where everybody may see them.
func (in *Ingress) tell(v *value) {
	if in.Metadata == nil || !v.get("resource_metadata").get("scopes").yes() {
		return
	}
	for _, route := range in.Routes {
		in.Metadata.Scopes = append(in.Metadata.Scopes, slices.Concat(route.Scopes, route.AnyScope)...)
	}
	slices.Sort(in.Metadata.Scopes)
	in.Metadata.Scopes = slices.Compact(in.Metadata.Scopes)
}

// metadataText admits `serve`, and where metadata may be fetched.
func metadataText(s string) (problem, hint string) {
	if s == "serve" {
		return "", ""
	}
	return fetchURL(s)
}

// wholeSeconds admits what a client can be told in seconds.
func wholeSeconds(s string) (problem, hint string) {
	if d, err := time.ParseDuration(s); err == nil && d%time.Second != 0 {
		return "is not a whole number of seconds", fmt.Sprintf("for example `%s`", max(d.Round(time.Second), time.Second))
	}
	return "", ""
}
