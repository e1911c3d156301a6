package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// TestStories runs every visible behaviour of the commands against the program as it is shipped: static, without cgo,
// since only that can drop privileges on every thread.
func TestStories(t *testing.T) {
	bin := t.TempDir()
	// The stories' programs become another user when the tests run as root.
	for d := bin; strings.HasPrefix(d, os.TempDir()) && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, pkg := range map[string]string{"sallyport": ".", "service": "./testdata/service"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(bin, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	names := sallytest.NewResolver(t, map[string][]string{
		"rates.test": {"127.0.0.1"}, "trap.test": {"169.254.169.254"}, "secret.test": {"127.0.0.1"},
	})
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			// Folders above the story's own are made by the test runner for its user only.
			for d := e.WorkDir; strings.HasPrefix(d, os.TempDir()) && d != os.TempDir(); d = filepath.Dir(d) {
				if err := os.Chmod(d, 0o755); err != nil {
					return err
				}
			}
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("BIN", bin)
			e.Setenv("DNS", names.Addr)
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"freeport": freePort,
			"await":    await,
			"http":     request,
			"tokenenv": tokenEnv,
			"signal":   sendSignal,
			"asked": func(ts *testscript.TestScript, neg bool, args []string) { // asked NAME: the name server was
				if asked := names.Asked(args[0]) > 0; asked == neg {
					ts.Fatalf("the name server was asked for %s: %t", args[0], asked)
				}
			},
		},
	})
}

// freeport NAME... sets each variable to a TCP port that nobody listens on.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		_, port, err := net.SplitHostPort(l.Addr().String())
		ts.Check(err)
		ts.Check(l.Close())
		ts.Setenv(name, port)
	}
}

// await URL [STATUS] waits until the URL answers with the status, 200 if none is given.
func await(ts *testscript.TestScript, neg bool, args []string) {
	want := append(args, "200")[1]
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := client(args[0]).Get(plain(args[0]))
		if err == nil {
			resp.Body.Close()
			if fmt.Sprint(resp.StatusCode) == want {
				return
			}
			err = fmt.Errorf("status %d", resp.StatusCode)
		}
		if time.Now().After(deadline) {
			ts.Fatalf("await %s: %v", args[0], err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// http STATUS[|STATUS] METHOD URL [HEADER: VALUE]... sends a request, prints the answer's header and body, and fails on
// another status. unix:PATH:/target is a URL too.
func request(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: http STATUS METHOD URL [HEADER: VALUE]...")
	}
	req, err := http.NewRequest(args[1], plain(args[2]), nil)
	ts.Check(err)
	for _, h := range args[3:] {
		name, value, ok := strings.Cut(h, ": ")
		if !ok {
			ts.Fatalf("http: %q is not 'HEADER: VALUE'", h)
		}
		req.Header.Add(name, value)
	}
	resp, err := client(args[2]).Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	var head strings.Builder
	_ = resp.Header.Write(&head)
	_, err = fmt.Fprintf(ts.Stdout(), "%s\n%s\n%s", resp.Status, strings.ReplaceAll(head.String(), "\r\n", "\n"), body)
	ts.Check(err)
	if !slices.Contains(strings.Split(args[0], "|"), fmt.Sprint(resp.StatusCode)) {
		ts.Fatalf("%s %s: status %d, want %s\n%s", args[1], args[2], resp.StatusCode, args[0], body)
	}
}

func plain(url string) string {
	if rest, ok := strings.CutPrefix(url, "unix:"); ok {
		_, target, _ := strings.Cut(rest, ":")
		return "http://admin" + target
	}
	return url
}

func client(url string) *http.Client {
	t := &http.Transport{DisableKeepAlives: true}
	if rest, ok := strings.CutPrefix(url, "unix:"); ok {
		path, _, _ := strings.Cut(rest, ":")
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	}
	return &http.Client{Transport: t, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// tokenenv NAME sets the variable to the trimmed output of the last command.
func tokenEnv(ts *testscript.TestScript, neg bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// signal HUP|TERM COMMAND signals the sallyport COMMAND in the background. testscript's own kill knows neither signal.
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM}
	if len(args) != 2 || signals[args[0]] == 0 {
		ts.Fatalf("usage: signal HUP|TERM COMMAND")
	}
	for _, c := range ts.BackgroundCmds() {
		if len(c.Args) > 1 && c.Args[1] == args[1] && c.ProcessState == nil {
			ts.Check(c.Process.Signal(signals[args[0]]))
			return
		}
	}
	ts.Fatalf("no sallyport %s runs in the background", args[1])
}
