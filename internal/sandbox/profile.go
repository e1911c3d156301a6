package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
)

const (
	networkPorts  = "ports"
	networkBroker = "broker"
	networkNone   = "none"

	udpNone = "none"
	udpDNS  = "dns"

	// nobody is the uid and gid that distroless images call nonroot.
	nobody = 65532

	defaultNoFile = 4096
	// RLIMIT_NPROC counts every process and thread of the uid on the whole machine, whatever container it is in, and
	// many images share one uid: a small number would let a stranger's threads keep the service from starting.
	defaultNProc = 4096

	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// resolved is the profile with every name looked up: what plan judges and the child enforces.
type resolved struct {
	uid, gid int
	path     string // empty in a trial without a program
	args     []string
	env      []string
	dir      string
	rules    []rule
	denied   []string
	ports    []uint16 // to listen on
	connect  []uint16 // with network "ports": to connect to
	unix     bool     // listens on a unix socket
	sockets  []string // unix sockets to connect to, by their real paths
	udp      bool
	network  string
	limits   Limits
	accept   []string
	learn    bool
	needs    []rule // with learn: what the profile need not say
}

// resolve checks the whole profile and returns all of its errors together. The caller must already be the program's
// user: whether a folder can be entered is asked with that user's rights.
func resolve(p Profile, cmd Command) (*resolved, error) {
	var errs []error
	add := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	r := &resolved{accept: p.AcceptGaps, args: cmd.Args, limits: limits(p.Limits), learn: p.Learn}
	if r.learn {
		r.accept = append(slices.Clone(r.accept), learnGaps()...)
	}
	var err error
	r.uid, r.gid, err = Identity(p)
	add(err)
	add(checkAccepted(p.AcceptGaps))
	r.env, err = environment(p.Env, os.LookupEnv)
	add(err)
	add(r.resolveNetwork(p))
	if r.dir = p.Dir; r.dir == "" {
		if r.dir, err = os.Getwd(); err != nil {
			add(fmt.Errorf("find the working directory: %w", err))
		}
	}
	if !filepath.IsAbs(r.dir) {
		add(fmt.Errorf("working directory %q is not absolute", r.dir))
	}
	if p.Preset != "" && p.Preset != presetNode {
		add(fmt.Errorf("unknown preset %q; there is %q", p.Preset, presetNode))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return r, r.resolvePaths(p, cmd)
}

// resolvePaths finds the program and what it needs, and writes the rules.
func (r *resolved) resolvePaths(p Profile, cmd Command) error {
	wanted, err := profilePaths(p)
	if err != nil {
		return err
	}
	own := len(wanted)
	wanted = append(wanted, basePaths()...)
	if cmd.Path != "" {
		if r.path, err = findProgram(cmd.Path, r.variable("PATH"), r.dir); err != nil {
			return err
		}
		needs, err := programNeeds(r.path, r.variable("PATH"))
		if err != nil {
			return err
		}
		wanted = append(wanted, needs...)
	}
	if p.Preset == presetNode {
		app, err := nodePaths(r.args, r.dir, cmd.Path != "")
		if err != nil {
			return err
		}
		wanted = append(wanted, app...)
	}
	if r.learn {
		// Where it listens it may write without being told so.
		needed := slices.DeleteFunc(slices.Clone(wanted[:own]), func(w wantedPath) bool { return w.from != "listen" })
		if r.needs, err = makeRules(append(needed, wanted[own:]...), nil); err != nil {
			return err
		}
	}
	if r.denied, err = realTargets("deny", p.Deny); err != nil {
		return err
	}
	if r.sockets, err = realTargets("sockets", p.Sockets); err != nil {
		return err
	}
	if r.rules, err = makeRules(wanted, r.denied); err != nil {
		return err
	}
	if r.learn {
		return nil // no rule says where it may look
	}
	return r.checkDir()
}

// checkDir refuses a working directory that the program could not look into: relative names would all fail, each with
// an error of its own. The root is no place in particular, and always in order.
func (r *resolved) checkDir() error {
	if r.path == "" {
		r.dir = "/" // nothing begins, so it does not matter where
	}
	if r.dir == "/" {
		return nil
	}
	real, err := filepath.EvalSymlinks(r.dir)
	if err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	if mayWorkIn(real, r.rules) {
		return mayEnter(real)
	}
	return fmt.Errorf("working directory %s lies outside what the program may read: add it to sandbox.read, or start in another one", r.dir)
}

// mayWorkIn tells whether relative names mean something in a folder.
func mayWorkIn(real string, rules []rule) bool {
	return real == "/" || slices.ContainsFunc(rules, func(q rule) bool { return beneath(real, q.Path) })
}

func (r *resolved) variable(name string) string { return variable(r.env, name) }

func variable(env []string, name string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

func (r *resolved) groupsAsked() string {
	groups, err := os.Getgroups()
	if err == nil && !slices.ContainsFunc(groups, func(g int) bool { return g != r.gid }) {
		return "no supplementary group"
	}
	return "" // only root can empty them; Kubernetes gives pods such groups on purpose (fsGroup)
}

func (r *resolved) resolveNetwork(p Profile) error {
	var errs []error
	switch r.network = p.Network; r.network {
	case "":
		r.network = networkBroker
	case networkPorts, networkBroker, networkNone:
	default:
		errs = append(errs, fmt.Errorf("unknown network %q; there are %q, %q and %q", p.Network, networkPorts, networkBroker, networkNone))
	}
	switch p.UDP {
	case "", udpNone:
	case udpDNS:
		if r.udp = true; r.network != networkBroker {
			errs = append(errs, fmt.Errorf("udp %q with network %q: there is a name server for the program only with network %q", udpDNS, r.network, networkBroker))
		}
	default:
		errs = append(errs, fmt.Errorf("unknown udp %q; there are %q and %q", p.UDP, udpNone, udpDNS))
	}
	if p.Learn && r.network == networkPorts {
		errs = append(errs, fmt.Errorf("learn with network %q: nobody is asked about connections there, so none would be noted; learn with network %q", networkPorts, networkBroker))
	}
	if p.Proxy != 0 && r.network == networkPorts {
		r.connect = []uint16{p.Proxy}
	}
	for _, l := range p.Listen {
		r.unix = r.unix || l.Unix != ""
		switch {
		case (l.Port != 0) == (l.Unix != ""):
			errs = append(errs, errors.New("listen: a place is either a TCP port or a unix socket's path"))
		case l.Unix != "" && !filepath.IsAbs(l.Unix):
			errs = append(errs, fmt.Errorf("listen: the unix socket's path %q is not absolute", l.Unix))
		case l.Port != 0 && r.network == networkNone:
			errs = append(errs, fmt.Errorf("listen: TCP port %d with network %q: the program must listen on a unix socket", l.Port, networkNone))
		case l.Port != 0 && !slices.Contains(r.ports, l.Port):
			r.ports = append(r.ports, l.Port)
		}
	}
	slices.Sort(r.ports)
	return errors.Join(errs...)
}

func limits(l Limits) Limits {
	if l.NoFile == 0 {
		l.NoFile = defaultNoFile
	}
	if l.NProc == 0 {
		l.NProc = defaultNProc
	}
	l.Core = 0
	return l
}

// Identity returns the uid and gid that the program, and so the supervisor, must have. Numbers only: a name would be
// looked up in files of the image.
func Identity(p Profile) (uid, gid int, err error) {
	uid, gid = os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = nobody, nobody
	}
	if p.User == "" {
		return uid, gid, nil
	}
	u, g, both := strings.Cut(p.User, ":")
	wantUID, err := strconv.ParseUint(u, 10, 31)
	if err != nil {
		return 0, 0, fmt.Errorf("user %q: want \"uid:gid\" or \"uid\", in numbers", p.User)
	}
	wantGID := wantUID
	if both {
		if wantGID, err = strconv.ParseUint(g, 10, 31); err != nil {
			return 0, 0, fmt.Errorf("user %q: want \"uid:gid\" or \"uid\", in numbers", p.User)
		}
	} else if os.Getuid() != 0 {
		wantGID = uint64(gid)
	}
	if os.Getuid() != 0 && (int(wantUID) != uid || int(wantGID) != gid) {
		return 0, 0, fmt.Errorf("user %q: we are %d:%d and only root can become somebody else; leave user empty, or start as %s", p.User, uid, gid, p.User)
	}
	return int(wantUID), int(wantGID), nil
}

// loaders are the variables by which whoever sets them runs code of theirs inside a program.
func loaders(name string) bool {
	return strings.HasPrefix(name, "LD_") ||
		slices.Contains([]string{"NODE_OPTIONS", "NODE_PATH", "NODE_REPL_EXTERNAL_MODULE", "GLIBC_TUNABLES", "GCONV_PATH", "BASH_ENV", "ENV", "PYTHONPATH", "PYTHONSTARTUP", "PERL5OPT", "RUBYOPT", "JAVA_TOOL_OPTIONS"}, name)
}

// environment is the program's whole environment, sorted.
func environment(e Env, lookup func(string) (string, bool)) ([]string, error) {
	env := map[string]string{"PATH": defaultPath}
	for _, name := range []string{"PATH", "HOME", "LANG", "TZ"} {
		if v, ok := lookup(name); ok {
			env[name] = v
		}
	}
	var errs []error
	for _, name := range e.Pass {
		switch {
		case !variableName(name):
			errs = append(errs, fmt.Errorf("env pass: %q is not the name of a variable; patterns are not taken", name))
		case loaders(name):
			errs = append(errs, fmt.Errorf("env pass: %s brings code into the program from wherever our own environment came from: write the value out in sandbox.env.set", name))
		default:
			if v, ok := lookup(name); ok {
				env[name] = v
			}
		}
	}
	for name, v := range e.Set {
		if !variableName(name) || strings.ContainsRune(v, 0) {
			errs = append(errs, fmt.Errorf("env set: %q is not a variable that can be set", name))
			continue
		}
		env[name] = v
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	list := make([]string, 0, len(env))
	for name, v := range env {
		list = append(list, name+"="+v)
	}
	sort.Strings(list)
	return list, nil
}

func variableName(s string) bool {
	for i, c := range s {
		if c != '_' && !('a' <= c && c <= 'z') && !('A' <= c && c <= 'Z') && (i == 0 || !('0' <= c && c <= '9')) {
			return false
		}
	}
	return s != ""
}
