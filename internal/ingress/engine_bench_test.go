package ingress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/audit"
)

// BenchmarkEngines compares the engines in one run: a gate of each, alone on one core, before a service that answers 200 bytes,
// asked by wrk over 64 kept connections from another. It reports processor time of the gate per request, and the median of the
// ratios of rounds, which the noise of a shared machine leaves alone. SALLYPORT_PROFILE=DIR leaves a profile of each.
func BenchmarkEngines(b *testing.B) {
	if _, err := exec.LookPath("wrk"); err != nil {
		b.Skip("there is no wrk")
	}
	if engine != engineStandard {
		b.Skip("it has run for both")
	}
	service := startPlayer(b, "1", "SALLYPORT_PLAY=service")
	for _, target := range []string{"/health", "/orders/42"} {
		b.Run(strings.Trim(target, "/"), func(b *testing.B) {
			var gates []*player
			for _, name := range []string{engineStandard, engineOwn} {
				gates = append(gates, startPlayer(b, "0", "SALLYPORT_PLAY="+name, "SALLYPORT_SERVICE="+service.said))
			}
			per := make([][]float64, len(gates))
			for b.Loop() {
				for i, g := range gates {
					per[i] = append(per[i], g.load(b, target))
				}
			}
			var ratios []float64
			for n := range per[0] {
				ratios = append(ratios, per[0][n]/per[1][n])
			}
			b.ReportMetric(median(per[0]), "net/http-µs")
			b.ReportMetric(median(per[1]), "http1-µs")
			b.ReportMetric(median(ratios), "ratio")
		})
	}
}

func median(v []float64) float64 {
	sorted := append([]float64(nil), v...)
	for i := range sorted {
		for k := i; k > 0 && sorted[k] < sorted[k-1]; k-- {
			sorted[k], sorted[k-1] = sorted[k-1], sorted[k]
		}
	}
	return sorted[len(sorted)/2]
}

// A player is this program again, as a gate or as a service.
type player struct {
	said string
	in   io.Writer
	out  *bufio.Reader
}

func startPlayer(b *testing.B, core string, env ...string) *player {
	cmd := exec.Command("taskset", "-c", core, os.Args[0], "-test.run=^TestPlay$")
	cmd.Env = append(os.Environ(), append(env, "GOMAXPROCS=1")...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	p := &player{in: in, out: bufio.NewReader(out)}
	p.said = p.line(b)
	return p
}

func (p *player) line(b *testing.B) string {
	line, err := p.out.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// used is the processor time of a player so far.
func (p *player) used(b *testing.B) float64 {
	io.WriteString(p.in, "used\n")
	n, err := strconv.ParseFloat(p.line(b), 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// load asks for two seconds, and returns microseconds per request.
func (p *player) load(b *testing.B, target string) float64 {
	addr, token, _ := strings.Cut(p.said, " ")
	before := p.used(b)
	out, err := exec.Command("taskset", "-c", "1", "wrk", "-t1", "-c64", "-d2s", "-H", "Authorization: Bearer "+token, "http://"+addr+target).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("Non-2xx")) {
		b.Fatalf("%v: %s", err, out)
	}
	found := regexp.MustCompile(`(\d+) requests in`).FindSubmatch(out)
	if found == nil {
		b.Fatalf("wrk says %s", out)
	}
	n, _ := strconv.ParseFloat(string(found[1]), 64)
	return (p.used(b) - before) / n
}

// TestPlay is what a player does; by itself it does nothing.
func TestPlay(t *testing.T) {
	switch role := os.Getenv("SALLYPORT_PLAY"); role {
	case "":
	case "service":
		playService(t)
	default:
		s := open(t, func(s *stage) {
			s.config.Upstream, s.config.Engine, s.config.Logger = mustURL(t, "http://"+os.Getenv("SALLYPORT_SERVICE")), role, nil
			s.config.Audit = audit.New(io.Discard, audit.Config{})
		})
		if dir := os.Getenv("SALLYPORT_PROFILE"); dir != "" {
			f, err := os.Create(dir + "/" + strings.ReplaceAll(role, "/", "-") + ".prof")
			if err != nil {
				t.Fatal(err)
			}
			pprof.StartCPUProfile(f)
			defer pprof.StopCPUProfile()
		}
		fmt.Println(s.addr, s.issuer.Token(map[string]any{"scope": "orders:read", "exp": time.Now().Unix() + 3000}))
		answerUse()
	}
}

// answerUse says how much processor time was used, as often as it is asked.
func answerUse() {
	for asked := bufio.NewScanner(os.Stdin); asked.Scan(); {
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		fmt.Println(float64(u.Utime.Nano()+u.Stime.Nano()) / 1000)
	}
}

// playService answers whatever ends in an empty line.
func playService(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fmt.Println(l.Addr())
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 200\r\n\r\n" + strings.Repeat("x", 200))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for buf := make([]byte, 8192); ; {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						c.Write(answer)
					}
				}
			}()
		}
	}()
	answerUse()
}
