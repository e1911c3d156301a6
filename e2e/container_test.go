package e2e

import (
	"bytes"
	"context"
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
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/sallyport/sallyport/e2e/rootfs"
)

// engine is the container engine that scripts/with-engine starts for the tests. It has no network: the containers reach
// nothing, and are reached by a socket in a folder that they share with the test.
type engine struct{ host string }

func needEngine(t *testing.T) *engine {
	t.Helper()
	host := os.Getenv("SALLYPORT_TEST_DOCKER")
	if host == "" {
		unavailable(t, "SALLYPORT_TEST_DOCKER names no container engine: run scripts/with-engine go test ./e2e, as root")
	}
	return &engine{host}
}

func (e *engine) command(args ...string) *exec.Cmd {
	return exec.Command("docker", append([]string{"-H", e.host}, args...)...)
}

// run runs a command of the engine to its end.
func (e *engine) run(t *testing.T, stdin io.Reader, args ...string) string {
	t.Helper()
	cmd := e.command(args...)
	cmd.Stdin = stdin
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("docker %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// image imports the example service as the README says to build it: one ENTRYPOINT line.
func (e *engine) image(t *testing.T) string {
	t.Helper()
	const service = "../examples/nestjs"
	needNode(t, service)
	if _, err := os.Stat(filepath.Join(service, "dist", "main.js")); err != nil {
		unavailable(t, "the example service is not built: run `npm run build` in examples/nestjs")
	}
	sallyport, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	fs := rootfs.Tar(func(f *rootfs.FS) {
		f.Dir("/tmp", 0o1777)
		for _, d := range []string{"/proc", "/sys", "/dev", "/shared", "/app"} {
			f.Dir(d, 0o755)
		}
		f.File("/etc/passwd", 0o644, []byte("root:x:0:0:root:/:/\n"))
		f.File("/etc/shadow", 0o600, []byte("root:*:1::::::\n"))
		f.File("/etc/marker", 0o644, []byte("not the service's to read\n"))
		f.Program("node", "/usr/local/bin/node")
		f.Copy(sallyport, "/usr/local/bin/sallyport", 0o755)
		f.Copy(filepath.Join(service, "package.json"), "/app/package.json", 0o644)
		for _, part := range []string{"dist", "invoices", "node_modules"} {
			f.Tree(filepath.Join(service, part), filepath.Join("/app", part))
		}
	})
	defer fs.Close()
	return e.run(t, fs, "import",
		"--change", "WORKDIR /app",
		"--change", `ENV PATH=/usr/local/bin`,
		"--change", `ENTRYPOINT ["sallyport", "run", "-c", "/shared/sallyport.yaml", "--", "node", "dist/main.js"]`,
		"-")
}

// containerConfig is the service's configuration in the container; the gate listens where the test can reach it.
func containerConfig() setting {
	return setting{
		"version": 1,
		"ingress": setting{
			"listen": "unix:/shared/gate.sock", "upstream": "http://127.0.0.1:3000",
			"issuers": []setting{{"issuer": "https://issuer.test", "audience": []string{"orders"}, "keys": setting{"jwks_file": "issuer.jwks.json"}}},
			"routes": []setting{
				{"name": "list-orders", "match": "GET /orders", "scopes": []string{"orders:read"}},
				{"name": "export-invoice", "match": "GET /invoices/export", "scopes": []string{"orders:read"}},
				{"name": "health", "match": "GET /health", "public": setting{"reason": "a test", "owner": "tests", "expires": "2099-01-01"}},
			},
			"assertion": setting{"audience": "orders"},
		},
		"sandbox": setting{"preset": "node", "read": []string{"/app"}, "env": setting{"set": setting{"PORT": "3000"}}},
		"audit":   setting{"file": "audit.jsonl"},
		"keys":    setting{"path": "keys", "publish": "jwks/jwks.json"},
	}
}

// TestContainer runs the real service in a real container, with nothing but the ENTRYPOINT line: as root with Docker's
// default profile, and as tightly as a container can be run.
func TestContainer(t *testing.T) {
	e := needEngine(t)
	image := e.image(t)
	sallyport, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		flags []string
		uid   string
	}{
		{"default, as root", nil, "65532"},
		{"as root on a read-only file system", []string{"--read-only"}, "65532"},
		{"as a user without capabilities or new privileges", []string{"--user", "1000:1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"}, "1000"},
		{"as root without capabilities", []string{"--cap-drop", "ALL"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			shared := openDir(t)
			if err := os.Chmod(shared, 0o777); err != nil {
				t.Fatal(err)
			}
			tool := func(args ...string) []byte {
				cmd := exec.Command(sallyport, args...)
				cmd.Dir = shared
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("sallyport %s: %v", strings.Join(args, " "), err)
				}
				return out
			}
			tool("keys", "generate", "--path", "issuer")
			write(t, filepath.Join(shared, "issuer.jwks.json"), tool("keys", "jwks", "--path", "issuer"))
			token := strings.TrimSpace(string(tool("token", "mint", "--keys", "issuer", "--issuer", "https://issuer.test", "--audience", "orders",
				"--subject", "alice", "--scope", "orders:read")))
			file, err := yaml.Marshal(containerConfig())
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(shared, "sallyport.yaml"), file)

			name := fmt.Sprintf("sallyport-%d", time.Now().UnixNano())
			args := append([]string{"run", "--rm", "--name", name, "--network", "none", "-v", shared + ":/shared"}, c.flags...)
			p := startProcess(t, e.command(append(args, image)...))
			t.Cleanup(func() { _ = e.command("rm", "-f", name).Run() }) // it is gone already if all went well
			if c.uid == "" {
				// Root that may not become another user stays root: that is a gap, and a gap does not start.
				if code := p.exit(t, time.Minute); code == 0 || !strings.Contains(p.output.String(), "hint") {
					t.Fatalf("it started as root without being told to: exit code %d\n%s", code, p.output.tail(2000))
				}
				return
			}
			get := through(filepath.Join(shared, "gate.sock"))
			eventually(t, time.Minute, "the service answers through the gate", func() bool {
				if p.ended() {
					t.Fatalf("the container has ended:\n%s", p.output.tail(4000))
				}
				status, _, err := get("/health", "")
				return err == nil && status == http.StatusOK
			})
			for _, r := range []struct {
				path, token string
				status      int
				absent      string
			}{
				{"/orders", token, 200, ""},
				{"/orders", "", 401, ""},
				{"/orders", unsigned(t, token), 401, ""},
				{"/invoices/export?file=/etc/shadow", token, 403, "root:"},
				{"/invoices/export?file=/etc/marker", token, 403, "service's to read"},
				{"/invoices/export?file=/shared/audit.jsonl", token, 403, "decision"},
				{"/invoices/export?file=/shared/sallyport.yaml", token, 403, "version"},
			} {
				status, body, err := get(r.path, r.token)
				if err != nil || status != r.status {
					t.Errorf("GET %s: status %d, %v, want %d: %.200s", r.path, status, err, r.status, body)
				}
				if r.absent != "" && strings.Contains(body, r.absent) {
					t.Errorf("GET %s: the answer holds %q", r.path, r.absent)
				}
			}
			started := enforcedIn(t, filepath.Join(shared, "audit.jsonl"))
			for _, want := range []string{"user", "capabilities", "no-new-privileges", "files", "bind-ports", "listen-loopback", "signals", "system-calls", "supervisor-memory"} {
				if !started[want] {
					t.Errorf("not in force in the container: %s", want)
				}
			}
			if top := e.run(t, nil, "top", name, "-eo", "pid,uid,comm"); strings.Count(top, c.uid) < 2 {
				t.Errorf("supervisor and service are not uid %s:\n%s", c.uid, top)
			}
			began := time.Now()
			e.run(t, nil, "stop", "-t", "20", name)
			if code := p.exit(t, time.Minute); code != 0 && code != 128+15 {
				t.Errorf("docker stop: exit code %d", code)
			}
			t.Logf("docker stop took %v", time.Since(began).Round(time.Millisecond))
		})
	}
}

// through returns a function that asks the gate behind a unix socket.
func through(socket string) func(path, token string) (status int, body string, err error) {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	return func(path, token string) (int, string, error) {
		req, err := http.NewRequest(http.MethodGet, "http://localhost"+path, nil)
		if err != nil {
			return 0, "", err
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), err
	}
}

// enforcedIn reads what the start's record says to be in force.
func enforcedIn(t *testing.T, book string) map[string]bool {
	t.Helper()
	content, err := os.ReadFile(book)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		var r struct {
			Detail struct {
				Event    string `json:"event"`
				Enforced []struct {
					Name    string `json:"name"`
					InForce bool   `json:"in_force"`
				} `json:"enforced"`
			} `json:"detail"`
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if r.Detail.Event == "started" {
			held := map[string]bool{}
			for _, p := range r.Detail.Enforced {
				held[p.Name] = p.InForce
			}
			return held
		}
	}
	t.Fatal(errors.New("the audit log does not say what was in force at the start"))
	return nil
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}
