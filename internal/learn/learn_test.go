package learn

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/egress"
	"github.com/sallyport/sallyport/safedial"
)

// head is what stands before the two sections.
const head = `version: 1
ingress:
  listen: ":8080"
  upstream: http://127.0.0.1:3000
  issuers:
    - {issuer: https://auth.example.com, audience: [orders], keys: discovery}
  routes:
    - {name: list, match: GET /orders, scopes: [orders:read]}
`

const present = head + `sandbox:
  preset: node # the kind
  user: 10001:10001
  read: [/app, /unused]
  env: {set: {PORT: "3000"}}
egress:
  mode: report
  resolvers: ["10.0.0.2:53"]
  destinations:
    - name: billing
      hosts: ["billing.internal:443"]
      for: any
      tls: originate # judged request by request
      methods: [POST]
    - {name: old, hosts: ["old.internal:443"], for: any}
`

func given() Given {
	return Given{
		Command: []string{"node", "dist/main.js"}, Present: []byte(present), Programs: []string{"/usr/local/bin/node", "/srv/own/bin/tool"},
		Private: []string{"/app/keys", "/app/audit.jsonl", "/etc/sallyport.yaml"}, Read: []string{"/app", "/unused"},
		Guard: &safedial.Guard{},
	}
}

func read(paths ...string) (list []Opened) {
	for _, p := range paths {
		list = append(list, Opened{Path: p, Read: true})
	}
	return list
}

func learnFrom(t testing.TB, s Seen) (Result, *config.File) {
	t.Helper()
	r, err := Profile(s, given())
	if err != nil {
		t.Fatal(err)
	}
	f, err := config.Parse("sallyport.yaml", "/etc", append([]byte(head), r.YAML...))
	if err != nil {
		t.Fatalf("%v\n%s", err, r.YAML)
	}
	return r, f
}

func same(t *testing.T, what string, got, want []string, text []byte) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q\n%s", what, got, want, text)
	}
}

func TestFilesBecomeFolders(t *testing.T) {
	for _, c := range []struct {
		name   string
		opened []Opened
		want   []string
	}{
		{"two are two", read("/srv/app/a", "/srv/app/b"), []string{"/srv/app/a", "/srv/app/b"}},
		{"three are a folder", read("/srv/app/a", "/srv/app/b", "/srv/app/c"), []string{"/srv/app"}},
		{"folders become their folder", read("/srv/app/a/1", "/srv/app/a/2", "/srv/app/a/3", "/srv/app/b", "/srv/app/c"), []string{"/srv/app"}},
		{"many below, one in each", read("/srv/m/1/x", "/srv/m/2/x", "/srv/m/3/x", "/srv/m/4/x", "/srv/m/5/x", "/srv/m/6/x", "/srv/m/7/x", "/srv/m/8/x"), []string{"/srv/m"}},
		{"never what many share", read("/etc/a", "/etc/b", "/etc/c", "/etc/d", "/opt/1/a", "/opt/2/a", "/opt/3/a"), []string{"/etc/a", "/etc/b", "/etc/c", "/etc/d", "/opt/1/a", "/opt/2/a", "/opt/3/a"}},
		{"never a home", read("/home/u/a", "/home/u/b", "/home/u/c"), []string{"/home/u/a", "/home/u/b", "/home/u/c"}},
		{"never the kernel's", read("/proc/a", "/proc/b", "/proc/c", "/sys/k/a", "/sys/k/b", "/sys/k/c"), []string{"/proc/a", "/proc/b", "/proc/c", "/sys/k/a", "/sys/k/b", "/sys/k/c"}},
		{"a folder that was listed", []Opened{{Path: "/srv/app", Read: true, Folder: true}, {Path: "/srv/app/a", Read: true}}, []string{"/srv/app"}},
		{"a shared folder that was listed", []Opened{{Path: "/etc", Read: true, Folder: true}, {Path: "/etc/a", Read: true}}, []string{"/etc/a"}},
		{"not around a danger", read("/srv/app/a", "/srv/app/b", "/srv/app/c", "/srv/app/.aws/credentials"), []string{"/srv/app/a", "/srv/app/b", "/srv/app/c"}},
		{"what is written may be read", []Opened{{Path: "/srv/data", Write: true, Folder: true}, {Path: "/srv/data/a", Read: true}}, nil},
		{"what is gone", []Opened{{Path: "/srv/x", Read: true, Gone: true}}, nil},
		{"what nobody lets", []Opened{{Path: "/srv/x", Read: true, Refused: true}}, nil},
		{"an odd name", read("/srv/a\nb", "/srv/\xff", "/srv/'quoted' # {x}: "), nil},
		{"a name to quote", read("/srv/'quoted' # {x}"), []string{"/srv/'quoted' # {x}"}},
	} {
		r, f := learnFrom(t, Seen{Opened: c.opened})
		same(t, c.name, r.Read, c.want, r.YAML)
		same(t, c.name+", read back", f.Sandbox.Read, c.want, r.YAML)
	}
}

