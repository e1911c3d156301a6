package sandbox

import (
	"debug/elf"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	auditArch  = unix.AUDIT_ARCH_AARCH64
	elfMachine = elf.EM_AARCH64
)

// archPrologue is empty: arm64 has one numbering.
func archPrologue() []bpf.Instruction { return nil }

// archRows are the calls that other architectures do not have.
func archRows() []row { return nil }

// archLearnedCalls is empty: arm64 never had the older spellings.
func archLearnedCalls() []learnedCall { return nil }
