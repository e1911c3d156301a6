package sandbox

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestEveryProtectionHolds(t *testing.T) {
	needKernel(t, 6)
	dir := folder(t)
	for _, as := range []uint32{0, 1000} {
		t.Run(fmt.Sprint("started as ", as), func(t *testing.T) {
			p := Profile{Listen: on(freePort(t)), Write: []string{dir}}
			if as != 0 {
				needRoot(t)
				p.Write = nil
			}
			j := probe(p, "cwd")
			j.as = as
			r := j.run(t)
			if r.code != 0 {
				t.Fatalf("exit code %d: %s", r.code, r.err)
			}
			e := r.enforced(t)
			for _, name := range protectionNames() {
				q, ok := e[name]
				if !ok {
					t.Errorf("%s is not in the list", name)
				}
				if asked := name != protConnect && name != protNoInet; q.InForce != asked {
					t.Errorf("%s: in force %v, want %v: %+v", name, q.InForce, asked, q)
				}
				if q.How == "" {
					t.Errorf("%s: not said how it was tried", name)
				}
			}
			if strings.Contains(r.err, "level=WARN") {
				t.Errorf("the self-test left words in the log: %s", r.err)
			}
		})
	}
}

func TestPrivilegesAreGone(t *testing.T) {
	needKernel(t, 4)
	p := Profile{Read: []string{"/proc"}}
	r := probe(p, "status", "setuid", "fds", "env").run(t)
	uid, gid, _ := Identity(p)
	want := []string{
		fmt.Sprintf("Uid: %d %d %d %d\n", uid, uid, uid, uid), fmt.Sprintf("Gid: %d %d %d %d\n", gid, gid, gid, gid),
		"CapInh: 0000000000000000\n", "CapPrm: 0000000000000000\n", "CapEff: 0000000000000000\n", "CapAmb: 0000000000000000\n",
		"NoNewPrivs: 1\n", "SigBlk: 0000000000000000\n", "fds=0,1,2\n", "setuid: operation not permitted\n",
	}
	if os.Getuid() == 0 {
		want = append(want, "CapBnd: 0000000000000000\n", "Groups:\n")
	}
	for _, w := range want {
		if !strings.Contains(r.out, w) {
			t.Errorf("no %q in\n%s", w, r.out)
		}
	}
	if strings.Contains(r.out, "do-not-leak") {
		t.Error("a variable that nobody passed is in the program's environment")
	}
}

// A descriptor that leaked into the supervisor must not reach the program (CVE-2024-21626).
func TestLeakedDescriptorsAreClosed(t *testing.T) {
	needKernel(t, 4)
	root, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	j := probe(Profile{}, "fds")
	j.prep = func(c *exec.Cmd) { c.ExtraFiles = []*os.File{root, nil, root} }
	if r := j.run(t); !strings.Contains(r.out, "fds=0,1,2\n") {
		t.Errorf("%s%s", r.out, r.err)
	}
}

