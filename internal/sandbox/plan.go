package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The protections, by their stable names: what doctor prints and what accept_gaps takes.
const (
	protUser        = "user"
	protGroups      = "groups"
	protCaps        = "capabilities"
	protNoNewPrivs  = "no-new-privileges"
	protLimits      = "limits"
	protDescriptors = "descriptors"
	protEnvironment = "environment"
	protFiles       = "files"
	protExecWritten = "execute-written"
	protBindPorts   = "bind-ports"
	protLoopback    = "listen-loopback"
	protAbstract    = "abstract-sockets"
	protSignals     = "signals"
	protSystemCalls = "system-calls"
	protSupervisor  = "supervisor-memory"
	protNoInet      = "no-inet-sockets"
	protBroker      = "connection-broker"
	protConnect     = "connect-ports"
	protUnixSockets = "unix-sockets"
	protUDP         = "udp"

	levelOpen = "open"
)

// protectionNames is the fixed list, in the order in which it is reported.
func protectionNames() []string {
	return []string{protUser, protGroups, protCaps, protNoNewPrivs, protLimits, protDescriptors, protEnvironment, protFiles,
		protExecWritten, protBindPorts, protLoopback, protAbstract, protSignals, protSystemCalls, protSupervisor, protBroker, protConnect, protNoInet, protUnixSockets, protUDP}
}

// kernel is what could be learnt about this kernel without changing anything.
type kernel struct {
	landlock    int    // the ABI; 0 is none
	landlockWhy string // why none
	filter      bool   // seccomp filters
	notify      bool   // seccomp user notification; a listener that somebody else installed shows only when tried
}

func probeKernel() kernel {
	var k kernel
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
		k.landlock = int(abi)
	case unix.ENOSYS:
		k.landlockWhy = "this kernel has no Landlock (it begins with Linux 5.13), or the container's seccomp profile hides it"
	case unix.EOPNOTSUPP:
		k.landlockWhy = "Landlock is in this kernel but was not enabled at boot (lsm=landlock,...)"
	default:
		k.landlockWhy = "landlock_create_ruleset: " + errno.Error()
	}
	k.filter = seccompAction(unix.SECCOMP_RET_ERRNO) && seccompAction(unix.SECCOMP_RET_KILL_PROCESS)
	k.notify = k.filter && seccompAction(unix.SECCOMP_RET_USER_NOTIF)
	return k
}

// plan lays the profile beside the kernel. What it says to be in force is only expected; the self-test has the last word.
func (r *resolved) plan(k kernel) Plan {
	landlock := func(abi int, linux string) string {
		switch {
		case k.landlock >= abi:
			return ""
		case k.landlock == 0:
			return k.landlockWhy
		}
		return fmt.Sprintf("needs Landlock ABI %d (Linux %s), this kernel has %d", abi, linux, k.landlock)
	}
	notify := ""
	if !k.notify {
		notify = "this kernel has no seccomp user notification"
	}
	filter := ""
	if !k.filter {
		filter = "this kernel has no seccomp filters"
	}
	bind := landlock(4, "6.7")
	if notify == "" && filter == "" {
		bind = "" // the supervisor binds, and decides by port
	}
	abstract := ""
	if r.unixSocketsGap(kernel{notify: k.notify}) != "" {
		abstract = landlock(6, "6.12")
	}
	ports := "no TCP port"
	if len(r.ports) > 0 {
		ports = "TCP ports " + strings.Trim(fmt.Sprint(r.ports), "[]") + " only"
	}
	var user, why string
	user = fmt.Sprintf("uid %d, gid %d", r.uid, r.gid)
	if r.uid == 0 {
		user, why = "a user other than root", "the profile's user is root"
	}
	p := Plan{Protections: []Protection{
		{Name: protUser, Asked: user, Detail: why},
		{Name: protGroups, Asked: r.groupsAsked()},
		{Name: protCaps, Asked: "no capability in any set that exec could bring to life"},
		{Name: protNoNewPrivs, Asked: "set, on every thread"},
		{Name: protLimits, Asked: fmt.Sprintf("nofile %d, nproc %d, core 0", r.limits.NoFile, r.limits.NProc)},
		{Name: protDescriptors, Asked: "0, 1 and 2 only"},
		{Name: protEnvironment, Asked: "PATH, HOME, LANG, TZ and the profile's"},
		{Name: protFiles, Asked: "nothing but the profile's paths", Detail: landlock(3, "6.2")},
		{Name: protExecWritten, Asked: "what can be written cannot be executed", Detail: cmp.Or(landlock(1, "5.13"), filter)},
		{Name: protBindPorts, Asked: ports, Detail: bind},
		{Name: protLoopback, Asked: "TCP listeners on loopback only", Detail: notify},
		{Name: protAbstract, Asked: "no abstract socket of a process outside", Detail: abstract},
		{Name: protSignals, Asked: "no signal to a process outside", Detail: cmp.Or(landlock(6, "6.12"), filter)},
		{Name: protSystemCalls, Asked: "the filter's table", Detail: filter},
		{Name: protSupervisor, Asked: "not readable, not traceable"},
		{Name: protBroker, Detail: "only with network: broker"},
		{Name: protConnect, Detail: "only with network: ports"},
		{Name: protNoInet, Detail: "only with network: none"},
		{Name: protUnixSockets, Asked: "no unix socket but those of the profile", Detail: cmp.Or(filter, r.unixSocketsGap(k))},
		{Name: protUDP, Asked: "no UDP", Detail: filter},
	}}
	if r.learn {
		for _, name := range learnGaps() {
			p.set(name, func(q *Protection) { q.Detail = learning })
		}
	}
	switch r.network {
	case networkNone:
		p.set(protNoInet, func(q *Protection) { q.Asked, q.Detail = "no INET socket at all", filter })
	case networkPorts:
		p.set(protConnect, func(q *Protection) { q.Asked, q.Detail = r.connectAsked(), cmp.Or(landlock(4, "6.7"), filter) })
	case networkBroker:
		p.set(protBroker, func(q *Protection) {
			q.Asked, q.Detail = "each outgoing connection decided by address", cmp.Or(filter, notify)
		})
		if cmp.Or(filter, notify) != "" {
			p.withoutBroker(cmp.Or(landlock(4, "6.7"), filter))
		}
	}
	if r.udp {
		p.set(protUDP, func(q *Protection) {
			q.Asked, q.Detail = "UDP to the name server of sallyport only", cmp.Or(filter, notify)
		})
	}
	for i, q := range p.Protections {
		p.Protections[i].InForce = q.Asked != "" && q.Detail == ""
		p.Protections[i].How = "asked the kernel"
	}
	p.Asked = r.network
	p.judge()
	return p
}

