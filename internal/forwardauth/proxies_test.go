package forwardauth

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// fromPage takes the first block of a language out of doc/entry-points.md behind a heading: what users copy is what is tested.
func fromPage(t *testing.T, heading, language string) string {
	t.Helper()
	page, err := os.ReadFile("../../doc/entry-points.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n"+heading+"\n")
	_, block, begins := strings.Cut(section, "\n```"+language+"\n")
	block, _, ends := strings.Cut(block, "\n```\n")
	if !ok || !begins || !ends {
		t.Fatalf("doc/entry-points.md has no %s under %s", language, heading)
	}
	return block
}

// proxy is a real proxy that asks us, and forwards to a real service.
type proxy struct {
	*stage
	service *sallytest.Recorder
	address string
	log     *book
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// program finds a proxy's program. CI has it (scripts/packages).
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not here: scripts/packages installs it", name)
		}
		t.Skipf("%s is not here", name)
	}
	return path
}

// start runs a proxy until the test ends, and waits until it listens.
func (p *proxy) start(c *exec.Cmd) {
	p.t.Helper()
	p.log = &book{}
	c.Stdout, c.Stderr = p.log, p.log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	stop := sync.OnceFunc(func() { c.Process.Kill(); <-ended })
	p.t.Cleanup(stop)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", p.address); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			stop()
			p.t.Fatalf("%s does not listen on %s:\n%s", c.Path, p.address, p.log.String())
		}
	}
}

func (b *book) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

func openNginx(t *testing.T) *proxy {
	p := &proxy{stage: open(t, "nginx", "127.0.0.1/32"), service: sallytest.NewRecorder(t), address: freeAddress(t)}
	dir := t.TempDir()
	conf := strings.NewReplacer(
		"server 127.0.0.1:9191;", "server "+p.addr+";",
		"server 127.0.0.1:3000;", "server "+strings.TrimPrefix(p.service.URL, "http://")+";",
		"listen 8080;", "listen "+p.address+";",
	).Replace(fromPage(t, "## nginx", "nginx"))
	conf = "daemon off;\nmaster_process off;\npid " + dir + "/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\nclient_body_temp_path " + dir + "/body;\nproxy_temp_path " + dir +
		"/proxy;\nfastcgi_temp_path " + dir + "/fastcgi;\nuwsgi_temp_path " + dir + "/uwsgi;\nscgi_temp_path " + dir + "/scgi;\n" + conf + "\n}\n"
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start(exec.Command(program(t, "nginx"), "-p", dir, "-e", "stderr", "-c", path))
	return p
}

