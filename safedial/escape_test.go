package safedial

import (
	"net/netip"
	"slices"
	"strconv"
	"testing"
)

// Configurations unlock by these names: none of them may go or change what it means.
func TestRegistryKeepsItsNames(t *testing.T) {
	for name, value := range map[string]string{
		"docker-socket": "/run/docker.sock", "docker-api": "2375", "docker-api-tls": "2376", "containerd-socket": "/run/containerd/containerd.sock",
		"crio-socket": "/run/crio/crio.sock", "cri-socket": "/run/cri-dockerd.sock", "podman-socket": "/run/podman/podman.sock", "cri-stream": "10010",
		"buildkit-socket": "/run/buildkit/buildkitd.sock", "buildkit-api": "1234", "dbus-socket": "/run/dbus/system_bus_socket",
		"systemd-socket": "/run/systemd/private", "kubelet": "10250", "kubelet-read-only": "10255", "etcd": "2379", "kubernetes-api": "6443",
		"kube-controller-manager": "10257", "kube-scheduler": "10259", "cadvisor": "4194", "node-local-dns": "169.254.20.10", "node-gateway": "routes",
		"metadata-aws": "169.254.169.254", "metadata-aws-ecs": "169.254.170.2", "metadata-aws-eks": "169.254.170.23", "metadata-gcp": "fd20:ce::254",
		"metadata-azure": "169.254.169.254", "metadata-azure-wireserver": "168.63.129.16", "metadata-oracle": "192.0.0.192", "metadata-alibaba": "100.100.100.200",
		"metadata-tencent": "169.254.0.23", "metadata-ibm": "169.254.169.254", "metadata-digitalocean": "169.254.169.254", "metadata-hetzner": "169.254.169.254",
		"metadata-openstack": "fe80::a9fe:a9fe",
	} {
		if !slices.ContainsFunc(Escapes(), func(e Escape) bool { return e.Name == name && e.Value == value }) {
			t.Errorf("%s no longer has %s", name, value)
		}
	}
	Escapes()[0] = Escape{}
	if Escapes()[0].Name == "" {
		t.Error("a caller can change the registry")
	}
}

// Each line refuses what it says under any Allow, and stops when all things at its
// value are unlocked, each by one of its names.
func TestEveryEscapeIsRefusedUntilUnlocked(t *testing.T) {
	for _, e := range Escapes() {
		var check func(*Guard) error
		switch e.Kind {
		case kindAddress:
			check = func(g *Guard) error { return g.Check("", netip.AddrPortFrom(netip.MustParseAddr(e.Value), 8123)) }
		case kindPort:
			port, _ := strconv.Atoi(e.Value)
			check = func(g *Guard) error {
				return g.Check("a.example", netip.AddrPortFrom(netip.MustParseAddr("93.184.216.34"), uint16(port)))
			}
		case kindName:
			check = func(g *Guard) error { return g.Check(e.Value, netip.MustParseAddrPort("93.184.216.34:443")) }
		case kindSocket:
			file := "/anywhere/" + e.Value[2:]
			if e.Value[0] == '/' {
				file = e.Value
			}
			check = func(g *Guard) error { return g.CheckSocket(file) }
		case kindComputed:
			continue // in around_test.go
		}
		others := []string{}
		for _, o := range Escapes() {
			if o.Name != e.Name {
				others = append(others, o.Name)
			}
		}
		shared := slices.ContainsFunc(Escapes(), func(o Escape) bool { return o.Value == e.Value && o.Name != e.Name })
		locked := alone(t, &Guard{Allow: everywhere})
		if code, _ := verdict(t, check(locked)); code != CodeEscapeTarget {
			t.Errorf("%s %s: %q", e.Name, e.Value, code)
		}
		// the others unlocked: this one still refuses, if it is not the same thing under another name
		if _, entry := verdict(t, check(alone(t, &Guard{Allow: everywhere, Unlock: others}))); (entry != e.Name) != shared {
			t.Errorf("%s %s with the others unlocked: %q", e.Name, e.Value, entry)
		}
		if err := check(alone(t, &Guard{Allow: everywhere, Unlock: []string{e.Name}})); err != nil {
			t.Errorf("%s %s unlocked: %v", e.Name, e.Value, err)
		}
	}
}

// Unlocking lifts the registry's refusal, and nothing else's.
func TestUnlockedIsNotAllowed(t *testing.T) {
	guard := alone(t, &Guard{Unlock: []string{"metadata-aws", "docker-api"}, Deny: []string{"198.18.0.0/15"}, Allow: []string{"198.18.0.0/15"}})
	for to, want := range map[string]string{
		"169.254.169.254:80":   CodeSpecialAddress,
		"169.254.169.254:2376": CodeEscapeTarget,
		"10.0.0.5:2375":        CodeSpecialAddress,
		"93.184.216.34:2375":   "",
		"198.18.0.5:2375":      CodeDeniedAddress,
	} {
		if code, _ := verdict(t, guard.Check("", netip.MustParseAddrPort(to))); code != want {
			t.Errorf("%s: %q, want %q", to, code, want)
		}
	}
}

