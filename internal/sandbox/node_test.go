package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// application is a service as NestJS makes one, which also tries what a service may and may not do.
const application = `
const http = require('node:http'), fs = require('node:fs'), os = require('node:os'), dns = require('node:dns'), path = require('node:path');
const { fork, execFile } = require('node:child_process'), { Worker } = require('node:worker_threads');
if (process.argv[2] === 'forked') { process.send(process.memoryUsage().rss > 0 ? 'forked' : 'no memory'); process.disconnect(); return; }
const out = {};
const can = (name, f) => { try { const v = f(); out[name] = v === undefined ? 'ok' : String(v); } catch (e) { out[name] = e.code === 'ERR_DLOPEN_FAILED' ? e.message : e.code || e.message; } };
const later = (name, f) => new Promise(done => { try { f((e, v) => { out[name] = e ? (e.code || e.message) : String(v); done(); }); } catch (e) { out[name] = e.code || e.message; done(); } });
can('dependency', () => require('left'));
can('package', () => JSON.parse(fs.readFileSync(path.join(__dirname, '../package.json'))).name);
can('glob', () => fs.readdirSync(__dirname).join());
can('shadow', () => fs.readFileSync('/etc/shadow'));
can('elsewhere', () => fs.readFileSync(process.env.ELSEWHERE));
can('write app', () => fs.writeFileSync(path.join(__dirname, 'x'), 'x'));
can('write tmp', () => fs.writeFileSync('/tmp/sallyport-node-test', 'x'));
can('write allowed', () => fs.writeFileSync(path.join(process.env.WRITABLE, 'x'), 'x'));
can('supervisor environ', () => fs.readFileSync('/proc/' + process.ppid + '/environ'));
can('other environ', () => fs.readFileSync('/proc/' + process.env.OTHER + '/environ'));
can('memory', () => process.memoryUsage().rss > 0 && os.totalmem() > 0 && os.freemem() > 0 && process.constrainedMemory() >= 0);
can('processors', () => os.cpus().length > 0 && os.availableParallelism() > 0);
can('interfaces', () => os.networkInterfaces().lo[0].address);
can('user', () => os.userInfo().uid);
can('addon', () => process.dlopen({ exports: {} }, path.join(__dirname, '../addon.node')));
can('written addon', () => { const f = path.join(process.env.WRITABLE, 'addon.node'); fs.copyFileSync(path.join(__dirname, '../addon.node'), f); process.dlopen({ exports: {} }, f); });
can('wasm', () => new WebAssembly.Module(Buffer.from([0,0x61,0x73,0x6d,1,0,0,0])) && 'ok');
can('kill', () => process.kill(process.ppid, 'SIGKILL'));
can('uid 0', () => process.setuid(0));
const listen = (port, host) => cb => { const s = http.createServer(); s.once('error', cb); s.listen(port, host, () => { const a = s.address(); s.close(() => cb(null, a.address)); }); };
const port = Number(process.env.PORT);
(async () => {
  await later('worker', cb => new Worker('require("node:worker_threads").parentPort.postMessage(require("node:fs").readdirSync("/proc/self/fd").length > 0)', { eval: true }).once('message', m => cb(null, m)).once('error', cb));
  await later('fork', cb => fork(__filename, ['forked']).once('message', m => cb(null, m)).once('error', cb));
  await later('shell', cb => execFile('/bin/sh', ['-c', 'echo hi'], cb));
  await later('allowed program', cb => execFile(process.env.TOOL, ['hi'], (e, v) => cb(e, v && v.trim())));
  await later('lookup', cb => dns.lookup('localhost', { family: 4 }, cb));
  await later('fetch', cb => fetch('http://127.0.0.1:' + process.env.UPSTREAM).then(r => r.text()).then(t => cb(null, t), e => cb(e.cause || e)));
  await later('udp', cb => { const d = require('node:dgram').createSocket('udp4'); d.once('error', cb); d.send('x', 9, '127.0.0.1', e => { d.close(); cb(e, 'sent'); }); });
  await later('default host', listen(port));
  await later('0.0.0.0', listen(port, '0.0.0.0'));
  await later('127.0.0.1', listen(port, '127.0.0.1'));
  await later('localhost', listen(port, 'localhost'));
  await later('other address', listen(port, process.env.ADDRESS));
  await later('other port', listen(port + 1));
  await later('port 0', listen(0));
  if (process.env.ONCE) { console.log(JSON.stringify(out)); process.exit(0); }
  const server = http.createServer((q, s) => s.end(JSON.stringify(out)));
  server.listen(port, process.env.HOST || undefined);
})();
`

