package safedial

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// world is two real servers, one of them also over TLS, and names that lead to them.
// /to?u=URL redirects there; every request is remembered.
type world struct {
	*resolver
	a, b, tls string // ports
	allow     []string
	roots     *x509.CertPool

	mu   sync.Mutex
	seen []*http.Request
}

func newWorld(t *testing.T) *world {
	w := &world{}
	w.resolver = newResolver(t, map[string][]string{
		"a.test.": {"127.0.0.1"}, "sub.a.test.": {"127.0.0.1"}, "b.test.": {"127.0.0.1"}, "example.com.": {"127.0.0.1"},
	})
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		w.mu.Lock()
		w.seen = append(w.seen, r)
		w.mu.Unlock()
		if set := r.URL.Query().Get("set"); set != "" {
			http.SetCookie(rw, &http.Cookie{Name: "set", Value: set})
		}
		if to := r.URL.Query().Get("u"); to != "" {
			code := http.StatusFound
			if r.Method == http.MethodPost {
				code = http.StatusTemporaryRedirect
			}
			http.Redirect(rw, r, to, code)
		}
	})
	start := func(server *httptest.Server) string {
		t.Cleanup(server.Close)
		_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
		return port
	}
	secure := httptest.NewTLSServer(handler)
	w.a, w.b, w.tls = start(httptest.NewServer(handler)), start(httptest.NewServer(handler)), start(secure)
	w.roots = x509.NewCertPool()
	w.roots.AddCert(secure.Certificate())
	for _, name := range []string{"a.test", "sub.a.test", "b.test", "example.com"} {
		for _, port := range []string{w.a, w.b, w.tls} {
			w.allow = append(w.allow, name+":"+port)
		}
	}
	return w
}

func (w *world) client(t *testing.T, credentials ...string) *http.Client {
	transport := &Transport{
		Guard:       &Guard{Allow: w.allow, Resolver: w.resolver.resolver()},
		Base:        &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}},
		Credentials: credentials,
	}
	client := &http.Client{Transport: transport} // with the standard library's own redirect policy
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// last is the last request that a server got.
func (w *world) last() *http.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[len(w.seen)-1]
}

// chain is a URL that redirects through all but the last of the given ones.
func chain(urls ...string) string {
	to := urls[len(urls)-1]
	for i := len(urls) - 2; i >= 0; i-- {
		to = urls[i] + "/to?u=" + url.QueryEscape(to)
	}
	return to
}

func TestRedirectsKeepCredentialsAtTheirOrigin(t *testing.T) {
	w := newWorld(t)
	a, sub, b := "http://a.test:"+w.a, "http://sub.a.test:"+w.a, "http://b.test:"+w.b
	secure, plain := "https://example.com:"+w.tls, "http://example.com:"+w.a
	for _, test := range []struct {
		name string
		urls []string
		kept bool
	}{
		{"no redirect", []string{a}, true},
		{"the same origin", []string{a, a + "/2", a + "/3"}, true},
		{"relative", []string{a, "/2"}, true},
		{"another host", []string{a, b}, false},
		{"a subdomain, which net/http trusts", []string{a, sub}, false},
		{"the parent domain", []string{sub, a}, false},
		{"another port", []string{a, "http://a.test:" + w.b}, false},
		{"https to http", []string{secure, plain}, false},
		{"http to https", []string{plain, secure}, false},
		{"https stays", []string{secure, secure + "/2"}, true},
		{"another host and on from there", []string{a, b, b + "/2"}, false},
		{"there and back", []string{a, b, a + "/2"}, false},
		{"a subdomain and back", []string{a, sub, a + "/2"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, chain(test.urls...), nil)
			if err != nil {
				t.Fatal(err)
			}
			names := []string{"Authorization", "Cookie", "Proxy-Authorization", "Www-Authenticate", "X-Api-Key", "X-Acme-Ticket"}
			for _, name := range names {
				request.Header.Set(name, "v=secret")
			}
			request.Header["x-acme-ticket"] = []string{"v=secret"} // as someone may write into the map
			request.Header.Set("X-Trace", "kept")
			given := request.Header.Clone()
			response, err := w.client(t, "x-acme-ticket").Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			got := w.last().Header
			for _, name := range names {
				if (got.Get(name) != "") != test.kept {
					t.Errorf("%s: %q", name, got[name])
				}
			}
			if !test.kept && strings.Contains(strings.Join(got["Referer"], ""), "?") {
				t.Errorf("the query of the last URL went along: %q", got["Referer"])
			}
			if got.Get("X-Trace") != "kept" {
				t.Error("a header that is no credential was dropped")
			}
			for name := range given {
				if request.Header.Get(name) != given.Get(name) {
					t.Errorf("the caller's %s was changed", name)
				}
			}
		})
	}
}

