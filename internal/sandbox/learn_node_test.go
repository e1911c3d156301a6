package sandbox

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/learn"
	"github.com/sallyport/sallyport/safedial"
)

// deeds is a service that does what services do, and what those do that were taken over.
const deeds = `
const fs = require('node:fs'), net = require('node:net'), path = require('node:path'), { execFile } = require('node:child_process');
const base = process.env.BASE, out = {};
const can = (name, f) => { try { f(); out[name] = 'ok'; } catch (e) { out[name] = e.code || e.message; } };
const later = (name, f) => new Promise(done => f(e => { out[name] = e ? (e.code || e.message) : 'ok'; done(); }));
const connect = to => cb => { const s = net.connect(to, () => { s.destroy(); cb(); }); s.setTimeout(3000, () => { s.destroy(); cb(new Error('timeout')); }); s.once('error', cb); };
for (const f of ['a', 'b', 'c']) can('setting ' + f, () => fs.readFileSync(path.join(base, 'conf', f + '.json')));
can('write', () => fs.writeFileSync(path.join(base, 'data', 'out-' + process.pid), 'x'));
can('replace', () => { fs.writeFileSync(path.join(base, 'data', 'new'), 'x'); fs.renameSync(path.join(base, 'data', 'new'), path.join(base, 'data', 'state')); });
can('temporary', () => { const d = fs.mkdtempSync('/tmp/deeds-'); fs.writeFileSync(path.join(d, 'x'), 'x'); fs.rmSync(d, { recursive: true }); });
can('credentials', () => fs.readFileSync(path.join(base, 'home/.aws/credentials')));
can('environ', () => fs.readFileSync('/proc/' + process.ppid + '/environ'));
can('tool', () => fs.copyFileSync(process.env.TOOL, path.join(base, 'data', 'tool')) || fs.chmodSync(path.join(base, 'data', 'tool'), 0o755));
(async () => {
  await later('allowed program', cb => execFile(process.env.TOOL, ['hi'], cb));
  await later('written program', cb => execFile(path.join(base, 'data', 'tool'), ['hi'], cb));
  await later('shell', cb => execFile('/bin/sh', ['-c', 'true'], cb));
  await later('upstream', connect({ host: '127.0.0.1', port: Number(process.env.UPSTREAM) }));
  await later('metadata', connect({ host: '169.254.169.254', port: 80 }));
  await later('database', connect({ path: path.join(base, 'run/db.sock') }));
  await later('docker', connect({ path: path.join(base, 'run/docker.sock') }));
  console.log(JSON.stringify(out));
})();
`

