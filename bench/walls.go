package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// configuration is what sallyport runs the probe with. The gate in front is there because it always is; nobody uses it.
const configuration = `version: 1
ingress:
  listen: 127.0.0.1:@gate@
  upstream: http://127.0.0.1:@port@
  issuers:
    - {issuer: "https://issuer.example", audience: [bench], keys: {jwks_file: @dir@/jwks.json}, algorithms: [EdDSA]}
  routes:
    - {name: health, match: GET /health, public: {reason: nobody asks, owner: bench, expires: 2099-01-01}}
egress:
@egress@
sandbox:
@sandbox@
audit: {file: @dir@/@name@/audit.jsonl}
`

const jwks = `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k","alg":"EdDSA"}]}`

// configure writes a configuration, with two ports of its own.
func (s *site) configure(name, egress, sandbox string, values ...string) (path, port string, err error) {
	ports, err := freePorts(2)
	if err != nil {
		return "", "", err
	}
	values = append(values, "@egress@", strings.TrimRight(egress, "\n"), "@sandbox@", strings.TrimRight(sandbox, "\n"),
		"@gate@", ports[0], "@port@", ports[1], "@dir@", s.dir, "@name@", name)
	// Twice: what is put in has places of its own.
	text := strings.NewReplacer(values...).Replace(configuration)
	path, err = s.write(filepath.Join(name, "sallyport.yaml"), text, values...)
	return path, ports[1], err
}

// freePorts are ports that nobody listens on, of any loopback address.
func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		l, err := net.Listen("tcp4", "0.0.0.0:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}

// inside is a probe that is alive.
type inside struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	log  *os.File
}

func (s *site) startProbe(name string, start func(*exec.Cmd) error, args ...string) (*inside, error) {
	p := &inside{name: name, cmd: exec.Command(args[0], args[1:]...)}
	var err error
	if p.log, err = os.Create(filepath.Join(s.dir, name+".log")); err != nil {
		return nil, err
	}
	p.cmd.Dir, p.cmd.Stderr = "/", p.log
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := start(p.cmd); err != nil {
		return nil, err
	}
	s.later(p.stop)
	return p, nil
}

// stop ends the probe, and what stands around it, by the end of its input.
func (p *inside) stop() {
	p.in.Close()
	end(p.cmd)
	p.log.Close()
}

// end asks a program to end, kills it if it does not, and waits for it.
func end(cmd *exec.Cmd) {
	cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Wait()
}

// do has the probe do something, and returns the numbers that it found.
func (p *inside) do(format string, a ...any) ([]float64, error) {
	if _, err := fmt.Fprintf(p.in, format+"\n", a...); err != nil {
		return nil, p.why(err)
	}
	timer := time.AfterFunc(time.Minute, func() { p.cmd.Process.Kill() })
	defer timer.Stop()
	line, err := p.out.ReadString('\n')
	if err != nil {
		return nil, p.why(err)
	}
	words := strings.Fields(line)
	if len(words) == 0 || words[0] != "ok" {
		return nil, errors.New(strings.TrimSpace(line))
	}
	var numbers []float64
	for _, w := range words[1:] {
		v, err := strconv.ParseFloat(w, 64)
		if err != nil {
			return nil, p.why(err)
		}
		numbers = append(numbers, v)
	}
	return numbers, nil
}

// why adds what the program said before it ended.
func (p *inside) why(err error) error {
	return fmt.Errorf("%s: %w: %s", p.name, err, tail(p.log.Name()))
}

// tail is the last line of a log.
func tail(path string) string {
	b, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// walls are four probes, and what they connect to.
type walls struct {
	probes  []*inside
	greets  target // sends one byte and closes
	streams target // where sinks come from
	come    chan net.Conn
}

// target is a server of ours at two addresses: one that the gate behind names as direct, and one that it is led to.
// Their port is also that of the forward proxy, at another address of loopback, because a program with network ports may
// connect to that port and to no other.
type target struct{ direct, led string }

func (t target) of(name string) string {
	if strings.HasSuffix(name, ledSuffix) {
		return t.led
	}
	return t.direct
}

const ledSuffix = ", led through the egress"

const portsEgress = `  listen: 127.0.0.1:@shared@
`

const brokerEgress = `  destinations:
    - {name: direct, hosts: ["127.0.0.2:@shared@", "127.0.0.4:@shared@"], for: any, protocol: tcp, direct: true}
    - {name: led, hosts: ["127.0.0.3:@shared@", "127.0.0.5:@shared@"], for: any, protocol: tcp}
`

// ported tells a program its port.
const ported = `  env: {set: {PORT: "@port@"}}
`

// newWalls starts the servers and the probes.
func newWalls(s *site, start func(*exec.Cmd) error) (*walls, error) {
	w := &walls{come: make(chan net.Conn)}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	shared := ports[0]
	at := func(n int) string { return fmt.Sprintf("127.0.0.%d:%s", n, shared) }
	w.greets, w.streams = target{at(2), at(3)}, target{at(4), at(5)}
	for _, place := range []struct {
		address string
		serve   func(net.Conn)
	}{{at(2), greet}, {at(3), greet}, {at(4), w.join}, {at(5), w.join}} {
		l, err := net.Listen("tcp4", place.address)
		if err != nil {
			return nil, err
		}
		s.later(func() { l.Close() })
		go accept(l, place.serve)
	}
	for _, v := range []struct{ name, egress, sandbox string }{
		{"bare", "", ""},
		{"ports", portsEgress, "  network: ports\n" + ported},
		{"broker", brokerEgress, "  network: broker\n" + ported},
		{"broker in a container", brokerEgress, "  network: broker\n" + ported},
	} {
		p, err := s.startWalled(v.name, v.egress, v.sandbox, shared, start)
		if err != nil {
			return nil, err
		}
		w.probes = append(w.probes, p)
	}
	return w, nil
}

func (s *site) startWalled(name, egress, sandbox, shared string, start func(*exec.Cmd) error) (*inside, error) {
	args := []string{s.self, "probe"}
	if egress != "" {
		folder := strings.ReplaceAll(name, " ", "-")
		path, _, err := s.configure(folder, egress, sandbox, "@shared@", shared)
		if err != nil {
			return nil, err
		}
		args = append([]string{s.sallyport, "run", "-c", path, "--start-timeout", "1h", "--"}, args...)
		if strings.Contains(name, "container") {
			args = append([]string{s.self, "contained"}, args...)
		}
	}
	return s.startProbe(name, start, args...)
}

func accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		serve(c)
	}
}

