package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const misfitAudience = "https://misfit.example"

// misfitServer is an authorization server for the misfit.
func misfitServer(t testing.TB) *authServer {
	t.Helper()
	return startAuthServer(t, []resource{{misfitAudience, "ES256", []string{"use"}}},
		client{ID: "tester"}, client{ID: "hasty", Lifetime: 3})
}

// misfit is how the service of that folder starts, behind a gate that lets the scope "use" do anything with it.
func misfit(t testing.TB, as *authServer, start string, over setting) launch {
	t.Helper()
	if err := readAll("misfit"); err != nil {
		t.Fatal(err)
	}
	dir := enterable(t, "misfit")
	return launch{
		settings: merge(setting{
			"ingress": setting{
				"issuers": []setting{{"issuer": as.Issuer, "audience": []string{misfitAudience}, "keys": "discovery", "leeway": "100ms"}},
				"routes": []setting{
					{"name": "read", "match": "GET /{rest...}", "scopes": []string{"use"}},
					{"name": "socket", "match": "GET /socket", "scopes": []string{"use"}, "upgrades": []string{"websocket"}},
					{"name": "write", "match": "POST /{rest...}", "scopes": []string{"use"}},
				},
				"assertion": setting{"audience": "misfit"},
				"limits":    setting{"upstream_timeout": "1s", "drain_timeout": "10s"},
			},
			"sandbox": setting{"preset": "node", "read": []string{dir}},
		}, over),
		folder:  dir,
		command: []string{"node", "server.mjs", start},
	}
}

// answer is what the gate answered.
type answer struct {
	status int
	header http.Header
	body   []byte
	broken error // the body ended early
}

func (a answer) id() string { return a.header.Get("X-Request-Id") }

// code is that of a problem body (RFC 9457).
func (a answer) code() string {
	var p struct {
		Code string `json:"code"`
	}
	if a.header.Get("Content-Type") != "application/problem+json" || json.Unmarshal(a.body, &p) != nil {
		return fmt.Sprintf("%s: %.80s", a.header.Get("Content-Type"), a.body)
	}
	return p.Code
}

// fetch sends one request, on a connection of its own. An empty token sends none.
func (p *product) fetch(t testing.TB, method, path, token string, body io.Reader, header ...string) answer {
	t.Helper()
	a, err := p.try(method, path, token, body, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (p *product) try(method, path, token string, body io.Reader, header ...string) (answer, error) {
	req, err := http.NewRequest(method, p.url+path, body)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	c := http.Client{
		Timeout:       30 * time.Second,
		Transport:     &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: 10 * time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	return readAnswer(resp), nil
}

func readAnswer(resp *http.Response) answer {
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, b, err}
}

// TestServiceMisbehaves holds that whatever a service does with a request, the caller gets a clear answer, the record has
// its outcome, and the next request is served.
func TestServiceMisbehaves(t *testing.T) {
	t.Parallel()
	as := misfitServer(t)
	p := startProduct(t, misfit(t, as, "honest", nil))
	token := as.token(t, "tester", misfitAudience, "use")

	for _, tt := range []struct {
		path   string
		status int
		broken bool // the answer begins and does not end
	}{
		{"/echo", 200, false},
		{"/hang", 504, false},
		{"/close", 502, false},
		{"/early", 200, true},
		{"/garbage", 502, false},
		{"/two-lengths", 502, false},
		{"/huge-header", 502, false},
		{"/echo?again", 200, false},
	} {
		t.Run(tt.path[1:], func(t *testing.T) {
			a := p.fetch(t, http.MethodGet, tt.path, token, nil)
			if a.status != tt.status || (a.broken != nil) != tt.broken {
				t.Errorf("status %d, end of body %v", a.status, a.broken)
			}
			if a.status > 500 && !strings.HasPrefix(a.header.Get("Content-Type"), "application/problem+json") {
				t.Errorf("the answer is no problem document: %s", a.code())
			}
			e := p.entry(t, a.id())
			if !e.decision.allowed() || e.outcome == nil {
				t.Fatalf("record %+v, outcome %+v", e.decision, e.outcome)
			}
			if e.outcome.Status != tt.status || (e.outcome.Error != "") != (tt.broken || tt.status > 500) {
				t.Errorf("outcome %+v", *e.outcome)
			}
		})
	}
	p.complete(t)
}

// TestServiceEnds holds that run ends with its service, whenever and however that ends, and returns its exit code.
func TestServiceEnds(t *testing.T) {
	t.Parallel()
	as := misfitServer(t)
	missing := misfit(t, as, "honest", nil)
	missing.command = []string{"/no/such/program"}
	silent := misfit(t, as, "silent", nil)
	silent.flags = []string{"--start-timeout", "1s"}
	for _, tt := range []struct {
		name string
		launch
		code int
		says string
	}{
		{"exits at once", misfit(t, as, "exit", nil), 7, ""},
		{"ends by a signal", misfit(t, as, "crash", nil), 128 + int(syscall.SIGSEGV), ""},
		{"never listens", silent, 1, "did not listen"},
		{"is not there", missing, 1, "/no/such/program"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := execProduct(t, tt.launch)
			if code := p.exit(t, 30*time.Second); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.Contains(p.output.String(), tt.says) {
				t.Errorf("it does not say %q", tt.says)
			}
			if dials("127.0.0.1:" + p.port) {
				t.Error("the service listens still")
			}
		})
	}

	t.Run("ends while it serves", func(t *testing.T) {
		t.Parallel()
		p := startProduct(t, misfit(t, as, "honest", nil))
		a := p.fetch(t, http.MethodGet, "/die", as.token(t, "tester", misfitAudience, "use"), nil)
		if a.status != http.StatusBadGateway {
			t.Errorf("status %d of the request that it did not live to answer", a.status)
		}
		if code := p.exit(t, 30*time.Second); code != 9 {
			t.Errorf("exit code %d, want 9", code)
		}
		if e := p.entry(t, a.id()); e.outcome == nil || e.outcome.Status != http.StatusBadGateway {
			t.Errorf("outcome %+v", e.outcome)
		}
		p.complete(t)
	})

	t.Run("listens late", func(t *testing.T) {
		t.Parallel()
		p := startProduct(t, misfit(t, as, "late", nil))
		if a := p.fetch(t, http.MethodGet, "/echo", as.token(t, "tester", misfitAudience, "use"), nil); a.status != 200 {
			t.Errorf("status %d", a.status)
		}
	})
}

func dials(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// outside are this machine's addresses that are not the one which a service behind the gate listens on. One is there on
// every machine: all of 127/8 is ours, and 0.0.0.0 listens there too.
func outside(t testing.TB) (addrs []string) {
	t.Helper()
	addrs = []string{"127.0.0.2"}
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			addrs = append(addrs, n.IP.String())
		}
	}
	return addrs
}

