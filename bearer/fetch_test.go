package bearer

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/safedial"
)

func TestDiscovery(t *testing.T) {
	s := newSigner("k1", "ES256")
	const rfc8414, openid = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
	for _, test := range []struct {
		name, path string                            // the issuer's path
		at         string                            // where the metadata is
		metadata   func(base, issuer string) string  // what it says
		guard      func(base string) *safedial.Guard // nil for the usual one
		says       string                            // why there are no keys; empty when there are
	}{
		{name: "RFC 8414", at: rfc8414},
		{name: "RFC 8414, issuer with a path", path: "/tenant/a", at: rfc8414 + "/tenant/a"},
		{name: "RFC 8414, issuer with a slash at the end", path: "/tenant/", at: rfc8414 + "/tenant"},
		{name: "OpenID Connect", at: openid},
		{name: "OpenID Connect, issuer with a path", path: "/tenant/a", at: "/tenant/a" + openid},
		{name: "nowhere", at: "/elsewhere", says: "status 404"},
		{name: "another issuer", at: rfc8414, metadata: func(base, _ string) string {
			return mustJSON(object{"issuer": "https://evil.example", "jwks_uri": base + "/jwks"})
		}, says: `it is of issuer "https://evil.example"`},
		{name: "the issuer with a slash more", at: rfc8414, metadata: func(base, issuer string) string {
			return mustJSON(object{"issuer": issuer + "/", "jwks_uri": base + "/jwks"})
		}, says: "it is of issuer"},
		{name: "no issuer", at: rfc8414, metadata: func(base, _ string) string {
			return mustJSON(object{"jwks_uri": base + "/jwks"})
		}, says: "it is of issuer"},
		{name: "the issuer twice", at: rfc8414, metadata: func(base, issuer string) string {
			return fmt.Sprintf(`{"issuer":"https://evil.example","issuer":%q,"jwks_uri":%q}`, issuer, base+"/jwks")
		}, says: "twice"},
		{name: "no jwks_uri", at: rfc8414, metadata: func(_, issuer string) string {
			return mustJSON(object{"issuer": issuer})
		}, says: "jwks_uri"},
		{name: "jwks_uri over http on another host", at: rfc8414, metadata: func(_, issuer string) string {
			return mustJSON(object{"issuer": issuer, "jwks_uri": "http://keys.example/jwks"})
		}, says: "neither https nor on the issuer's own host"},
		{name: "jwks_uri over http on another port", at: rfc8414, metadata: func(_, issuer string) string {
			return mustJSON(object{"issuer": issuer, "jwks_uri": "http://127.0.0.1:1/jwks"})
		}, says: "neither https nor on the issuer's own host"},
		{name: "jwks_uri of a file", at: rfc8414, metadata: func(_, issuer string) string {
			return mustJSON(object{"issuer": issuer, "jwks_uri": "file:///etc/passwd"})
		}, says: "not an http or https URL"},
		{name: "jwks_uri at the cloud's metadata service", at: rfc8414, metadata: func(_, issuer string) string {
			return mustJSON(object{"issuer": issuer, "jwks_uri": "https://169.254.169.254/latest"})
		}, says: "RFC 3927"},
		{name: "jwks_uri on loopback, elsewhere", at: rfc8414, metadata: func(_, issuer string) string {
			return mustJSON(object{"issuer": issuer, "jwks_uri": "https://127.0.0.1:1/jwks"})
		}, says: "Loopback"},
		{name: "a guard that does not allow the issuer", at: rfc8414, guard: func(string) *safedial.Guard { return &safedial.Guard{} }, says: "Loopback"},
		{name: "a guard that does", at: rfc8414, guard: func(base string) *safedial.Guard {
			return &safedial.Guard{Allow: []string{strings.TrimPrefix(base, "http://")}}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := newAuthServer(t, s.jwk())
			issuer := server.URL + test.path
			metadata := mustJSON(object{"issuer": issuer, "jwks_uri": server.URL + "/jwks"})
			if test.metadata != nil {
				metadata = test.metadata(server.URL, issuer)
			}
			server.change(func() {
				server.metadata = func(path string) (int, string) {
					if path == test.at {
						return http.StatusOK, metadata
					}
					return http.StatusNotFound, "no"
				}
			})
			o := Options{}
			if test.guard != nil {
				o.Guard = test.guard(server.URL)
			}
			v := mustVerifierAt(t, quick, o, Issuer{Issuer: issuer, Audience: []string{testAudience}, Keys: Keys{Discovery: true}})
			if test.says == "" {
				ready(t, v)
				if code := codeOf(t, v, s.token(with(goodClaims(time.Now()), object{"iss": issuer}))); code != "" {
					t.Error(code)
				}
				return
			}
			eventually(t, "a reason that says "+test.says, func() bool { return strings.Contains(fmt.Sprint(v.Ready()), test.says) })
			if server.count("/jwks") != 0 {
				t.Error("the key set was fetched")
			}
		})
	}
}

