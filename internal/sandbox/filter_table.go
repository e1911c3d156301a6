package sandbox

import "golang.org/x/sys/unix"

// namespaces are the flags that make a namespace. CLONE_NEWTIME shares its bit with clone's exit signal and is
// looked for in unshare only; clone(2) cannot make a time namespace.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// sockType masks SOCK_NONBLOCK and SOCK_CLOEXEC away (include/linux/net.h: SOCK_TYPE_MASK).
const sockType = 0xf

// shape is what the table depends on.
type shape struct {
	level   string   // the network level that can be had: broker, ports or none
	notify  bool     // the supervisor is asked
	custody custody  // and how it comes by the sockets
	udp     bool     // UDP sockets for name resolution
	unix    bool     // the program listens on a unix socket
	groups  []uint32 // process groups outside that the program must not join
	learn   bool     // what is opened is noted
	watch   bool     // what is executed, or opened for writing, is looked at
}

// asksConnect tells whether connect(2) is the supervisor's.
func (s shape) asksConnect() bool { return s.notify && s.level != networkPorts }

// table is the whole filter: system call, condition, answer, why. Where the answer is an error number it was chosen
// so that programs take the way they would take on an older kernel.
func table(s shape) []row {
	rows := append(sockets(s), sends(s)...)
	rows = append(rows, options()...)
	if len(s.groups) > 0 {
		rows = append(rows, row{"setpgid", unix.SYS_SETPGID, []condition{is(1, s.groups...)}, refuse(unix.EPERM), "from a member the kernel itself signals the whole group (SIGHUP to an orphaned one, SIGTTIN), past Landlock"})
	}
	if s.notify {
		rows = append(rows,
			row{"bind", unix.SYS_BIND, nil, answerAsk, "the supervisor binds, on loopback"},
			row{"listen", unix.SYS_LISTEN, nil, answerAsk, "listen on an unbound socket would take a port on every address"})
	}
	if s.asksConnect() {
		rows = append(rows, row{"connect", unix.SYS_CONNECT, nil, answerAsk, "the supervisor connects, to what it has judged"})
	}
	if s.learn && s.notify {
		rows = append(rows, learnedRows()...)
	} else if s.watch && s.notify {
		rows = append(rows, watchedRows()...)
	}
	rows = append(rows, escapes()...)
	return append(rows, archRows()...)
}