func openCaddy(t *testing.T) *proxy {
	p := &proxy{stage: open(t, "caddy", "127.0.0.1/32"), service: sallytest.NewRecorder(t), address: freeAddress(t)}
	conf := strings.NewReplacer(
		"forward_auth 127.0.0.1:9191", "forward_auth "+p.addr,
		"reverse_proxy 127.0.0.1:3000", "reverse_proxy "+strings.TrimPrefix(p.service.URL, "http://"),
		":8080 {", "http://:"+p.address[strings.LastIndexByte(p.address, ':')+1:]+" {",
	).Replace(fromPage(t, "## Caddy", "caddyfile"))
	dir := t.TempDir()
	path := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(path, []byte("{\n\tadmin off\n\tauto_https off\n}\n"+conf), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(program(t, "caddy"), "run", "--adapter", "caddyfile", "--config", path)
	c.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	p.start(c)
	return p
}

// send sends bytes to the proxy, as a client does, and reads its answer.
func (p *proxy) send(raw string) (*http.Response, string) {
	p.t.Helper()
	c, err := net.Dial("tcp", p.address)
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, raw); err != nil {
		p.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		p.t.Fatalf("%q: %v\n%s", raw, err, p.log)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return res, string(b)
}

func client(method, target string, fields ...string) string {
	return method + " " + target + " HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n" + strings.Join(append(fields, ""), "\r\n") + "\r\n"
}

// denied is what a client must be told, and that the service has seen nothing.
func (p *proxy) denied(asked string, status int, code string) *http.Response {
	p.t.Helper()
	p.service.Reset()
	res, body := p.send(asked)
	var problem struct {
		Code      string
		RequestID string `json:"request_id"`
		Status    int
	}
	json.Unmarshal([]byte(body), &problem)
	if res.StatusCode != status || problem.Code != code || problem.Status != status {
		p.t.Errorf("%q is answered %d %v %s, want %d %s\n%s", firstLine(asked), res.StatusCode, res.Header, body, status, code, p.log)
	}
	if id := res.Header.Values("X-Request-Id"); len(id) != 1 || id[0] != problem.RequestID {
		p.t.Errorf("%q: the answer is %q, its problem %q", firstLine(asked), id, problem.RequestID)
	}
	if d := p.audit.last(p.t); d.Code != code {
		p.t.Errorf("%q: recorded %+v, want %s", firstLine(asked), d, code)
	}
	if raw := p.service.Raw(); len(raw) > 0 {
		p.t.Errorf("%q: the service saw %s", firstLine(asked), raw)
	}
	return res
}

func firstLine(s string) string { line, _, _ := strings.Cut(s, "\r\n"); return line }

// The texts of the page, in the real proxies: a good token reaches the service as an assertion alone, whatever else is answered as
// the gate itself would have.
func TestRealProxies(t *testing.T) {
	for name, openProxy := range map[string]func(*testing.T) *proxy{"nginx": openNginx, "caddy": openCaddy} {
		t.Run(name, func(t *testing.T) {
			p := openProxy(t)
			token := p.issuer.Token(map[string]any{"scope": "orders:read"})
			good := "Authorization: Bearer " + token

			res, body := p.send(client("GET", "/orders/7?a=b", good, "DPoP: proof", "X-Forwarded-User: root", "Remote-User: root", "X-Auth-Request-User: root", "Txn-Token: forged",
				"X-Request-Id: mine", "X-Forwarded-For: 203.0.113.9", "X-Original-URI: /health", "Accept: text/x"))
			if res.StatusCode != 200 {
				t.Fatalf("a good request is answered %d %s\n%s", res.StatusCode, body, p.log)
			}
			raw := string(p.service.Raw())
			seen, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
			if err != nil {
				t.Fatal(err)
			}
			d := p.audit.last(t)
			if seen.RequestURI != "/orders/7?a=b" || seen.Header.Get("Accept") != "text/x" || len(seen.Header["X-Request-Id"]) != 1 || seen.Header.Get("X-Request-Id") == "mine" {
				t.Errorf("the service saw %s", raw)
			}
			if a := seen.Header["Txn-Token"]; len(a) != 1 || strings.Count(a[0], ".") != 2 {
				t.Errorf("the assertion is %q", a)
			}
			for _, name := range []string{"Authorization", "Dpop", "X-Forwarded-User", "Remote-User", "X-Auth-Request-User", "X-Original-Uri"} {
				if v := seen.Header[name]; v != nil {
					t.Errorf("%s reached the service: %q", name, v)
				}
			}
			if bytes.Contains(p.service.Raw(), []byte(token)) {
				t.Error("the token reached the service")
			}
			if d.Decision != "allow" || d.Source != "127.0.0.1" || d.Host != "api.example.com" || d.Path != "/orders/7" {
				t.Errorf("recorded %+v", d)
			}

			if res := p.denied(client("GET", "/orders/7"), 401, "missing_token"); len(res.Header.Values("WWW-Authenticate")) != 1 {
				t.Errorf("the challenge is %q", res.Header.Values("WWW-Authenticate"))
			}
			p.denied(client("GET", "/orders/7", good[:len(good)-4]+"AAAA"), 401, "bad_signature")
			p.denied(client("GET", "/orders/7", "Authorization: Bearer  x"), 400, "malformed_authorization")
			p.denied(client("GET", "/orders/7?access_token=x", good), 400, "multiple_credentials")
			res = p.denied(client("GET", "/orders/7", "Authorization: Bearer "+p.issuer.Token(map[string]any{"scope": "other"})), 403, "insufficient_scope")
			if c := res.Header.Values("WWW-Authenticate"); len(c) != 1 || !strings.Contains(c[0], `scope="orders:read"`) {
				t.Errorf("the challenge is %q", c)
			}
			p.denied(client("GET", "/admin", good), 404, "no_route")
			if res := p.denied(client("POST", "/orders/7", good, "Content-Length: 0"), 405, "method_not_allowed"); res.Header.Get("Allow") == "" {
				t.Errorf("which methods there are is not said: %v", res.Header)
			}
			// A method, a path or a client's address that a client says itself.
			p.denied(client("GET", "/admin", good, "X-Original-URI: /orders/7", "X-Forwarded-Uri: /orders/7", "X-Original-Method: GET", "X-Rewrite-URL: /orders/7"), 404, "no_route")
			p.denied(client("DELETE", "/orders/7", good, "X-Original-Method: GET", "X-Forwarded-Method: GET", "X-HTTP-Method-Override: GET"), 405, "method_not_allowed")
			p.denied(client("GET", "/here", good, "X-Forwarded-For: 192.0.2.7"), 403, "condition_false")
			p.denied(client("GET", "/here", good, "X-Real-IP: 192.0.2.7", "Forwarded: for=192.0.2.7"), 403, "condition_false")
			for _, target := range []string{"/orders//7", "//orders/7", "/orders/./7", "/x/../orders/7", "/x/%2e%2e/orders/7", "/orders/%2e%2e%2forders/7", "/orders/7%5c..%5cx", "/orders/%252e%252e"} {
				p.denied(client("GET", target, good), 400, "path_noncanonical")
			}
			p.denied(client("GET", "/orders/a%2fb", good), 400, "path_special")
			p.denied(client("GET", "/ORDERS/7", good), 404, "no_route")
		})
	}
}

// What is judged is what nginx forwards: a path in another spelling arrives in the one that was judged.
func TestNginxForwardsWhatWasJudged(t *testing.T) {
	p := openNginx(t)
	res, body := p.send(client("GET", "/%6frders/%37?q=%41", "Authorization: Bearer "+p.issuer.Token(map[string]any{"scope": "orders:read"})))
	if raw := string(p.service.Raw()); res.StatusCode != 200 || !strings.HasPrefix(raw, "GET /orders/7?q=%41 HTTP/1.") {
		t.Errorf("%d %s, and the service saw %s", res.StatusCode, body, raw)
	}
}

// Requests that parsers disagree on: nothing reaches the service that was not judged, and no denial becomes an allow.
func TestSmuggling(t *testing.T) {
	for name, openProxy := range map[string]func(*testing.T) *proxy{"nginx": openNginx, "caddy": openCaddy} {
		t.Run(name, func(t *testing.T) {
			p := openProxy(t)
			good := "Authorization: Bearer " + p.issuer.Token(map[string]any{"scope": "orders:read"})
			hidden := "GET /admin HTTP/1.1\r\nHost: api.example.com\r\n\r\n"
			for what, raw := range map[string]string{
				"length and chunks":   client("POST", "/orders/7", good, "Content-Length: 5", "Transfer-Encoding: chunked") + "0\r\n\r\n" + hidden,
				"two lengths":         client("POST", "/orders/7", good, "Content-Length: 0", "Content-Length: 58") + hidden,
				"space before colon":  client("GET", "/orders/7", good, "Content-Length : 58") + hidden,
				"folded line":         client("GET", "/orders/7", good, "X-A: b", " Transfer-Encoding: chunked") + hidden,
				"bare LF":             strings.ReplaceAll(client("GET", "/admin", good), "\r\n", "\n"),
				"two hosts":           client("GET", "/admin", good, "Host: other.example.com"),
				"underscore":          client("GET", "/admin", good, "X_Original_URI: /orders/7", "X_Forwarded_Uri: /orders/7"),
				"two tokens":          client("GET", "/orders/7", good, good),
				"connection names it": client("GET", "/admin", good, "Connection: close, X-Original-URI, X-Forwarded-Uri, X-Forwarded-For"),
				"header end in value": client("GET", "/admin", good, "X-A: b\r\rX-Original-URI: /orders/7"),
			} {
				p.service.Reset()
				res, body := p.send(raw)
				seen := string(p.service.Raw())
				if strings.Contains(seen, "/admin") || strings.Contains(seen, "Bearer") || strings.Contains(strings.ToLower(seen), "x_original") {
					t.Errorf("%s: the service saw %s", what, seen)
				}
				if p.service.Requests() > 1 || strings.Contains(raw, " /admin HTTP/1.1\r\nHost: api.example.com\r\nConn") && res.StatusCode < 400 {
					t.Errorf("%s: answered %d %s; the service saw %s", what, res.StatusCode, body, seen)
				}
			}
		})
	}
}

// When we are gone nobody gets in.
func TestProxiesFailClosed(t *testing.T) {
	for name, openProxy := range map[string]func(*testing.T) *proxy{"nginx": openNginx, "caddy": openCaddy} {
		t.Run(name, func(t *testing.T) {
			p := openProxy(t)
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			res, _ := p.send(client("GET", "/orders/7", "Authorization: Bearer "+p.issuer.Token(map[string]any{"scope": "orders:read"})))
			if res.StatusCode < 500 {
				t.Errorf("answered %d", res.StatusCode)
			}
			p.service.Untouched(t)
		})
	}
}