// A question to a name server carries the name out: what is refused by name or port is
// not asked.
func TestEscapesByNameAndPortReachNoResolver(t *testing.T) {
	dns := newResolver(t, map[string][]string{"build.example.": {"93.184.216.34"}, "metadata.google.internal.": {"93.184.216.34"}})
	guard := alone(t, &Guard{Resolver: dns.resolver(), Allow: []string{"build.example:2375", "metadata.google.internal:80", "0.0.0.0/0"}})
	for host, port := range map[string]uint16{"build.example": 2375, "BUILD.example": 10250, "metadata.google.internal": 80, "Metadata.Google.INTERNAL": 443, "host.docker.internal": 80} {
		if _, err := guard.Resolve(t.Context(), host, port); err == nil {
			t.Errorf("%s:%d is resolved", host, port)
		} else if code, _ := verdict(t, err); code != CodeEscapeTarget {
			t.Errorf("%s:%d: %v", host, port, err)
		}
	}
	if n := dns.count(); n != 0 {
		t.Errorf("%d questions were asked", n)
	}
	unlocked := alone(t, &Guard{Resolver: dns.resolver(), Unlock: []string{"docker-api"}})
	if to, err := unlocked.Resolve(t.Context(), "build.example", 2375); err != nil || len(to) != 1 {
		t.Errorf("unlocked: %v, %v", to, err)
	}
}

func TestEscapesOfTheEnvironment(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	t.Setenv("DOCKER_HOST", "tcp://engine.example:12375")
	t.Setenv("CONTAINERD_ADDRESS", "/mnt/c.sock")
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://10.5.5.5:8181/v1")
	guard := &Guard{Allow: []string{"10.0.0.0/8", "engine.example:12375", "93.184.216.34/32"}}
	for _, test := range []struct{ host, to, entry string }{
		{"", "10.96.0.1:443", "kubernetes-api"},
		{"api.example", "10.96.0.1:443", "kubernetes-api"},
		{"", "10.96.0.1:444", ""},
		{"engine.example", "10.7.7.7:12375", "docker-api"},
		{"engine.example", "93.184.216.34:443", ""},
		{"", "10.5.5.5:8181", "metadata-aws-ecs"},
	} {
		if _, entry := verdict(t, guard.Check(test.host, netip.MustParseAddrPort(test.to))); entry != test.entry {
			t.Errorf("%q at %s: %q, want %q", test.host, test.to, entry, test.entry)
		}
	}
	if _, entry := verdict(t, guard.CheckSocket("/mnt/c.sock")); entry != "containerd-socket" {
		t.Errorf("the socket of CONTAINERD_ADDRESS: %q", entry)
	}
	eks := &Guard{Allow: []string{"10.0.0.0/8"}, Unlock: []string{"metadata-aws-eks", "kubernetes-api"}}
	for _, to := range []string{"10.5.5.5:8181", "10.96.0.1:443"} {
		if err := eks.Check("", netip.MustParseAddrPort(to)); err != nil {
			t.Errorf("%s unlocked: %v", to, err)
		}
	}
}

func TestSockets(t *testing.T) {
	guard := alone(t, &Guard{})
	for file, want := range map[string]string{
		"/run/docker.sock": "docker-socket", "/var/run/docker.sock": "docker-socket", "/var/run/../run/docker.sock": "docker-socket",
		"/host/var/run/docker.sock": "docker-socket", "/docker.sock": "docker-socket", "/run/user/1000/docker.sock": "docker-socket",
		"/var/run/containerd/containerd.sock": "containerd-socket", "/run/containerd/s/0123abcd": "containerd-socket", "/run/crio/crio.sock": "crio-socket",
		"/run/user/1000/podman/podman.sock": "podman-socket", "/run/podman/podman.sock": "podman-socket", "/run/user/0/bus": "dbus-socket",
		"/var/run/dbus/system_bus_socket": "dbus-socket", "/run/systemd/private": "systemd-socket", "/run/user/1000/systemd/private": "systemd-socket",
		"/run/buildkit/buildkitd.sock": "buildkit-socket", "/var/run/cri-dockerd.sock": "cri-socket", "/var/lib/kubelet/device-plugins/kubelet.sock": "kubelet-socket",
		"/run/postgresql/.s.PGSQL.5432": "", "/run/app.sock": "", "/run/user/1000/other/docker.sockets": "", "/tmp/bus": "",
	} {
		if _, entry := verdict(t, guard.CheckSocket(file)); entry != want {
			t.Errorf("%s: %q, want %q", file, entry, want)
		}
	}
	if err := (&Guard{Unlock: []string{"docker-socket"}}).CheckSocket("/run/docker.sock"); err != nil {
		t.Errorf("unlocked: %v", err)
	}
}

func TestRegistryRefusesWhatItCannotMean(t *testing.T) {
	for _, broken := range []string{
		"a,port,2375,w", "A,port,1,w,s", ",port,1,w,s", "a,port,0,w,s", "a,port,65536,w,s", "a,port,x,w,s", "a,address,10.0.0,w,s", "a,address,::FFFF:1.2.3.4,w,s",
		"a,address,10.0.0.0/8,w,s", "a,name,A.b,w,s", "a,name,1.2.3.4,w,s", "a,name,a.b.,w,s", "a,socket,run/a,w,s", "a,socket,/[,w,s", "a,computed,x,w,s",
		"a,other,x,w,s", "a,port,1,,s", "a,port,1,w,",
	} {
		if _, err := readEscapes(broken); err == nil {
			t.Errorf("%q is read", broken)
		}
	}
}
