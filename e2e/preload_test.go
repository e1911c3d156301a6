package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	preloadDir      = "../npm/preload"
	preloadAudience = "https://calls.e2e.test"

	// A response grows by this with the id in the path, so that a tunnel's length in the book tells what was in it: more
	// than two handshakes can differ by.
	perID = 2500
)

// destination is a server that notes what it is asked on each connection.
type destination struct {
	*httptest.Server
	mu    sync.Mutex
	asked map[string][]string // by connection: paths
	heard []string            // what must not arrive here
}

type connectionKey struct{}

// startDestination starts one on 127.0.0.1, over TLS with the certificate for localhost if secure.
func startDestination(t testing.TB, secure bool) *destination {
	t.Helper()
	d := &destination{asked: map[string][]string{}}
	d.Server = httptest.NewUnstartedServer(http.HandlerFunc(d.answer))
	d.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, c.RemoteAddr().String())
	}
	if secure {
		certificate, err := tls.LoadX509KeyPair(filepath.Join(preloadDir, "test", "localhost.crt"), filepath.Join(preloadDir, "test", "localhost.key"))
		if err != nil {
			t.Fatal(err)
		}
		d.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
		d.StartTLS()
	} else {
		d.Start()
	}
	t.Cleanup(d.Close)
	return d
}

func (d *destination) answer(w http.ResponseWriter, r *http.Request) {
	connection := r.Context().Value(connectionKey{}).(string)
	d.mu.Lock()
	d.asked[connection] = append(d.asked[connection], r.URL.Path)
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Sallyport") || strings.HasPrefix(name, "Proxy-") {
			d.heard = append(d.heard, r.URL.Path+": "+name)
		}
	}
	d.mu.Unlock()
	id, _ := strconv.Atoi(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
	time.Sleep(time.Duration(id%20) * time.Millisecond) // so that answers come in another order than questions
	w.Write(make([]byte, id*perID))
}

// place is its host and port by the name in its certificate.
func (d *destination) place() string {
	_, port, _ := net.SplitHostPort(d.Listener.Addr().String())
	return "localhost:" + port
}

// paths returns what it was asked on each connection.
func (d *destination) paths() (all [][]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, paths := range d.asked {
		all = append(all, slices.Clone(paths))
	}
	return all
}

// nodeOf is the program of a Node version that the preload is for.
func nodeOf(t testing.TB, major int) string {
	t.Helper()
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	program := filepath.Join(preloadDir, "node_modules", fmt.Sprintf("node%d-%s", major, arch), "bin", "node")
	if _, err := os.Stat(program); err != nil {
		unavailable(t, fmt.Sprintf("the npm packages of %s are not installed: run `npm ci` there", preloadDir))
	}
	return program
}

// calls is how the NestJS service of that folder starts, which asks the two destinations.
func calls(t testing.TB, as *authServer, major int, plain, secure *destination, over setting) launch {
	t.Helper()
	program := nodeOf(t, major)
	if err := readAll(filepath.Join(preloadDir, "nest.mjs"), filepath.Join(preloadDir, "test")); err != nil {
		t.Fatal(err)
	}
	dir := enterable(t, preloadDir)
	program = filepath.Join(dir, strings.TrimPrefix(program, preloadDir))
	return launch{
		settings: merge(setting{
			"ingress": setting{
				"issuers": []setting{{"issuer": as.Issuer, "audience": []string{preloadAudience}, "keys": "discovery"}},
				"routes": []setting{
					{"name": "call", "match": "GET /call/{client}/{id}", "scopes": []string{"use"}},
					{"name": "quiet", "match": "GET /quiet/{client}/{id}", "scopes": []string{"use"}},
				},
			},
			"egress": setting{"destinations": []setting{
				{"name": "plain", "hosts": []string{plain.place()}, "protocol": "http", "for": "any"},
				{"name": "secure", "hosts": []string{secure.place()}, "for": "any"},
			}},
			"sandbox": setting{"preset": "node", "read": []string{dir}, "env": setting{"set": setting{
				"PLAIN": "http://" + plain.place(), "SECURE": "https://" + secure.place(),
				"NODE_EXTRA_CA_CERTS": filepath.Join(dir, "test", "localhost.crt"),
			}}},
		}, over),
		folder:  dir,
		command: []string{program, "nest.mjs"},
	}
}

// TestCauseOfCalls has an application that knows nothing of sallyport answer hundreds of requests at once, each of which
// asks another server by one of the usual clients. For every single one the book must name the request that caused it.
func TestCauseOfCalls(t *testing.T) {
	t.Parallel()
	for _, major := range []int{20, 22, 24} {
		t.Run(fmt.Sprintf("node %d", major), func(t *testing.T) {
			as := startAuthServer(t, []resource{{preloadAudience, "ES256", []string{"use"}}}, client{ID: "tester"})
			plain, secure := startDestination(t, false), startDestination(t, true)
			p := startProduct(t, calls(t, as, major, plain, secure, nil))
			token := as.token(t, "tester", preloadAudience, "use")

			var clients []string
			for _, name := range []string{"node", "agents", "fetch", "axios", "axios-agents", "undici"} {
				clients = append(clients, name+".http", name+".http", name+".https")
			}
			const requests = 360
			inbound := make([]string, requests+1) // the id in the book, by the id in the path
			limit := make(chan struct{}, 60)
			var all sync.WaitGroup
			for id := 1; id <= requests; id++ {
				all.Go(func() {
					limit <- struct{}{}
					defer func() { <-limit }()
					a, err := p.try(http.MethodGet, fmt.Sprintf("/call/%s/%d", clients[id%len(clients)], id), token, nil)
					if err != nil || a.status != http.StatusOK || !strings.Contains(string(a.body), fmt.Sprintf(`"length":%d`, id*perID)) {
						t.Errorf("request %d by %s: %d %.200s %v", id, clients[id%len(clients)], a.status, a.body, err)
						return
					}
					inbound[id] = a.id()
				})
			}
			all.Wait()
			if t.Failed() {
				t.FailNow()
			}
			p.complete(t)
			agree(t, p, inbound, plain, secure)
		})
	}
}

