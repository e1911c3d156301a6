package ingress

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/policy"
)

// telling is a stage that serves its metadata.
func telling(t *testing.T, public string, change func(*stage)) *stage {
	return open(t, func(s *stage) {
		own, err := MetadataRoute(public)
		if err != nil {
			t.Fatal(err)
		}
		at, err := MetadataURL(public)
		if err != nil {
			t.Fatal(err)
		}
		p, err := policy.New(append(testRoutes(), own))
		if err != nil {
			t.Fatal(err)
		}
		s.config.Rules.Policy = p
		s.config.PublicURL, s.config.ResourceMetadata = public, at.String()
		s.config.Rules.Metadata = &Metadata{
			Resource: public, Servers: []string{s.issuer.URL}, Scopes: []string{"orders:read"}, Name: "Orders", Certificates: true,
		}
		if change != nil {
			change(s)
		}
	})
}

// TestMetadata holds the answer to RFC 9728: its place (section 3.1), its form (section 3.2), its members (section 2), and the
// challenge that leads there (section 5.1).
func TestMetadata(t *testing.T) {
	for public, path := range map[string]string{
		"https://api.example.com":           "/.well-known/oauth-protected-resource",
		"https://api.example.com:8443":      "/.well-known/oauth-protected-resource",
		"https://api.example.com/orders/v1": "/.well-known/oauth-protected-resource/orders/v1",
	} {
		s := telling(t, public, nil)
		a, _ := s.ask(get("/orders/1"))
		challenge := strings.Join(a.Header["Www-Authenticate"], ",")
		host := strings.TrimPrefix(public, "https://")
		if i := strings.IndexByte(host, '/'); i >= 0 {
			host = host[:i]
		}
		if want := `resource_metadata="https://` + host + path + `"`; a.StatusCode != 401 || !strings.Contains(challenge, want) {
			t.Errorf("%s: %d, challenge %s, want %s", public, a.StatusCode, challenge, want)
		}
		a, _ = s.ask(get(path))
		var got map[string]any
		if err := json.Unmarshal([]byte(a.body), &got); err != nil {
			t.Fatalf("%d %q: %v", a.StatusCode, a.body, err)
		}
		want := map[string]any{
			"resource": public, "authorization_servers": []any{s.issuer.URL}, "bearer_methods_supported": []any{"header"},
			"scopes_supported": []any{"orders:read"}, "resource_name": "Orders", "tls_client_certificate_bound_access_tokens": true,
			"dpop_signing_alg_values_supported": []any{"ES256", "ES384", "EdDSA", "RS256", "PS256"},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
		if a.StatusCode != 200 || a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Cache-Control") != "max-age=300" || a.Header.Get("X-Request-Id") == "" {
			t.Errorf("%d %v", a.StatusCode, a.Header)
		}
		head, _ := s.ask("HEAD " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
		if head.StatusCode != 200 || head.body != "" || head.Header.Get("Content-Length") != a.Header.Get("Content-Length") {
			t.Errorf("HEAD: %d %v", head.StatusCode, head.Header)
		}
		s.service.Untouched(t)
		decisions, _ := s.settled(3)
		if d := decisions[1]; d.Decision != "allow" || d.Code != "public" || d.Route != "resource-metadata" || d.Path != path {
			t.Errorf("recorded %+v", d)
		}
		for name, raw := range map[string]string{
			"POST":         request("POST", path, ""),
			"in capitals":  get(strings.ToUpper(path)),
			"with a slash": get(path + "/"),
			"below":        get(path + "/x"),
			"a token":      get(path + "?access_token=x"),
		} {
			if a, _ := s.ask(raw); a.StatusCode < 400 {
				t.Errorf("%s: %d", name, a.StatusCode)
			}
		}
		s.service.Untouched(t)
		if a, p := s.ask(request("GET", path, "body")); a.StatusCode != 200 || !p.closed() {
			t.Errorf("with a body: %d", a.StatusCode)
		}
	}
}

// TestMetadataNeedsARecord holds that this answer, too, is given only when it is on record.
func TestMetadataNeedsARecord(t *testing.T) {
	s := telling(t, publicURL, nil)
	s.audit.fail(errors.New("no space left"))
	if a, _ := s.ask(get("/.well-known/oauth-protected-resource")); a.StatusCode != 503 || a.code != "audit_unavailable" {
		t.Errorf("%d %s %s", a.StatusCode, a.code, a.body)
	}
	e := s.gateway.Explain(t.Context(), "GET", "/.well-known/oauth-protected-resource", "localhost", bearer.Token{})
	if !e.Decision.Allowed() || !strings.Contains(e.Steps[1].Detail, "answered by the gate itself") {
		t.Errorf("%+v", e)
	}
}

func TestMetadataIsOfThisGate(t *testing.T) {
	for name, change := range map[string]func(*stage){
		"another resource": func(s *stage) { s.config.Rules.Metadata.Resource = "https://other.example" },
		"no public URL":    func(s *stage) { s.config.PublicURL = "" },
		"over http": func(s *stage) {
			s.config.PublicURL, s.config.Rules.Metadata.Resource = "http://a.example", "http://a.example"
		},
	} {
		s := setStage(t, func(s *stage) {
			s.config.PublicURL = publicURL
			s.config.Rules.Metadata = &Metadata{Resource: publicURL}
		})
		change(s)
		if _, err := New(s.config); err == nil {
			t.Errorf("%s: it builds", name)
		}
	}
	// a policy with the route, and nothing to tell
	s := telling(t, publicURL, func(s *stage) { s.config.Rules.Metadata = nil })
	if a, _ := s.ask(get("/.well-known/oauth-protected-resource")); a.StatusCode != 500 {
		t.Errorf("%d", a.StatusCode)
	}
	s.service.Untouched(t)
}

// TestMetadataIsNotAsked holds that a proxy which asks is not told to hand the request for the metadata to the service, which has none:
// the gate answers that itself, or nobody does.
func TestMetadataIsNotAsked(t *testing.T) {
	s := telling(t, publicURL, nil)
	v := s.gateway.Ask(t.Context(), s.inquiry("/.well-known/oauth-protected-resource"))
	if v.Allowed || v.Status != 404 || v.Code != policy.NoRoute || v.Forward != nil {
		t.Errorf("%+v", v)
	}
	if decisions, _ := s.settled(1); decisions[0].Decision != "deny" || decisions[0].Route != "resource-metadata" {
		t.Errorf("recorded %+v", decisions[0])
	}
	if a, _ := s.ask(get("/.well-known/oauth-protected-resource")); a.StatusCode != 200 {
		t.Errorf("asked itself: %d", a.StatusCode)
	}
}
