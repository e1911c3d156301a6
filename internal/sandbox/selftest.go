package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// selfTest tries each protection that was asked for from inside the finished walls, on the thread that becomes the
// program, and says what holds. A protection is in force when the plan expected it and nothing got through.
func selfTest(s *spec) []Protection {
	tests := map[string]func(*spec) attempt{
		protUser: tryUser, protGroups: tryGroups, protCaps: tryCapabilities, protNoNewPrivs: tryCapabilities,
		protLimits: tryLimits, protDescriptors: tryDescriptors, protEnvironment: tryEnvironment, protFiles: tryFiles,
		protExecWritten: tryExecuteWritten, protBindPorts: tryBindPorts, protLoopback: tryLoopback,
		protAbstract: tryAbstract, protSignals: trySignals, protSystemCalls: trySystemCalls,
		protSupervisor: trySupervisor, protNoInet: tryNoInet, protBroker: tryBroker, protConnect: tryConnect,
		protUnixSockets: tryUnixSockets, protUDP: tryUDP,
	}
	found := slices.Clone(s.Plan)
	for i := range found {
		q := &found[i]
		if q.Asked == "" || s.Learn && slices.Contains(learnGaps(), q.Name) {
			q.InForce, q.How = false, "not tried"
			continue
		}
		a := tests[q.Name](s)
		q.How = strings.Join(a.how, ", ")
		if len(a.through) > 0 {
			q.InForce = false
			q.Detail = strings.Join(append(slices.DeleteFunc([]string{q.Detail}, func(d string) bool { return d == "" }), a.through...), "; ")
		} else if q.InForce {
			q.Detail = a.note
		}
	}
	return found
}

// attempt is what was tried, what got through, and what is worth knowing although nothing did.
type attempt struct {
	how     []string
	through []string
	note    string
}

// refused notes an action that has to fail. With errors named, any other outcome got through as well: it would mean
// that something else than the wall stood in the way.
func (a *attempt) refused(what string, err error, want ...unix.Errno) {
	a.how = append(a.how, what)
	switch {
	case err == nil:
		a.through = append(a.through, what+" succeeded")
	case len(want) > 0 && !slices.ContainsFunc(want, func(e unix.Errno) bool { return errors.Is(err, e) }):
		a.through = append(a.through, fmt.Sprintf("%s: %v, and not %v", what, err, want[0]))
	}
}

// holds notes a fact that has to be true.
func (a *attempt) holds(what string, ok bool, found string) {
	a.how = append(a.how, what)
	if !ok {
		a.through = append(a.through, found)
	}
}

func tryUser(s *spec) (a attempt) {
	r, e, v := resuid()
	a.holds("getresuid", r == s.UID && e == s.UID && v == s.UID, fmt.Sprintf("the uids are %d, %d, %d", r, e, v))
	a.holds("getgid", unix.Getgid() == s.GID && unix.Getegid() == s.GID, fmt.Sprintf("the gid is %d", unix.Getgid()))
	if s.UID != 0 {
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0)
		a.refused("setresuid(0)", failed(errno), unix.EPERM)
	}
	return a
}

func tryGroups(s *spec) (a attempt) {
	groups, err := unix.Getgroups()
	others := slices.DeleteFunc(groups, func(g int) bool { return g == s.GID })
	a.holds("getgroups", err == nil && len(others) == 0, fmt.Sprintf("groups remain: %v", others))
	return a
}

func tryCapabilities(*spec) (a attempt) {
	err := holdsNothing()
	a.holds("capget, prctl(PR_CAP_AMBIENT_IS_SET), prctl(PR_GET_NO_NEW_PRIVS)", err == nil, fmt.Sprint(err))
	if boundingSet() {
		a.note = "the bounding set could not be emptied (we did not start as root); with no_new_privs nothing draws on it"
	}
	return a
}

func tryLimits(s *spec) (a attempt) {
	for _, l := range []struct {
		name  string
		what  int
		value uint64
	}{{"core", unix.RLIMIT_CORE, 0}, {"nofile", unix.RLIMIT_NOFILE, s.Limits.NoFile}, {"nproc", unix.RLIMIT_NPROC, s.Limits.NProc}} {
		var now unix.Rlimit
		err := unix.Getrlimit(l.what, &now)
		a.holds("getrlimit("+l.name+")", err == nil && now.Max <= l.value && now.Cur <= l.value, fmt.Sprintf("%s is %d", l.name, now.Cur))
	}
	// A limit so low that the program could not start is better told here than by the program.
	_, err := syscall.ForkExec("/proc/self/nothing", []string{"nothing"}, &syscall.ProcAttr{})
	a.holds("fork", !errors.Is(err, unix.EAGAIN), fmt.Sprintf("uid %d already has %d processes and threads on this machine, containers taken together: raise sandbox.limits.nproc, or give the service a uid of its own", s.UID, s.Limits.NProc))
	return a
}