func greet(c net.Conn) {
	c.Write([]byte{'!'})
	c.Close()
}

// join hands a connection to who waits for it.
func (w *walls) join(c net.Conn) {
	select {
	case w.come <- c:
	case <-time.After(10 * time.Second):
		c.Close()
	}
}

// ways are the ways to connect, each by a probe, to a target of its own.
func (w *walls) ways() (names []string, probes []*inside) {
	for _, p := range w.probes {
		names, probes = append(names, p.name), append(probes, p)
		if strings.HasPrefix(p.name, "broker") {
			names, probes = append(names, p.name+ledSuffix), append(probes, p)
		}
	}
	return names, probes
}

const contain = "where pidfd_getfd is refused, as by the default filter of container engines"

// measureConnect is what it takes to connect.
func measureConnect(s *site) ([]*table, error) {
	s.say("connecting: bare, with network ports, through the broker")
	w, err := newWalls(s, (*exec.Cmd).Start)
	if err != nil {
		return nil, err
	}
	defer s.release()
	const allowed = 100.0
	latency := &table{Name: "connect", By: byDifference, Base: "bare", Columns: []column{{"connected", "µs"}, {"first byte", "µs"}},
		Title: "Connecting, one after the other: from socket(2) until connect(2) is done, and until the other side's first byte"}
	rate := &table{Name: "connections", By: byRatio, Base: "bare", Columns: []column{{"connections", "1/s"}},
		Title: "Connections a second, eight at once, each with the other side's first byte"}
	names, probes := w.ways()
	for i, name := range names {
		p := probes[i]
		r := &row{Name: name, once: func() ([]float64, error) { return p.do("connect %s %d", w.greets.of(name), s.count(400)) }}
		if name != "bare" {
			r.limit = new(allowed)
		}
		if strings.HasSuffix(name, "container") {
			r.Note = contain
		}
		latency.Rows = append(latency.Rows, r)
		rate.Rows = append(rate.Rows, &row{Name: name, once: func() ([]float64, error) {
			return p.do("rate %s 8 %s", w.greets.of(name), s.turn(400*time.Millisecond))
		}})
	}
	err = latency.run(s, 15)
	return []*table{latency, rate}, errors.Join(err, rate.run(s, 9))
}

// measureStream is what an established connection carries.
func measureStream(s *site) ([]*table, error) {
	s.say("established connections: bare, with network ports, through the broker")
	// The two ends have a core each, or where they happen to be would be what is measured.
	all, back := aside()
	defer back()
	w, err := newWalls(s, func(c *exec.Cmd) error { return startOnFirst(c, all) })
	if err != nil {
		return nil, err
	}
	defer s.release()
	const kept = 0.97
	bytes := &table{Name: "stream", By: byRatio, Base: "bare", Columns: []column{{"throughput", "MB/s"}},
		Title: "What an established connection carries"}
	trips := &table{Name: "round-trips", By: byRatio, Base: "bare", Columns: []column{{"round trips", "1/s"}},
		Title: "Round trips of a few bytes on an established connection: each system call passes the filter"}
	names, probes := w.ways()
	for i, name := range names {
		if _, err := probes[i].do("sink %s", w.streams.of(name)); err != nil {
			return nil, err
		}
		var c net.Conn
		select {
		case c = <-w.come:
		case <-time.After(10 * time.Second):
			return nil, fmt.Errorf("%s: nobody came", name)
		}
		s.later(func() { c.Close() })
		b := &row{Name: name, once: func() ([]float64, error) { return one(pour(c, s.turn(80*time.Millisecond))) }}
		t := &row{Name: name, once: func() ([]float64, error) { return one(pingPong(c, s.turn(80*time.Millisecond))) }}
		switch {
		case strings.HasSuffix(name, ledSuffix):
			b.Note = "copied by the egress: said apart, no goal"
		case name != "bare":
			b.limit, t.limit = new(kept), new(kept)
		}
		bytes.Rows, trips.Rows = append(bytes.Rows, b), append(trips.Rows, t)
	}
	err = bytes.run(s, 41)
	return []*table{bytes, trips}, errors.Join(err, trips.run(s, 41))
}

func one(v float64, err error) ([]float64, error) { return []float64{v}, err }

// count is how often something is done in one measurement.
func (s *site) count(n int) int {
	if s.brief {
		return max(n/40, 2)
	}
	return n
}
