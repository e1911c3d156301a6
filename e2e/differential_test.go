package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
)

// routers are the four ways in which the backend matches paths.
var routers = []string{"express", "express-strict", "fastify", "fastify-lax"}

const (
	fuzzAudience = "https://orders.example"
	fuzzHost     = "orders.example"
)

// fuzzRoutes names each handler of the backend: a route's name is its handler's, up to "--". It goes below the first
// segment, has literals beside captures and wildcards, and mounted handlers under their exact path. An open policy adds a
// public wildcard for all that has no route of its own, so that every handler has something that could be mistaken for it.
// No two handlers ask for the same: taking one for the other is always a wrong decision.
func fuzzRoutes(open bool) []policy.Route {
	expires := time.Now().Add(24 * time.Hour)
	scope := func(name, match string) policy.Route {
		return policy.Route{Name: name, Match: match, Scopes: []string{"run:" + handlerOf(name)}}
	}
	public := func(name, match string) policy.Route {
		expires = expires.Add(time.Hour)
		return policy.Route{Name: name, Match: match, Public: &policy.Public{Reason: "anybody may", Owner: "tests", Expires: expires}}
	}
	tenant := func(name, match string) policy.Route {
		return policy.Route{Name: name, Match: match, When: "claims.tenant == path.id"}
	}
	socket := func(name, match string) policy.Route {
		r := scope(name, match)
		r.Upgrades = []string{"websocket"}
		return r
	}
	files := scope("files-one", "GET /files/{name}")
	files.AllowInPath = []string{"%2F", ";"}
	routes := []policy.Route{
		public("root", "GET /{$}"),
		scope("admin-index", "GET /admin"),
		scope("admin-secret", "GET /admin/secret"),
		scope("admin-secret-one", "GET /admin/secret/{id}"),
		scope("queues", "GET /admin/queues"),
		scope("queues--below", "GET /admin/queues/{rest...}"),
		scope("public-info", "GET /public/info"), // not as public as its neighbours
		public("public-any", "GET /public/{rest...}"),
		{Name: "users-me", Match: "GET /users/me", AnyCaller: true},
		scope("users-one", "GET /users/{id}"),
		scope("users-keys", "GET /users/{id}/keys"),
		scope("orders-list", "GET /orders"),
		scope("orders-create", "POST /orders"),
		scope("orders-one", "GET /orders/{id}"),
		scope("orders-delete", "DELETE /orders/{id}"),
		tenant("tenants-one", "GET /tenants/{id}"),
		tenant("tenants-export", "GET /tenants/{id}/export/{format}"),
		files,
		scope("keys", "GET /keys"),
		scope("any-method", "GET /any"),
		scope("any-method--post", "POST /any"),
		scope("graphql", "POST /graphql"),
		scope("graphql--get", "GET /graphql"),
		public("static", "GET /static/{rest...}"),
		scope("docs", "GET /docs-json"),
		socket("websocket", "GET /ws"),
		socket("socket", "GET /socket"),
		socket("socket--below", "GET /socket/{rest...}"),
	}
	if open {
		routes = append(routes, public("site", "GET /{rest...}"))
	}
	return routes
}

// handlerOf is the handler that a route names.
func handlerOf(route string) string {
	handler, _, _ := strings.Cut(route, "--")
	return handler
}

