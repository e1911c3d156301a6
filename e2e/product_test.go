package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/sallyport/sallyport/internal/natstest"
)

// TestMain removes what the tests share: the binary, which is built when the first one needs it. A test of replicas starts
// this program again, to be one of the servers that they share.
func TestMain(m *testing.M) {
	if served, err := natstest.Serve(); served {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	os.RemoveAll(binaryDir())
	os.Exit(code)
}

func binaryDir() string {
	return filepath.Join(os.TempDir(), "sallyport-e2e-"+strconv.Itoa(os.Getpid()))
}

// binary builds the program as it is released, once, where any user can execute it.
var binary = sync.OnceValues(func() (string, error) {
	if err := readAll("../go.mod", "../cmd", "../internal", "../bearer", "../identity", "../safedial"); err != nil {
		return "", err
	}
	if err := os.Mkdir(binaryDir(), 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(binaryDir(), "sallyport")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "../cmd/sallyport")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return path, nil
})

// openDir makes a folder that the user can enter which the program becomes when it starts as root; a test's own temporary
// folder is closed to others.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sallyport-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// enterable returns the folder, or a copy of it where another user could not get to the folder.
func enterable(t testing.TB, dir string) string {
	t.Helper()
	abs, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 {
		return abs
	}
	for d := abs; d != "/"; d = filepath.Dir(d) {
		st, err := os.Stat(d)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm()&0o005 != 0o005 {
			to := filepath.Join(openDir(t), filepath.Base(abs))
			if err := os.CopyFS(to, os.DirFS(abs)); err != nil {
				t.Fatalf("copy %s to where uid 65532 can read it: %v", abs, err)
			}
			return to
		}
	}
	return abs
}

// freePort reserves a port for a service that will listen there while the test runs: a socket is bound to it and does not
// listen. The kernel gives such a port to nobody who asks for any, and lets those have it who ask for it by number with
// SO_REUSEADDR, as node does (inet_csk_bind_conflict in the kernel's net/ipv4/inet_connection_sock.c).
func freePort(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(bound.(*syscall.SockaddrInet4).Port)
}

// setting is a part of a configuration file.
type setting = map[string]any

// merge lays settings over others, key by key; nil takes a key away.
func merge(base, over setting) setting {
	out := maps.Clone(base)
	for k, v := range over {
		below, ok := out[k].(setting)
		if above, both := v.(setting); ok && both {
			v = merge(below, above)
		}
		if out == nil {
			out = setting{}
		}
		if out[k] = v; v == nil {
			delete(out, k)
		}
	}
	return out
}

// product is a running `sallyport run` (or serve) with what it writes.
type product struct {
	*process
	url    string // of the gate
	port   string // of the service behind it
	dir    string // with all that it writes
	config string
	audit  string
	socket string // admin listener

	began, listening time.Time // the latter as its log has it
}

// launch is what startProduct starts.
type launch struct {
	settings setting  // below those that every product has: ports, and files in a folder of its own
	over     setting  // above them
	folder   string   // the service's, which is the working folder
	command  []string // the service; none: serve
	env      []string
	flags    []string // of run
}

// startProduct starts the program and waits until the gate listens.
func startProduct(t testing.TB, l launch) *product {
	t.Helper()
	p := execProduct(t, l)
	p.awaitListening(t)
	return p
}

// execProduct starts the program and waits for nothing.
func execProduct(t testing.TB, l launch) *product {
	t.Helper()
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	p := &product{dir: openDir(t), port: freePort(t)}
	p.config = filepath.Join(p.dir, "sallyport.yaml")
	p.audit = filepath.Join(p.dir, "var", "audit.jsonl")
	p.socket = filepath.Join(p.dir, "var", "admin.sock")
	settings := merge(merge(l.settings, setting{
		"version": 1,
		"ingress": setting{"listen": "127.0.0.1:0", "upstream": "http://127.0.0.1:" + p.port},
		"sandbox": setting{"env": setting{"set": setting{"PORT": p.port}}},
		"audit":   setting{"file": "var/audit.jsonl"},
		"state":   setting{"path": "var/state.db"},
		"keys":    setting{"path": "var/keys", "publish": "var/jwks/jwks.json"},
		"admin":   setting{"listen": "unix:var/admin.sock"},
	}), l.over)
	text, err := yaml.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.config, text, 0o644); err != nil {
		t.Fatal(err)
	}
	verb := "run"
	if l.command == nil {
		verb = "serve"
	}
	args := append([]string{verb, "-c", p.config}, l.flags...)
	if l.command != nil {
		args = append(append(args, "--"), l.command...)
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = l.folder
	cmd.Env = append(os.Environ(), l.env...)
	p.began = time.Now()
	p.process = startProcess(t, cmd)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("configuration:\n%s\naudit log:\n%s", text, p.book(t))
		}
	})
	return p
}

