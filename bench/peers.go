package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peer is a forward proxy.
type peer struct {
	name    string
	program string   // a name or a path; not here: the peer is missing
	args    []string // @config@ is where its configuration is
	config  string
	files   map[string]string // more files of its configuration
	checks  bool              // it lets out what its allowlist names, and is seen to
	ours    bool
	note    string
	place   string // the name of its folder; empty: made of its name

	command []string
	folder  string
	address string
	cmd     *exec.Cmd
	log     *os.File
}

// peers are all that are compared, each configured to do what the others do: let the one destination through, refuse
// the rest, and write a line for each request. Beyond that each has what makes it fast: kept connections, no cache.
func (s *site) peers() []*peer {
	return []*peer{
		{
			name: "sallyport", program: s.sallyport, args: []string{"serve", "-c", "@config@"}, ours: true,
			config: strings.Replace(sallyportConfig, "@durability@", "written", 1), note: "each decision is in the kernel before it takes effect",
		},
		{
			name: "sallyport, buffered", program: s.sallyport, args: []string{"serve", "-c", "@config@"}, ours: true,
			config: strings.Replace(sallyportConfig, "@durability@", "buffered", 1), note: "audit.durability: buffered",
		},
		{
			name: "smokescreen", program: s.smokescreen, checks: true,
			args:   []string{"--listen-ip", "127.0.0.1", "--listen-port", "@port@", "--config-file", "@config@"},
			config: smokescreenConfig, files: map[string]string{"acl.yaml": smokescreenACL},
		},
		{
			name: "squid", program: "squid", checks: true, args: []string{"-N", "-f", "@config@"}, config: squidConfig,
			note: "no cache, one process",
		},
		{
			name: "squid, buffered", program: "squid", checks: true, args: []string{"-N", "-f", "@config@"}, config: squidConfig + "buffered_logs on\n",
			note: "its best case: buffered_logs on",
		},
		{
			name: "tinyproxy", program: "tinyproxy", checks: true, args: []string{"-d", "-c", "@config@"},
			config: tinyproxyUser() + tinyproxyConfig, files: map[string]string{"filter": `^127\.0\.0\.1$` + "\n"},
			note: "keeps no connections: one for each request",
		},
		{name: "net/http", program: s.self, args: []string{"proxy", "127.0.0.1:@port@"}, note: "a proxy of a few lines, which checks and records nothing"},
	}
}

const sallyportConfig = `version: 1
ingress:
  listen: 127.0.0.1:@gate@
  upstream: http://127.0.0.1:@nobody@
  issuers:
    - {issuer: "https://issuer.example", audience: [bench], keys: {jwks_file: @dir@/jwks.json}, algorithms: [EdDSA]}
  routes:
    - {name: health, match: GET /health, public: {reason: nobody asks, owner: bench, expires: 2099-01-01}}
egress:
  listen: 127.0.0.1:@port@
  destinations:
    - {name: web, hosts: ["127.0.0.1:@web@"], for: any, protocol: http}
    - {name: bytes, hosts: ["127.0.0.1:@echo@", "127.0.0.1:@sink@"], for: any, protocol: tcp}
    - {name: tls, hosts: ["localhost:@echo@"], for: any}
audit: {file: @folder@/audit.jsonl, durability: @durability@}
`

const smokescreenConfig = `allow_missing_role: true
acl_file: @folder@/acl.yaml
allow_addresses: ["127.0.0.1:@web@", "127.0.0.1:@echo@", "127.0.0.1:@sink@"]
transport_max_idle_conns: 1024
transport_max_idle_conns_per_host: 256
`

const smokescreenACL = `version: v1
services: []
default: {project: bench, action: enforce, allowed_domains: ["127.0.0.1"]}
`

const squidConfig = `http_port 127.0.0.1:@port@
acl there dstdomain 127.0.0.1
acl ports port @web@ @echo@ @sink@
http_access allow there ports
http_access deny all
cache deny all
access_log stdio:@folder@/access.log
cache_log @folder@/cache.log
pid_filename none
coredump_dir @folder@
client_db off
pinger_enable off
via off
forwarded_for delete
visible_hostname bench
shutdown_lifetime 0 seconds
`

const tinyproxyConfig = `Port @port@
Listen 127.0.0.1
Timeout 600
LogFile "@folder@/access.log"
LogLevel Connect
MaxClients 256
Allow 127.0.0.1
Filter "@folder@/filter"
FilterDefaultDeny Yes
ConnectPort @echo@
ConnectPort @sink@
ConnectPort @web@
DisableViaHeader Yes
`