func node(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("node")
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no node here:", err)
	}
	return path
}

// A real Node.js service, built as it would be in an image, with nothing but the preset.
func TestNodeService(t *testing.T) {
	needKernel(t, 6)
	node(t)
	base := folder(t)
	app := filepath.Join(base, "app")
	write(t, filepath.Join(app, "package.json"), `{"name":"orders"}`, 0o644)
	write(t, filepath.Join(app, "dist/main.js"), application, 0o644)
	write(t, filepath.Join(app, "node_modules/left/index.js"), `module.exports = 'left'`, 0o644)
	write(t, filepath.Join(base, "elsewhere"), "x", 0o644)
	write(t, filepath.Join(base, "data/y"), "x", 0o644)
	// A library that is no addon: that node says so shows that it was mapped, which takes the right to read only.
	library, err := filepath.Glob("/lib/*-linux-gnu/libm.so.6")
	if err != nil || len(library) == 0 {
		t.Skip("no libm.so.6 to load:", err)
	}
	text, err := os.ReadFile(library[0])
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(app, "addon.node"), string(text), 0o644)
	tool, err := filepath.EvalSymlinks("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	// Another process of the program's user, outside the walls, with something to hide.
	other := exec.Command(walls(), "probe", "sleep 1m")
	other.Env = []string{"SECRET=do-not-leak"}
	uid, gid, _ := Identity(Profile{})
	if os.Getuid() == 0 {
		other.SysProcAttr = credential(uid, gid)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	upstream := newUpstream(t)

	for _, host := range []string{"", "0.0.0.0"} {
		port := freePort(t)
		j := job{Path: "node", Args: []string{"node", "dist/main.js"}, Profile: Profile{
			Preset: "node", Dir: app, Listen: on(port), Write: []string{filepath.Join(base, "data")}, Execute: []string{tool},
			Env: Env{Set: map[string]string{"PORT": fmt.Sprint(port), "ELSEWHERE": filepath.Join(base, "elsewhere"), "WRITABLE": filepath.Join(base, "data"),
				"OTHER": fmt.Sprint(other.Process.Pid), "TOOL": tool, "ADDRESS": otherAddress(), "HOST": host, "UPSTREAM": upstream}},
		}, Ways: map[string]string{"tcp 127.0.0.1:" + upstream: "direct"}}
		var got map[string]string
		j.during = func(p *os.Process) {
			got = ask200(t, fmt.Sprintf("http://127.0.0.1:%d/", port))
			client := http.Client{Timeout: time.Second}
			if r, err := client.Get(fmt.Sprintf("http://%s:%d/", otherAddress(), port)); err == nil {
				r.Body.Close()
				t.Errorf("the service is reachable at %s", otherAddress())
			}
			p.Signal(os.Interrupt)
		}
		r := j.run(t)
		want := map[string]string{
			"dependency": "left", "package": "orders", "glob": "main.js", "shadow": "EACCES", "elsewhere": "EACCES",
			"write app": "EACCES", "write tmp": "EACCES", "write allowed": "ok", "supervisor environ": "EACCES", "other environ": "EACCES",
			"memory": "true", "processors": "true", "interfaces": "127.0.0.1", "user": fmt.Sprintf("%d|ERR_SYSTEM_ERROR", uid), "wasm": "ok", "kill": "EPERM", "uid 0": "EPERM",
			"worker": "true", "fork": "forked", "shell": "EACCES", "allowed program": "hi", "lookup": "127.0.0.1", "fetch": "hello", "udp": "EACCES",
			"default host": "::ffff:127.0.0.1", "0.0.0.0": "127.0.0.1", "127.0.0.1": "127.0.0.1", "localhost": "127.0.0.1|::1",
			"other address": "EACCES", "other port": "EACCES", "port 0": "EACCES",
		}
		// The second is a limit, not a wish: Landlock guards execve and not mmap.
		for _, name := range []string{"addon", "written addon"} {
			if !strings.Contains(got[name], "did not self-register") {
				t.Errorf("%s: %q", name, got[name])
			}
		}
		for name, w := range want {
			if g := got[name]; g != w && !strings.Contains("|"+w+"|", "|"+g+"|") {
				t.Errorf("%s: %q, want %q", name, g, w)
			}
		}
		if r.code != 130 {
			t.Errorf("exit code %d, want 130", r.code)
		}
		if w := fmt.Sprintf("await app.listen(%d, '127.0.0.1')", port); !strings.Contains(r.err, w) {
			t.Errorf("%s is not in the log", w)
		}
		if t.Failed() {
			t.Fatalf("%v\n%s%s", got, r.out, r.err)
		}
	}
}

// ask200 waits for the service to listen and returns its answer.
func ask200(t *testing.T, url string) (m map[string]string) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		r, err := http.Get(url)
		if err == nil {
			body, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if err = json.Unmarshal(body, &m); err == nil {
				return m
			}
		}
		last = err
	}
	t.Error(errors.Join(errors.New("the service did not answer"), last))
	return nil
}

