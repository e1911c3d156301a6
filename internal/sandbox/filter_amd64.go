package sandbox

import (
	"debug/elf"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	auditArch  = unix.AUDIT_ARCH_X86_64
	elfMachine = elf.EM_X86_64
)

// archPrologue runs with the system call's number loaded. x32 has the same audit architecture and other numbers,
// marked by bit 30 (__X32_SYSCALL_BIT); nobody has used it for years.
func archPrologue() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: 0x40000000, SkipFalse: 1},
		bpf.RetConstant{Val: uint32(answerKill)},
	}
}

// archRows are the calls that other architectures do not have.
func archRows() []row {
	eperm := refuse(unix.EPERM)
	return []row{
		{"iopl", unix.SYS_IOPL, nil, eperm, "ports of the machine"},
		{"ioperm", unix.SYS_IOPERM, nil, eperm, "ports of the machine"},
		{"modify_ldt", unix.SYS_MODIFY_LDT, nil, eperm, "16-bit segments: kernel surface that no service needs"},
		{"uselib", unix.SYS_USELIB, nil, eperm, "maps a library past Landlock's execute right"},
		{"create_module", unix.SYS_CREATE_MODULE, nil, eperm, "the machine is not the program's"},
	}
}

// archLearnedCalls are the older spellings of learnedCalls.
func archLearnedCalls() []learnedCall {
	return []learnedCall{
		{"open", unix.SYS_OPEN, effectOpen, []name{{-1, 0}}, 1},
		{"creat", unix.SYS_CREAT, effectCreate, []name{{-1, 0}}, 0},
		{"unlink", unix.SYS_UNLINK, effectRemove, []name{{-1, 0}}, 0},
		{"rmdir", unix.SYS_RMDIR, effectRemove, []name{{-1, 0}}, 0},
		{"rename", unix.SYS_RENAME, effectMove, []name{{-1, 0}, {-1, 1}}, 0},
		{"mkdir", unix.SYS_MKDIR, effectFolder, []name{{-1, 0}}, 0},
		{"mknod", unix.SYS_MKNOD, effectMake, []name{{-1, 0}}, 0},
		{"symlink", unix.SYS_SYMLINK, effectMake, []name{{-1, 1}}, 0},
		{"link", unix.SYS_LINK, effectLink, []name{{-1, 0}, {-1, 1}}, 0},
	}
}
