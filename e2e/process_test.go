package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a program that a test started. It ends with the test.
type process struct {
	cmd    *exec.Cmd
	output transcript // standard error, and standard output after its first line where that was read
	done   chan struct{}
	state  *os.ProcessState // after done
}

// startProcess starts cmd with its output in a transcript, which is logged if the test fails.
func startProcess(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.output
	}
	cmd.Stderr = &p.output
	cmd.WaitDelay = 5 * time.Second // a grandchild may hold the pipes
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", cmd.Path, err)
	}
	go func() {
		// The exit status is judged by the tests that care.
		_ = cmd.Wait()
		p.state = cmd.ProcessState
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("output of %s:\n%s", strings.Join(cmd.Args, " "), p.output.tail(8<<10))
		}
	})
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// signal sends one; that the process has ended already is not an error.
func (p *process) signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("signal %v to %d: %v", sig, p.pid(), err)
	}
}

// exit waits for the process and returns its exit code, or 128 and the signal that ended it.
func (p *process) exit(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		t.Fatalf("%s runs still after %v", strings.Join(p.cmd.Args, " "), within)
	}
	if status, ok := p.state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return p.state.ExitCode()
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) stop() {
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if p.ended() {
			return
		}
		_ = p.cmd.Process.Signal(sig) // it may end between the two lines
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
		}
	}
}

// transcript collects what a process says. Safe for concurrent use.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *transcript) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func (s *transcript) tail(n int) string {
	all := s.String()
	return all[max(0, len(all)-n):]
}

// patience is how long a Node program has to announce itself: several times what the slowest start takes on a machine that
// does all else at once.
const patience = 30 * time.Second

// startNode runs a Node program of this folder that announces itself with one line of JSON, which is read into hello.
// The program ends when its standard input does: not even a killed test leaves one behind.
//
// Once in many hundreds of starts Node 20 was seen to load its modules and then to say nothing for a minute. Nothing of ours
// runs in it by then, so it is ended and started again; where its threads stood is logged.
func startNode(t testing.TB, hello any, dir string, args ...string) *process {
	t.Helper()
	needNode(t, dir)
	if err := readAll(dir); err != nil {
		t.Fatal(err)
	}
	const starts = 3
	for range starts {
		p, line := launchNode(t, dir, args...)
		select {
		case first := <-line:
			if err := json.Unmarshal(first, hello); err != nil {
				t.Fatalf("node %s/server.mjs announced %q: %v", dir, first, err)
			}
			return p
		case <-time.After(patience):
			t.Logf("node %s/server.mjs did not announce itself within %v; its threads:\n%s", dir, patience, threads(p.pid()))
			p.stop()
		}
	}
	t.Fatalf("node %s/server.mjs did not announce itself in %d starts", dir, starts)
	return nil
}

// launchNode starts a program and returns the first line that it will print.
func launchNode(t testing.TB, dir string, args ...string) (*process, <-chan []byte) {
	t.Helper()
	cmd := exec.Command("node", append([]string{"server.mjs"}, args...)...)
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, stdoutw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = stdoutw
	p := startProcess(t, cmd)
	stdoutw.Close()
	t.Cleanup(func() { stdin.Close() })

	line := make(chan []byte, 1)
	go func() {
		defer stdout.Close()
		r := bufio.NewReader(stdout)
		first, _ := r.ReadBytes('\n') // an early end shows as a line that is no JSON
		line <- first
		_, _ = io.Copy(&p.output, r) // until the program ends
	}()
	return p, line
}

// threads is where the threads of a process wait in the kernel (proc(5): wchan, syscall), for a log.
func threads(pid int) string {
	var b strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid)) // the pattern is a good one
	for _, task := range tasks {
		for _, name := range []string{"comm", "wchan", "syscall"} {
			text, err := os.ReadFile(filepath.Join(task, name))
			if err != nil {
				text = []byte(err.Error())
			}
			fmt.Fprintf(&b, "%s=%s ", name, bytes.TrimSpace(text))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// needNode skips the test where dir's npm packages are not installed, with the command that installs them. CI installs
// them, so there their absence is a failure.
func needNode(t testing.TB, dir string) {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		unavailable(t, "node is not installed")
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules")); err != nil {
		unavailable(t, fmt.Sprintf("the npm packages of %s are not installed: run `npm ci` there", dir))
	}
}

// unavailable ends a test for want of a part that CI has.
func unavailable(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// readAll reads files and folders in this process, and does nothing with them. What a child process reads is invisible to
// the test cache, which would then show an old result for a changed program.
func readAll(paths ...string) error {
	for _, root := range paths {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && d.Name() == "node_modules":
				return filepath.SkipDir
			case !d.Type().IsRegular():
				return nil
			}
			_, err = os.ReadFile(path)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// eventually polls until ok returns true.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v, not yet: %s", within, what)
		}
	}
}