func TestFiles(t *testing.T) {
	needKernel(t, 4)
	base := folder(t)
	in := func(p string) string { return filepath.Join(base, p) }
	write(t, in("read/a"), "a", 0o644)
	write(t, in("secret/key"), "k", 0o644)
	write(t, in("read/inside/secret/key"), "k", 0o644)
	write(t, in("read/inside/public"), "p", 0o644)
	for _, d := range []string{"write", "read", "secret"} {
		if err := os.MkdirAll(in(d), 0o755); err != nil {
			t.Fatal(err)
		}
		own(t, in(d))
	}
	binary, err := os.ReadFile(walls())
	if err != nil {
		t.Fatal(err)
	}
	tool := write(t, in("bin/tool"), string(binary), 0o755)
	write(t, in("read/tool"), string(binary), 0o755)
	if err := os.Symlink(in("secret/key"), in("read/link")); err != nil {
		t.Fatal(err)
	}
	p := Profile{Read: []string{in("read")}, Write: []string{in("write")}, Execute: []string{in("bin")}, Deny: []string{in("read/inside/secret")}}
	check(t, p, [][2]string{
		{"read " + in("read/a"), "ok"},
		{"append " + in("read/a"), "permission denied"},
		{"write " + in("read/new"), "permission denied"},
		{"write " + in("write/new"), "ok"},
		{"rename " + in("write/new") + " " + in("write/newer"), "ok"},
		{"remove " + in("write/newer"), "ok"},
		{"mknod " + in("write/null"), "permission denied"},
		{"read " + in("secret/key"), "permission denied"},
		{"read " + in("read/link"), "permission denied"},
		{"readlinked " + in("write") + " " + in("secret/key"), "permission denied"},
		{"openat2 " + in("secret/key"), "permission denied"},
		{"read /proc/self/root" + in("secret/key"), "permission denied"},
		{"link " + in("secret/key") + " " + in("write/hard"), "cross-device"},
		{"rename " + in("secret/key") + " " + in("write/moved"), "permission denied"},
		{"list " + in("secret"), "permission denied"},
		{"read " + in("read/inside/public"), "ok"},
		{"read " + in("read/inside/secret/key"), "permission denied"},
		{"list " + in("read/inside/secret"), "permission denied"},
		{"list " + in("read"), "permission denied"}, // opened entry by entry
		{"list " + in("bin"), "ok"},
		{"read /etc/shadow", "permission denied"},
		{"read /etc/hostname", "permission denied"},
		{"run " + tool, "ok"},
		{"run " + in("read/tool"), "permission denied"},
		{"run /bin/true", "permission denied"},
		{"run-copy " + in("write"), "permission denied"},
		{"run-unlinked " + in("write"), "permission denied"},
		{"link " + tool + " " + in("write/linked"), "cross-device"},
		{"run-memfd", "not implemented"},
		{"parent environ", "permission denied"},
		{"parent mem", "permission denied"},
	})
}

// What was missing at the start stays closed when it appears (CVE-2026-25725).
func TestWhatAppearsLaterStaysClosed(t *testing.T) {
	needKernel(t, 4)
	base := folder(t)
	app, later := filepath.Join(base, "app"), filepath.Join(base, "later")
	write(t, filepath.Join(app, "file"), "x", 0o644)
	p := Profile{Read: []string{app}, Deny: []string{filepath.Join(app, "audit.jsonl")}}
	j := probe(p, "sleep 300ms", "read "+filepath.Join(app, "file"), "read "+filepath.Join(app, "audit.jsonl"), "read "+later)
	j.during = func(*os.Process) {
		time.Sleep(150 * time.Millisecond) // early or late: the file must not be readable in either case
		write(t, filepath.Join(app, "audit.jsonl"), "{}", 0o644)
		write(t, later, "x", 0o644)
	}
	r := j.run(t)
	got := r.answers()
	for name, want := range map[string]string{"file": "ok", "audit.jsonl": "permission denied"} {
		if a := got["read "+filepath.Join(app, name)]; !strings.HasSuffix(a, want) {
			t.Errorf("read %s: %q, want %q\n%s", name, a, want, r.err)
		}
	}
	p = Profile{Read: []string{filepath.Join(base, "absent")}}
	if r := probe(p, "cwd").run(t); r.code != 72 || !strings.Contains(r.err, "does not exist") {
		t.Errorf("a missing path: %d %s", r.code, r.err)
	}
}

