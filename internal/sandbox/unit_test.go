package sandbox

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		tcp    bool
		asked  string
		to     string // empty is refused
		only6  bool   // the program wants IPv6 alone
		listen bool
		told   bool
	}{
		{true, "127.0.0.1:3000", "127.0.0.1:3000", false, true, false},
		{true, "127.8.8.8:3000", "127.8.8.8:3000", false, true, false},
		{true, "0.0.0.0:3000", "127.0.0.1:3000", false, true, true},
		{true, "[::]:3000", "[::ffff:127.0.0.1]:3000", false, true, true},
		{true, "[::ffff:0.0.0.0]:3000", "[::ffff:127.0.0.1]:3000", false, true, true},
		{true, "[::1]:3000", "[::1]:3000", false, true, false},
		{true, "[::]:3000", "[::1]:3000", true, true, true},
		{true, "[::ffff:127.0.0.1]:3000", "[::ffff:127.0.0.1]:3000", false, true, false},
		{true, "0.0.0.0:3001", "", false, false, true},
		{true, "127.0.0.1:3001", "", false, false, true},
		{true, "10.1.2.3:3000", "", false, false, true},
		{true, "[fd00::1]:3000", "", false, false, true},
		{true, "[::127.0.0.1]:3000", "", false, false, true}, // IPv4-compatible, which nobody routes
		{true, "[::ffff:10.1.2.3]:3000", "", false, false, true},
		{true, "255.255.255.255:3000", "", false, false, true},
		{true, "127.0.0.1:0", "127.0.0.1:0", false, false, false},
		{true, "0.0.0.0:0", "0.0.0.0:0", false, false, false},
		{true, "10.1.2.3:0", "10.1.2.3:0", false, false, false},
		{false, "127.0.0.1:53", "127.0.0.1:53", false, false, false},
		{false, "[::1]:53", "[::1]:53", false, false, false},
		{false, "0.0.0.0:0", "0.0.0.0:0", false, false, false},
		{false, "[::]:0", "[::]:0", false, false, false},
		{false, "0.0.0.0:3000", "", false, false, true},
		{false, "10.1.2.3:0", "", false, false, true},
	} {
		b := &broker{ports: []uint16{3000}}
		v := b.judge(c.tcp, c.only6, netip.MustParseAddrPort(c.asked))
		got := ""
		if v.errno == 0 {
			got = v.to.String()
		}
		if got != c.to || v.listen != c.listen || (v.why != "") != c.told {
			t.Errorf("tcp %v %s: %q %+v", c.tcp, c.asked, got, v)
		}
	}
}