// learning is why the protections of learnGaps are missing while a profile is learnt.
const learning = "learning: what the profile does not allow is noted, and passes"

func learnGaps() []string { return []string{protFiles, protExecWritten, protUnixSockets} }

// connectAsked says what network "ports" lets through.
func (r *resolved) connectAsked() string {
	if len(r.connect) == 0 {
		return "no TCP connection"
	}
	return fmt.Sprintf("TCP connections to port %d only, at whatever address", r.connect[0])
}

// unixSocketsGap says why connections to unix sockets cannot be limited, or "". Where nobody is asked about connect(2)
// the program has no unix socket at all, unless it must listen on one.
func (r *resolved) unixSocketsGap(k kernel) string {
	if k.landlock >= 9 || (k.notify && r.network != networkPorts) || !r.unix {
		return ""
	}
	return "the program listens on a unix socket, and so can connect to any: before Landlock ABI 9 only network: broker limits that"
}

// withoutBroker asks for the next best: what network "ports" enforces, with no port.
func (p Plan) withoutBroker(why string) {
	p.set(protConnect, func(q *Protection) {
		q.Asked, q.Detail = "in place of the broker: no TCP connection", why
		q.InForce = why == ""
	})
}

// judge says which network level holds.
func (p *Plan) judge() {
	holds := map[string]bool{}
	for _, q := range p.Protections {
		holds[q.Name] = q.InForce
	}
	switch {
	case holds[protNoInet]:
		p.Level = networkNone
	case holds[protBroker]:
		p.Level = networkBroker
	case holds[protConnect]:
		p.Level = networkPorts
	default:
		p.Level = levelOpen
	}
}

func (p Plan) set(name string, change func(*Protection)) {
	if i := slices.IndexFunc(p.Protections, func(q Protection) bool { return q.Name == name }); i >= 0 {
		change(&p.Protections[i])
	}
}

// unaccepted returns the error that refuses to start, or nil.
func unaccepted(protections []Protection, accept []string) error {
	var e GapError
	for _, q := range protections {
		if q.gap() && !slices.Contains(accept, q.Name) {
			e.Gaps = append(e.Gaps, q)
		}
	}
	if len(e.Gaps) == 0 {
		return nil
	}
	return &e
}

// checkAccepted refuses a name that no protection has: a gap accepted by a misspelt name would surprise at 3 a.m.
func checkAccepted(accept []string) error {
	var errs []error
	for _, name := range accept {
		if !slices.Contains(protectionNames(), name) {
			errs = append(errs, fmt.Errorf("accept gaps: no protection is named %q; the names are %s", name, strings.Join(protectionNames(), ", ")))
		}
	}
	return errors.Join(errs...)
}