// tinyproxyUser is whom tinyproxy becomes; it insists on being told.
func tinyproxyUser() string {
	if os.Getuid() == 0 {
		return "User nobody\nGroup nogroup\n"
	}
	return ""
}

// start writes the peer's files, starts it on the first core, and waits until it listens.
func (p *peer) start(s *site, all unix.CPUSet, values ...string) error {
	program, err := findProgram(p.program)
	if err != nil {
		return errors.New("not here")
	}
	name := strings.NewReplacer("/", "-", ", ", "-").Replace(p.name) + "-proxy"
	if p.place != "" {
		name = strings.NewReplacer("/", "-", ", ", "-", " ", "-").Replace(p.place)
	}
	folder := filepath.Join(s.dir, name)
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	p.address = "127.0.0.1:" + ports[0]
	values = append(values, "@port@", ports[0], "@gate@", ports[1], "@nobody@", ports[2], "@dir@", s.dir, "@folder@", folder,
		"@config@", filepath.Join(folder, "config"))
	for file, text := range p.files {
		if _, err := s.write(filepath.Join(name, file), text, values...); err != nil {
			return err
		}
	}
	if _, err := s.write(filepath.Join(name, "config"), p.config, values...); err != nil {
		return err
	}
	if err := os.Chmod(folder, 0o777); err != nil { // for whoever it becomes
		return err
	}
	var args []string
	for _, a := range p.args {
		args = append(args, strings.NewReplacer(values...).Replace(a))
	}
	if p.log, err = os.Create(filepath.Join(folder, "output")); err != nil {
		return err
	}
	s.later(func() { p.log.Close() })
	p.command = append([]string{program}, args...)
	p.folder = folder
	if err := p.launch(all); err != nil {
		return err
	}
	s.later(p.kill)
	return p.await()
}

// launch starts the program, whose files are written, in a group of its own: some are several processes.
func (p *peer) launch(all unix.CPUSet) error {
	p.cmd = exec.Command(p.command[0], p.command[1:]...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = p.folder, p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return startOnFirst(p.cmd, all)
}

// kill ends it, all of its processes: nothing is to be saved.
func (p *peer) kill() {
	if p.cmd != nil {
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		p.cmd.Wait()
		p.cmd = nil
	}
}

// findProgram looks in PATH, and where servers are that no user starts.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && !strings.Contains(name, "/") {
		path, err = exec.LookPath(filepath.Join("/usr/sbin", name))
	}
	return path, err
}

func (p *peer) await() error {
	for began := time.Now(); time.Since(began) < patience; time.Sleep(10 * time.Millisecond) {
		if c, err := net.DialTimeout("tcp4", p.address, time.Second); err == nil {
			return c.Close()
		}
		if _, err := cpuTime(p.cmd.Process.Pid); err != nil {
			break
		}
	}
	return errors.New("it does not listen")
}

// prove sees the peer let through what is allowed, and refuse what is not: a request, and a tunnel. What checks nothing
// must let both through, or this would prove nothing. It returns what was seen.
func (p *peer) prove(allowed, denied string, reached func() int64) (string, error) {
	c := client{address: p.address, request: getRequest(allowed)}
	defer c.close()
	if err := c.once(); err != nil {
		return "", fmt.Errorf("what is allowed: %w", err)
	}
	before := reached()
	d := client{address: p.address, request: getRequest(denied)}
	defer d.close()
	if err := d.dial(); err != nil {
		return "", err
	}
	a, err := d.exchange()
	if err != nil && a.status == 0 {
		return "", fmt.Errorf("a request that is denied: %w", err)
	}
	t, err := tunnel(p.address, denied)
	var no *refusal
	if err == nil {
		t.Close()
	} else if !errors.As(err, &no) {
		return "", fmt.Errorf("a tunnel that is denied: %w", err)
	}
	if !p.checks && !p.ours {
		if a.status != 200 || no != nil || reached() == before {
			return "", errors.New("it refuses: nothing was to be refused")
		}
		return "lets everything through", nil
	}
	if a.status < 400 || no == nil || no.status < 400 || reached() != before {
		return "", fmt.Errorf("it lets through what is denied: %d, %v", a.status, err)
	}
	return fmt.Sprintf("refuses another destination with %d, and a tunnel to it with %d", a.status, no.status), nil
}

func getRequest(host string) []byte {
	return []byte("GET http://" + host + "/v1/things HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
}
