package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// plain is the smallest service there is.
const plain = `const port = process.env.PORT;
require('http').createServer((q, r) => r.end('ok')).listen(port, '127.0.0.1', () => console.log('listening'));
`

const nodeSandbox = `  preset: node
  read: [@read@]
`

// measureNode is how long a service takes from its start until it listens.
func measureNode(s *site) ([]*table, error) {
	s.say("Node's start: bare, and under sallyport run")
	node, err := exec.LookPath("node")
	if err != nil {
		return []*table{{Name: "node", Title: "Node's start", Missing: []string{"node is not here"}}}, nil
	}
	file, err := s.write("service/server.js", plain)
	if err != nil {
		return nil, err
	}
	if _, err := s.write("service/package.json", "{}"); err != nil {
		return nil, err
	}
	t, err := s.starts("node", "Node's start, from execve(2) until the service listens: a server of two lines", []string{node, file}, filepath.Dir(file), nil)
	if err != nil {
		return nil, err
	}
	tables := []*table{t}
	nest, err := s.nest(node)
	if err != nil {
		return nil, err
	}
	tables = append(tables, nest)
	if err := t.run(s, 15); err != nil {
		return tables, err
	}
	return tables, nest.run(s, 7) // each start takes more than a second
}

// nest is a real NestJS service, which reads some thousand files.
func (s *site) nest(node string) (*table, error) {
	const title = "The same for a NestJS service (examples/nestjs)"
	main := filepath.Join(s.service, "dist", "main.js")
	_, built := os.Stat(main)
	_, installed := os.Stat(filepath.Join(s.service, "node_modules"))
	if built != nil || installed != nil {
		return &table{Name: "nest", Title: title, Missing: []string{"examples/nestjs is not built here: make demo builds it"}}, nil
	}
	return s.starts("nest", title, []string{node, main}, s.service, []string{
		"SALLYPORT_ISSUER=sallyport", "SALLYPORT_AUDIENCE=orders", "SALLYPORT_HEADER=Authorization", "SALLYPORT_JWKS_FILE=" + filepath.Join(s.dir, "jwks.json"),
	})
}

// starts compares the start of a service, bare and inside the walls.
func (s *site) starts(name, title string, command []string, dir string, env []string) (*table, error) {
	const allowed = 60.0
	sandbox := nodeSandbox + "  env: {set: {PORT: \"@port@\""
	for _, e := range env {
		key, value, _ := strings.Cut(e, "=")
		sandbox += fmt.Sprintf(", %s: %q", key, value)
	}
	path, port, err := s.configure(name, "  destinations: []\n", sandbox+"}}\n", "@read@", dir+", "+s.dir)
	if err != nil {
		return nil, err
	}
	// What a program inside the walls has: what else is in ours could slow Node down, or load code.
	for _, name := range []string{"PATH", "HOME", "LANG", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	env = append(env, "PORT="+port)
	start := func(args []string) func() ([]float64, error) {
		return func() ([]float64, error) { return one(s.startTime(args, dir, env)) }
	}
	walled := append([]string{s.sallyport, "run", "-c", path, "--"}, command...)
	return &table{
		Name: name, Title: title, By: byDifference, Base: "bare", Columns: []column{{"start", "ms"}},
		Rows: []*row{
			{Name: "bare", once: start(command)},
			{Name: "sallyport run", limit: new(allowed), once: start(walled)},
			{Name: "sallyport run, in a container", limit: new(allowed), Note: contain, once: start(append([]string{s.self, "contained"}, walled...))},
		},
	}, nil
}

// startTime is how long a program takes until it says that it listens, in ms.
func (s *site) startTime(args []string, dir string, env []string) (float64, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, env
	log, err := os.Create(filepath.Join(s.dir, "start.log"))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer end(cmd)
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "listening") {
			took := time.Since(began)
			go io.Copy(io.Discard, out) // it may say more
			return float64(took) / float64(time.Millisecond), nil
		}
	}
	return 0, fmt.Errorf("it ended before it listened: %s", tail(log.Name()))
}
