package sandbox

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// docker is the client of an engine that may run containers for the tests: SALLYPORT_TEST_DOCKER=unix:///path/of.sock.
// It is asked for by name, because a test must not start containers with whatever engine happens to be around.
func docker(t *testing.T) func(stdin io.Reader, args ...string) (string, string, int) {
	t.Helper()
	host := os.Getenv("SALLYPORT_TEST_DOCKER")
	if host == "" {
		const reason = "SALLYPORT_TEST_DOCKER names no container engine: run scripts/with-engine go test ./internal/sandbox, as root"
		if os.Getenv("CI") == "true" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	return func(stdin io.Reader, args ...string) (string, string, int) {
		c := exec.Command("docker", append([]string{"--host", host}, args...)...)
		var out, errs bytes.Buffer
		c.Stdin, c.Stdout, c.Stderr = stdin, &out, &errs
		err := c.Run()
		if c.ProcessState == nil {
			t.Fatal(err)
		}
		return out.String(), errs.String(), c.ProcessState.ExitCode()
	}
}

// image writes a file system with node, the helper and a service, as a tar file.
func image(t *testing.T) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := map[string]bool{".": true}
	var mkdir func(name string)
	mkdir = func(name string) {
		if made[name] {
			return
		}
		mkdir(filepath.Dir(name))
		made[name] = true
		if err := w.WriteHeader(&tar.Header{Name: name + "/", Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
			t.Fatal(err)
		}
	}
	add := func(name string, mode int64, body []byte) {
		mkdir(filepath.Dir(name))
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(body)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	file := func(from, to string) {
		body, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		add(to, 0o755, body)
	}
	programs := []string{node(t), "/bin/echo"}
	file(walls(), "bin/walls")
	file(programs[0], "usr/local/bin/node")
	file(programs[1], "bin/echo")
	done := map[string]bool{}
	for _, p := range programs {
		out, err := exec.Command("ldd", p).Output()
		if err != nil {
			t.Skip("no ldd to find the libraries with:", err)
		}
		for _, field := range strings.Fields(string(out)) {
			if filepath.IsAbs(field) && !done[field] {
				done[field] = true
				file(field, field[1:])
			}
		}
	}
	add("etc/shadow", 0o644, []byte("readable by mode, so that only the walls close it\n"))
	add("elsewhere", 0o644, []byte("x"))
	add("app/package.json", 0o644, []byte(`{"name":"orders"}`))
	add("app/dist/main.js", 0o644, []byte(application))
	add("app/node_modules/left/index.js", 0o644, []byte(`module.exports = 'left'`))
	for _, dir := range []string{"tmp/", "data/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Mode: 0o1777, Typeflag: tar.TypeDir}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// The walls in containers with Docker's default profile, as they are found in the world.
func TestDocker(t *testing.T) {
	run := docker(t)
	id, errs, code := run(image(t), "import", "-")
	if code != 0 {
		t.Fatal(errs)
	}
	id = strings.TrimSpace(id)
	defer run(nil, "rmi", "--force", id)

	service := job{Path: "node", Args: []string{"node", "dist/main.js"}, Profile: Profile{
		Preset: "node", Dir: "/app", Listen: on(3000), Write: []string{"/data"}, Execute: []string{"/bin/echo"},
		Env: Env{Set: map[string]string{"ONCE": "1", "PORT": "3000", "ELSEWHERE": "/elsewhere", "WRITABLE": "/data", "OTHER": "1", "TOOL": "/bin/echo", "ADDRESS": "10.9.8.7", "UPSTREAM": "4999"}},
	}}
	attacks := job{Path: "/bin/walls", Profile: Profile{Dir: "/", Listen: on(3000), Write: []string{"/data"}}, Args: []string{"/bin/walls", "probe",
		"status", "fds", "listen 0.0.0.0:3000", "listen [::]:3000", "autobind", "socket 2 1 262", "socket 17 3 768", "socket 40 1 0", "uring", "unshare", "ptrace",
		"kill-parent", "parent environ", "fastopen", "run-copy /data", "run-memfd", "read /etc/shadow", "setuid", "race-address 3000 500", "race-listen 3000 50",
		"relisten 0.0.0.0:3000", "connect 127.0.0.1:2375", "connect 169.254.169.254:80", "connect [fd00:ec2::254]:80", "socket 1 2 0", "socket 2 2 0"},
		Ways: map[string]string{"tcp 127.0.0.1:3000": "direct"}}
	names := job{Path: "/bin/walls", Profile: Profile{Dir: "/", UDP: "dns"}, Args: []string{"/bin/walls", "probe", "dns-sendto 127.0.0.53:53", "dns-sendto 127.0.0.11:53", "sendto 127.0.0.1:54", "sendmsg 127.0.0.11:53"},
		Ways: map[string]string{"resolve": "hello"}}
	for _, c := range []struct {
		name   string
		flags  []string
		uid    string
		writes bool
	}{
		{"root", nil, "65532", true},
		{"user 1000, no capabilities, no new privileges", []string{"--user", "1000:1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"}, "1000", true},
		{"root, read-only", []string{"--read-only"}, "65532", false},
		{"user 1000, read-only, writable data", []string{"--user", "1000", "--read-only", "--tmpfs", "/data:mode=1777"}, "1000", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inside := func(verb string, j job) result {
				arg, err := json.Marshal(j)
				if err != nil {
					t.Fatal(err)
				}
				args := append([]string{"run", "--rm", "--network", "none", "--env", "PATH=/usr/local/bin:/bin"}, c.flags...)
				out, errs, code := run(nil, append(args, id, "/bin/walls", verb, string(arg))...)
				return result{out: out, err: errs, code: code}
			}
			if !c.writes {
				// What cannot be written cannot be asked for.
				if r := inside("supervise", service); r.code != 72 || !strings.Contains(r.err, "/data") {
					t.Errorf("a writable folder on a read-only image: %d %s", r.code, r.err)
				}
				service.Profile.Write, attacks.Profile.Write = nil, nil
				defer func() { service.Profile.Write, attacks.Profile.Write = []string{"/data"}, []string{"/data"} }()
			}
			plan := decodePlan(t, inside("try", service).out)
			r := inside("supervise", attacks)
			if r.code != 0 {
				t.Fatalf("%d\n%s%s", r.code, r.out, r.err)
			}
			e := r.enforced(t)
			for _, p := range plan.Protections {
				if got := e[p.Name]; p.InForce != got.InForce || p.gap() || got.gap() {
					t.Errorf("%s: tried %+v, enforced %+v", p.Name, p, got)
				}
			}
			answers := r.answers()
			for do, want := range map[string]string{
				"fds": "ok", "listen 0.0.0.0:3000": "ok", "listen [::]:3000": "ok", "autobind": "permission denied",
				"socket 2 1 262": "protocol not supported", "socket 17 3 768": "not supported by protocol", "socket 40 1 0": "not supported by protocol",
				"uring": "function not implemented", "unshare": "operation not permitted", "ptrace": "operation not permitted", "kill-parent": "operation not permitted",
				"parent environ": "permission denied", "fastopen": "operation not supported", "run-memfd": "function not implemented",
				"read /etc/shadow": "permission denied", "setuid": "operation not permitted", "race-address 3000 500": "ok", "race-listen 3000 50": "ok",
				"relisten 0.0.0.0:3000": "ok", "connect 127.0.0.1:2375": "permission denied", "connect 169.254.169.254:80": "permission denied",
				"connect [fd00:ec2::254]:80": "permission denied", "socket 1 2 0": "permission denied", "socket 2 2 0": "permission denied",
			} {
				if !strings.HasSuffix(answers[do], want) {
					t.Errorf("%s: %q, want %q", do, answers[do], want)
				}
			}
			if strings.Contains(r.out, "name=0.0.0.0") || strings.Contains(r.out, "name=[::]:") {
				t.Error("something listens on every address")
			}
			if how := e[protBroker].Detail; !strings.Contains(how, "made by the supervisor") {
				t.Errorf("the container's own filter should leave one way only: %s", how)
			}
			r = inside("supervise", names)
			if r.code != 0 || strings.Count(r.out, "dns-sendto 127.0.0.53:53: ok") != 1 || strings.Count(r.out, "dns-sendto 127.0.0.11:53: ok") != 1 || strings.Count(r.out, "permission denied") != 2 {
				t.Errorf("%d %s%s", r.code, r.out, r.err)
			}
			learn := service
			learn.Profile.Learn, learn.Profile.Write, learn.Profile.Execute = true, nil, nil
			r = inside("supervise", learn)
			if r.code != 0 {
				t.Fatalf("%d\n%s%s", r.code, r.out, r.err)
			}
			_, seen := r.learned(t)
			for path, want := range map[string]string{"/elsewhere": "r", "/etc/shadow": "r", "/bin/echo": "x", "/data": "w|w refused"} {
				if !strings.Contains("|"+want+"|", "|"+seen[path]+"|") {
					t.Errorf("learned of %s: %q, want %q", path, seen[path], want)
				}
			}
			r = inside("supervise", service)
			var got map[string]string
			if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != 0 {
				t.Fatalf("%d %v\n%s%s", r.code, err, r.out, r.err)
			}
			for name, want := range map[string]string{
				"dependency": "left", "shadow": "EACCES", "elsewhere": "EACCES", "write app": "EACCES|EROFS", "write tmp": "EACCES|EROFS",
				"supervisor environ": "EACCES", "memory": "true", "processors": "true", "kill": "EPERM", "uid 0": "EPERM", "worker": "true", "fork": "forked",
				"allowed program": "hi", "udp": "EACCES", "lookup": "127.0.0.1", "fetch": "EACCES", "default host": "::ffff:127.0.0.1|127.0.0.1", "0.0.0.0": "127.0.0.1", "other address": "EACCES", "other port": "EACCES", "interfaces": "127.0.0.1",
			} {
				if !strings.Contains("|"+want+"|", "|"+got[name]+"|") {
					t.Errorf("%s: %q, want %q", name, got[name], want)
				}
			}
			if t.Failed() {
				t.Logf("%s", r.err)
			}
		})
	}
	t.Run("root without CAP_SETUID", func(t *testing.T) {
		_, errs, code := run(nil, "run", "--rm", "--network", "none", "--cap-drop", "ALL", id, "/bin/walls", "supervise", `{"Path":"/bin/walls","Args":["walls"]}`)
		if code != 71 || !strings.Contains(errs, "start the container as that user instead") {
			t.Errorf("%d %s", code, errs)
		}
	})
}
