package sandbox

import (
	"os/exec"
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
