package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestGapsRefuseToStart(t *testing.T) {
	needKernel(t, 4)
	p := Profile{}
	try := func() result { return probe(p, "cwd").start(t, "listened") }
	r := try()
	if r.code != 73 || !strings.Contains(r.err, "gap: connection-broker\n") || strings.Contains(r.out, "cwd") {
		t.Errorf("%d %s%s", r.code, r.out, r.err)
	}
	p.AcceptGaps = []string{"connection-broker", "listen-loopback"}
	r = try()
	if r.code != 0 || !strings.Contains(r.err, "a protection is missing") {
		t.Errorf("%d %s%s", r.code, r.out, r.err)
	}
	p.AcceptGaps = []string{"connection-brocker"}
	r = try()
	if r.code != 72 || !strings.Contains(r.err, `"connection-brocker"`) || !strings.Contains(r.err, "listen-loopback") {
		t.Errorf("%d %s%s", r.code, r.out, r.err)
	}
}

func TestNestedWalls(t *testing.T) {
	needKernel(t, 4)
	port := freePort(t)
	outer := func(inner Profile) result {
		j := probe(Profile{Listen: on(port), Read: []string{"/proc"}}, "")
		j.Args = probe(inner, "cwd").command(t, "supervise").Args
		return j.run(t)
	}
	r := outer(Profile{Listen: on(port)})
	if r.code != 71 || !strings.Contains(r.err, "sallyport does not run inside sallyport") {
		t.Errorf("%d %s%s", r.code, r.out, r.err)
	}
}

func TestExitCodes(t *testing.T) {
	needKernel(t, 4)
	for do, want := range map[string]int{"exit 0": 0, "exit 42": 42, "die 9": 137, "die 15": 143} {
		if r := probe(Profile{}, do).run(t); r.code != want {
			t.Errorf("%s: exit code %d, want %d\n%s", do, r.code, want, r.err)
		}
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	needKernel(t, 4)
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2} {
		j := probe(Profile{}, "signalled "+strconv.Itoa(int(s)))
		j.prep = func(c *exec.Cmd) { c.Stdout = nil }
		c := j.command(t, "supervise")
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		c.Stderr = os.Stderr
		c.Stderr = nil
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() || lines.Text() != "ready" {
			t.Fatalf("%v: %q", s, lines.Text())
		}
		c.Process.Signal(s)
		if err := c.Wait(); c.ProcessState.ExitCode() != 40 {
			t.Errorf("%v: %v", s, err)
		}
	}
}

func TestOrphansAreReaped(t *testing.T) {
	needKernel(t, 4)
	check(t, Profile{Read: []string{"/proc"}, Execute: []string{filepath.Dir(walls())}}, [][2]string{{"orphans", "ok"}})
}

// The program must not outlive its supervisor, and what escapes that must not bind.
func TestSupervisorsDeath(t *testing.T) {
	needKernel(t, 4)
	dir := folder(t)
	file := filepath.Join(dir, "answer")
	p := Profile{Write: []string{dir}, Execute: []string{filepath.Dir(walls())}, Listen: on(61999)}
	j := probe(p, "leave "+file, "sleep 1m")
	c := j.command(t, "supervise")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var program, left int
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "sleeping" {
		fmt.Sscanf(lines.Text(), "pid=%d", &program)
		fmt.Sscanf(lines.Text(), "left=%d", &left)
	}
	if program == 0 || left == 0 {
		t.Fatalf("program %d, left %d", program, left)
	}
	c.Process.Kill()
	c.Wait()
	for deadline := time.Now().Add(10 * time.Second); unix.Kill(program, 0) == nil && !zombie(program); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the program outlives its supervisor")
		}
	}
	if err := unix.Kill(left, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(file)
		if err == nil && len(b) > 0 {
			if string(b) != "function not implemented" {
				t.Errorf("a bind without a supervisor: %s", b)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// terminal makes a pseudo-terminal and returns both of its ends.
func terminal(t *testing.T) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here:", err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Skip("no pseudo-terminals here:", err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here:", err)
	}
	t.Cleanup(func() { tty.Close() })
	return master, tty
}