// fuzzScopes are all that the routes ask for.
func fuzzScopes() (all []string) {
	for _, r := range fuzzRoutes(true) {
		all = append(all, r.Scopes...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// backend is a running NestJS application.
type backend struct {
	URL     string `json:"url"`
	Control string `json:"control"`
}

func startBackend(t testing.TB, router string) *backend {
	t.Helper()
	b := new(backend)
	startNode(t, b, "backends", router)
	return b
}

// entry is one line of the backend's journal: see backends/server.mjs.
type entry struct {
	Fuzz    string         `json:"fuzz"`
	Request string         `json:"request"`
	Kind    string         `json:"kind"`
	Name    string         `json:"name"`
	Method  string         `json:"method"`
	URL     string         `json:"url"`
	Params  map[string]any `json:"params"`
}

// journal takes what ran since it was last asked, after all of it has ended.
func (b *backend) journal(t testing.TB) (entries []entry) {
	t.Helper()
	c := http.Client{Timeout: time.Minute}
	resp, err := c.Get(b.Control)
	if err != nil {
		t.Fatalf("ask for the journal: %v", err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&entries); err != nil {
		t.Fatalf("ask for the journal: %v", err)
	}
	return entries
}

// decision is what the policy decided for one request, by the audit record with its id.
type decision struct {
	allowed bool
	route   string
}

// disagreements is the property: whatever arrived was allowed, whatever ran is what the decision's route names, with the
// captures that were judged, and under the middlewares that Nest puts over it.
func disagreements(journal []entry, decisions map[string]decision) (found []string) {
	ran := make(map[string][]string) // request id: middlewares that ran
	for _, e := range journal {
		if e.Kind == "middleware" {
			ran[e.Request] = append(ran[e.Request], e.Name)
		}
	}
	for _, e := range journal {
		d := decisions[e.Request]
		say := func(what string) {
			found = append(found, fmt.Sprintf("%s %q (fuzz %s, request %q): %s", e.Method, e.URL, e.Fuzz, e.Request, what))
		}
		switch {
		case e.Kind == "arrived" && !d.allowed:
			say("arrived without an allowing decision")
		case e.Kind != "handler":
		case handlerOf(d.route) != e.Name:
			say(fmt.Sprintf("ran %s, the decision was for %q", e.Name, d.route))
		case strings.HasPrefix(e.Name, "tenants-") && e.Params["id"] != "acme":
			say(fmt.Sprintf("ran for tenant %q, which the policy does not allow", e.Params["id"]))
		case mounted[e.Name]:
		case !slices.Contains(ran[e.Request], "all"):
			say("ran " + e.Name + " without the middleware")
		case strings.HasPrefix(e.Name, "admin-") && !slices.Contains(ran[e.Request], "admin"):
			say("ran " + e.Name + " without the middleware of /admin")
		}
	}
	return found
}

// mounted are the handlers that Nest puts no middleware over.
var mounted = map[string]bool{
	"graphql": true, "queues": true, "static": true, "docs": true, "websocket": true, "socket": true,
}

// runs counts the runs of each handler.
func runs(journal []entry) (total int, by map[string]int) {
	by = make(map[string]int)
	for _, e := range journal {
		if e.Kind == "handler" {
			total++
			by[e.Name]++
		}
	}
	return total, by
}

// fuzzSize is how many mutants each backend meets under each policy: some thousands, or what SALLYPORT_FUZZ says.
func fuzzSize(t testing.TB) int {
	t.Helper()
	n := 3000
	if testing.Short() {
		n = 1000
	}
	return int(number(t, "SALLYPORT_FUZZ", uint64(n)))
}

// fuzzSeed is always the same, unless SALLYPORT_FUZZ_SEED says another.
func fuzzSeed(t testing.TB) uint64 {
	t.Helper()
	return number(t, "SALLYPORT_FUZZ_SEED", 1)
}

func number(t testing.TB, variable string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(variable)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// send sends the attempts over a few kept connections, and counts the answers by status. An attempt that gets no answer is
// one of status 0: what it did is in the journal all the same.
func send(t testing.TB, addr, token string, attempts []attempt) map[int]int {
	t.Helper()
	const lines = 4
	var (
		group    sync.WaitGroup
		mu       sync.Mutex
		statuses = make(map[int]int)
	)
	for i := range lines {
		group.Go(func() {
			l := line{addr: addr}
			defer l.hangUp()
			for k := i; k < len(attempts); k += lines {
				a := attempts[k]
				status, err := l.ask(a, a.bytes(fuzzHost, token))
				if err != nil {
					t.Errorf("%s %q: %v", a.method, a.target, err)
				}
				mu.Lock()
				statuses[status]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return statuses
}

// line is one connection, made anew when it was closed.
type line struct {
	addr string
	conn net.Conn
	in   *bufio.Reader
}

func (l *line) hangUp() {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

// ask sends one request and reads its answer's status. It returns an error only where the gate cannot be reached or leaves
// the client hanging; a connection that is closed without an answer is status 0.
func (l *line) ask(a attempt, request []byte) (int, error) {
	// What the target does to the framing may leave any number of answers, so nothing else follows on that line.
	lonely := strings.ContainsAny(a.target, " \t\r\n\x00") || a.upgrade
	if lonely {
		l.hangUp()
		defer l.hangUp()
	}
	for fresh := false; ; {
		if l.conn == nil {
			conn, err := net.DialTimeout("tcp", l.addr, 10*time.Second)
			if err != nil {
				return 0, err
			}
			l.conn, l.in, fresh = conn, bufio.NewReader(conn), true
		}
		l.conn.SetDeadline(time.Now().Add(20 * time.Second))
		status, again, err := l.exchange(a.method, request)
		if !again || fresh || err != nil {
			return status, err
		}
		// The line had been closed since the last answer: no byte of this request was looked at.
	}
}

func (l *line) exchange(method string, request []byte) (status int, again bool, err error) {
	timeout := func(err error) error {
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			return err
		}
		return nil
	}
	if _, err := l.conn.Write(request); err != nil {
		l.hangUp()
		return 0, true, timeout(err)
	}
	resp, err := http.ReadResponse(l.in, &http.Request{Method: method})
	if err != nil {
		l.hangUp()
		return 0, true, timeout(err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		l.hangUp()
		return resp.StatusCode, false, nil
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err != nil || resp.Close {
		l.hangUp()
	}
	return resp.StatusCode, false, timeout(err)
}