func TestWriting(t *testing.T) {
	for _, c := range []struct {
		name   string
		opened []Opened
		want   []string
		danger string // a piece of why it is left out
	}{
		{"a folder", []Opened{{Path: "/srv/data", Write: true, Folder: true}}, []string{"/srv/data"}, ""},
		{"a file", []Opened{{Path: "/srv/data/a", Write: true, Read: true}}, []string{"/srv/data/a"}, ""},
		{"a folder that it made", []Opened{{Path: "/srv/data/new", Write: true, Folder: true, Made: true}}, []string{"/srv/data/new"}, ""},
		{"a folder that it made and removed", []Opened{{Path: "/tmp/x123", Write: true, Folder: true, Made: true, Gone: true}}, []string{"/tmp"}, ""},
		{"everybody's", []Opened{{Path: "/var/lib", Write: true, Folder: true}}, nil, ""},
		{"shared memory", []Opened{{Path: "/dev/shm", Write: true, Folder: true}}, []string{"/dev/shm"}, ""},
		{"a terminal", []Opened{{Path: "/dev/pts/3", Write: true}}, nil, ""},
		{"settings", []Opened{{Path: "/etc/app/x", Write: true}}, nil, "settings of every program"},
		{"the root", []Opened{{Path: "/", Write: true, Folder: true}}, nil, "root of the file tree"},
		{"what it is", []Opened{{Path: "/srv/own", Write: true, Folder: true}}, nil, "/srv/own/bin/tool"},
		{"ours", []Opened{{Path: "/app", Write: true, Folder: true}}, nil, "sallyport's own"},
		{"the keys themselves", []Opened{{Path: "/app/keys/k", Write: true}}, nil, "sallyport's own"},
		{"a folder with a secret", []Opened{{Path: "/srv/x", Write: true, Folder: true}, {Path: "/srv/x/.npmrc", Read: true}}, nil, "it holds what is left out"},
		{"release_agent", []Opened{{Path: "/sys/fs/cgroup/rdma/release_agent", Write: true}}, nil, "CVE-2022-0492"},
		{"the kernel's settings", []Opened{{Path: "/proc/sys/kernel/core_pattern", Write: true}}, nil, "outside the container"},
		{"a disk", []Opened{{Path: "/srv/disk", Write: true, Block: true}}, nil, "a block device"},
	} {
		r, f := learnFrom(t, Seen{Opened: c.opened})
		same(t, c.name, r.Write, c.want, r.YAML)
		same(t, c.name+", read back", f.Sandbox.Write, c.want, r.YAML)
		if c.danger != "" && !(slices.ContainsFunc(r.Dangers, func(d Danger) bool { return strings.Contains(d.Why, c.danger) }) && strings.Contains(string(r.YAML), "# DANGEROUS, left out: "+c.opened[0].Path)) {
			t.Errorf("%s: not said to be dangerous: %+v\n%s", c.name, r.Dangers, r.YAML)
		}
		if c.danger == "" && len(r.Dangers) > 0 {
			t.Errorf("%s: %+v", c.name, r.Dangers)
		}
	}
}

func TestExecuting(t *testing.T) {
	loader := Opened{Path: "/usr/lib/ld-linux-x86-64.so.2", Read: true, Execute: true}
	libraries := Opened{Path: "/usr/lib", Read: true, Folder: true}
	x := func(p string) Opened { return Opened{Path: p, Read: true, Execute: true} }
	for _, c := range []struct {
		name    string
		opened  []Opened
		needs   []Opened
		execute []string
		read    []string
		danger  string
	}{
		{"a program", []Opened{x("/usr/bin/convert")}, []Opened{loader, libraries}, []string{"/usr/bin/convert", loader.Path}, []string{"/usr/lib"}, ""},
		{"a shell", []Opened{x("/usr/bin/dash")}, []Opened{loader, libraries}, nil, []string{"/usr/bin/dash"}, "a shell"},
		{"a script", []Opened{x("/app2/run")}, []Opened{x("/usr/bin/bash"), loader, libraries}, nil, []string{"/app2/run"}, "it needs /usr/bin/bash: a shell"},
		{"versions", []Opened{x("/usr/bin/python3.11"), x("/usr/bin/perl5.36")}, nil, nil, []string{"/usr/bin/perl5.36", "/usr/bin/python3.11"}, "an interpreter"},
		{"what it wrote", []Opened{x("/srv/d/tool"), {Path: "/srv/d", Write: true, Folder: true}}, nil, nil, nil, "it can write what it executes"},
		{"what it wrote and removed", []Opened{{Path: "/srv/d/tool", Execute: true, Gone: true}}, nil, nil, nil, "made, executed and removed"},
		{"what it wrote where it may not", []Opened{x("/etc/x/tool"), {Path: "/etc/x", Write: true, Folder: true}}, nil, nil, nil, "it can write what it executes"},
		{"several are no folder", []Opened{x("/opt/b/1"), x("/opt/b/2"), x("/opt/b/3")}, nil, []string{"/opt/b/1", "/opt/b/2", "/opt/b/3"}, nil, ""},
	} {
		s := Seen{Opened: c.opened, Needs: map[string][]Opened{}}
		for _, o := range c.opened {
			s.Needs[o.Path] = c.needs
		}
		r, f := learnFrom(t, s)
		same(t, c.name, f.Sandbox.Execute, c.execute, r.YAML)
		if c.read != nil {
			same(t, c.name+", read", f.Sandbox.Read, c.read, r.YAML)
		}
		if (c.danger != "") != slices.ContainsFunc(r.Dangers, func(d Danger) bool { return strings.Contains(d.Why, c.danger) }) {
			t.Errorf("%s: %+v", c.name, r.Dangers)
		}
	}
}