// TestServiceIsUnreachable holds that nobody reaches the service but through the gate, even if it asks for every address.
func TestServiceIsUnreachable(t *testing.T) {
	t.Parallel()
	addrs := outside(t)
	as := misfitServer(t)
	t.Run("control", func(t *testing.T) {
		port := freePort(t)
		cmd := exec.Command("node", "misfit/server.mjs", "wildcard")
		cmd.Env = append(os.Environ(), "PORT="+port)
		startProcess(t, cmd)
		for _, addr := range addrs {
			if strings.Contains(addr, ":") {
				continue // it asks for 0.0.0.0, which has no IPv6 address
			}
			eventually(t, 30*time.Second, "without walls it answers at "+addr, func() bool {
				return dials(net.JoinHostPort(addr, port))
			})
		}
	})
	for _, start := range []string{"honest", "wildcard"} {
		t.Run(start, func(t *testing.T) {
			t.Parallel()
			p := startProduct(t, misfit(t, as, start, nil))
			if !dials("127.0.0.1:" + p.port) {
				t.Fatal("the service is not where it should be: the test shows nothing")
			}
			for _, addr := range addrs {
				if dials(net.JoinHostPort(addr, p.port)) {
					t.Errorf("the service answers at %s", addr)
				}
			}
			if a := p.fetch(t, http.MethodGet, "/echo", as.token(t, "tester", misfitAudience, "use"), nil); a.status != 200 {
				t.Errorf("status %d through the gate", a.status)
			}
		})
	}
}