// TestCauseOfWhatNoRequestAsks has the same application ask by a timer of its own: that is the background's, and what is for
// the background is for no request. What a request asks after its answer is still its own.
func TestCauseOfWhatNoRequestAsks(t *testing.T) {
	t.Parallel()
	as := startAuthServer(t, []resource{{preloadAudience, "ES256", []string{"use"}}}, client{ID: "tester"})
	plain, secure := startDestination(t, false), startDestination(t, true)
	p := startProduct(t, calls(t, as, 22, plain, secure, setting{
		"egress": setting{"destinations": []setting{
			{"name": "plain", "hosts": []string{plain.place()}, "protocol": "http", "for": "background"},
			{"name": "secure", "hosts": []string{secure.place()}, "for": setting{"routes": []string{"quiet"}}},
		}},
		"sandbox": setting{"env": setting{"set": setting{"TICK": "http"}}},
	}))
	token := as.token(t, "tester", preloadAudience, "use")

	refused := p.fetch(t, http.MethodGet, "/call/fetch.http/1", token, nil)
	after := p.fetch(t, http.MethodGet, "/quiet/fetch.https/7", token, nil)
	if refused.status != http.StatusOK && refused.status != http.StatusInternalServerError || after.status != http.StatusOK {
		t.Fatalf("%d, %d", refused.status, after.status)
	}
	eventually(t, 20*time.Second, "what is asked after the answer arrives", func() bool { return len(secure.paths()) > 0 })
	p.complete(t)
	ticks := 0
	all, _ := entries(t, p.book(t))
	for _, e := range all {
		if e.decision.Point != "egress" {
			continue
		}
		d := e.decision.Detail
		causes, _ := d["requests"].([]any)
		switch {
		case d["level"] != "capability":
			t.Errorf("%s: level %v", e.decision.Path, d["level"])
		case strings.HasSuffix(e.decision.Path, "/tick"):
			ticks++
			if d["cause"] != "background" || !e.decision.allowed() {
				t.Errorf("the timer's: %+v", e.decision)
			}
		case d["destination"] == "plain":
			if e.decision.allowed() || len(causes) != 1 || causes[0] != refused.id() {
				t.Errorf("the request's: %+v", e.decision)
			}
		default:
			if !e.decision.allowed() || len(causes) != 1 || causes[0] != after.id() {
				t.Errorf("after the answer: %+v", e.decision)
			}
		}
	}
	if ticks == 0 {
		t.Error("the timer asked nothing")
	}
}

// agree holds the book against what the destinations were asked: each request out names the one request that its path
// says, and each tunnel carried what one request asked.
func agree(t *testing.T, p *product, inbound []string, plain, secure *destination) {
	t.Helper()
	all, _ := entries(t, p.book(t))
	named := make(map[string]bool)
	type tunnel struct {
		id    int // by whom the book says that it was caused
		bytes int64
	}
	var tunnels []tunnel
	for _, e := range all {
		if e.decision.Point != "egress" {
			continue
		}
		causes, _ := e.decision.Detail["requests"].([]any)
		if len(causes) != 1 || e.decision.Detail["level"] != "capability" {
			t.Errorf("%s %s is attributed to %v, at level %v", e.decision.Detail["destination"], e.decision.Path, causes, e.decision.Detail["level"])
			continue
		}
		id := slices.Index(inbound, causes[0].(string))
		switch e.decision.Detail["destination"] {
		case "plain":
			if said := e.decision.Path[strings.LastIndexByte(e.decision.Path, '/')+1:]; said != strconv.Itoa(id) {
				t.Errorf("%s is attributed to request %d", e.decision.Path, id)
			}
			named[e.decision.Path] = true
		case "secure":
			tunnels = append(tunnels, tunnel{id, max(e.outcome.BytesIn, e.outcome.BytesOut)})
		}
	}
	for _, paths := range plain.paths() {
		for _, path := range paths {
			if !named[path] {
				t.Errorf("%s is not in the book", path)
			}
		}
	}
	// What is in a tunnel is not in the book; its length is, and grows with the id.
	slices.SortFunc(tunnels, func(a, b tunnel) int { return int(a.bytes - b.bytes) })
	var asked []int
	for _, paths := range secure.paths() {
		if len(paths) != 1 {
			t.Errorf("one tunnel carried %v", paths)
		}
		id, _ := strconv.Atoi(paths[0][strings.LastIndexByte(paths[0], '/')+1:])
		asked = append(asked, id)
	}
	slices.Sort(asked)
	if len(asked) != len(tunnels) || len(asked) == 0 {
		t.Fatalf("%d tunnels in the book, %d connections", len(tunnels), len(asked))
	}
	for i, tu := range tunnels {
		if tu.id != asked[i] {
			t.Errorf("the tunnel that carried request %d is attributed to %d", asked[i], tu.id)
		}
	}
	for _, d := range []*destination{plain, secure} {
		if len(d.heard) > 0 {
			t.Errorf("the destination received what is for us: %v", d.heard)
		}
	}
	t.Logf("%d plain requests and %d tunnels, each attributed to the request that caused it", len(named), len(tunnels))
}