func tryDescriptors(s *spec) (a attempt) {
	names, err := s.descriptors.Readdirnames(-1)
	var open []string
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || fd <= 2 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			open = append(open, name)
		}
	}
	a.holds("fcntl(F_GETFD) of all in /proc/self/fd", err == nil && len(names) > 3 && len(open) == 0, fmt.Sprintf("the program would inherit descriptors %v (%v)", open, err))
	return a
}

func tryEnvironment(s *spec) (a attempt) {
	var names []string
	for _, kv := range s.Env {
		name, _, _ := strings.Cut(kv, "=")
		names = append(names, name)
	}
	a.holds("execve gets "+strings.Join(names, " "), len(names) > 0, "the environment is empty")
	return a
}

func tryFiles(s *spec) (a attempt) {
	for _, folder := range []string{"/", "/etc", "/root", "/home", "/var", "/usr", "/opt"} {
		open := slices.ContainsFunc(s.Rules, func(r rule) bool { return r.Access != 0 && beneath(folder, r.Path) })
		if open || unix.Access(folder, unix.F_OK) != nil {
			continue
		}
		fd, err := unix.Open(folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		a.refused("open "+folder, err)
	}
	for _, path := range s.Denied {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		a.refused("open "+path, err)
	}
	for _, r := range s.Rules {
		// Where a folder is opened entry by entry, one of them may have a rule of its own that lets write.
		writable := slices.ContainsFunc(s.Rules, func(w rule) bool { return w.Access&accessWrite != 0 && beneath(r.Path, w.Path) })
		if r.Access == 0 || writable || unix.Access(r.Path+"/.", unix.F_OK) != nil || beneath(r.Path, "/proc") || beneath(r.Path, "/sys") {
			continue
		}
		path := filepath.Join(r.Path, fmt.Sprintf(".sallyport-self-test-%d", os.Getpid()))
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		if err == nil {
			unix.Close(fd)
			_ = unix.Unlink(path) // what got through is reported; what is left of it is an empty file
		}
		a.refused("write in "+r.Path, err)
	}
	return a
}

func tryExecuteWritten(s *spec) (a attempt) {
	for _, r := range s.Rules {
		if r.Access&accessWrite == 0 || unix.Access(r.Path+"/.", unix.F_OK) != nil {
			continue
		}
		path := filepath.Join(r.Path, fmt.Sprintf(".sallyport-self-test-%d", os.Getpid()))
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o700)
		if err != nil {
			a.how = append(a.how, fmt.Sprintf("write in %s: %v", r.Path, err))
			continue
		}
		unix.Close(fd)
		// An empty file: were it opened for execution, the kernel would find no format in it (ENOEXEC).
		a.refused("execute what was written in "+r.Path, unix.Exec(path, []string{"x"}, nil), unix.EACCES)
		if err := unix.Unlink(path); err != nil {
			a.through = append(a.through, fmt.Sprintf("remove %s: %v", path, err))
		}
	}
	fd, err := unix.MemfdCreate("sallyport-self-test", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), []string{"x"}, nil)
		unix.Close(fd)
	}
	a.refused("execute an anonymous file", err, unix.ENOSYS, unix.EACCES)
	a.note = "execve only: an interpreter or the dynamic loader can still load a file that was written"
	return a
}

// tryInet makes a TCP socket, or returns that there can be none.
func tryInet(family int) (int, error) {
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}

func tryBindPorts(s *spec) (a attempt) {
	fd, err := tryInet(unix.AF_INET)
	if err != nil {
		a.refused("socket(AF_INET)", err)
		return a
	}
	defer unix.Close(fd)
	tries := 0
	for port := 61000; tries < 3; port++ {
		if slices.Contains(s.Ports, uint16(port)) {
			continue
		}
		err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		tries++
		a.refused(fmt.Sprintf("bind 127.0.0.1:%d", port), err, unix.EACCES)
		if err == nil {
			return a
		}
	}
	return a
}

