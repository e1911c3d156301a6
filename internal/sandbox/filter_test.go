package sandbox

import (
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ask runs the filter's program on one system call. The machine of x/net/bpf loads big-endian, as packets are; a system
// call's data is in the machine's order.
func ask(t testing.TB, vm *bpf.VM, arch, nr uint32, args [6]uint64) answer {
	t.Helper()
	data := binary.BigEndian.AppendUint32(nil, nr)
	data = binary.BigEndian.AppendUint32(data, arch)
	data = append(data, make([]byte, 8)...)
	for _, a := range args {
		data = binary.BigEndian.AppendUint32(data, uint32(a))
		data = binary.BigEndian.AppendUint32(data, uint32(a>>32))
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return answer(uint32(n))
}

func machine(t testing.TB, rows []row) *bpf.VM {
	t.Helper()
	raw, err := assemble(rows)
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 4096 {
		t.Fatalf("%d instructions, more than the kernel takes", len(raw))
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the program cannot be read back")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// shapes are all that the table depends on, in every combination.
func shapes() (list []shape) {
	for _, level := range []string{networkBroker, networkPorts, networkNone} {
		for _, c := range []custody{custodyMake, custodyFetch, custodyBind} {
			for bits := range 32 {
				list = append(list, shape{level: level, custody: c, notify: bits&1 != 0, udp: bits&2 != 0, unix: bits&4 != 0, learn: bits&8 != 0, watch: bits&16 != 0, groups: []uint32{7}})
			}
		}
	}
	return list
}

func TestFilterRows(t *testing.T) {
	for _, s := range shapes() {
		rows := table(s)
		vm := machine(t, rows)
		for _, r := range rows {
			if r.why == "" {
				t.Errorf("%s: no reason given", r.name)
			}
			args := r.example()
			if got := ask(t, vm, auditArch, r.nr, args); got != r.answer {
				t.Errorf("%s%x (%+v): %#x, want %#x", r.name, args, s, got, r.answer)
			}
			// The kernel looks at the low half only, so rubbish above must change nothing.
			for i := range args {
				args[i] |= 0xdeadbeef << 32
			}
			if got := ask(t, vm, auditArch, r.nr, args); got != r.answer {
				t.Errorf("%s%x with high bits: %#x, want %#x", r.name, args, got, r.answer)
			}
			if got := ask(t, vm, auditArch^1, r.nr, args); got != answerKill {
				t.Errorf("%s by a foreign architecture: %#x, want the program killed", r.name, got)
			}
		}
	}
}

// Whatever the shape, no way past the supervisor may be left: where a socket can be had without it, nothing can be
// connected without it either, or the kernel's own rules stand in the way.
func TestFilterLeavesNoWayAround(t *testing.T) {
	for _, s := range shapes() {
		vm := machine(t, table(s))
		is := func(nr uint32, args ...uint64) answer {
			var a [6]uint64
			copy(a[:], args)
			return ask(t, vm, auditArch, nr, a)
		}
		for _, family := range []uint64{unix.AF_INET, unix.AF_INET6, unix.AF_UNIX} {
			if got := is(unix.SYS_SOCKET, family, unix.SOCK_DGRAM); got == answerAllow {
				t.Errorf("%+v: a datagram socket of family %d", s, family)
			}
		}
		for _, kind := range []uint64{unix.SOCK_DGRAM, unix.SOCK_RAW} {
			if got := is(unix.SYS_SOCKETPAIR, unix.AF_UNIX, kind); got == answerAllow {
				t.Errorf("%+v: a pair of type %d", s, kind)
			}
		}
		if got, want := is(unix.SYS_CONNECT) == answerAsk, s.notify && s.level != networkPorts; got != want {
			t.Errorf("%+v: connect is asked: %v", s, got)
		}
		if got := is(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM); got == answerAllow && !s.asksConnect() && !s.unix {
			t.Errorf("%+v: a unix socket that nobody asks about", s)
		}
		if s.udp && s.notify {
			for _, at := range []uint64{1, 1 << 32, 0x7fff00000000} {
				if got := is(unix.SYS_SENDTO, 3, 0, 0, 0, at, 16); got != answerAsk {
					t.Errorf("%+v: sendto with an address at %#x: %#x", s, at, got)
				}
			}
			if got := is(unix.SYS_SENDTO, 3, 0, 0, 0, 0, 0); got != answerAllow {
				t.Errorf("%+v: send without an address: %#x", s, got)
			}
			for _, nr := range []uint32{unix.SYS_SENDMSG, unix.SYS_SENDMMSG} {
				if got := is(nr, 3); got == answerAllow {
					t.Errorf("%+v: call %d with UDP sockets", s, nr)
				}
			}
		}
	}
}

func TestFilterAnswers(t *testing.T) {
	vm := machine(t, table(shape{level: networkPorts, notify: true, custody: custodyBind, groups: []uint32{7}}))
	none := machine(t, table(shape{level: networkNone}))
	lone := machine(t, table(shape{level: networkPorts, notify: true, custody: custodyBind}))
	broker := machine(t, table(shape{level: networkBroker, notify: true}))
	fetch := machine(t, table(shape{level: networkBroker, notify: true, custody: custodyFetch}))
	for _, c := range []struct {
		name string
		vm   *bpf.VM
		nr   uint32
		args [6]uint64
		want answer
	}{
		{"TCP, nonblocking", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC, 6}, answerAllow},
		{"TCP, brokered", broker, unix.SYS_SOCKET, [6]uint64{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC, 6}, answerAsk},
		{"TCP, fetched", fetch, unix.SYS_SOCKET, [6]uint64{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC, 6}, answerAllow},
		{"UDP", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_DGRAM | unix.SOCK_CLOEXEC, 0}, refuse(unix.EACCES)},
		{"unix datagrams", broker, unix.SYS_SOCKET, [6]uint64{unix.AF_UNIX, unix.SOCK_DGRAM | unix.SOCK_CLOEXEC, 0}, refuse(unix.EACCES)},
		{"unix, brokered", broker, unix.SYS_SOCKET, [6]uint64{unix.AF_UNIX, unix.SOCK_SEQPACKET | unix.SOCK_CLOEXEC, 0}, answerAsk},
		{"unix, ports", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, refuse(unix.EACCES)},
		{"connect, brokered", broker, unix.SYS_CONNECT, [6]uint64{}, answerAsk},
		{"connect, fetched", fetch, unix.SYS_CONNECT, [6]uint64{}, answerAsk},
		{"TCP's number on a datagram socket", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_DGRAM, 6}, refuse(unix.EPROTONOSUPPORT)},
		{"ping socket", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_DGRAM, 1}, refuse(unix.EPROTONOSUPPORT)},
		{"UDP-Lite", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_DGRAM, 136}, refuse(unix.EPROTONOSUPPORT)},
		{"MPTCP", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_STREAM, 262}, refuse(unix.EPROTONOSUPPORT)},
		{"SCTP, one to many", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_SEQPACKET, 132}, refuse(unix.EPROTONOSUPPORT)},
		{"packet", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_PACKET, unix.SOCK_RAW, 0}, refuse(unix.EAFNOSUPPORT)},
		{"vsock", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_VSOCK, unix.SOCK_STREAM, 0}, refuse(unix.EAFNOSUPPORT)},
		{"key", vm, unix.SYS_SOCKET, [6]uint64{unix.AF_KEY, unix.SOCK_RAW, 2}, refuse(unix.EAFNOSUPPORT)},
		{"unix pair", vm, unix.SYS_SOCKETPAIR, [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM}, answerAllow},
		{"TIPC pair", vm, unix.SYS_SOCKETPAIR, [6]uint64{unix.AF_TIPC, unix.SOCK_STREAM}, refuse(unix.EAFNOSUPPORT)},
		{"sendmsg", vm, unix.SYS_SENDMSG, [6]uint64{3, 0, unix.MSG_NOSIGNAL}, answerAllow},
		{"sendmsg, fast open", vm, unix.SYS_SENDMSG, [6]uint64{3, 0, unix.MSG_NOSIGNAL | unix.MSG_FASTOPEN}, refuse(unix.EOPNOTSUPP)},
		{"thread", vm, unix.SYS_CLONE, [6]uint64{unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD}, answerAllow},
		{"fork", vm, unix.SYS_CLONE, [6]uint64{uint64(unix.SIGCHLD)}, answerAllow},
		{"network namespace", vm, unix.SYS_CLONE, [6]uint64{unix.CLONE_NEWNET | uint64(unix.SIGCHLD)}, refuse(unix.EPERM)},
		{"unshare files", vm, unix.SYS_UNSHARE, [6]uint64{unix.CLONE_FILES}, answerAllow},
		{"time namespace", vm, unix.SYS_UNSHARE, [6]uint64{unix.CLONE_NEWTIME}, refuse(unix.EPERM)},
		{"anonymous file", vm, unix.SYS_MEMFD_CREATE, [6]uint64{0, unix.MFD_CLOEXEC}, refuse(unix.ENOSYS)},
		{"anonymous file that cannot run", vm, unix.SYS_MEMFD_CREATE, [6]uint64{0, unix.MFD_CLOEXEC | unix.MFD_NOEXEC_SEAL}, answerAllow},
		{"become dumpable", vm, unix.SYS_PRCTL, [6]uint64{unix.PR_SET_DUMPABLE, 1}, answerAllow},
		{"another prctl", vm, unix.SYS_PRCTL, [6]uint64{unix.PR_SET_NAME, 0}, answerAllow},
		{"our own limits", vm, unix.SYS_PRLIMIT64, [6]uint64{0, unix.RLIMIT_NOFILE}, answerAllow},
		{"another process's limits", vm, unix.SYS_PRLIMIT64, [6]uint64{7, unix.RLIMIT_NOFILE}, refuse(unix.EPERM)},
		{"a group of its own", vm, unix.SYS_SETPGID, [6]uint64{8, 8}, answerAllow},
		{"the supervisor's group", vm, unix.SYS_SETPGID, [6]uint64{8, 7}, refuse(unix.EPERM)},
		{"any group, where none outside has a number", lone, unix.SYS_SETPGID, [6]uint64{8, 7}, answerAllow},
		{"window size", vm, unix.SYS_IOCTL, [6]uint64{0, unix.TIOCGWINSZ}, answerAllow},
		{"read", vm, unix.SYS_READ, [6]uint64{}, answerAllow},
		{"connect", vm, unix.SYS_CONNECT, [6]uint64{}, answerAllow},
		{"bind", vm, unix.SYS_BIND, [6]uint64{}, answerAsk},
		{"bind without a broker", none, unix.SYS_BIND, [6]uint64{}, answerAllow},
		{"TCP, network none", none, unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_STREAM, 0}, refuse(unix.EACCES)},
		{"unix, network none", none, unix.SYS_SOCKET, [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, refuse(unix.EACCES)},
	} {
		if got := ask(t, c.vm, auditArch, c.nr, c.args); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
	if auditArch == unix.AUDIT_ARCH_X86_64 {
		if got := ask(t, vm, auditArch, 0x40000000|unix.SYS_READ, [6]uint64{}); got != answerKill {
			t.Errorf("x32: %#x, want the program killed", got)
		}
	}
}