// again starts the program once more, with the configuration and the files of the one that has ended. It waits for nothing.
func (p *product) again(t testing.TB) {
	t.Helper()
	cmd := exec.Command(p.cmd.Path, p.cmd.Args[1:]...)
	cmd.Dir, cmd.Env = p.cmd.Dir, p.cmd.Env
	p.began = time.Now()
	p.process = startProcess(t, cmd)
}

// said finds the first line of the program's log with the message.
func (p *process) said(message string) (line map[string]any, ok bool) {
	for s := bufio.NewScanner(strings.NewReader(p.output.String())); s.Scan(); {
		line = nil
		if json.Unmarshal(s.Bytes(), &line) == nil && line["msg"] == message {
			return line, true
		}
	}
	return nil, false
}

// await waits for a line of the program's log.
func (p *process) await(t testing.TB, message string) (line map[string]any) {
	t.Helper()
	eventually(t, 60*time.Second, fmt.Sprintf("the log says %q", message), func() (ok bool) {
		if line, ok = p.said(message); !ok && p.ended() {
			t.Fatalf("it ended before it said %q", message)
		}
		return ok
	})
	return line
}

// awaitListening waits for the gate, for the service where there is one, and for the issuer's keys.
func (p *product) awaitListening(t testing.TB) {
	t.Helper()
	line := p.await(t, "listening")
	var err error
	if p.listening, err = time.Parse(time.RFC3339Nano, fmt.Sprint(line["time"])); err != nil {
		t.Fatal(err)
	}
	p.url = fmt.Sprintf("http://%s", line["address"])
	if p.cmd.Args[1] == "run" {
		p.await(t, "the service is listening")
	}
	eventually(t, 30*time.Second, "it is ready", func() bool {
		status, _ := p.admin(t, http.MethodGet, "/readyz")
		return status == http.StatusOK
	})
}

// book is the audit log as it stands.
func (p *product) book(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(p.audit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// admin asks the admin listener.
func (p *product) admin(t testing.TB, method, path string) (status int, body string) {
	t.Helper()
	status, body, err := p.operate(method, path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

// operate asks the admin listener, which may not be there.
func (p *product) operate(method, path, media string, content io.Reader) (status int, body string, err error) {
	c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p.socket)
		},
	}}
	req, err := http.NewRequest(method, "http://admin"+path, content)
	if err != nil {
		return 0, "", err
	}
	if media != "" {
		req.Header.Set("Content-Type", media)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// metric reads one gauge or counter without labels from the admin listener.
func (p *product) metric(t testing.TB, name string) float64 {
	t.Helper()
	_, body := p.admin(t, http.MethodGet, "/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s in:\n%s", name, body)
	return 0
}

// descriptors counts the program's open files. Only root may look: the supervisor is not dumpable, even for its own
// user. Its own count does for the others.
func (p *product) descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid()))
	if errors.Is(err, fs.ErrPermission) {
		return int(p.metric(t, "process_open_fds"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