func TestSecretsAreLeftOut(t *testing.T) {
	for _, p := range []string{
		"/etc/shadow", "/run/secrets/kubernetes.io/serviceaccount/token", "/run/secrets/kubernetes.io/serviceaccount/..2026_01/token", "/root/.aws/credentials",
		"/home/node/.docker/config.json", "/home/node/.kube/config", "/.ssh/id_ed25519", "/root/.ssh", "/proc/[pid]/environ", "/proc/[pid]/mem", "/proc/[pid]/fd/[n]",
		"/proc/[pid]/root/etc/passwd", "/proc/sysrq-trigger", "/dev/mem", "/dev/sda1", "/dev/nvme0n1", "/var/lib/kubelet/pods/x/volumes/y", "/app/keys/signing.json",
	} {
		r, _ := learnFrom(t, Seen{Opened: read(p)})
		if len(r.Read)+len(r.Write)+len(r.Execute) > 0 || len(r.Dangers) != 1 || !strings.Contains(string(r.YAML), "# DANGEROUS, left out: "+p+": read: ") {
			t.Errorf("%s: %+v\n%s", p, r.Dangers, r.YAML)
		}
	}
	for _, p := range []string{"/etc/shadow2", "/proc/meminfo", "/srv/ssh/x", "/dev/null2", "/srv/aws/credentials", "/srv/sudoers.d", "/proc/sys/net/core/somaxconn"} {
		r, _ := learnFrom(t, Seen{Opened: read(p)})
		same(t, p, r.Read, []string{p}, r.YAML)
	}
}