// Whatever bytes a program hands to bind: what may listen is on loopback, on an allowed port.
func FuzzJudge(f *testing.F) {
	f.Add(true, []byte{2, 0, 0x0b, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(true, []byte{0, 0, 0x0b, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(true, append([]byte{10, 0, 0x0b, 0xb8}, make([]byte, 24)...))
	f.Add(false, []byte{10, 0, 0x0b, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, tcp bool, address []byte) {
		if len(address) < 2 || len(address) > 128 {
			return // readAddress refuses
		}
		b := &broker{ports: []uint16{3000}, led: map[uint16]bool{}}
		for _, led := range []bool{false, true} {
			b.led[3000] = led
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				asked, errno := parseInet(family, address)
				if errno != 0 {
					continue
				}
				v := b.judge(tcp, len(address)%2 == 0, asked)
				if v.errno != 0 {
					continue
				}
				for _, to := range []netip.AddrPort{v.to, v.otherwise} {
					if v.listen && to.IsValid() && (!to.Addr().Unmap().IsLoopback() || to.Port() != 3000) {
						t.Errorf("%v may listen on %v", asked, to)
					}
				}
				if !v.listen && !v.to.Addr().Unmap().IsLoopback() && v.to.Port() != 0 {
					t.Errorf("%v was bound to %v", asked, v.to)
				}
			}
		}
	})
}

func TestEnvironment(t *testing.T) {
	ours := map[string]string{"PATH": "/bin", "HOME": "/h", "LANG": "C", "TZ": "UTC", "NODE_OPTIONS": "--require /tmp/x", "LD_PRELOAD": "/tmp/x.so",
		"NODE_EXTRA_CA_CERTS": "/tmp/ca", "AWS_SECRET_ACCESS_KEY": "s", "DB_TOKEN": "t", "NODE_ENV": "production", "HTTP_PROXY": "p"}
	lookup := func(k string) (string, bool) { v, ok := ours[k]; return v, ok }
	for _, c := range []struct {
		env  Env
		want string
		err  string
	}{
		{Env{}, "HOME=/h LANG=C PATH=/bin TZ=UTC", ""},
		{Env{Pass: []string{"NODE_ENV", "ABSENT"}, Set: map[string]string{"PORT": "3000", "PATH": "/x"}}, "HOME=/h LANG=C NODE_ENV=production PATH=/x PORT=3000 TZ=UTC", ""},
		{Env{Set: map[string]string{"NODE_OPTIONS": "--enable-source-maps"}}, "HOME=/h LANG=C NODE_OPTIONS=--enable-source-maps PATH=/bin TZ=UTC", ""},
		{Env{Pass: []string{"NODE_OPTIONS"}}, "", "NODE_OPTIONS"},
		{Env{Pass: []string{"LD_LIBRARY_PATH"}}, "", "LD_LIBRARY_PATH"},
		{Env{Pass: []string{"*"}}, "", "patterns"},
		{Env{Pass: []string{"A=B"}}, "", "not the name"},
		{Env{Pass: []string{""}}, "", "not the name"},
		{Env{Set: map[string]string{"A": "x\x00y"}}, "", `"A"`},
	} {
		got, err := environment(c.env, lookup)
		if strings.Join(got, " ") != c.want || (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%+v: %q %v", c.env, got, err)
		}
	}
	if got, _ := environment(Env{}, func(string) (string, bool) { return "", false }); strings.Join(got, " ") != "PATH="+defaultPath {
		t.Errorf("without anything: %q", got)
	}
}

func TestIdentity(t *testing.T) {
	root := os.Getuid() == 0
	for _, c := range []struct {
		user     string
		uid, gid int
		ok       bool
	}{
		{"", 65532, 65532, true}, {"1000", 1000, 1000, true}, {"1000:2000", 1000, 2000, true}, {"0", 0, 0, true},
		{"node", 0, 0, false}, {"1000:", 0, 0, false}, {"-1", 0, 0, false}, {"1000:1000:1", 0, 0, false}, {"4294967295", 0, 0, false}, {" 1", 0, 0, false},
	} {
		uid, gid, err := Identity(Profile{User: c.user})
		if !root && c.ok {
			if c.user == "" && (err != nil || uid != os.Getuid()) {
				t.Errorf("not root: %d %d %v", uid, gid, err)
			}
			continue
		}
		if (err == nil) != c.ok || uid != c.uid || gid != c.gid {
			t.Errorf("%q: %d %d %v", c.user, uid, gid, err)
		}
	}
}

func TestNodeScript(t *testing.T) {
	for args, want := range map[string]string{
		"node dist/main.js":                     "dist/main.js",
		"node dist/main":                        "dist/main",
		"node --enable-source-maps main.js --x": "main.js",
		"node -r ./a.js main.js":                "main.js",
		"node --require=./a.js main.js":         "main.js",
		"node --import ./a.mjs -- main.js":      "main.js",
		"node -e 1":                             "",
		"node --eval 1 x.js":                    "",
		"node -":                                "",
		"node":                                  "",
		"node --":                               "",
	} {
		if got := nodeScript(strings.Fields(args)); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}

func TestApplicationFolder(t *testing.T) {
	base := folder(t)
	write(t, base+"/repo/packages/api/package.json", "{}", 0o644)
	write(t, base+"/repo/packages/api/dist/src/main.js", "", 0o644)
	write(t, base+"/plain/main.js", "", 0o644)
	write(t, base+"/plain/lib/index.js", "", 0o644)
	for _, c := range []struct{ args, dir, want, err string }{
		{"node dist/src/main.js", base + "/repo/packages/api", base + "/repo/packages/api", ""},
		{"node dist/src/main", base + "/repo/packages/api", base + "/repo/packages/api", ""},
		{"node " + base + "/repo/packages/api/dist/src/main.js", "/", base + "/repo/packages/api", ""},
		{"node main.js", base + "/plain", base + "/plain", ""},
		{"node lib", base + "/plain", base + "/plain", ""},
		{"node -e 1", base + "/plain", base + "/plain", ""},
		{"node " + base + "/plain/main.js", "/", "", "the working directory is /"},
		{"node absent.js", base + "/plain", "", "no such file"},
	} {
		got, err := applicationFolder(strings.Fields(c.args), c.dir)
		if got != c.want || (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s in %s: %q %v", c.args, c.dir, got, err)
		}
	}
	paths, err := nodePaths(strings.Fields("node dist/src/main.js"), base+"/repo/packages/api", true)
	if err != nil || !slices.ContainsFunc(paths, func(w wantedPath) bool { return w.path == base+"/repo/node_modules" && w.optional }) {
		t.Errorf("a workspace's node_modules is not among %v, %v", paths, err)
	}
}

func TestProgramNeeds(t *testing.T) {
	base := folder(t)
	has := func(list []wantedPath, path string, a access) bool {
		return slices.ContainsFunc(list, func(w wantedPath) bool {
			real, _ := filepath.EvalSymlinks(w.path)
			want, _ := filepath.EvalSymlinks(path)
			return real == want && w.access == a
		})
	}
	shell, err := programNeeds("/bin/sh", defaultPath)
	if err != nil {
		t.Fatal(err)
	}
	if !has(shell, "/bin/sh", accessRead|accessExecute) || !has(shell, "/usr/lib", accessRead) {
		t.Errorf("%+v", shell)
	}
	var executes int
	for _, w := range shell {
		if w.access&accessExecute != 0 {
			executes++
		}
	}
	if executes != 2 {
		t.Errorf("%d files to execute, want the shell and the dynamic loader: %+v", executes, shell)
	}
	script := write(t, base+"/run", "#!/usr/bin/env -S sh -e\n", 0o755)
	list, err := programNeeds(script, defaultPath)
	if err != nil || !has(list, script, accessRead|accessExecute) || !has(list, "/usr/bin/env", accessRead|accessExecute) || !has(list, "/bin/sh", accessRead|accessExecute) {
		t.Errorf("%+v %v", list, err)
	}
	static, err := programNeeds(walls(), defaultPath)
	if err != nil || len(static) != 1 {
		t.Errorf("a static program needs %+v, %v", static, err)
	}
	loop := write(t, base+"/loop", "#!"+base+"/loop\n", 0o755)
	if _, err := programNeeds(loop, defaultPath); err == nil || !strings.Contains(err.Error(), "too many interpreters") {
		t.Error(err)
	}
}

func TestMakeRules(t *testing.T) {
	base := folder(t)
	for _, f := range []string{"app/main.js", "app/keys/k", "app/lib/a", "app/audit.jsonl", "tmp/x", "bin/x"} {
		write(t, filepath.Join(base, f), "", 0o644)
	}
	if err := os.Symlink(base+"/bin", base+"/tmp/link"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		wanted []wantedPath
		denied []string
		rules  string
		err    string
	}{
		{"plain", []wantedPath{{path: base + "/app", access: accessRead}}, nil, "app:1", ""},
		{"the same path twice", []wantedPath{{path: base + "/bin", access: accessRead}, {path: base + "/bin", access: accessRead | accessExecute}}, nil, "bin:5", ""},
		{"split", []wantedPath{{path: base + "/app", access: accessRead}}, []string{base + "/app/keys", base + "/app/audit.jsonl"}, "app:0 app/lib:1 app/main.js:1", ""},
		{"split twice", []wantedPath{{path: base + "/app", access: accessRead}}, []string{base + "/app/lib/a"}, "app:0 app/audit.jsonl:1 app/keys:1 app/lib:0 app/main.js:1", ""},
		{"not there yet", []wantedPath{{path: base + "/app", access: accessRead}}, []string{base + "/app/later"}, "app:0 app/audit.jsonl:1 app/keys:1 app/lib:1 app/main.js:1", ""},
		{"denied itself", []wantedPath{{path: base + "/app/keys", access: accessRead}}, []string{base + "/app/keys"}, "", "must not see"},
		{"beneath the denied", []wantedPath{{path: base + "/app/keys", access: accessRead}}, []string{base + "/app"}, "", "must not see"},
		{"writable over denied", []wantedPath{{path: base + "/app", access: accessRead | accessWrite}}, []string{base + "/app/keys"}, "", "must not see"},
		{"a neighbour with a longer name", []wantedPath{{path: base + "/app", access: accessRead}}, []string{base + "/app-keys"}, "app:1", ""},
		{"write in execute", []wantedPath{{path: base + "/app", access: accessRead | accessExecute}, {path: base + "/app/lib", access: accessRead | accessWrite}}, nil, "", "what can be written cannot be executed"},
		{"execute in write", []wantedPath{{path: base + "/app", access: accessRead | accessWrite}, {path: base + "/app/lib", access: accessRead | accessExecute}}, nil, "", "what can be written cannot be executed"},
		{"through a link that the program can make", []wantedPath{{path: base + "/tmp", access: accessRead | accessWrite}, {path: base + "/tmp/link", access: accessRead}}, nil, "", "through a link in the writable folder"},
		{"optional and missing", []wantedPath{{path: base + "/none", access: accessRead, optional: true}}, nil, "", ""},
		{"missing", []wantedPath{{path: base + "/none", access: accessRead}}, nil, "", "does not exist"},
	} {
		rules, err := makeRules(c.wanted, c.denied)
		var got []string
		for _, r := range rules {
			got = append(got, fmt.Sprintf("%s:%d", strings.TrimPrefix(r.Path, base+"/"), r.Access))
		}
		if c.err == "" && (err != nil || strings.Join(got, " ") != c.rules) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
}

func TestCheckAccepted(t *testing.T) {
	if err := checkAccepted(protectionNames()); err != nil {
		t.Error(err)
	}
	if err := checkAccepted([]string{"file", "signals", "x"}); err == nil || strings.Count(err.Error(), "no protection is named") != 2 {
		t.Error(err)
	}
}
