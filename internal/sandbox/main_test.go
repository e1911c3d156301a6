package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain builds the helper binary of testdata/walls, without cgo, as sallyport is: under -race the test itself has
// threads that the Go runtime cannot take privileges from.

func TestMain(m *testing.M) {
	Child()
	if len(os.Args) == 3 && os.Args[1] == "unwalled" {
		unwalled(os.Args[2])
		return
	}
	if walls() != "" { // built before, for a user who has no Go toolchain
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "walls")
	if err == nil {
		// The user that the walls run a program as must get at it.
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		build := exec.Command("go", "build", "-o", wallsPath(dir), "./testdata/walls")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		err = build.Run()
	}
	if err == nil {
		err = os.Setenv("SALLYPORT_TEST_WALLS", wallsPath(dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the helper:", err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func wallsPath(dir string) string { return filepath.Join(dir, "walls") }

func walls() string { return os.Getenv("SALLYPORT_TEST_WALLS") }

// job mirrors Job of testdata/walls.
type job struct {
	Profile Profile
	Path    string
	Args    []string
	Pipes   bool
	Timeout time.Duration
	Ways    map[string]string // what the hook answers, see Job
	Quiet   bool              // say nothing of each

	as     uint32            // start the supervisor as this uid and gid; 0 is who we are
	prep   func(*exec.Cmd)   // last changes to the supervisor's command
	during func(*os.Process) // while it runs
}

// probe is a job that makes the attempts from inside the walls.
func probe(p Profile, do ...string) job {
	if p.Dir == "" {
		p.Dir = "/"
	}
	return job{Profile: p, Path: walls(), Args: append([]string{walls(), "probe"}, do...)}
}

type result struct {
	out, err string
	code     int
	signal   syscall.Signal
}

// run supervises the job in a subprocess on the real kernel.
func (j job) run(t testing.TB) result {
	t.Helper()
	return j.start(t, "supervise")
}

func (j job) command(t testing.TB, verb string) *exec.Cmd {
	t.Helper()
	arg, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(walls(), verb, string(arg))
	c.Dir = "/"
	c.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/nonexistent", "LANG=C.UTF-8", "SECRET_TOKEN=do-not-leak"}
	if j.as != 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: j.as, Gid: j.as}}
	}
	if j.prep != nil {
		j.prep(c)
	}
	return c
}

func (j job) start(t testing.TB, verb string) result {
	t.Helper()
	c := j.command(t, verb)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(time.Minute, func() { c.Process.Kill() })
	defer kill.Stop()
	if j.during != nil {
		j.during(c.Process)
	}
	err := c.Wait()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		t.Fatal(err)
	}
	r := result{out: out.String(), err: errs.String(), code: c.ProcessState.ExitCode()}
	if s, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		r.signal = s.Signal()
	}
	return r
}

// enforced is what the supervisor said.
func (r result) enforced(t testing.TB) map[string]Protection {
	t.Helper()
	for line := range strings.Lines(r.err) {
		if text, ok := strings.CutPrefix(line, "enforced: "); ok {
			var e Enforced
			if err := json.Unmarshal([]byte(text), &e); err != nil {
				t.Fatal(err)
			}
			return byName(e.Protections)
		}
	}
	t.Fatalf("the supervisor did not say what holds:\n%s", r.err)
	return nil
}

func byName(list []Protection) map[string]Protection {
	m := map[string]Protection{}
	for _, p := range list {
		m[p.Name] = p
	}
	return m
}

// answers are the results of the probes, by probe.
func (r result) answers() map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(r.out) {
		// The probe's own text may hold ": "; none of its answers begins with something that does.
		for i := 0; ; {
			j := strings.Index(line[i:], ": ")
			if j < 0 {
				break
			}
			i += j
			m[line[:i]] = strings.TrimSpace(line[i+2:])
			i += 2
		}
	}
	return m
}

// check runs the probes in want and compares: "ok", or a piece of the refusal.
func check(t *testing.T, p Profile, want [][2]string) result {
	t.Helper()
	return checkAs(t, "supervise", p, nil, want)
}

// custodies are the two ways in which the supervisor comes by sockets: as the kernel here lets it, and as in a container.
func custodies() []string { return []string{"supervise", "contained"} }

// checkAs is check with a way of supervising, and the hook's answers.
func checkAs(t *testing.T, verb string, p Profile, ways map[string]string, want [][2]string) result {
	t.Helper()
	var do []string
	for _, w := range want {
		do = append(do, w[0])
	}
	j := probe(p, do...)
	j.Ways = ways
	r := j.start(t, verb)
	if r.code != 0 {
		t.Fatalf("exit code %d\n%s%s", r.code, r.out, r.err)
	}
	got := r.answers()
	for _, w := range want {
		answer, asked := got[w[0]]
		if !asked || (w[1] == "ok") != (answer == "ok") || !strings.Contains(answer, w[1]) {
			t.Errorf("%s: got %q, want %q", w[0], answer, w[1])
		}
	}
	if t.Failed() {
		t.Logf("%s%s", r.out, r.err)
	}
	return r
}

// folder is an empty folder that the program's user can enter, and owns.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// t.TempDir is made beneath a folder of mode 0700.
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	own(t, dir)
	return dir
}

// own gives a path to the user that the program will have.
func own(t testing.TB, path string) {
	t.Helper()
	uid, gid, err := Identity(Profile{})
	if err == nil && os.Getuid() == 0 {
		err = os.Chown(path, uid, gid)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, filepath.Dir(path))
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	own(t, path)
	return path
}

// needKernel skips where the real kernel cannot show what the test is about, and fails where CI should have one.
func needKernel(t testing.TB, abi int) {
	t.Helper()
	if k := probeKernel(); k.landlock < abi || !k.notify {
		text := fmt.Sprintf("needs Landlock ABI %d and seccomp notification; here: ABI %d (%s), notification %v", abi, k.landlock, k.landlockWhy, k.notify)
		if os.Getenv("CI") == "true" {
			t.Fatal(text)
		}
		t.Skip(text)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
}

// unwalled is a supervisor that leaves out Landlock and the filter, and accepts it.
func unwalled(arg string) {
	var j job
	err := json.Unmarshal([]byte(arg), &j)
	if err == nil {
		err = Drop(j.Profile)
	}
	var r *resolved
	if err == nil {
		r, err = resolve(j.Profile, Command{Path: j.Path, Args: j.Args})
	}
	if err == nil {
		s := r.spec(kernel{}, r.plan(probeKernel()))
		s.Accept = protectionNames()
		var p *Process
		if p, err = start(context.Background(), s, Command{Stdout: os.Stdout}); err == nil {
			text, _ := json.Marshal(p.Enforced())
			fmt.Fprintf(os.Stderr, "enforced: %s\n", text)
			_, err = p.Wait()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func decodePlan(t testing.TB, text string) (p Plan) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return p
}

func credential(uid, gid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

// newUpstream is a service outside, and its port.
func newUpstream(t testing.TB) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