// sockets are the rows of socket and socketpair.
func sockets(s shape) []row {
	const (
		datagrams = "a datagram says itself where it goes, behind a pointer: past connect, and past every filter"
		byPath    = "by path it reaches a container runtime's socket, which Landlock does not see before ABI 9"
	)
	given := answerAllow // a socket by itself reaches nobody
	if s.notify && s.custody == custodyMake {
		given = answerAsk
	}
	local := given
	if !s.asksConnect() {
		local = refuse(unix.EACCES)
		if s.unix {
			local = answerAllow
		}
	}
	inet := is(0, unix.AF_INET, unix.AF_INET6)
	stream := masked(1, sockType, unix.SOCK_STREAM)
	rows := []row{
		{"socket", unix.SYS_SOCKET, []condition{is(0, unix.AF_UNIX), masked(1, sockType, unix.SOCK_STREAM, unix.SOCK_SEQPACKET)}, local, byPath},
		{"socket", unix.SYS_SOCKET, []condition{is(0, unix.AF_UNIX)}, refuse(unix.EACCES), datagrams},
		{"socket", unix.SYS_SOCKET, []condition{is(0, unix.AF_NETLINK), is(2, unix.NETLINK_ROUTE)}, given, "name resolution lists addresses"},
		{"socket", unix.SYS_SOCKET, []condition{is(0, unix.AF_NETLINK), anyBit(2, ^uint32(0))}, refuse(unix.EPROTONOSUPPORT), "the rest of netlink is kernel surface"},
	}
	if s.level == networkNone {
		rows = append(rows, row{"socket", unix.SYS_SOCKET, []condition{inet}, refuse(unix.EACCES), "network: none"})
	} else {
		udp := refuse(unix.EACCES)
		if s.udp && s.notify {
			udp = answerAsk
		}
		rows = append(rows,
			row{"socket", unix.SYS_SOCKET, []condition{inet, stream, is(2, 0, unix.IPPROTO_TCP)}, given, "TCP"},
			row{"socket", unix.SYS_SOCKET, []condition{inet, masked(1, sockType, unix.SOCK_DGRAM), is(2, 0, unix.IPPROTO_UDP)}, udp, datagrams},
			row{"socket", unix.SYS_SOCKET, []condition{inet}, refuse(unix.EPROTONOSUPPORT), "MPTCP, SCTP, SMC and raw sockets pass by Landlock's port rules; Go falls back from MPTCP to TCP on this number"},
		)
	}
	return append(rows,
		row{"socket", unix.SYS_SOCKET, nil, refuse(unix.EAFNOSUPPORT), "AF_ALG, AF_VSOCK, AF_PACKET, AF_XDP, AF_SMC, AF_TIPC, ...: kernel surface, and ways out that nothing else guards"},
		row{"socketpair", unix.SYS_SOCKETPAIR, []condition{is(0, unix.AF_UNIX), masked(1, sockType, unix.SOCK_STREAM, unix.SOCK_SEQPACKET)}, answerAllow, "pipes between processes"},
		row{"socketpair", unix.SYS_SOCKETPAIR, []condition{is(0, unix.AF_UNIX)}, refuse(unix.EOPNOTSUPP), datagrams},
		row{"socketpair", unix.SYS_SOCKETPAIR, nil, refuse(unix.EAFNOSUPPORT), "TIPC has socketpairs too"},
	)
}

// sends are the rows of the calls that may name an address.
func sends(s shape) []row {
	const fastOpen = "it connects without connect(2), so nobody is asked"
	rows := []row{
		{"sendto", unix.SYS_SENDTO, []condition{anyBit(3, unix.MSG_FASTOPEN)}, refuse(unix.EOPNOTSUPP), fastOpen},
		{"sendmsg", unix.SYS_SENDMSG, []condition{anyBit(2, unix.MSG_FASTOPEN)}, refuse(unix.EOPNOTSUPP), fastOpen},
		{"sendmmsg", unix.SYS_SENDMMSG, []condition{anyBit(3, unix.MSG_FASTOPEN)}, refuse(unix.EOPNOTSUPP), fastOpen},
	}
	if !s.udp || !s.notify {
		return rows
	}
	const hidden = "with UDP sockets: its address is behind a pointer, and cannot be judged"
	return []row{
		rows[0],
		{"sendto", unix.SYS_SENDTO, []condition{pointer(4)}, answerAsk, "the supervisor sends, to its own name server"},
		rows[1],
		{"sendmsg", unix.SYS_SENDMSG, nil, refuse(unix.EACCES), hidden},
		rows[2],
		{"sendmmsg", unix.SYS_SENDMMSG, nil, refuse(unix.EACCES), hidden},
	}
}

