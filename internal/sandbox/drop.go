package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// securebits (capabilities(7)): NOROOT, NO_SETUID_FIXUP and KEEP_CAPS off, each locked. With NOROOT a process whose uid
// is 0 gains no capability by exec.
const securebits = 0x2f

// Drop gives up what the supervisor itself does not need: it becomes the profile's user, for good, on every thread.
// The program runs with the same uid, or the supervisor could not look after it: without CAP_SYS_PTRACE, which a
// container does not have, only an equal uid may read the address that the program hands to bind.
//
// It establishes that no thread has a capability in any set or can regain one, that no other process of the same
// uid can read or trace this one, and that orphans of the program become our children. It must be called before
// Launch, and while the Go runtime alone has made threads (a binary built without cgo). If it fails, some of it may
// be done: the caller must not go on.
func Drop(p Profile) error {
	uid, gid, err := Identity(p)
	if err != nil {
		return err
	}
	if err := dropPrivileges(uid, gid); err != nil {
		return err
	}
	// Not before the uid is final: a change of uid sets dumpable anew. From here on nobody with our uid can read our
	// memory, environment or descriptors, which hold the keys.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become non-dumpable: %w", err)
	}
	// Walls like ours say that it is done and do not do it.
	if on, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || on != 0 {
		return errors.New("become non-dumpable: the kernel did not do it: sallyport does not run inside sallyport")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	return dropped(uid, gid)
}

// dropPrivileges is the order of runc and of capabilities(7); each step needs what a later one takes away.
func dropPrivileges(uid, gid int) error {
	has, err := effective()
	if err != nil {
		return err
	}
	// 1. The bounding set, because dropping from it needs CAP_SETPCAP, which step 7 takes. Without the capability it
	// stays as it is, and no_new_privs keeps exec from drawing on it.
	if has&(1<<unix.CAP_SETPCAP) != 0 {
		for c := uintptr(0); ; c++ {
			if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
				break // EINVAL: beyond the last capability of this kernel
			}
			if err := allThreads("drop a capability from the bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); err != nil {
				return err
			}
		}
	}
	// 2. The ambient set, because it is what an unprivileged exec would keep.
	if err := allThreads("clear the ambient set", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return err
	}
	// 3. Securebits, which need CAP_SETPCAP too. NO_SETUID_FIXUP means that step 6 does not take the capabilities, so
	// step 7 must.
	if has&(1<<unix.CAP_SETPCAP) != 0 {
		if err := allThreads("lock the securebits", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, securebits, 0); err != nil {
			return err
		}
	}
	// 4. Groups, then 5. gid, then 6. uid: the first two need CAP_SETGID, which must not depend on what a uid other
	// than 0 still has.
	if has&(1<<unix.CAP_SETGID) != 0 {
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("empty the supplementary groups: %w", err)
		}
	}
	if os.Getgid() != gid || os.Getegid() != gid {
		if err := syscall.Setresgid(gid, gid, gid); err != nil {
			return becoming("gid", gid, err)
		}
	}
	if os.Getuid() != uid || os.Geteuid() != uid {
		if err := syscall.Setresuid(uid, uid, uid); err != nil {
			return becoming("uid", uid, err)
		}
	}
	// 7. All capabilities: nothing below needs one.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	// Not through allThreads: a pointer must become a number in the very call that the runtime knows.
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0); errno != 0 {
		return fmt.Errorf("give up all capabilities: %w", errno)
	}
	// 8. And none comes back by executing a set-uid file.
	return allThreads("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
}

func becoming(what string, id int, err error) error {
	if errors.Is(err, unix.EPERM) && os.Geteuid() == 0 {
		return fmt.Errorf("become %s %d: %w: root without CAP_SETUID and CAP_SETGID cannot become anybody; start the container as that user instead (docker run --user %d:%d, runAsUser: %d)", what, id, err, id, id, id)
	}
	return fmt.Errorf("become %s %d: %w", what, id, err)
}

// allThreads makes a system call on every thread: Linux keeps credentials per thread, and a goroutine may wake on any.
func allThreads(what string, nr, a1, a2, a3 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(nr, a1, a2, a3, 0, 0, 0)
	switch errno {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return fmt.Errorf("%s: this binary was built with cgo, whose threads the Go runtime cannot reach: build with CGO_ENABLED=0", what)
	}
	return fmt.Errorf("%s: %w", what, errno)
}

// effective returns the calling thread's effective capabilities.
func effective() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("read our capabilities: %w", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), nil
}

// dropped tries to get back what Drop gave up, and errs if anything comes.
func dropped(uid, gid int) error {
	if err := holdsNothing(); err != nil {
		return err
	}
	if u, e, s := resuid(); u != uid || e != uid || s != uid {
		return fmt.Errorf("drop privileges: the uids are %d, %d, %d and should be %d", u, e, s, uid)
	}
	if os.Getgid() != gid || os.Getegid() != gid {
		return fmt.Errorf("drop privileges: the gid is %d and should be %d", os.Getgid(), gid)
	}
	if uid == 0 {
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// On this thread alone: should it succeed, the error that follows ends the process.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)); errno == 0 {
		return errors.New("drop privileges: root could be had again")
	}
	return nil
}

// holdsNothing errs if the calling thread has a capability, or could get one by exec.
func holdsNothing() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&header, &d[0]); err != nil {
		return fmt.Errorf("read our capabilities: %w", err)
	}
	if d != [2]unix.CapUserData{} {
		return fmt.Errorf("capabilities remain: %+v", d)
	}
	for c := uintptr(0); ; c++ {
		set, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, c, 0, 0)
		if err != nil {
			break
		}
		if set != 0 {
			return fmt.Errorf("capability %d remains in the ambient set", c)
		}
	}
	if on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || on != 1 {
		return errors.New("no_new_privs is not set")
	}
	return nil
}

func resuid() (ruid, euid, suid int) {
	var r, e, s uint32
	unix.RawSyscall(unix.SYS_GETRESUID, uintptr(unsafe.Pointer(&r)), uintptr(unsafe.Pointer(&e)), uintptr(unsafe.Pointer(&s)))
	return int(r), int(e), int(s)
}

// boundingSet tells whether anything is left in it.
func boundingSet() bool {
	for c := uintptr(0); ; c++ {
		set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err != nil {
			return false
		}
		if set == 1 {
			return true
		}
	}
}