// A cluster is an issuer like others: its keys are at its own API, which safedial otherwise refuses under any allow.
func TestClusterAsIssuer(t *testing.T) {
	s := newSigner("k1", "ES256")
	server := newAuthServer(t, s.jwk())
	host, port, err := net.SplitHostPort(strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", host)
	t.Setenv("KUBERNETES_SERVICE_PORT", port)
	issuer := Issuer{Issuer: "https://kubernetes.default.svc", Audience: []string{testAudience}, Keys: Keys{URI: server.URL + "/jwks"}}
	guard := &safedial.Guard{Allow: []string{host + ":" + port}}
	for _, test := range []struct {
		guard *safedial.Guard
		says  string
	}{{nil, ""}, {guard, "kubernetes-api"}} {
		v := mustVerifierAt(t, quick, Options{Guard: test.guard}, issuer)
		if test.says == "" {
			ready(t, v)
			continue
		}
		eventually(t, "a reason that says "+test.says, func() bool { return strings.Contains(fmt.Sprint(v.Ready()), test.says) })
	}
}

func TestKeysURI(t *testing.T) {
	for _, test := range []struct {
		issuer, uri string
		ok          bool
	}{
		{"https://as.example", "https://as.example/jwks", true},
		{"https://as.example", "https://keys.example/jwks", true},
		{"https://as.example", "http://as.example/jwks", false},
		{"https://as.example", "http://as.example:443/jwks", false},
		{"http://as.example", "http://as.example/jwks", true},
		{"http://as.example", "http://as.example:80/jwks", true},
		{"http://as.example/a", "http://as.example/b", true},
		{"http://as.example", "http://as.example:8080/jwks", false},
		{"http://as.example", "http://keys.as.example/jwks", false},
		{"http://as.example", "http://as.example@evil.example/jwks", false},
		{"http://[::1]:80", "http://[::1]/jwks", true},
		{"http://as.example", "//as.example/jwks", false},
		{"http://as.example", "", false},
		{"http://as.example", "data:application/json,{}", false},
	} {
		if err := checkKeysURI(test.issuer, test.uri); (err == nil) != test.ok {
			t.Errorf("%s, %s: %v", test.issuer, test.uri, err)
		}
	}
}

func TestFetchAsksPlainly(t *testing.T) {
	seen := make(chan http.Header, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=120")
		io.WriteString(w, "{}")
		seen <- r.Header
	}))
	defer server.Close()
	fetched, err := get(t.Context(), server.Client(), server.URL)
	if err != nil || string(fetched.data) != "{}" || fetched.maxAge != 2*time.Minute {
		t.Errorf("%+v, %v", fetched, err)
	}
	if header := <-seen; header.Get("Accept-Encoding") != "identity" || header.Get("Cookie") != "" || header.Get("Authorization") != "" {
		t.Errorf("asked with %v", header)
	}
}
