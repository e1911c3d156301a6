package sandbox

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkLaunch is the whole start and end of /bin/true: by itself, behind a supervisor that is only a Go program,
// and inside the walls. The difference of the last two is what the walls cost.
func BenchmarkLaunch(b *testing.B) {
	needKernel(b, 4)
	run := func(b *testing.B, command func() *exec.Cmd) {
		for b.Loop() {
			if out, err := command().CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
		}
	}
	b.Run("plain", func(b *testing.B) {
		run(b, func() *exec.Cmd { return exec.Command("/bin/true") })
	})
	b.Run("two-go-programs", func(b *testing.B) {
		run(b, func() *exec.Cmd { return exec.Command(walls(), "bare", walls(), "probe") })
	})
	b.Run("walls", func(b *testing.B) {
		j := job{Path: "/bin/true", Args: []string{"true"}, Profile: Profile{Dir: "/"}}
		run(b, func() *exec.Cmd { return j.command(b, "supervise") })
	})
	b.Run("walls-node-preset", func(b *testing.B) {
		app := folder(b)
		write(b, app+"/package.json", "{}", 0o644)
		j := job{Path: "/bin/true", Args: []string{"true"}, Profile: Profile{Dir: app, Preset: presetNode, Listen: on(3000), Write: []string{"/var/tmp"}}}
		run(b, func() *exec.Cmd { return j.command(b, "supervise") })
	})
}

// BenchmarkFilter is the assembly of the table, once per start.
func BenchmarkFilter(b *testing.B) {
	for b.Loop() {
		if _, err := assemble(table(shape{level: networkBroker, notify: true, groups: []uint32{7}})); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkConnect is socket and connect to a listener on loopback until it is connected: without walls, with the static
// filter of network "ports", and through the broker in both of its ways. In rounds, so that all see the same machine;
// the metrics are medians of the rounds' medians, in microseconds, and connections a second.
func BenchmarkConnect(b *testing.B) {
	needKernel(b, 4)
	up := newGreeter(b, "tcp4", "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(up.address)
	number, _ := strconv.ParseUint(port, 10, 16)
	do := "connect-times " + up.address + " 2000"
	variants := []struct {
		name    string
		command func() *exec.Cmd
	}{
		{"bare", func() *exec.Cmd { return exec.Command(walls(), "probe", do) }},
		{"ports", func() *exec.Cmd {
			return probe(Profile{Network: networkPorts, Proxy: uint16(number)}, do).command(b, "contained")
		}},
		{"broker-make", func() *exec.Cmd {
			j := probe(Profile{}, do)
			j.Ways, j.Quiet = map[string]string{"tcp *": "direct"}, true
			return j.command(b, "contained")
		}},
		{"broker-fetch", func() *exec.Cmd {
			j := probe(Profile{}, do)
			j.Ways, j.Quiet = map[string]string{"tcp *": "direct"}, true
			return j.command(b, "supervise")
		}},
	}
	found := map[string][]float64{}
	for b.Loop() {
		for _, v := range variants {
			out, err := v.command().Output()
			if err != nil || !strings.Contains(string(out), ": ok\n") {
				b.Fatalf("%s: %v\n%s", v.name, err, out)
			}
			for line := range strings.Lines(string(out)) {
				var how string
				var p50, p99, rate float64
				if n, _ := fmt.Sscanf(line, "%s p50=%f p99=%f rate=%f", &how, &p50, &p99, &rate); n == 4 {
					found[v.name+"-"+how+"-µs"] = append(found[v.name+"-"+how+"-µs"], p50/1000)
					found[v.name+"-"+how+"-conn/s"] = append(found[v.name+"-"+how+"-conn/s"], rate)
				}
			}
		}
	}
	for name, list := range found {
		slices.Sort(list)
		b.ReportMetric(list[len(list)/2], name)
	}
}
