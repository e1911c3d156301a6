package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"sync"
	"testing"

	"github.com/sallyport/sallyport/internal/policy"
)

// naive is the proxy that one writes in an afternoon: it asks the same routes about the cleaned path that Go parsed, and
// forwards what arrived. It stands for everything that canonicalisation is there to end.
type naive struct {
	mux   *http.ServeMux // route patterns; never serves
	proxy *httputil.ReverseProxy

	mu        sync.Mutex
	names     map[string]string // pattern: route
	decisions map[string]decision
}

func newNaive(t testing.TB, upstream string, routes []policy.Route) *naive {
	t.Helper()
	to, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	n := &naive{
		mux: http.NewServeMux(), names: make(map[string]string), decisions: make(map[string]decision),
		proxy: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }},
	}
	n.proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	for _, r := range routes {
		n.mux.Handle(r.Match, http.NotFoundHandler())
		n.names[r.Match] = r.Name
	}
	return n
}

func (n *naive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	cleaned := &http.Request{Method: r.Method, Host: r.Host, URL: &url.URL{Path: path.Clean("/" + r.URL.Path)}}
	_, pattern := n.mux.Handler(cleaned)
	n.mu.Lock()
	route, ok := n.names[pattern]
	id := fmt.Sprint(len(n.decisions))
	n.decisions[id] = decision{ok, route}
	n.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	r.Header.Set("X-Request-Id", id)
	n.proxy.ServeHTTP(w, r)
}

// TestDifferentialControl is the negative control of TestDifferential: the same attempts and the same property, without the
// gate. It must find disagreements on every router, or the property could not fail.
func TestDifferentialControl(t *testing.T) {
	t.Parallel()
	for _, router := range routers {
		t.Run(router, func(t *testing.T) {
			t.Parallel()
			b := startBackend(t, router)
			n := newNaive(t, b.URL, fuzzRoutes(true))
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: n}
			go func() { _ = server.Serve(l) }() // until Close
			t.Cleanup(func() { server.Close() })

			g := newGenerator(7)
			send(t, l.Addr().String(), "none", append(g.honest(), g.mutants(600)...))
			journal := b.journal(t)
			found := disagreements(journal, n.decisions)
			total, _ := runs(journal)
			t.Logf("%d handlers ran, %d disagreements, such as:\n%s", total, len(found), sample(found, 5))
			if len(found) < 5 {
				t.Errorf("%d disagreements without a gate: the property cannot fail", len(found))
			}
		})
	}
}

// sample is some of the lines.
func sample(lines []string, n int) (s string) {
	for _, line := range lines[:min(n, len(lines))] {
		s += "\t" + line + "\n"
	}
	return s
}