// TestServiceCannotEscape asks the service to leave its corner, from inside.
func TestServiceCannotEscape(t *testing.T) {
	t.Parallel()
	as := misfitServer(t)
	l := misfit(t, as, "honest", setting{"sandbox": setting{"env": setting{"pass": []string{"PASSED_ON"}}}})
	l.env = []string{"PASSED_ON=yes", "A_SECRET=of the supervisor"}
	p := startProduct(t, l)
	readable := filepath.Join(p.dir, "neighbour")
	if err := os.WriteFile(readable, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(readable, 0o666); err != nil {
		t.Fatal(err)
	}
	a := p.fetch(t, http.MethodGet, fmt.Sprintf("/escape?write=%s&audit=%s&keys=%s&admin=%s",
		readable, p.audit, filepath.Join(p.dir, "var", "keys"), p.socket),
		as.token(t, "tester", misfitAudience, "use"), nil)
	type tried struct {
		OK    bool   `json:"ok"`
		Value string `json:"value"`
	}
	var got struct {
		UID                                                                         int
		Environment                                                                 []string
		Shadow, RootHome, Supervisor, Write, Audit, Keys, Kill, Reload, Application tried
	}
	if err := json.Unmarshal(a.body, &got); err != nil {
		t.Fatalf("status %d, %v: %s", a.status, err, a.body)
	}
	t.Logf("%s", a.body)
	if got.UID == 0 {
		t.Error("the service is root")
	}
	if !got.Application.OK {
		t.Error("it cannot read its own program: the other refusals show nothing")
	}
	for name, try := range map[string]tried{
		"read /etc/shadow": got.Shadow, "list /root": got.RootHome, "read the supervisor's environment": got.Supervisor,
		"write a file that anybody may write": got.Write, "write into the audit log": got.Audit, "list our signing keys": got.Keys,
		"signal the supervisor": got.Kill, "reload the gate's configuration": got.Reload,
	} {
		if try.OK {
			t.Errorf("it can %s: %s", name, try.Value)
		}
	}
	for _, name := range got.Environment {
		switch name {
		case "PATH", "HOME", "LANG", "TZ", "PORT", "PASSED_ON",
			"SALLYPORT_ISSUER", "SALLYPORT_AUDIENCE", "SALLYPORT_TRUST_DOMAIN", "SALLYPORT_HEADER", "SALLYPORT_JWKS_FILE", "SALLYPORT_PROXY", "SALLYPORT_BACKGROUND", "SALLYPORT_SERVICE", "NODE_OPTIONS", "RES_OPTIONS":
		default:
			t.Errorf("its environment has %s", name)
		}
	}
	if status, body := p.admin(t, http.MethodPost, "/reload"); status != http.StatusNoContent {
		t.Errorf("the admin listener refuses a reload to everybody: %d %s", status, body)
	}
}

// TestDrain holds that a stop waits for what is in flight, takes nothing new, and ends with the service's code.
func TestDrain(t *testing.T) {
	t.Parallel()
	as := misfitServer(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			l := misfit(t, as, "honest", setting{"ingress": setting{"limits": setting{"upstream_timeout": "20s"}}})
			p := startProduct(t, l)
			token := as.token(t, "tester", misfitAudience, "use")
			slow := make(chan answer, 1)
			go func() {
				a, err := p.try(http.MethodGet, "/slow", token, nil)
				if err != nil {
					t.Errorf("the request in flight: %v", err)
				}
				slow <- a
			}()
			eventually(t, 10*time.Second, "the slow request is in flight", func() bool { return strings.Contains(p.book(t), "/slow") })
			p.signal(t, sig)
			eventually(t, 10*time.Second, "it takes nothing new", func() bool {
				_, err := p.try(http.MethodGet, "/echo", token, nil)
				return errors.Is(err, syscall.ECONNREFUSED)
			})
			a := <-slow
			if a.status != 200 || string(a.body) != "slow but complete\n" {
				t.Errorf("the request in flight got %d %q", a.status, a.body)
			}
			if code := p.exit(t, 30*time.Second); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(p.output.String(), "told to end") {
				t.Error("the service was not asked to end")
			}
			if dials("127.0.0.1:" + p.port) {
				t.Error("the service lives on")
			}
			p.complete(t)
		})
	}

	t.Run("a second signal does not wait", func(t *testing.T) {
		t.Parallel()
		l := misfit(t, as, "honest", setting{"ingress": setting{"limits": setting{"upstream_timeout": "60s", "drain_timeout": "60s"}}})
		p := startProduct(t, l)
		token := as.token(t, "tester", misfitAudience, "use")
		go func() { _, _ = p.try(http.MethodGet, "/hang", token, nil) }() // it never has an answer
		eventually(t, 10*time.Second, "the request is in flight", func() bool { return strings.Contains(p.book(t), "/hang") })
		p.signal(t, syscall.SIGTERM)
		p.await(t, "draining")
		p.signal(t, syscall.SIGTERM)
		if code := p.exit(t, 20*time.Second); code != 128+int(syscall.SIGKILL) {
			t.Errorf("exit code %d, want that of a killed service", code)
		}
	})
}

// TestSupervisorIsKilled holds that no service is left without its gate.
func TestSupervisorIsKilled(t *testing.T) {
	t.Parallel()
	as := misfitServer(t)
	p := startProduct(t, misfit(t, as, "honest", nil))
	p.signal(t, syscall.SIGKILL)
	eventually(t, 10*time.Second, "the service has ended too", func() bool { return !dials("127.0.0.1:" + p.port) })
}
