package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stage is the service's folder with everything that the walk needs in it, and the running program.
type stage struct {
	program string
	dir     string // the service's folder
	copied  bool   // dir is a copy of ours, to be removed
	config  string // file name in dir
	url     string // of the gate
	port    string // the service's own
	log     *os.File
	cmd     *exec.Cmd
	ended   chan struct{}
}

const (
	issuer      = "https://issuer.demo.test"
	audience    = "https://orders.demo.test"
	gateAddr    = "127.0.0.1:8080"
	servicePort = "3000"
)

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

// prepare makes the keys and the configuration.
func prepare(ctx context.Context, program, service string) (*stage, error) {
	dir, err := filepath.Abs(service)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "dist", "main.js")); err != nil {
		return nil, fmt.Errorf("the service is not built (make demo builds it): %w", err)
	}
	s := &stage{program: program, dir: dir, config: "sallyport.yaml", ended: make(chan struct{})}
	if err := s.reachable(); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(s.path("var")); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.path("var"), 0o755); err != nil {
		return nil, err
	}
	say("Making keys: the demo's own authorization server (var/issuer) and sallyport's (var/keys).")
	if err := s.tool(ctx, nil, "keys", "generate", "--path", "var/issuer"); err != nil {
		return nil, err
	}
	jwks, err := os.Create(s.path("var/issuer.jwks.json"))
	if err != nil {
		return nil, err
	}
	defer jwks.Close()
	if err := s.tool(ctx, jwks, "keys", "jwks", "--path", "var/issuer"); err != nil {
		return nil, err
	}
	if err := s.ports(); err != nil {
		return nil, err
	}
	if err := s.tool(ctx, nil, "keys", "generate", "-c", s.config); err != nil {
		return nil, err
	}
	return s, nil
}

// reachable makes sure that the user which sallyport becomes, when it starts as root, can get to the service's folder;
// where a folder above it is closed (root's home), it works on a copy.
func (s *stage) reachable() error {
	if os.Getuid() != 0 {
		return nil
	}
	closed := ""
	for d := s.dir; d != "/"; d = filepath.Dir(d) {
		st, err := os.Stat(d)
		if err != nil {
			return err
		}
		if st.Mode().Perm()&0o001 == 0 {
			closed = d
		}
	}
	if closed == "" {
		return nil
	}
	to, err := os.MkdirTemp("", "sallyport-demo-")
	if err != nil {
		return err
	}
	say("%s is closed to other users: working on a copy in %s.", closed, to)
	if err := os.Chmod(to, 0o755); err != nil {
		return err
	}
	from := s.dir
	s.dir, s.copied = to, true
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			if rel == "var" {
				return filepath.SkipDir
			}
			return os.MkdirAll(target, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(target, b, 0o644)
	})
}

// ports keeps the configuration's ports if they are free, and otherwise writes a configuration with others.
func (s *stage) ports() error {
	s.url, s.port = "http://"+gateAddr, servicePort
	if free(gateAddr) && free("127.0.0.1:"+servicePort) {
		return nil
	}
	gate, err := freePort()
	if err != nil {
		return err
	}
	if s.port, err = freePort(); err != nil {
		return err
	}
	b, err := os.ReadFile(s.path(s.config))
	if err != nil {
		return err
	}
	text := strings.NewReplacer(gateAddr, "127.0.0.1:"+gate, "127.0.0.1:"+servicePort, "127.0.0.1:"+s.port, `PORT: "`+servicePort+`"`, `PORT: "`+s.port+`"`).Replace(string(b))
	s.config, s.url = "sallyport.demo.yaml", "http://127.0.0.1:"+gate
	say("Port 8080 or %s is taken: using %s and %s instead.", servicePort, gate, s.port)
	return os.WriteFile(s.path(s.config), []byte(text), 0o644)
}

func free(address string) bool {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}

// tool runs a sallyport command in the service's folder.
func (s *stage) tool(ctx context.Context, stdout *os.File, args ...string) error {
	fmt.Printf("  $ sallyport %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Dir = s.dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if stdout != nil {
		cmd.Stdout = stdout
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("sallyport %s: %w\n%s", args[0], err, errs.String())
	}
	return nil
}

// mint makes a token of the demo's authorization server.
func (s *stage) mint(args ...string) (string, error) {
	all := append([]string{"token", "mint", "--keys", "var/issuer", "--issuer", issuer}, args...)
	named := false
	for _, a := range args {
		named = named || a == "--audience"
	}
	if !named {
		all = append(all, "--audience", audience)
	}
	cmd := exec.Command(s.program, all...)
	cmd.Dir = s.dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("mint a token: %w\n%s", err, errs.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// start runs the service behind the gate, as its README says, and waits until it answers.
func (s *stage) start(ctx context.Context) error {
	say("Starting the service.")
	args := []string{"run", "-c", s.config, "--", "node", "dist/main.js"}
	fmt.Printf("  $ sallyport %s\n", strings.Join(args, " "))
	var err error
	if s.log, err = os.Create(s.path("var/sallyport.log")); err != nil {
		return err
	}
	s.cmd = exec.Command(s.program, args...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = s.dir, s.log, s.log
	// A group of its own: Ctrl-C is ours to hear, and we end it in order.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	const patience = 60 * time.Second
	deadline := time.Now().Add(patience)
	for {
		resp, err := http.Get(s.url + "/health")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("status %d", resp.StatusCode)
		}
		select {
		case <-s.ended:
			return fmt.Errorf("sallyport has ended:\n%s", s.tail())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the service did not answer within %s (%w):\n%s", patience, err, s.tail())
		}
	}
}

// tail is the end of the program's log.
func (s *stage) tail() string {
	b, err := os.ReadFile(s.log.Name())
	if err != nil {
		return err.Error()
	}
	const most = 4000
	return string(b[max(0, len(b)-most):])
}

// end stops the program as an orchestrator would, and says if it did not end cleanly.
func (s *stage) end() error {
	defer func() {
		if s.copied {
			os.RemoveAll(s.dir)
		}
	}()
	if s.cmd == nil || s.cmd.Process == nil {
		return nil
	}
	defer s.log.Close()
	select {
	case <-s.ended:
	default:
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-s.ended:
		case <-time.After(30 * time.Second):
			_ = s.cmd.Process.Kill()
			<-s.ended
			return errors.New("sallyport did not end within 30 s of SIGTERM")
		}
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 && code != 128+int(syscall.SIGTERM) {
		return fmt.Errorf("sallyport ended with %d:\n%s", code, s.tail())
	}
	return nil
}

func say(format string, args ...any) { fmt.Printf("\n"+format+"\n", args...) }