func TestSystemCallsAreRefused(t *testing.T) {
	needKernel(t, 6)
	check(t, Profile{}, [][2]string{
		{"socket 2 1 262", "protocol not supported"},  // MPTCP
		{"socket 2 1 132", "protocol not supported"},  // SCTP
		{"socket 2 3 1", "protocol not supported"},    // raw
		{"socket 2 10 768", "protocol not supported"}, // SOCK_PACKET
		{"socket 17 3 768", "address family not supported"},
		{"socket 38 5 0", "address family not supported"}, // AF_ALG
		{"socket 40 1 0", "address family not supported"}, // AF_VSOCK
		{"socket 43 1 0", "address family not supported"}, // AF_SMC
		{"socket 44 3 0", "address family not supported"}, // AF_XDP
		{"socket 16 3 15", "protocol not supported"},      // netlink, uevents
		{"socket 16 3 0", "ok"},
		{"socket 2 1 6", "ok"},
		{"socket 10 2 17", "permission denied"}, // UDP
		{"socket 1 2 0", "permission denied"},   // unix datagrams
		{"fastopen", "operation not supported"},
		{"uring", "not implemented"},
		{"unshare", "operation not permitted"},
		{"ptrace", "operation not permitted"},
		{"tiocsti", "operation not permitted"},
		{"kill-parent", "operation not permitted"},
		{"limit-parent", "operation not permitted"},
		{"join-parent", "operation not permitted"},
		{"group", "ok"},
		{"kill 1", "operation not permitted"},
		{"setuid", "operation not permitted"},
	})
}

// The numbers of another architecture mean other calls: whoever uses them is killed.
func TestForeignNumberingKills(t *testing.T) {
	needKernel(t, 4)
	if runtime.GOARCH != "amd64" {
		t.Skip("x32 and int 0x80 are amd64's")
	}
	// The smallest ELF program: getpid by int 0x80, then exit(0) by syscall.
	code := []byte{0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05}
	const base, headers = 0x400000, 64 + 56
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	ph := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base, Filesz: headers + uint64(len(code)), Memsz: headers + uint64(len(code)), Align: 4096}
	var file bytes.Buffer
	for _, part := range []any{h, ph, code} {
		if err := binary.Write(&file, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	int80 := write(t, filepath.Join(folder(t), "int80"), file.String(), 0o755)
	for name, j := range map[string]job{
		"x32":   probe(Profile{}, "x32"),
		"int80": {Profile: Profile{Dir: "/"}, Path: int80, Args: []string{"int80"}},
	} {
		if r := j.run(t); r.code != 128+int(syscall.SIGSYS) {
			t.Errorf("%s: exit code %d, want the program killed by SIGSYS\n%s%s", name, r.code, r.out, r.err)
		}
	}
}

// With the walls left out, the self-test must see through every gap: a test that cannot fail proves nothing.
func TestSelfTestSeesMissingWalls(t *testing.T) {
	needKernel(t, 6)
	dir := folder(t)
	p := Profile{Listen: on(freePort(t)), Write: []string{dir}}
	// The test's own binary, since only it can leave walls out, but without cgo.
	bare := filepath.Join(folder(t), "bare")
	build := exec.Command("go", "test", "-c", "-o", bare, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	j := probe(p, "cwd")
	j.prep = func(c *exec.Cmd) { c.Path = bare }
	r := j.start(t, "unwalled")
	e := r.enforced(t)
	for _, name := range []string{protFiles, protExecWritten, protBindPorts, protLoopback, protAbstract, protSignals, protSystemCalls, protBroker, protUnixSockets, protUDP} {
		if q := e[name]; q.InForce || q.Detail == "" {
			t.Errorf("%s is said to hold without a wall: %+v", name, q)
		}
	}
	if !strings.Contains(e[protBroker].Detail, "succeeded") || !strings.Contains(e[protBroker].Detail, "was not led") {
		t.Errorf("%+v", e[protBroker])
	}
	if !strings.Contains(e[protFiles].Detail, "open / succeeded") || !strings.Contains(e[protLoopback].Detail, "was not led to loopback") ||
		!strings.Contains(e[protSignals].Detail, "succeeded") || !strings.Contains(e[protAbstract].Detail, "succeeded") ||
		!strings.Contains(e[protExecWritten].Detail, "exec format error") {
		t.Errorf("%+v", e)
	}
}