// No arguments may make the filter allow a socket but the few that the table allows.
func FuzzFilterSocket(f *testing.F) {
	f.Add(uint64(unix.AF_INET), uint64(unix.SOCK_STREAM), uint64(0))
	f.Add(uint64(unix.AF_INET), uint64(unix.SOCK_STREAM), uint64(262))
	f.Add(uint64(unix.AF_NETLINK), uint64(unix.SOCK_RAW), uint64(15))
	f.Add(uint64(1<<32|unix.AF_VSOCK), uint64(1), uint64(0))
	vm := machine(f, table(shape{level: networkBroker, notify: true, custody: custodyFetch}))
	f.Fuzz(func(t *testing.T, family, kind, protocol uint64) {
		k, p := uint32(kind)&0xf, uint32(protocol)
		allowed := false
		switch uint32(family) {
		case unix.AF_UNIX:
			allowed = k == unix.SOCK_STREAM || k == unix.SOCK_SEQPACKET
		case unix.AF_NETLINK:
			allowed = p == unix.NETLINK_ROUTE
		case unix.AF_INET, unix.AF_INET6:
			allowed = k == unix.SOCK_STREAM && (p == 0 || p == 6)
		}
		got := ask(t, vm, auditArch, unix.SYS_SOCKET, [6]uint64{family, kind, protocol})
		if (got == answerAllow) != allowed {
			t.Errorf("socket(%#x, %#x, %#x): %#x", family, kind, protocol, got)
		}
	})
}

func TestRowsMustBeNeighbours(t *testing.T) {
	_, err := assemble([]row{{"a", 1, nil, answerAsk, "x"}, {"b", 2, nil, answerAsk, "x"}, {"a", 1, nil, answerAsk, "x"}})
	if err == nil || !strings.Contains(err.Error(), "rows of a") {
		t.Error(err)
	}
}