// options are the rows of setsockopt: where the packets of a socket go is not for the program to say.
func options() []row {
	const (
		device = "a device goes before the route: what is led to 127.0.0.1 goes out by the device instead, with what Fast Open puts into the first packet"
		group  = "the kernel announces a group to the network, on any device: its address is what the program likes"
		route  = "the packets go to the first address of the route, and not to the one that was judged"
	)
	eperm := refuse(unix.EPERM)
	return []row{
		{"setsockopt", unix.SYS_SETSOCKOPT, []condition{is(1, unix.SOL_SOCKET), is(2, unix.SO_BINDTODEVICE, unix.SO_BINDTOIFINDEX)}, eperm, device},
		{"setsockopt", unix.SYS_SETSOCKOPT, []condition{is(1, unix.IPPROTO_IP), is(2, unix.IP_OPTIONS)}, eperm, route},
		{"setsockopt", unix.SYS_SETSOCKOPT, []condition{is(1, unix.IPPROTO_IPV6), is(2, unix.IPV6_RTHDR, unix.IPV6_2292PKTOPTIONS)}, eperm, route},
		{"setsockopt", unix.SYS_SETSOCKOPT, []condition{is(1, unix.IPPROTO_IP), is(2, unix.IP_ADD_MEMBERSHIP, unix.IP_ADD_SOURCE_MEMBERSHIP, unix.IP_MSFILTER,
			unix.MCAST_JOIN_GROUP, unix.MCAST_JOIN_SOURCE_GROUP, unix.MCAST_MSFILTER)}, eperm, group},
		{"setsockopt", unix.SYS_SETSOCKOPT, []condition{is(1, unix.IPPROTO_IPV6), is(2, unix.IPV6_JOIN_GROUP, unix.IPV6_JOIN_ANYCAST,
			unix.MCAST_JOIN_GROUP, unix.MCAST_JOIN_SOURCE_GROUP, unix.MCAST_MSFILTER)}, eperm, group},
	}
}

