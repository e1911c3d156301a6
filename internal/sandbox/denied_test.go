package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// denied is what the supervisor was told, one "x /path" or "w /path" each.
func (r result) denied() (list []string) {
	for line := range strings.Lines(r.err) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "denied: "); ok {
			text = strings.Replace(strings.Replace(text, "true ", "x ", 1), "false ", "w ", 1)
			list = append(list, text)
		}
	}
	return list
}

// What the walls refuse is told, by whatever name it is tried; what they let pass is not, and works as ever. The answer is
// the walls' own, whether they gave it or whoever heard.
func TestDeniedIsTold(t *testing.T) {
	needKernel(t, 4)
	base := folder(t)
	at := func(name string) string { return filepath.Join(base, name) }
	for _, name := range []string{"data/old", "secret/file", "secret/to-read", "out/old"} {
		write(t, at(name), "x", 0o666)
	}
	if err := os.Symlink(at("secret/file"), at("data/link")); err != nil {
		t.Fatal(err)
	}
	echo, err := filepath.EvalSymlinks("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	own(t, at("secret"))
	own(t, at("out"))
	p := Profile{Read: []string{base}, Write: []string{at("data")}, Execute: []string{walls()}, Dir: base}
	for _, verb := range custodies() {
		for _, heard := range []string{at("secret"), "/nothing"} {
			r := checkAs(t, verb, p, map[string]string{"denied": heard}, [][2]string{
				{"write " + at("data/new"), "ok"},
				{"append " + at("data/old"), "ok"},
				{"read " + at("secret/to-read"), "ok"},
				{"read " + at("absent"), "no such file"},
				{"write " + at("secret/new"), "permission denied"},
				{"append " + at("secret/file"), "permission denied"},
				{"append " + at("data/link"), "permission denied"},
				{"append secret/file", "permission denied"},
				{"append " + at("out/old"), "permission denied"},
				{"write " + at("nowhere/new"), "no such file"},
				{"run " + echo, "permission denied"},
				{"run " + at("data/old"), "permission denied"},
				{"run " + walls(), "ok"},
			})
			want := []string{"w " + at("secret/new"), "w " + at("secret/file"), "w " + at("secret/file"), "w " + at("secret/file"), "w " + at("out/old"), "x " + echo, "x " + at("data/old")}
			if got := r.denied(); !slices.Equal(got, want) {
				t.Errorf("%s, heard %s: told %q\nwant %q", verb, heard, got, want)
			}
		}
	}
}

// Where nobody hears, or no file rule holds, nobody is asked.
func TestNobodyHears(t *testing.T) {
	needKernel(t, 4)
	base := folder(t)
	file := write(t, filepath.Join(base, "file"), "x", 0o666)
	r := checkAs(t, "supervise", Profile{Read: []string{base}, Dir: base}, nil, [][2]string{{"append " + file, "permission denied"}})
	if got := r.denied(); len(got) > 0 {
		t.Errorf("told %q", got)
	}
	r = checkAs(t, "supervise", Profile{Read: []string{base}, Dir: base, AcceptGaps: []string{protFiles}}, map[string]string{"denied": "/"}, [][2]string{{"run /bin/true", "denied"}})
	if got := r.denied(); len(got) > 0 {
		t.Errorf("with an accepted gap: told %q", got)
	}
}