func tryLoopback(s *spec) (a attempt) {
	port := 61000
	if len(s.Ports) > 0 {
		port = int(s.Ports[0])
	}
	for _, t := range []struct {
		name   string
		family int
		sa     unix.Sockaddr
	}{
		{"0.0.0.0", unix.AF_INET, &unix.SockaddrInet4{Port: port}},
		{"[::]", unix.AF_INET6, &unix.SockaddrInet6{Port: port}},
	} {
		fd, err := tryInet(t.family)
		if err != nil {
			a.how = append(a.how, fmt.Sprintf("no socket for %s: %v", t.name, err))
			continue
		}
		// As servers do: connections of a service that ran here a moment ago would otherwise hold the port.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // without it bind says why it fails
		if err := unix.Bind(fd, t.sa); err == nil {
			got, err := unix.Getsockname(fd)
			a.holds(fmt.Sprintf("bind %s:%d", t.name, port), err == nil && onLoopback(got), fmt.Sprintf("bind %s:%d was not led to loopback", t.name, port))
		} else {
			a.how = append(a.how, fmt.Sprintf("bind %s:%d: %v", t.name, port, err))
		}
		unix.Close(fd)
		if fd, err = tryInet(t.family); err == nil {
			a.refused("listen without bind", unix.Listen(fd, 1), unix.EACCES)
			unix.Close(fd)
		}
	}
	return a
}

func onLoopback(sa unix.Sockaddr) bool {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return sa.Addr[0] == 127
	case *unix.SockaddrInet6:
		mapped := [16]byte{10: 0xff, 11: 0xff, 12: 127, 15: 1}
		return sa.Addr == mapped || sa.Addr == [16]byte{15: 1}
	}
	return false
}

func tryAbstract(s *spec) (a attempt) {
	a.refused("connect to an abstract socket of the supervisor's", connectTo(unix.AF_UNIX, 0, &unix.SockaddrUnix{Name: s.Trials.Abstract}), unix.EPERM, unix.EACCES)
	return a
}

func trySignals(s *spec) (a attempt) {
	a.refused("kill(supervisor, 0)", unix.Kill(s.Supervisor, 0), unix.EPERM)
	return a
}

func trySystemCalls(s *spec) (a attempt) {
	if !s.Filter {
		a.through = append(a.through, "there is no filter")
		return a
	}
	rows := table(s.shape())
	for _, r := range rows {
		want, ok := r.answer.errno()
		if !ok {
			continue
		}
		x := r.example()
		r1, _, errno := unix.RawSyscall6(uintptr(r.nr), uintptr(x[0]), uintptr(x[1]), uintptr(x[2]), uintptr(x[3]), uintptr(x[4]), uintptr(x[5]))
		if r.nr == unix.SYS_CLONE && errno == 0 && r1 == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0) // a copy of us that should not be
		}
		if errno != want {
			a.through = append(a.through, fmt.Sprintf("%s%x answered %q and not %q", r.name, x, errnoName(errno), errnoName(want)))
		}
	}
	a.how = append(a.how, fmt.Sprintf("each of the %d rows of the filter's table", len(rows)))
	// The one row that says done must not have done it.
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	a.holds("prctl(PR_GET_DUMPABLE)", err == nil && dumpable == 1, "the process became non-dumpable")
	return a
}

func errnoName(e unix.Errno) string {
	if e == 0 {
		return "done"
	}
	return e.Error()
}

func failed(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func trySupervisor(s *spec) (a attempt) {
	for _, name := range []string{"mem", "environ", "maps", "fd/0", "cwd/.", "root/."} {
		path := fmt.Sprintf("/proc/%d/%s", s.Supervisor, name)
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		a.refused("open "+path, err)
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(s.Supervisor), 0, 0, 0, 0)
	a.refused("ptrace(supervisor)", failed(errno))
	var b [1]byte
	local := unix.Iovec{Base: &b[0], Len: 1}
	remote := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(&b[0])), Len: 1}
	_, err := unix.ProcessVMReadv(s.Supervisor, []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
	a.refused("process_vm_readv(supervisor)", err)
	if pidfd, err := unix.PidfdOpen(s.Supervisor, 0); err == nil {
		fd, err := unix.PidfdGetfd(pidfd, 0, 0)
		if err == nil {
			unix.Close(fd)
		}
		unix.Close(pidfd)
		a.refused("pidfd_getfd(supervisor)", err)
	}
	return a
}

func tryNoInet(*spec) (a attempt) {
	for _, f := range []struct {
		name   string
		family int
	}{{"AF_INET", unix.AF_INET}, {"AF_INET6", unix.AF_INET6}} {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			fd, err := unix.Socket(f.family, kind|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			a.refused("socket("+f.name+")", err)
		}
	}
	return a
}