func TestConnections(t *testing.T) {
	to := netip.MustParseAddrPort
	s := Seen{
		Connects: []Connect{
			{To: to("10.0.0.9:443"), Names: []string{"billing.internal"}}, // in the file
			{To: to("10.0.0.9:5432"), Names: []string{"db.internal"}},
			{To: to("93.184.215.14:443"), Names: []string{"example.com", "www.example.com"}},
			{To: to("93.184.215.14:80"), Names: []string{"example.com"}},
			{To: to("93.184.215.15:8443"), Names: []string{"example.com"}},
			{To: to("93.184.215.16:9000")},
			{To: to("[2606:2800:21f::1]:443")},
			{To: to("10.0.0.2:53")},
			{To: to("10.0.0.10:6000")},                                                // nobody's name
			{To: to("169.254.169.254:80")},                                            // metadata
			{To: to("10.0.0.11:2375"), Names: []string{"docker.internal"}},            // an escape by its port
			{To: to("93.184.215.17:443"), Names: []string{"Bad_Name..", "127.0.0.1"}}, // nobody can have asked for them
			{To: to("93.184.215.18:443"), Names: []string{"refused.example"}, Refused: true},
		},
		Sockets: []string{"/run/postgresql/.s.PGSQL.5432", "/run/docker.sock", "/mnt/docker.sock", "/app/keys/s"},
		Listens: []string{"0.0.0.0:9229"},
	}
	r, f := learnFrom(t, s)
	same(t, "sockets", f.Sandbox.Sockets, []string{"/run/postgresql/.s.PGSQL.5432"}, r.YAML)
	want := []egress.Destination{
		{Name: "billing", Hosts: []string{"billing.internal:443"}, Originate: true, Methods: []string{"POST"}},
		{Name: "2606-2800-21f--1", Hosts: []string{"[2606:2800:21f::1]:443"}, Protocol: "tls"},
		{Name: "93-184-215-16", Hosts: []string{"93.184.215.16:9000"}, Protocol: "tcp"},
		{Name: "93-184-215-17", Hosts: []string{"93.184.215.17:443"}, Protocol: "tls"},
		{Name: "db-internal", Hosts: []string{"db.internal:5432"}, Protocol: "tcp"},
		{Name: "example-com", Hosts: []string{"example.com:80"}, Protocol: "http"},
		{Name: "example-com-2", Hosts: []string{"example.com:8443"}, Protocol: "tcp"},
		{Name: "example-com-3", Hosts: []string{"example.com:443"}, Protocol: "tls"},
		{Name: "www-example-com", Hosts: []string{"www.example.com:443"}, Protocol: "tls"},
	}
	got := f.Egress.Rules
	if len(got.Destinations) != len(want) {
		t.Fatalf("%+v\n%s", got.Destinations, r.YAML)
	}
	for i, d := range got.Destinations {
		if d.Name != want[i].Name || !slices.Equal(d.Hosts, want[i].Hosts) || d.Protocol != want[i].Protocol || d.Originate != want[i].Originate || !slices.Equal(d.Methods, want[i].Methods) {
			t.Errorf("%+v, want %+v", d, want[i])
		}
	}
	if got.Report || !slices.Equal(got.Resolvers, []string{"10.0.0.2:53"}) {
		t.Errorf("%+v", got)
	}
	for _, w := range []string{
		"# DANGEROUS, left out: 10.0.0.10:6000: connect: ", `{name: 10-0-0-10, hosts: ["10.0.0.10:6000"], for: any, protocol: tcp}`, "# DANGEROUS, left out: 169.254.169.254:80: connect: metadata-",
		"# DANGEROUS, left out: docker.internal:2375 (10.0.0.11): connect: docker-api", "# DANGEROUS, left out: /run/docker.sock: connect: docker-socket", "# DANGEROUS, left out: /mnt/docker.sock: connect: docker",
		"not seen to be used: old", "in read before, and not seen to be needed: /app", "left out: refused.example:443", "refused: to listen on 0.0.0.0:9229", "tls: originate # judged request by request",
		"preset: node # the kind", "user: 10001:10001", "env: {set: {PORT: \"3000\"}}",
	} {
		if !strings.Contains(string(r.YAML), w) {
			t.Errorf("%q is missing:\n%s", w, r.YAML)
		}
	}
	if f.Sandbox.Preset != "node" || f.Sandbox.Env.Set["PORT"] != "3000" {
		t.Errorf("%+v", f.Sandbox)
	}
}

func TestNothingSeen(t *testing.T) {
	g := given()
	g.Present = []byte(head)
	r, err := Profile(Seen{Lost: 7}, g)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := config.Parse("sallyport.yaml", "/etc", append([]byte(head), r.YAML...)); err != nil {
		t.Errorf("%v\n%s", err, r.YAML)
	}
	if !strings.Contains(string(r.YAML), "INCOMPLETE") {
		t.Errorf("%s", r.YAML)
	}
}

// Every line of the table is reached by what it says.
func TestDangers(t *testing.T) {
	if _, err := os.Stat("dangers.csv"); err != nil {
		t.Fatal(err)
	}
	for _, p := range perils() {
		example := strings.ReplaceAll(strings.ReplaceAll(p.pattern, "**", "a/b"), "*", "x")
		if !strings.HasPrefix(example, "/") {
			example = "/" + example
		}
		if !matches(p.pattern, example) || Dangerous(p.access[0], example) == "" {
			t.Errorf("%s does not match %s", p.pattern, example)
		}
	}
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"/a/**", "/a", true}, {"/a/**", "/a/b/c", true}, {"/a/**", "/ab", false}, {"/a", "/a/b", false}, {"/a/b", "/a", false},
		{"**/x", "/x", true}, {"**/x", "/a/b/x", true}, {"**/x", "/a/x/b", false}, {"**/x/**", "/a/x/b", true}, {"**/x/**", "/a/ax/b", false},
		{"/a*", "/abc", true}, {"/a*", "/abc/d", false}, {"/a*c", "/ac", true}, {"/a*a", "/a", false}, {"/", "/", true}, {"/", "/a", false},
		{"/proc/[pid]/x", "/proc/p/x", false}, {"/proc/[pid]/x", "/proc/[pid]/x", true},
	} {
		if got := matches(c.pattern, c.path); got != c.want {
			t.Errorf("%s, %s: %v", c.pattern, c.path, got)
		}
	}
	for _, bad := range []string{"r,/x,why", "q,/x,why,src", "r,x,why,src", "r,/x,,src", "r,/x,why,", ",/x,why,src"} {
		if _, err := readPerils(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