// The supervisor's own files lie in the application folder, as a configuration with relative paths has it.
func TestNodeDoesNotSeeTheSupervisorsFiles(t *testing.T) {
	needKernel(t, 6)
	node(t)
	app := filepath.Join(folder(t), "app")
	write(t, filepath.Join(app, "package.json"), `{}`, 0o644)
	write(t, filepath.Join(app, "keys/signing.json"), "secret", 0o600)
	write(t, filepath.Join(app, "dist/main.js"), `
const fs = require('fs');
for (const f of ['package.json', 'keys/signing.json', 'audit.jsonl']) {
  try { fs.readFileSync(f); console.log(f + ': ok'); } catch (e) { console.log(f + ': ' + e.code); }
}`, 0o644)
	j := job{Path: "node", Args: []string{"node", "dist/main.js"}, Profile: Profile{Preset: "node", Dir: app, Deny: []string{filepath.Join(app, "keys"), filepath.Join(app, "audit.jsonl")}}}
	if r := j.run(t); r.code != 0 || r.out != "package.json: ok\nkeys/signing.json: EACCES\naudit.jsonl: ENOENT\n" {
		t.Errorf("%d\n%s%s", r.code, r.out, r.err)
	}
}

func TestNodeErrorsAreClear(t *testing.T) {
	needKernel(t, 4)
	node(t)
	needRoot(t)
	base := folder(t)
	app := filepath.Join(base, "app")
	write(t, filepath.Join(app, "package.json"), `{}`, 0o644)
	write(t, filepath.Join(app, "dist/main.js"), ``, 0o644)
	j := job{Path: "node", Args: []string{"node", "dist/absent.js"}, Profile: Profile{Preset: "node", Dir: app}}
	if r := j.run(t); r.code != 74 || !strings.Contains(r.err, "absent.js: no such file") {
		t.Errorf("%d %s", r.code, r.err)
	}
	if err := errors.Join(os.Chown(app, 0, 0), os.Chmod(app, 0o700)); err != nil {
		t.Fatal(err)
	}
	j.Args[1] = filepath.Join(app, "dist/main.js")
	want := fmt.Sprintf("uid 65532 may not enter %s (mode 0700, owner 0:0)", app)
	if r := j.run(t); r.code != 72 || !strings.Contains(r.err, want) {
		t.Errorf("%d %s\nwant %s", r.code, r.err, want)
	}
}

// Node's inspector gives whoever reaches it the whole process. Neither a flag nor a signal opens it.
func TestNodeInspectorStaysClosed(t *testing.T) {
	needKernel(t, 6)
	node(t)
	app := filepath.Join(folder(t), "app")
	write(t, filepath.Join(app, "package.json"), `{}`, 0o644)
	write(t, filepath.Join(app, "main.js"), `
const http = require('http');
http.createServer((q, s) => s.end(JSON.stringify({ url: String(require('inspector').url()) }))).listen(Number(process.env.PORT), '127.0.0.1');`, 0o644)
	for name, c := range map[string]struct {
		flag   string
		signal os.Signal
	}{"flag": {flag: "--inspect=127.0.0.1:9229"}, "signal": {signal: syscall.SIGUSR1}} {
		port := freePort(t)
		j := job{Path: "node", Args: []string{"node", "main.js"}, Profile: Profile{Preset: "node", Dir: app, Listen: on(port), Env: Env{Set: map[string]string{"PORT": fmt.Sprint(port)}}}}
		if c.flag != "" {
			j.Args = []string{"node", c.flag, "main.js"}
		}
		j.during = func(p *os.Process) {
			url := fmt.Sprintf("http://127.0.0.1:%d/", port)
			got := ask200(t, url)
			if c.signal != nil {
				p.Signal(c.signal)
				time.Sleep(300 * time.Millisecond)
				got = ask200(t, url)
			}
			if got["url"] != "undefined" {
				t.Errorf("%s: the inspector is open: %v", name, got)
			}
			p.Signal(os.Interrupt)
		}
		if r := j.run(t); !strings.Contains(r.err, "9229") || r.code != 130 {
			t.Errorf("%s: %d %s%s", name, r.code, r.out, r.err)
		}
	}
}
