package safedial

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Transport is an http.RoundTripper whose every connection goes through a Guard, for
// an http.Client that follows redirects. Each hop is judged anew. Once a chain of
// redirects has left the origin it began at (scheme, host and port: from http to https
// counts too), a request carries no credentials to an origin that was not the one they
// were for: the headers in Credentials, those known to hold credentials (Authorization,
// Proxy-Authorization, X-Api-Key and the like), Referer, whose query may hold some, and
// the cookies of other origins. What a cookie jar adds for the new origin stays.
// The body that a 307 or 308 asks to be sent again is sent.
//
// It knows a redirect by the request's Response, which http.Client sets. It may be used
// by many goroutines; its fields must not change once it has been used.
type Transport struct {
	// Guard decides about every connection; nil means the zero Guard.
	Guard *Guard
	// Base holds settings: TLS, time limits, sizes, idle connections, HTTP/2. It is
	// copied at the first use. Its proxy and its dial functions are not used, since
	// they would resolve and connect in the guard's place. Nil means HTTP/1.1 without
	// compression, at most 64 KiB of answer's headers, and the guard's time limit for
	// the TLS handshake.
	Base *http.Transport
	// Credentials names further request headers that hold credentials.
	Credentials []string

	once   sync.Once
	inner  *http.Transport
	secret map[string]bool
}

// RoundTrip makes one request, without following redirects, as http.RoundTripper asks.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.once.Do(t.build)
	if err := spelled(r.URL); err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	sent := r
	if strayed(r) {
		sent = r.Clone(r.Context())
		t.strip(sent)
	}
	response, err := t.inner.RoundTrip(sent)
	if response != nil {
		response.Request = r // the next hop's chain shows what each origin was meant to get
	}
	return response, err
}

// CloseIdleConnections closes the connections that no request uses.
func (t *Transport) CloseIdleConnections() {
	t.once.Do(t.build)
	t.inner.CloseIdleConnections()
}

func (t *Transport) build() {
	guard := t.Guard
	if guard == nil {
		guard = &Guard{}
	}
	if t.Base != nil {
		t.inner = t.Base.Clone()
	} else {
		t.inner = &http.Transport{
			TLSHandshakeTimeout:    guard.timeout(),
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        30 * time.Second,
		}
	}
	t.inner.Proxy = nil // a proxy would resolve and dial in our place
	t.inner.DialContext, t.inner.DialTLSContext = guard.Dial, nil
	t.inner.Dial, t.inner.DialTLS = nil, nil //lint:ignore SA1019 whoever sets them must not get past the guard
	t.secret = map[string]bool{}
	for name := range strings.FieldsSeq(credentialHeaders) {
		t.secret[name] = true
	}
	for _, name := range t.Credentials {
		t.secret[http.CanonicalHeaderKey(name)] = true
	}
}

// credentialHeaders are the request headers that are known to hold credentials: those
// of the standards, then those that widely used services ask for.
const credentialHeaders = `
	Authorization Proxy-Authorization Www-Authenticate Proxy-Authenticate Authentication-Info Cookie2 Dpop Referer
	X-Api-Key Api-Key Apikey X-Apikey X-Auth-Token X-Auth-Key X-Access-Token X-Token X-Csrf-Token X-Xsrf-Token X-Session-Token
	X-Forwarded-Access-Token X-Id-Token X-Amz-Security-Token X-Aws-Ec2-Metadata-Token X-Goog-Api-Key X-Goog-Iam-Authorization-Token
	X-Goog-Iap-Jwt-Assertion Ocp-Apim-Subscription-Key X-Functions-Key X-Ms-Token-Aad-Access-Token X-Vault-Token X-Consul-Token
	X-Nomad-Token Private-Token Job-Token Deploy-Token X-Gitlab-Token Circle-Token X-Shopify-Access-Token X-Plex-Token X-Registry-Auth`

// spelled refuses a URL whose host has several readings before anything turns it
// into one: net/http takes brackets off names and maps other scripts to ASCII.
func spelled(u *url.URL) error {
	if u == nil {
		return nil // the inner transport says what is missing
	}
	host := u.Hostname()
	address, err := netip.ParseAddr(host)
	if bracketed := strings.HasPrefix(u.Host, "["); bracketed != (err == nil && address.Is6()) {
		return &DeniedError{Host: u.Host, Code: CodeAmbiguousHost, Reason: "brackets are for IPv6 addresses, which need them"}
	}
	return Host(host)
}

// strayed says whether r continues a chain of redirects that has had another origin
// than r's. What cannot be known has.
func strayed(r *http.Request) bool {
	for hop := r.Response; hop != nil; hop = hop.Request.Response {
		if hop.Request == nil || hop.Request.URL == nil || origin(hop.Request.URL) != origin(r.URL) {
			return true
		}
	}
	return false
}

// origin is scheme, host and port, in one spelling.
func origin(u *url.URL) [3]string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return [3]string{u.Scheme, strings.ToLower(u.Hostname()), port}
}

// strip takes the credentials off r, which is a copy.
func (t *Transport) strip(r *http.Request) {
	foreign := foreignCookies(r)
	var kept []string
	for name, lines := range r.Header {
		switch canonical := http.CanonicalHeaderKey(name); {
		case t.secret[canonical]:
			delete(r.Header, name)
		case canonical == "Cookie":
			delete(r.Header, name)
			for _, c := range pairs(lines) {
				if !foreign[c] {
					kept = append(kept, c)
				}
			}
		}
	}
	if len(kept) > 0 {
		r.Header.Set("Cookie", strings.Join(kept, "; "))
	}
}

// pairs splits Cookie headers into "name=value", without the quotes that net/http
// takes off and puts on.
func pairs(lines []string) []string {
	var list []string
	for _, line := range lines {
		for pair := range strings.SplitSeq(line, ";") {
			name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
			if name != "" {
				list = append(list, name+"="+strings.Trim(value, `"`))
			}
		}
	}
	return list
}

// foreignCookies returns the cookies that other origins of the chain were sent or set.
// What a jar holds for r's own origin is not told apart from the user's otherwise.
func foreignCookies(r *http.Request) map[string]bool {
	foreign := map[string]bool{}
	for hop := r.Response; hop != nil && hop.Request != nil; hop = hop.Request.Response {
		if hop.Request.URL != nil && origin(hop.Request.URL) == origin(r.URL) {
			continue
		}
		for name, lines := range hop.Request.Header {
			if http.CanonicalHeaderKey(name) == "Cookie" {
				for _, c := range pairs(lines) {
					foreign[c] = true
				}
			}
		}
		for _, c := range hop.Cookies() {
			foreign[c.Name+"="+strings.Trim(c.Value, `"`)] = true
		}
	}
	return foreign
}