// What a service does is learned from it, and then it can do that, and nothing that is dangerous.
func TestNodeServiceRunsUnderItsLearnedProfile(t *testing.T) {
	needKernel(t, 6)
	node(t)
	// Not below /tmp, in which the service writes.
	base, err := os.MkdirTemp("/var/tmp", "sallyport-learn-")
	if err == nil {
		err = os.Chmod(base, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	own(t, base)
	at := func(name string) string { return filepath.Join(base, name) }
	for name, text := range map[string]string{
		"app/package.json": `{"name":"deeds"}`, "app/dist/main.js": deeds, "conf/a.json": "{}", "conf/b.json": "{}", "conf/c.json": "{}", "data/.keep": "", "home/.aws/credentials": "secret", "run/.keep": "",
	} {
		write(t, at(name), text, 0o644)
	}
	newGreeter(t, "unix", at("run/db.sock"))
	newGreeter(t, "unix", at("run/docker.sock"))
	own(t, at("run/db.sock"))
	own(t, at("run/docker.sock"))
	upstream := newUpstream(t)
	tool, err := filepath.EvalSymlinks("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	j := job{Path: "node", Args: []string{"node", "dist/main.js"}, Quiet: true, Profile: Profile{Preset: "node", Dir: at("app"), Learn: true,
		Env: Env{Set: map[string]string{"BASE": base, "TOOL": tool, "UPSTREAM": upstream}}},
		Ways: map[string]string{"tcp 127.0.0.1:" + upstream: "direct", "unix *": "allow"}}

	r := j.run(t)
	if r.code != 0 {
		t.Fatalf("exit code %d\n%s%s", r.code, r.out, r.err)
	}
	did := func(r result) (m map[string]string) {
		if err := json.Unmarshal([]byte(r.out), &m); err != nil {
			t.Fatalf("%v\n%s%s", err, r.out, r.err)
		}
		return m
	}
	free := did(r)
	for name, answer := range free {
		if want := map[string]string{"metadata": "EACCES", "environ": "EACCES"}[name]; answer != "ok" && answer != want {
			t.Errorf("while learning %s: %s", name, answer)
		}
	}
	profile := learnFrom(t, r, j.Profile, upstream)
	t.Logf("read %q, write %q, execute %q, sockets %q, dangers %q", profile.Read, profile.Write, profile.Execute, profile.Sockets, profile.Dangers)

	j.Profile.Learn = false
	j.Profile.Read, j.Profile.Write, j.Profile.Execute, j.Profile.Sockets = profile.Read, profile.Write, profile.Execute, profile.Sockets
	r = j.run(t)
	if r.code != 0 {
		t.Fatalf("exit code %d\n%s%s", r.code, r.out, r.err)
	}
	for name, answer := range did(r) {
		want := "ok"
		if slices.Contains([]string{"credentials", "environ", "written program", "shell", "metadata", "docker"}, name) {
			want = "EACCES"
		}
		if answer != want {
			t.Errorf("under the learned profile %s: %s, want %s", name, answer, want)
		}
	}
	if t.Failed() {
		t.Logf("%s%s\n%s", r.out, r.err, profile.YAML)
	}
}

// learnFrom makes a profile as the command does, of what the supervisor and the hook saw.
func learnFrom(t *testing.T, r result, p Profile, upstream string) learn.Result {
	t.Helper()
	l, _ := r.learned(t)
	convert := func(list []Opened) (out []learn.Opened) {
		for _, o := range list {
			out = append(out, learn.Opened(o))
		}
		return out
	}
	seen := learn.Seen{Opened: convert(l.Opened), Needs: map[string][]learn.Opened{}, Dir: l.Dir}
	for program, needs := range l.Needs {
		seen.Needs[program] = convert(needs)
	}
	for line := range strings.Lines(r.err) {
		asked, ok := strings.CutPrefix(line, "asked: ")
		if !ok {
			continue
		}
		network, where, _ := strings.Cut(strings.TrimSpace(asked), " ")
		if network == "unix" {
			seen.Sockets = append(seen.Sockets, where)
			continue
		}
		c := learn.Connect{To: netip.MustParseAddrPort(where)}
		if c.To.Port() == port(upstream) {
			c.Names = []string{"upstream.test"}
		}
		seen.Connects = append(seen.Connects, c)
	}
	result, err := learn.Profile(seen, learn.Given{Command: []string{"node"}, Present: []byte("sandbox: {preset: node}\n"), Programs: l.Programs, Guard: &safedial.Guard{}})
	if err != nil {
		t.Fatal(err)
	}
	base := p.Env.Set["BASE"]
	sh, _ := filepath.EvalSymlinks("/bin/sh")
	for _, w := range []struct {
		what      string
		got, want []string
	}{
		{"read", slices.DeleteFunc(slices.Clone(result.Read), func(s string) bool { return !beneath(s, base) }), []string{filepath.Join(base, "conf")}},
		{"write", result.Write, []string{"/tmp", filepath.Join(base, "data")}},
		{"sockets", result.Sockets, []string{filepath.Join(base, "run/db.sock")}},
		{"hosts", result.Destinations, []string{"upstream.test:" + upstream}},
	} {
		if !slices.Equal(w.got, w.want) {
			t.Errorf("%s: %q, want %q", w.what, w.got, w.want)
		}
	}
	for _, d := range []string{filepath.Join(base, "home/.aws/credentials"), "/proc/[pid]/environ", sh, filepath.Join(base, "data/tool"), "169.254.169.254:80", filepath.Join(base, "run/docker.sock")} {
		if !slices.ContainsFunc(result.Dangers, func(x learn.Danger) bool { return x.What == d }) {
			t.Errorf("%s is not among the dangers", d)
		}
	}
	return result
}

func port(s string) uint16 {
	var n uint16
	fmt.Sscan(s, &n)
	return n
}
