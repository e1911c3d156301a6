package ingress

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/proof"
)

const (
	wellKnown   = "/.well-known/oauth-protected-resource"
	metadataAge = "max-age=300"
)

// Metadata is what the gate says of itself to clients that look for an authorization server (RFC 9728). It is public.
type Metadata struct {
	Resource     string   // Config.PublicURL; required
	Servers      []string // the issuers of access tokens
	Scopes       []string // empty: they are not told
	Name         string   // for people; empty: none
	Certificates bool     // tokens that are bound to a client certificate are accepted
}

// MetadataURL is where the metadata of a resource are: the well-known path stands between its host and its own path (RFC 9728,
// section 3.1). It fails on what is no resource identifier of clients elsewhere: https, or http on loopback.
func MetadataURL(resource string) (*url.URL, error) {
	resource, err := CheckPublicURL(resource)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(resource)
	if err != nil || resource == "" {
		return nil, errors.New("there is no public_url, which is the name of the resource")
	}
	address, err := netip.ParseAddr(u.Hostname())
	if loopback := u.Hostname() == "localhost" || err == nil && address.IsLoopback(); u.Scheme != "https" && !loopback {
		return nil, errors.New("public_url is http: a client must not believe what it is told there")
	}
	at, err := url.Parse(u.Scheme + "://" + u.Host + wellKnown + u.EscapedPath())
	if err != nil {
		return nil, fmt.Errorf("public_url: %w", err)
	}
	return at, nil
}

// MetadataRoute is the route by which metadata are found, decided on and recorded as any other's.
func MetadataRoute(resource string) (policy.Route, error) {
	at, err := MetadataURL(resource)
	if err != nil {
		return policy.Route{}, err
	}
	return policy.Route{
		Name: "resource-metadata", Match: "GET " + at.EscapedPath(), Local: true,
		Public: &policy.Public{Reason: "the resource's metadata (RFC 9728)", Owner: "sallyport", Expires: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)},
	}, nil
}

// document writes the metadata out (RFC 9728, section 2).
func (m *Metadata) document() ([]byte, error) {
	d := struct {
		Resource     string   `json:"resource"`
		Servers      []string `json:"authorization_servers,omitempty"`
		Scopes       []string `json:"scopes_supported,omitempty"`
		Methods      []string `json:"bearer_methods_supported"`
		Name         string   `json:"resource_name,omitempty"`
		Certificates bool     `json:"tls_client_certificate_bound_access_tokens"`
		Proofs       []string `json:"dpop_signing_alg_values_supported"`
	}{m.Resource, m.Servers, m.Scopes, []string{"header"}, m.Name, m.Certificates, proof.Algorithms()}
	return json.Marshal(d)
}

// newMetadata checks that what is told is told where the route is, and of this gate.
func newMetadata(r Rules, publicURL string) ([]byte, error) {
	if r.Metadata == nil {
		return nil, nil
	}
	if strings.TrimSuffix(r.Metadata.Resource, "/") != publicURL || publicURL == "" {
		return nil, errors.New("metadata: the resource is not this gate's public_url: no client would believe it (RFC 9728, section 3.3)")
	}
	if _, err := MetadataURL(publicURL); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	document, err := r.Metadata.document()
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	return document, nil
}

// local answers a request that was allowed, and is on record, by the gate itself.
func (x *exchange) local() {
	if x.rules.metadata == nil {
		x.fail(codeInternal) // a policy has a route for what there is not
		return
	}
	h := x.w.Header()
	clear(h)
	x.identify(h)
	x.rules.cors.allow(h, x.r)
	h.Set("Cache-Control", metadataAge)
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	if x.mustClose() {
		x.hangUp(h, policy.AllowedPublic)
	}
	x.w.WriteHeader(http.StatusOK)
	x.w.Write(x.rules.metadata)
}
