package sandbox

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The rights of Landlock that a rule may grant; landlock(7).
const (
	landlockRead    = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	landlockExecute = unix.LANDLOCK_ACCESS_FS_EXECUTE
	// No MAKE_CHAR and MAKE_BLOCK: a device node is a way to what no path leads to.
	landlockWrite = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER
	// What can be granted on something that is not a folder.
	landlockFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE

	// What no rule grants.
	landlockNobody = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV | landlockResolveUnix

	landlockRuleNetPort = 2 // LANDLOCK_RULE_NET_PORT
)

// landlockResolveUnix is LANDLOCK_ACCESS_FS_RESOLVE_UNIX (ABI 9): connecting to a unix socket by its path.
const landlockResolveUnix = 1 << 16

// landlockPortRule is struct landlock_net_port_attr.
type landlockPortRule struct{ access, port uint64 }

// handled is everything that this kernel's Landlock can deny and that we deny where no rule allows it. No rule allows
// what the supervisor does for the program: a connection that the program manages to make by itself is denied. What
// the kernel has and is not handled: UDP (ABI 10), of which the filter leaves nothing.
//
// While a profile is learnt files are open: of the rights to files only those are handled that no rule ever grants, and
// the one (REFER) that the kernel denies wherever it is not granted, which confine grants everywhere.
func handled(abi int, learn bool) unix.LandlockRulesetAttr {
	fs := uint64(1)<<13 - 1 // ABI 1: EXECUTE to MAKE_SYM
	if abi >= 2 {
		fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 5 {
		fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 9 {
		fs |= landlockResolveUnix
	}
	if learn {
		fs &= landlockNobody | unix.LANDLOCK_ACCESS_FS_REFER
	}
	a := unix.LandlockRulesetAttr{Handled_access_fs: fs}
	if abi >= 4 {
		a.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= 6 {
		a.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	return a
}

// confine puts the calling thread into a Landlock domain: nothing but the rules, no TCP port to bind but those in bind,
// and none to connect to but those in connect, at whatever address. The thread must have no_new_privs and be locked; execve takes the domain to the program, and ends the other threads.
//
// The raw system calls and not a library, because a library must confine all threads of a process, and two of ours
// must differ until execve.
func confine(attr unix.LandlockRulesetAttr, rules []rule, bind, connect []uint16) error {
	// A kernel that does not know the attribute's last members takes them if they are zero, as they are.
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("make a Landlock ruleset: %w", errno)
	}
	defer unix.Close(int(set))
	if attr.Handled_access_fs&landlockRead == 0 {
		rules = []rule{{"/", accessWrite}} // of which REFER is left, and nothing on kernels without it
	}
	for _, r := range rules {
		if err := addPath(int(set), r, attr.Handled_access_fs); err != nil {
			return fmt.Errorf("allow %s: %w", r.Path, err)
		}
	}
	if attr.Handled_access_net != 0 {
		err := errors.Join(addPorts(int(set), unix.LANDLOCK_ACCESS_NET_BIND_TCP, bind), addPorts(int(set), unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, connect))
		if err != nil {
			return err
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0); errno != 0 {
		return fmt.Errorf("enter the Landlock domain: %w", errno)
	}
	return nil
}

func addPorts(set int, access uint64, ports []uint16) error {
	for _, port := range ports {
		p := landlockPortRule{access, uint64(port)}
		if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), landlockRuleNetPort, uintptr(unsafe.Pointer(&p)), 0, 0, 0); errno != 0 {
			return fmt.Errorf("allow TCP port %d: %w", port, errno)
		}
	}
	return nil
}

func addPath(set int, r rule, handled uint64) error {
	// The paths are real already: a link here was put in the way since they were looked up.
	fd, err := unix.Openat2(unix.AT_FDCWD, r.Path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	allowed := landlockRights(r.Access, st.Mode&unix.S_IFMT == unix.S_IFDIR) & handled
	if allowed == 0 {
		return nil
	}
	p := unix.LandlockPathBeneathAttr{Allowed_access: allowed, Parent_fd: int32(fd)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&p)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func landlockRights(a access, folder bool) uint64 {
	var rights uint64
	if a&accessRead != 0 {
		rights |= landlockRead
	}
	if a&accessWrite != 0 {
		rights |= landlockWrite
	}
	if a&accessExecute != 0 {
		rights |= landlockExecute
	}
	if !folder {
		rights &= landlockFile
	}
	return rights
}