func TestTerminalIsThePrograms(t *testing.T) {
	needKernel(t, 4)
	master, tty := terminal(t)
	j := probe(Profile{}, "foreground")
	j.prep = func(c *exec.Cmd) {
		c.Stdin = tty
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
	j.during = func(*os.Process) { master.Write([]byte("hello\n")) }
	if r := j.run(t); !strings.Contains(r.out, "typed=hello") || !strings.Contains(r.out, "foreground: ok") {
		t.Errorf("%d\n%s%s", r.code, r.out, r.err)
	}
}

// A terminal that stops who writes from the background must not stop the supervisor, who does.
func TestTerminalDoesNotStopTheSupervisor(t *testing.T) {
	needKernel(t, 4)
	master, tty := terminal(t)
	c := probe(Profile{}, "tostop", "signalled 10").command(t, "supervise")
	c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(time.Minute, func() { c.Process.Kill() })
	defer kill.Stop()
	var out []string
	lines := bufio.NewScanner(master)
	until := func(want string) {
		for lines.Scan() {
			out = append(out, lines.Text())
			if strings.TrimSpace(lines.Text()) == want {
				return
			}
		}
		t.Fatalf("the terminal does not show %q: %q", want, out)
	}
	until("tostop: ok")
	until("ready")
	c.Process.Signal(syscall.SIGUSR1)
	tty.Close() // ours; the reading ends with the last one's
	until("passed on: user defined signal 1")
	if err := c.Wait(); c.ProcessState.ExitCode() != 40 {
		t.Error(err)
	}
}

// A socket that waits for its peer when it is closed for the last time must not keep the supervisor from ending.
func TestLingeringSocket(t *testing.T) {
	needKernel(t, 4)
	port := freePort(t)
	j := probe(Profile{Listen: on(port), Execute: []string{filepath.Dir(walls())}}, fmt.Sprint("linger ", port))
	j.Ways = map[string]string{"tcp *": "direct"}
	r := j.start(t, "contained")
	var left int
	for line := range strings.Lines(r.out) {
		fmt.Sscanf(line, "left=%d", &left)
	}
	if left == 0 {
		t.Fatalf("%s%s", r.out, r.err)
	}
	defer unix.Kill(left, unix.SIGKILL)
	if r.code != 0 || !strings.Contains(r.out, fmt.Sprintf("linger %d: ok\n", port)) {
		t.Errorf("%d %s%s", r.code, r.out, r.err)
	}
	if unix.Kill(left, 0) != nil {
		t.Error("who kept the connection open has ended: nothing was shown")
	}
}

func TestOutputThroughPipes(t *testing.T) {
	needKernel(t, 4)
	j := probe(Profile{}, "cwd", "exit 3")
	j.Pipes = true
	if r := j.run(t); r.code != 3 || !strings.Contains(r.out, "cwd=/\ncwd: ok\n") {
		t.Errorf("%d %q %s", r.code, r.out, r.err)
	}
}

func TestBadStarts(t *testing.T) {
	needKernel(t, 4)
	base := folder(t)
	private := filepath.Join(base, "private")
	write(t, filepath.Join(private, "app/x"), "x", 0o644)
	write(t, filepath.Join(base, "text"), "no program\n", 0o755)
	write(t, filepath.Join(base, "script"), "#!/nonexistent/shell\n", 0o755)
	write(t, filepath.Join(base, "w/program"), "#!"+walls()+"\n", 0o755)
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(private, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	at := Profile{Dir: "/"}
	for _, c := range []struct {
		name string
		j    job
		code int
		want string
	}{
		{"no such program", job{Profile: at, Path: "nod", Args: []string{"nod"}}, 74, `program "nod" is in no folder of PATH=`},
		{"no such file", job{Profile: at, Path: "/no/such", Args: []string{"such"}}, 74, "program /no/such"},
		{"not a program", job{Profile: at, Path: base + "/text", Args: []string{"text"}}, 72, "neither a script"},
		{"no interpreter", job{Profile: at, Path: base + "/script", Args: []string{"script"}}, 74, "/nonexistent"},
		{"a folder", job{Profile: at, Path: base, Args: []string{"x"}}, 72, "is not a file"},
		{"user by name", probe(Profile{User: "node"}, "cwd"), 71, "in numbers"},
		{"passes NODE_OPTIONS", probe(Profile{Env: Env{Pass: []string{"NODE_OPTIONS"}}}, "cwd"), 72, "NODE_OPTIONS"},
		{"passes LD_PRELOAD", probe(Profile{Env: Env{Pass: []string{"LD_PRELOAD"}}}, "cwd"), 72, "LD_PRELOAD"},
		{"program in a writable folder", job{Profile: Profile{Dir: "/", Write: []string{base + "/w"}}, Path: base + "/w/program", Args: []string{"x"}}, 72, "what can be written cannot be executed"},
		{"writes everywhere", probe(Profile{Write: []string{"/"}}, "cwd"), 72, "/"},
		{"listens nowhere", probe(Profile{Listen: []Listen{{}}}, "cwd"), 72, "either a TCP port or"},
		{"TCP without network", probe(Profile{Listen: on(3000), Network: "none"}, "cwd"), 72, "unix socket"},
		{"unknown network", probe(Profile{Network: "open"}, "cwd"), 72, `unknown network "open"`},
		{"unknown udp", probe(Profile{UDP: "open"}, "cwd"), 72, `unknown udp "open"`},
		{"UDP without the broker", probe(Profile{UDP: "dns", Network: "ports"}, "cwd"), 72, `only with network "broker"`},
		{"a socket's relative path", probe(Profile{Sockets: []string{"s"}}, "cwd"), 72, `sockets "s": the path is not absolute`},
		{"unknown preset", probe(Profile{Preset: "deno"}, "cwd"), 72, `unknown preset "deno"`},
		{"nproc too low", probe(Profile{Limits: Limits{NProc: 1}}, "cwd"), -1, ""},
		{"working directory outside", probe(Profile{Dir: base}, "cwd"), 72, "outside what the program may read"},
		{"denied and asked for", probe(Profile{Read: []string{base + "/w"}, Deny: []string{base}}, "cwd"), 72, "must not see"},
		{"denied in a writable folder", probe(Profile{Write: []string{base + "/w"}, Deny: []string{base + "/w/key"}}, "cwd"), 72, "must not see"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := c.j.run(t)
			if c.code == -1 {
				if r.code == 0 {
					t.Errorf("it started")
				}
				return
			}
			if r.code != c.code || !strings.Contains(r.err, c.want) {
				t.Errorf("exit code %d, want %d and %q:\n%s", r.code, c.code, c.want, r.err)
			}
		})
	}
	if os.Getuid() == 0 {
		r := probe(Profile{Read: []string{private + "/app"}}, "cwd").run(t)
		if want := fmt.Sprintf("may not enter %s (mode 0700, owner 0:0)", private); r.code != 72 || !strings.Contains(r.err, want) {
			t.Errorf("exit code %d, want %q:\n%s", r.code, want, r.err)
		}
	}
}

func TestStartIsBounded(t *testing.T) {
	needKernel(t, 4)
	j := probe(Profile{}, "cwd")
	j.Timeout = time.Nanosecond
	if r := j.run(t); r.code != 72 || !strings.Contains(r.err, "context deadline exceeded") {
		t.Errorf("%d %s", r.code, r.err)
	}
}

// Root by the operator's wish is a gap; accepted, it is root without anything that makes root what it is.
func TestRootByName(t *testing.T) {
	needKernel(t, 6)
	needRoot(t)
	p := Profile{User: "0:0", Read: []string{"/proc"}}
	if r := probe(p, "cwd").run(t); r.code != 73 || !strings.Contains(r.err, "gap: user\n") {
		t.Errorf("%d %s", r.code, r.err)
	}
	p.AcceptGaps = []string{protUser}
	r := probe(p, "status", "read /etc/shadow", "kill-parent", "parent environ", "unshare", "listen 127.0.0.1:1").run(t)
	for _, w := range []string{"Uid: 0 0 0 0\n", "CapEff: 0000000000000000\n", "CapBnd: 0000000000000000\n", "shadow: permission denied", "kill-parent: operation not", "environ: permission denied", "unshare: operation not", ":1: permission denied"} {
		if !strings.Contains(r.out, w) {
			t.Errorf("no %q in\n%s%s", w, r.out, r.err)
		}
	}
}

func TestLaunchNeedsDrop(t *testing.T) {
	_, err := Launch(t.Context(), Profile{}, Command{Path: "/bin/true", Args: []string{"true"}})
	if err == nil || !strings.HasPrefix(err.Error(), "launch: ") {
		t.Error(err)
	}
}

func TestChildTypedByHand(t *testing.T) {
	for _, name := range []string{childName, trialName} {
		c := exec.Command(walls())
		c.Args = []string{name}
		out, err := c.CombinedOutput()
		if c.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "use sallyport run") {
			t.Errorf("%v %s", err, out)
		}
	}
}

func TestTryLeavesGapsInThePlan(t *testing.T) {
	needKernel(t, 4)
	for _, c := range []struct {
		p    Profile
		gaps []string
	}{
		{Profile{}, nil},
		{Profile{Network: networkPorts, Listen: []Listen{{Unix: "/tmp/s"}}}, []string{protUnixSockets}},
		{Profile{User: "0"}, []string{protUser}},
	} {
		if c.p.User == "0" && os.Getuid() != 0 || len(c.gaps) > 0 && c.gaps[0] == protUnixSockets && probeKernel().landlock >= 9 {
			continue
		}
		r := job{Profile: c.p}.start(t, "try")
		if r.code != 0 {
			t.Fatalf("%d %s", r.code, r.err)
		}
		p := decodePlan(t, r.out)
		var gaps []string
		for _, q := range p.Protections {
			if q.gap() {
				gaps = append(gaps, q.Name)
			}
		}
		if !slices.Equal(gaps, c.gaps) {
			t.Errorf("%+v: gaps %v, want %v", c.p, gaps, c.gaps)
		}
	}
}
