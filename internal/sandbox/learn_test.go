package sandbox

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// learned is what the supervisor noted, by path: "r", "w", "x", and "made", "refused", "gone".
func (r result) learned(t testing.TB) (l Learned, byPath map[string]string) {
	t.Helper()
	for line := range strings.Lines(r.err) {
		text, ok := strings.CutPrefix(line, "learned: ")
		if !ok {
			continue
		}
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatal(err)
		}
		byPath = map[string]string{}
		for _, o := range l.Opened {
			var words []string
			for _, w := range []struct {
				on   bool
				word string
			}{{o.Read, "r"}, {o.Write, "w"}, {o.Execute, "x"}, {o.Made, "made"}, {o.Refused, "refused"}, {o.Gone, "gone"}} {
				if w.on {
					words = append(words, w.word)
				}
			}
			byPath[o.Path] = strings.TrimSpace(byPath[o.Path] + " " + strings.Join(words, " "))
		}
		return l, byPath
	}
	t.Fatalf("the supervisor learned nothing:\n%s", r.err)
	return l, nil
}

func TestLearning(t *testing.T) {
	needKernel(t, 4)
	for _, verb := range custodies() {
		t.Run(verb, func(t *testing.T) { learnWith(t, verb) })
	}
}

func learnWith(t *testing.T, verb string) {
	base := folder(t)
	at := func(name string) string { return filepath.Join(base, name) }
	for _, name := range []string{"a", "data/old", "data/gone", "data/from", "data/same", "new/x", "cut", "app/lib.txt"} {
		write(t, at(name), "x", 0o644)
	}
	write(t, at("secret"), "x", 0o600)
	if os.Getuid() == 0 {
		if err := os.Chown(at("secret"), 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", at("link")); err != nil {
		t.Fatal(err)
	}
	echo, err := filepath.EvalSymlinks("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	do := []string{
		"read " + at("link"), "read " + at("absent"), "read " + at("secret"), "read /etc/hosts", "read /etc/shadow", "read app/../app/lib.txt",
		"append " + at("cut"), "write " + at("data/new"), "write " + at("nowhere/new"), "remove " + at("data/gone"),
		"rename " + at("data/from") + " " + at("new/to"), "openat2 " + at("a"), "list " + at("new"), "read-at " + base + " data/same",
		"mkdir " + at("made"), "mkdir " + at("data"), "run " + echo, "read /proc/self/status", "parent environ", "unix " + at("sock/s"),
		"bind 0.0.0.0:61999", "chdir-read " + base + " cut", "tmpfile " + at("sock"), "symlink " + at("made/l"), "truncate " + at("cut"),
	}
	if err := os.Mkdir(at("sock"), 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, at("sock"))
	j := probe(Profile{Learn: true, Dir: base}, do...)
	r := j.start(t, verb)
	if r.code != 0 {
		t.Fatalf("exit code %d\n%s%s", r.code, r.out, r.err)
	}
	l, got := r.learned(t)
	want := map[string]string{
		at("a"): "r", at("cut"): "r w", at("data"): "w", at("new"): "r w", at("made"): "w", at("data/same"): "r", at("sock"): "w", at("app/lib.txt"): "r",
		echo: "x", "/proc/self/status": "r", "/proc/[pid]/environ": "r refused", "/etc/ld.so.cache": "r", "/etc/locale.alias": "r",
	}
	if os.Getuid() == 0 {
		want["/etc/shadow"] = "r refused"
		want[at("secret")] = "r refused"
	}
	for path, w := range want {
		if got[path] != w && path != "/etc/locale.alias" && (path != at("made") || got[path] != "w made") {
			t.Errorf("%s: %s: %q, want %q", verb, path, got[path], w)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok && (beneath(path, base) || strings.HasPrefix(path, "/etc")) {
			t.Errorf("%s: %s: %q, and it was not touched", verb, path, got[path])
		}
	}
	loader := slices.ContainsFunc(l.Needs[echo], func(o Opened) bool { return o.Execute && strings.Contains(o.Path, "ld-") })
	libraries := slices.ContainsFunc(l.Needs[echo], func(o Opened) bool { return !o.Execute && o.Folder && o.Path == "/usr/lib" })
	if !loader || !libraries {
		t.Errorf("%s: %s needs %+v", verb, echo, l.Needs[echo])
	}
	if !slices.Contains(l.Listens, "0.0.0.0:61999") {
		t.Errorf("%s: refused listeners: %v", verb, l.Listens)
	}
	// What holds while learning, and what does not.
	e := r.enforced(t)
	for _, name := range learnGaps() {
		if e[name].InForce || e[name].Detail != learning {
			t.Errorf("%s: %+v", verb, e[name])
		}
	}
	for name, p := range e {
		if p.gap() && !slices.Contains(learnGaps(), name) {
			t.Errorf("%s: %+v", verb, p)
		}
	}
	if answers := r.answers(); answers["parent environ"] == "ok" || answers["read "+at("secret")] == "ok" && os.Getuid() == 0 || answers["read /etc/hosts"] != "ok" {
		t.Errorf("%s: %v", verb, answers)
	}
	if t.Failed() {
		t.Fatalf("%s%s\n%v", r.out, r.err, slices.Sorted(maps.Keys(got)))
	}
}

// A rename into another folder takes a right of its own, which Landlock denies unless it is granted.
func TestLearningLeavesFilesOpen(t *testing.T) {
	needKernel(t, 4)
	base := folder(t)
	write(t, filepath.Join(base, "one/f"), "x", 0o644)
	write(t, filepath.Join(base, "two/g"), "x", 0o644)
	check(t, Profile{Learn: true, Dir: base}, [][2]string{
		{"rename " + base + "/one/f " + base + "/two/f", "ok"},
		{"link " + base + "/two/f " + base + "/one/f", "ok"},
		{"run-copy " + base, "ok"},
		{"mknod " + base + "/d", "denied"},
		{"kill-parent", "operation not permitted"},
		{"parent mem", "denied"},
		{"uring", "not implemented"},
		{"dial tcp 127.0.0.1:9", "denied"},
	})
}

func TestLearningNeedsSomebodyToAsk(t *testing.T) {
	needKernel(t, 4)
	j := probe(Profile{Learn: true, Network: networkPorts}, "cwd")
	if r := j.run(t); r.code != 72 || !strings.Contains(r.err, "learn with network") {
		t.Errorf("%d %s", r.code, r.err)
	}
	j = probe(Profile{Learn: true}, "cwd")
	if r := j.start(t, "listened"); r.code == 0 || !strings.Contains(r.err, "learn: a seccomp listener") {
		t.Errorf("%d %s", r.code, r.err)
	}
}

// A call that the supervisor decides is never one that it looks at and passes on: the kernel would read again what was
// judged. Without a learner and a sentry nothing is passed on, and nobody else passes anything on.
func TestOnlyWhatIsLookedAtIsPassedOn(t *testing.T) {
	for _, s := range shapes() {
		vm := machine(t, table(s))
		for _, c := range learnedCalls() {
			writing := [6]uint64{}
			if c.effect == effectOpen {
				writing[c.flags] = unix.O_WRONLY
			}
			watched := s.watch && slices.ContainsFunc(watchedCalls(), func(w learnedCall) bool { return w.nr == c.nr })
			for args, want := range map[[6]uint64]bool{
				{}:      s.notify && (s.learn || watched && c.effect != effectOpen), // an open that only reads is not asked about
				writing: s.notify && (s.learn || watched),
			} {
				if c.effect != effectOpen && args == writing {
					want = s.notify && (s.learn || watched)
				}
				if got := ask(t, vm, auditArch, c.nr, args); (got == answerAsk) != want {
					t.Errorf("%+v: %s%v is asked about: %#x", s, c.name, args, got)
				}
			}
		}
		s.learn, s.watch = false, false
		for _, r := range table(s) {
			if r.answer == answerAsk && slices.ContainsFunc(learnedCalls(), func(c learnedCall) bool { return c.nr == r.nr }) {
				t.Errorf("%+v: %s is decided and looked at", s, r.name)
			}
		}
	}
	b := &broker{}
	asked := []uint32{unix.SYS_SOCKET, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_CONNECT, unix.SYS_SENDTO}
	for _, c := range learnedCalls() {
		asked = append(asked, c.nr)
	}
	for _, nr := range asked {
		n := &notification{TID: 1}
		n.Data.Nr = int32(nr)
		if b.learn(n) || b.look(n) != lookedNot {
			t.Errorf("call %d is passed on, and nobody looks", nr)
		}
	}
	b = &broker{sentry: newSentry(nil, func(Denied) bool { return true })}
	for _, nr := range asked[:5] {
		n := &notification{TID: 1}
		n.Data.Nr = int32(nr)
		if b.look(n) != lookedNot {
			t.Errorf("call %d is looked at in place of being decided", nr)
		}
	}

	callers, flags := 0, 0
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				switch s.Sel.Name {
				case "pass":
					callers++
				case "SECCOMP_USER_NOTIF_FLAG_CONTINUE":
					flags++
				}
			}
			return true
		})
	}
	if callers != 1 || flags != 1 {
		t.Errorf("%d callers of pass and %d uses of the flag, want one of each", callers, flags)
	}
}