func TestCookieJarsKeepWorking(t *testing.T) {
	w := newWorld(t)
	client := w.client(t)
	client.Jar, _ = cookiejar.New(nil)
	a, b := "http://a.test:"+w.a, "http://b.test:"+w.b
	get := func(address, cookie string) {
		t.Helper()
		request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if cookie != "" {
			request.Header.Set("Cookie", cookie)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
	}
	get(b+"/?set=of-b", "")
	get(a+"/?set=of-a", "")
	get(chain(a, b), `own="secret"; other=secret`)
	if got := w.last().Header.Get("Cookie"); got != "set=of-b" {
		t.Errorf("b got %q", got)
	}
	get(chain(a, b, a), "") // as signing in elsewhere does
	if got := w.last().Header.Get("Cookie"); got != "set=of-a" {
		t.Errorf("a got %q", got)
	}
	// a jar knows no ports
	get("http://a.test:"+w.a+"/?set=new&u="+url.QueryEscape("http://a.test:"+w.b), `own="secret"`)
	if got := w.last().Header.Get("Cookie"); got != "" {
		t.Errorf("the other port got %q", got)
	}
}

func TestRedirectsAreJudgedAnew(t *testing.T) {
	w := newWorld(t)
	client := w.client(t)
	w.resolver.mu.Lock()
	w.resolver.names["inside.test."] = []string{"127.0.0.1"}
	w.resolver.names["mixed.test."] = []string{"127.0.0.1", "93.184.216.34"}
	w.resolver.mu.Unlock()
	for to, want := range map[string]string{
		"http://169.254.169.254/latest/meta-data/":                 CodeEscapeTarget,
		"http://[::ffff:a9fe:a9fe]/latest/meta-data/":              CodeEscapeTarget,
		"http://metadata.google.internal/":                         CodeEscapeTarget,
		"http://a.test:2375/containers/json":                       CodeEscapeTarget,
		"http://127.0.0.1:" + w.b + "/":                            CodeSpecialAddress,
		"http://inside.test:" + w.b + "/":                          CodeSpecialAddress,
		"http://mixed.test:" + w.b + "/":                           CodeMixedAnswer,
		"http://2130706433:" + w.b + "/":                           CodeAmbiguousHost,
		"http://a.test.:" + w.a + "/":                              CodeAmbiguousHost,
		"http://１２７.0.0.1/":                                        CodeAmbiguousHost,
		"http://user:pass@127.0.0.1:" + w.b + "/":                  CodeSpecialAddress,
		"http://a.test:" + w.a + "@127.0.0.1:" + w.b:               CodeSpecialAddress,
		"http://[::1]:" + w.b + "/":                                CodeSpecialAddress,
		"http://0.0.0.0:" + w.b + "/":                              CodeSpecialAddress,
		"http://[64:ff9b::7f00:1]:" + w.b + "/":                    CodeSpecialAddress,
		"http://sub.a.test:" + w.a + "/to?u=http%3A%2F%2F10.0.0.5": CodeSpecialAddress,
	} {
		response, err := client.Get(chain("http://a.test:"+w.a, to))
		if err == nil {
			response.Body.Close()
		}
		if !denied(err, want) {
			t.Errorf("%s: %v", to, err)
		}
	}
	before := len(w.seen)
	if _, err := client.Get(chain("http://a.test:"+w.a, "gopher://a.test:"+w.b, "file:///etc/passwd")); err == nil || len(w.seen) != before+1 {
		t.Errorf("another scheme: %v", err)
	}
}

func TestCredentialsInALocationAreNotSent(t *testing.T) {
	w := newWorld(t)
	response, err := w.client(t).Get(chain("http://a.test:"+w.a, "http://user:pass@b.test:"+w.b+"/"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if got := w.last().Header.Get("Authorization"); got != "" {
		t.Errorf("b got %q", got)
	}
}

// A body is sent again where the standard library sends it; credentials are not.
func TestTemporaryRedirectSendsTheBodyAlone(t *testing.T) {
	w := newWorld(t)
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, chain("http://a.test:"+w.a, "http://b.test:"+w.b), strings.NewReader("the body"))
	request.Header.Set("Authorization", "Bearer secret")
	response, err := w.client(t).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.Request.URL.Host != "b.test:"+w.b {
		t.Errorf("the answer's request is for %s", response.Request.URL)
	}
	body, _ := io.ReadAll(w.last().Body)
	if string(body) != "the body" || w.last().Header.Get("Authorization") != "" {
		t.Errorf("b got %q and %q", body, w.last().Header)
	}
}

// A base gives settings and cannot give another way out.
func TestBaseCannotGetPastTheGuard(t *testing.T) {
	w := newWorld(t)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:"+w.b)
	escape := func(what string) { t.Errorf("%s was used", what) }
	base := &http.Transport{
		Proxy:       func(*http.Request) (*url.URL, error) { escape("Proxy"); return nil, nil },
		DialContext: nil,
	}
	base.Dial = func(string, string) (net.Conn, error) { escape("Dial"); return nil, io.EOF }       //lint:ignore SA1019 what a caller may still set
	base.DialTLS = func(string, string) (net.Conn, error) { escape("DialTLS"); return nil, io.EOF } //lint:ignore SA1019 what a caller may still set
	base.RegisterProtocol("file", http.NewFileTransport(http.Dir("/")))
	client := &http.Client{Transport: &Transport{Base: base}}
	for _, address := range []string{"http://127.0.0.1:" + w.a, "https://127.0.0.1:" + w.tls} {
		if _, err := client.Get(address); !denied(err, CodeSpecialAddress) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if response, err := client.Get("file:///etc/hostname"); err == nil {
		response.Body.Close()
		t.Error("a file was read")
	}
}

// A connection that is kept was judged when it was made: another name for the same
// address does not get it.
func TestKeptConnectionsBelongToTheirName(t *testing.T) {
	w := newWorld(t)
	client := w.client(t)
	for range 3 {
		response, err := client.Get("http://a.test:" + w.a)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	if n := w.resolver.asked("a.test.", dnsmessage.TypeA); n != 1 {
		t.Errorf("resolved %d times for one connection", n)
	}
	w.resolver.mu.Lock()
	w.resolver.names["evil.test."] = []string{"127.0.0.1"}
	w.resolver.mu.Unlock()
	if _, err := client.Get("http://evil.test:" + w.a); !denied(err, CodeSpecialAddress) {
		t.Errorf("got %v", err)
	}
}

// Whatever does not say where a redirect came from gets no credentials.
func TestUnknownChainsCarryNoCredentials(t *testing.T) {
	w := newWorld(t)
	transport := w.client(t).Transport
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a.test:"+w.a, nil)
	request.Header.Set("Authorization", "Bearer secret")
	request.Response = &http.Response{}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if got := w.last().Header.Get("Authorization"); got != "" {
		t.Errorf("a got %q", got)
	}
	if _, err := transport.RoundTrip(&http.Request{}); err == nil || errors.As(err, new(*DeniedError)) {
		t.Errorf("a request without a URL: %v", err)
	}
}

func TestTransportServesManyAtOnce(t *testing.T) {
	w := newWorld(t)
	client := w.client(t)
	address := chain("http://a.test:"+w.a, "http://b.test:"+w.b)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
			request.Header.Set("Authorization", "Bearer secret")
			response, err := client.Do(request)
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(io.Discard, response.Body)
			response.Body.Close()
		})
	}
	all.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.seen {
		if strings.HasPrefix(r.Host, "b.test") && r.Header.Get("Authorization") != "" {
			t.Fatal("b got the credentials")
		}
	}
}
