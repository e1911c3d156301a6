package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/sallyport/sallyport/e2e/rootfs"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// namesConfig is for a program that only looks names up, and ends.
func namesConfig(resolver, udp string, execute ...string) setting {
	return setting{
		"version": 1,
		"ingress": setting{
			"listen": "unix:gate/gate.sock", "upstream": "http://127.0.0.1:3000",
			"issuers": []setting{{"issuer": "https://issuer.test", "audience": []string{"x"}, "keys": setting{"jwks_file": "jwks.json"}}},
			"routes":  []setting{{"name": "x", "match": "GET /x", "scopes": []string{"x"}}},
		},
		"egress":  setting{"destinations": []setting{{"name": "allowed", "hosts": []string{"allowed.test:443"}, "for": "any"}}, "resolvers": []string{resolver}},
		"sandbox": setting{"udp": udp, "dir": "/", "execute": execute},
		"audit":   setting{"file": "audit.jsonl"},
	}
}

const issuerKeys = `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"k1","alg":"EdDSA"}]}`

// namesFolder is a folder with a configuration.
func namesFolder(t *testing.T, s setting) string {
	t.Helper()
	dir := openDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	file, err := yaml.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "sallyport.yaml"), file)
	write(t, filepath.Join(dir, "jwks.json"), []byte(issuerKeys))
	return dir
}

// buildNames builds the program of testdata/names.
func buildNames(t *testing.T) string {
	t.Helper()
	if err := readAll("testdata/names"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(openDir(t), "names")
	build := exec.Command("go", "build", "-o", path, "./testdata/names")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// TestNames has real resolvers look names up from inside the walls: a name of a destination is found, another is not, and
// nobody outside is asked about it.
func TestNames(t *testing.T) {
	sallyport, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		unavailable(t, "no node here")
	}
	if node, err = filepath.EvalSymlinks(node); err != nil {
		t.Fatal(err)
	}
	getent, err := exec.LookPath("getent")
	if err != nil {
		unavailable(t, "no getent here")
	}
	names := buildNames(t)
	const script = `require('dns')[process.argv[1]](process.argv[2], (e, a) => { console.log(e ? e.code : a); process.exit(e ? 1 : 0) })`
	for _, c := range []struct {
		name, udp string
		command   []string
	}{
		{"glibc", "none", []string{getent, "ahostsv4"}},
		{"node's getaddrinfo", "none", []string{node, "-e", script, "lookup"}},
		{"c-ares", "none", []string{node, "-e", script, "resolve4"}},
		{"Go", "dns", []string{names, "lookup"}},
		{"glibc, with UDP", "dns", []string{getent, "ahostsv4"}},
		{"c-ares, with UDP", "dns", []string{node, "-e", script, "resolve4"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dns := sallytest.NewResolver(t, map[string][]string{"allowed.test": {"93.184.216.34"}, "secret.test": {"93.184.216.35"}})
			dir := namesFolder(t, namesConfig(dns.Addr, c.udp))
			look := func(name string) (string, bool) {
				cmd := exec.Command(sallyport, append([]string{"run", "-c", filepath.Join(dir, "sallyport.yaml"), "--"}, append(c.command[:len(c.command):len(c.command)], name)...)...)
				var out, errs bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &errs
				err := cmd.Run()
				if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
					t.Fatal(err)
				}
				if t.Failed() || err == nil && out.Len() == 0 {
					t.Log(errs.String())
				}
				return out.String() + errs.String(), err == nil
			}
			if out, ok := look("allowed.test"); !ok || !strings.Contains(out, "93.184.216.34") {
				t.Errorf("allowed.test: %v %s", ok, out)
			}
			if out, ok := look("secret.test"); ok || strings.Contains(out, "93.184.216.35") {
				t.Errorf("secret.test: %v %s", ok, out)
			}
			if n := dns.Asked("secret.test"); n != 0 {
				t.Errorf("somebody was asked %d times for secret.test", n)
			}
			if dns.Asked("allowed.test") == 0 {
				t.Error("nobody was asked for allowed.test: who answered?")
			}
		})
	}
}

// TestNamesInContainer has musl's resolver, which knows no TCP and looks where an answer comes from, look names up in a
// container as Docker makes it.
func TestNamesInContainer(t *testing.T) {
	e := needEngine(t)
	musl, err := exec.LookPath("musl-gcc")
	if err != nil {
		unavailable(t, "no musl-gcc here: install musl-tools")
	}
	names := buildNames(t)
	lookup := filepath.Join(openDir(t), "lookup")
	if out, err := exec.Command(musl, "-static", "-O1", "-o", lookup, "testdata/names/lookup.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	sallyport, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	image := rootfs.Tar(func(f *rootfs.FS) {
		f.Dir("/tmp", 0o1777)
		for _, d := range []string{"/proc", "/sys", "/dev", "/shared"} {
			f.Dir(d, 0o755)
		}
		f.Copy(names, "/bin/names", 0o755)
		f.Copy(lookup, "/bin/lookup", 0o755)
		f.Copy(sallyport, "/bin/sallyport", 0o755)
	})
	defer image.Close()
	id := e.run(t, image, "import", "--change", "ENV PATH=/bin", "-")
	dir := namesFolder(t, namesConfig("127.0.0.1:5353", "dns"))
	write(t, filepath.Join(dir, "resolv.conf"), []byte("nameserver 127.0.0.53\n"))
	for name, want := range map[string]string{"allowed.test": "93.184.216.34", "secret.test": ""} {
		for _, program := range [][]string{{"/bin/lookup"}, {"/bin/names", "lookup"}} {
			cmd := e.command(append([]string{"run", "--rm", "--network", "none", "-v", dir + ":/shared", "-v", filepath.Join(dir, "resolv.conf") + ":/etc/resolv.conf:ro", id,
				"names", "beside", "sallyport", "run", "-c", "/shared/sallyport.yaml", "--"}, append(program, name)...)...)
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			err := cmd.Run()
			if (err == nil) != (want != "") || !strings.Contains(out.String(), want) || want == "" && out.Len() > 0 {
				t.Errorf("%s %s: %v %s%s", program[0], name, err, out.String(), errs.String())
			}
			if strings.Contains(errs.String(), "asked: ") && strings.Contains(errs.String()[strings.LastIndex(errs.String(), "asked: "):], "secret") {
				t.Errorf("somebody was asked for %s: %s", name, errs.String())
			}
		}
	}
}