// Whatever the filter asks about is one of the two.
func TestEveryQuestionIsAnswered(t *testing.T) {
	for _, s := range shapes() {
		for _, r := range table(s) {
			decided := slices.Contains([]uint32{unix.SYS_SOCKET, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_CONNECT, unix.SYS_SENDTO}, r.nr)
			noted := s.learn && slices.ContainsFunc(learnedCalls(), func(c learnedCall) bool { return c.nr == r.nr }) ||
				s.watch && slices.ContainsFunc(watchedCalls(), func(c learnedCall) bool { return c.nr == r.nr })
			if r.answer == answerAsk && decided == noted {
				t.Errorf("%+v: %s", s, r.name)
			}
		}
	}
}

func TestRealPathsAsTheCallerSeesThem(t *testing.T) {
	base := folder(t)
	write(t, filepath.Join(base, "d/f"), "x", 0o644)
	for name, target := range map[string]string{"l": "d/f", "up": "d/../d", "abs": base + "/d", "loop": "loop", "self": "/proc/self/status", "d/back": "../l"} {
		if err := os.Symlink(target, filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	c := caller{uint32(os.Getpid())}
	for _, x := range []struct {
		path, want string
		follow     bool
		exists, ok bool
	}{
		{"l", "d/f", true, true, true},
		{"l", "l", false, true, true},
		{"up/f", "d/f", false, true, true},
		{"abs/./f/", "d/f", true, true, true},
		{"abs/../l", "d/f", true, true, true},
		{"d/back", "d/f", true, true, true},
		{"d/new", "d/new", true, false, true},
		{"no/new", "", true, false, false},
		{"loop", "", true, false, false},
		{"d/f/below", "", true, false, false},
	} {
		real, exists, ok := c.realPath(filepath.Join(base)+"/"+x.path, x.follow)
		if ok != x.ok || exists != x.exists || ok && real != filepath.Join(base, x.want) {
			t.Errorf("%s: %q %v %v", x.path, real, exists, ok)
		}
	}
	if real, _, ok := c.realPath(base+"/self", true); !ok || c.nameOf(real) != "/proc/self/status" {
		t.Errorf("%q %v", real, ok)
	}
	if real, _, ok := c.realPath("/proc/1/environ", true); !ok || c.nameOf(real) != "/proc/[pid]/environ" {
		t.Errorf("%q %v", real, ok)
	}
	if name := c.nameOf("/proc/" + "1/task/77/fd/4"); name != "/proc/[pid]/task/[tid]/fd/[n]" {
		t.Error(name)
	}
	if real, _, ok := c.realPath("/dev/fd/"+string(rune('0'+r.Fd()%10)), true); r.Fd() < 10 && ok {
		t.Errorf("a pipe is at %q", real)
	}
}

func TestLearnedIsBounded(t *testing.T) {
	l := newLearner([]rule{{"/app", accessRead}}, "/", "")
	for i := range maxLearned + 10 {
		l.put(learnedKey{path: "/x/" + string(rune(0x4e00+i))}, learned{access: accessRead})
		l.put(learnedKey{path: "/app/" + string(rune(0x4e00+i))}, learned{access: accessRead})
	}
	l.put(learnedKey{path: "/x/" + string(rune(0x4e00))}, learned{access: accessWrite})
	if r := l.result(); len(r.Opened) != maxLearned || r.Lost != 10 || !r.Opened[0].Write {
		t.Errorf("%d kept, %d lost, %+v", len(r.Opened), r.Lost, r.Opened[0])
	}
}