func escapes() []row {
	const (
		uring    = "it performs socket calls that no filter sees; libuv falls back"
		memory   = "another process's memory and descriptors"
		surface  = "kernel surface that no service needs"
		newSpace = "a user namespace gives back every capability inside"
		mounts   = "the file tree is as it was found"
		machine  = "the machine is not the program's"
		schedule = "an equal uid suffices to put the supervisor's threads behind all others; a thread that means itself is 0"

		ioprioUser = 3 // IOPRIO_WHO_USER
	)
	eperm := refuse(unix.EPERM)
	rows := []row{
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, nil, refuse(unix.ENOSYS), uring},
		{"io_uring_enter", unix.SYS_IO_URING_ENTER, nil, refuse(unix.ENOSYS), uring},
		{"io_uring_register", unix.SYS_IO_URING_REGISTER, nil, refuse(unix.ENOSYS), uring},
		{"clone3", unix.SYS_CLONE3, nil, refuse(unix.ENOSYS), "its flags are behind a pointer; libc falls back to clone on this number, and breaks on EPERM (moby#42680)"},
		{"clone", unix.SYS_CLONE, []condition{anyBit(0, namespaces)}, eperm, newSpace},
		{"unshare", unix.SYS_UNSHARE, []condition{anyBit(0, namespaces|unix.CLONE_NEWTIME)}, eperm, newSpace},
		{"setns", unix.SYS_SETNS, nil, eperm, newSpace},
		{"memfd_create", unix.SYS_MEMFD_CREATE, []condition{noBit(1, unix.MFD_NOEXEC_SEAL)}, refuse(unix.ENOSYS), "Landlock does not see the execution of an anonymous file"},
		{"prctl", unix.SYS_PRCTL, []condition{is(0, unix.PR_SET_DUMPABLE), is(1, 0)}, refuse(0), "said to be done and not done: the supervisor must be able to read the addresses that bind and connect are given"},
		{"prlimit64", unix.SYS_PRLIMIT64, []condition{anyBit(0, ^uint32(0))}, eperm, "an equal uid suffices to take descriptors, file sizes or time from another process; libc calls itself 0"},
		{"sched_setaffinity", unix.SYS_SCHED_SETAFFINITY, []condition{anyBit(0, ^uint32(0))}, eperm, schedule},
		{"sched_setattr", unix.SYS_SCHED_SETATTR, []condition{anyBit(0, ^uint32(0))}, eperm, schedule},
		{"sched_setparam", unix.SYS_SCHED_SETPARAM, []condition{anyBit(0, ^uint32(0))}, eperm, schedule},
		{"sched_setscheduler", unix.SYS_SCHED_SETSCHEDULER, []condition{anyBit(0, ^uint32(0))}, eperm, schedule},
		{"setpriority", unix.SYS_SETPRIORITY, []condition{is(0, unix.PRIO_USER)}, eperm, schedule},
		{"setpriority", unix.SYS_SETPRIORITY, []condition{anyBit(1, ^uint32(0))}, eperm, schedule},
		{"ioprio_set", unix.SYS_IOPRIO_SET, []condition{is(0, ioprioUser)}, eperm, schedule},
		{"ioprio_set", unix.SYS_IOPRIO_SET, []condition{anyBit(1, ^uint32(0))}, eperm, schedule},
		{"ioctl", unix.SYS_IOCTL, []condition{is(1, unix.TIOCSTI, unix.TIOCLINUX)}, eperm, "types into the operator's terminal (CVE-2017-5226)"},
		{"ioctl", unix.SYS_IOCTL, []condition{is(1, unix.TIOCSETD)}, eperm, "loads line disciplines"},
	}
	for _, r := range []struct {
		name string
		nr   uint32
		why  string
	}{
		{"ptrace", unix.SYS_PTRACE, memory},
		{"process_vm_readv", unix.SYS_PROCESS_VM_READV, memory},
		{"process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, memory},
		{"process_madvise", unix.SYS_PROCESS_MADVISE, memory},
		{"pidfd_getfd", unix.SYS_PIDFD_GETFD, memory},
		{"kcmp", unix.SYS_KCMP, memory},
		{"userfaultfd", unix.SYS_USERFAULTFD, surface},
		{"bpf", unix.SYS_BPF, surface},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, surface},
		{"add_key", unix.SYS_ADD_KEY, "keyrings are not namespaced"},
		{"request_key", unix.SYS_REQUEST_KEY, "keyrings are not namespaced"},
		{"keyctl", unix.SYS_KEYCTL, "keyrings are not namespaced"},
		{"fanotify_init", unix.SYS_FANOTIFY_INIT, surface},
		{"lookup_dcookie", unix.SYS_LOOKUP_DCOOKIE, surface},
		{"nfsservctl", unix.SYS_NFSSERVCTL, surface},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, "opens by inode, past every path"},
		{"mount", unix.SYS_MOUNT, mounts},
		{"umount2", unix.SYS_UMOUNT2, mounts},
		{"pivot_root", unix.SYS_PIVOT_ROOT, mounts},
		{"chroot", unix.SYS_CHROOT, mounts},
		{"fsopen", unix.SYS_FSOPEN, mounts},
		{"fsconfig", unix.SYS_FSCONFIG, mounts},
		{"fsmount", unix.SYS_FSMOUNT, mounts},
		{"fspick", unix.SYS_FSPICK, mounts},
		{"open_tree", unix.SYS_OPEN_TREE, mounts},
		{"open_tree_attr", unix.SYS_OPEN_TREE_ATTR, mounts},
		{"move_mount", unix.SYS_MOVE_MOUNT, mounts},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, mounts},
		{"quotactl", unix.SYS_QUOTACTL, mounts},
		{"quotactl_fd", unix.SYS_QUOTACTL_FD, mounts},
		{"swapon", unix.SYS_SWAPON, machine},
		{"swapoff", unix.SYS_SWAPOFF, machine},
		{"kexec_load", unix.SYS_KEXEC_LOAD, machine},
		{"kexec_file_load", unix.SYS_KEXEC_FILE_LOAD, machine},
		{"init_module", unix.SYS_INIT_MODULE, machine},
		{"finit_module", unix.SYS_FINIT_MODULE, machine},
		{"delete_module", unix.SYS_DELETE_MODULE, machine},
		{"reboot", unix.SYS_REBOOT, machine},
		{"acct", unix.SYS_ACCT, machine},
		{"syslog", unix.SYS_SYSLOG, machine},
		{"settimeofday", unix.SYS_SETTIMEOFDAY, machine},
		{"clock_settime", unix.SYS_CLOCK_SETTIME, machine},
		{"sethostname", unix.SYS_SETHOSTNAME, machine},
		{"setdomainname", unix.SYS_SETDOMAINNAME, machine},
		{"vhangup", unix.SYS_VHANGUP, machine},
	} {
		rows = append(rows, row{r.name, r.nr, nil, eperm, r.why})
	}
	return rows
}
