package sandbox

import (
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// answer is what the filter returns for a system call; the kernel's SECCOMP_RET_* values.
type answer uint32

const (
	answerAllow answer = unix.SECCOMP_RET_ALLOW
	answerAsk   answer = unix.SECCOMP_RET_USER_NOTIF // the supervisor does it, see broker.go
	answerKill  answer = unix.SECCOMP_RET_KILL_PROCESS
)

// refuse answers with an error number; 0 is "done" without doing anything.
func refuse(e unix.Errno) answer { return answer(unix.SECCOMP_RET_ERRNO) | answer(e) }

// errno returns the error number of a refusal.
func (a answer) errno() (unix.Errno, bool) {
	if a&^answer(unix.SECCOMP_RET_DATA) != unix.SECCOMP_RET_ERRNO {
		return 0, false
	}
	return unix.Errno(a & unix.SECCOMP_RET_DATA), true
}

// condition holds when argument arg, masked, is one of the values; with no values, when any bit of the mask is set;
// with none, when no bit of the mask is set. Only the low 32 bits are looked at, because the kernel declares every argument judged here as
// int or unsigned int, or keeps nothing of interest above (clone's flags): a comparison of all 64 would let the same
// call through with rubbish in the upper half (CVE-2019-7303). A pointer is the exception: it is there if any of its 64
// bits is set.
type condition struct {
	arg     int
	mask    uint32
	values  []uint32
	none    bool
	pointer bool
}

func is(arg int, values ...uint32) condition {
	return condition{arg: arg, mask: ^uint32(0), values: values}
}
func masked(arg int, mask uint32, values ...uint32) condition {
	return condition{arg: arg, mask: mask, values: values}
}
func anyBit(arg int, mask uint32) condition { return condition{arg: arg, mask: mask} }
func noBit(arg int, mask uint32) condition  { return condition{arg: arg, mask: mask, none: true} }
func pointer(arg int) condition             { return condition{arg: arg, mask: ^uint32(0), pointer: true} }

// row is one line of the table: a system call, the conditions on its arguments, the answer, and why. The first row
// that matches decides; a system call without a matching row is allowed.
type row struct {
	name   string
	nr     uint32
	when   []condition
	answer answer
	why    string
}

// example returns arguments that satisfy the row's conditions, for the self-test and for the tests.
func (r row) example() (args [6]uint64) {
	for _, c := range r.when {
		switch {
		case len(c.values) > 0:
			args[c.arg] |= uint64(c.values[0])
		case !c.none:
			args[c.arg] |= uint64(c.mask)
		}
	}
	return args
}

// Offsets into struct seccomp_data (seccomp(2)); both architectures are little-endian, so the low half comes first.
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

// assemble turns the table into a program. Rows of one system call must be neighbours.
func assemble(rows []row) ([]bpf.RawInstruction, error) {
	program := []bpf.Instruction{
		// A foreign architecture numbers its calls otherwise: nothing below would mean what it says.
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: uint32(answerKill)},
		bpf.LoadAbsolute{Off: dataNr, Size: 4},
	}
	program = append(program, archPrologue()...)
	done := map[uint32]bool{}
	for i := 0; i < len(rows); {
		nr := rows[i].nr
		if done[nr] {
			return nil, fmt.Errorf("assemble the filter: the rows of %s are not neighbours", rows[i].name)
		}
		done[nr] = true
		var block []bpf.Instruction
		for ; i < len(rows) && rows[i].nr == nr; i++ {
			block = append(block, rows[i].assemble()...)
		}
		// After a block the accumulator no longer holds the number, so a block that decides nothing allows.
		block = append(block, bpf.RetConstant{Val: uint32(answerAllow)})
		if len(block) > 255 {
			return nil, fmt.Errorf("assemble the filter: %s needs %d instructions, more than a jump reaches", rows[i-1].name, len(block))
		}
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: uint8(len(block))})
		program = append(program, block...)
	}
	program = append(program, bpf.RetConstant{Val: uint32(answerAllow)})
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, fmt.Errorf("assemble the filter: %w", err)
	}
	return raw, nil
}

// assemble writes the row backwards, because each condition must know how far it is to the row's end.
func (r row) assemble() []bpf.Instruction {
	code := []bpf.Instruction{bpf.RetConstant{Val: uint32(r.answer)}}
	for i := len(r.when) - 1; i >= 0; i-- {
		c := r.when[i]
		part := []bpf.Instruction{bpf.LoadAbsolute{Off: uint32(dataArgs + 8*c.arg), Size: 4}}
		end := uint8(len(code))
		switch {
		case c.pointer:
			part = append(part,
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 2},
				bpf.LoadAbsolute{Off: uint32(dataArgs + 8*c.arg + 4), Size: 4},
				bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: end})
		case c.none:
			part = append(part, bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: c.mask, SkipTrue: end})
		case len(c.values) == 0:
			part = append(part, bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: c.mask, SkipFalse: end})
		default:
			if c.mask != ^uint32(0) {
				part = append(part, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: c.mask})
			}
			for j, v := range c.values {
				jump := bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(len(c.values) - 1 - j)}
				if j == len(c.values)-1 {
					jump.SkipFalse = end
				}
				part = append(part, jump)
			}
		}
		code = append(part, code...)
	}
	return code
}

// installFilter confines the calling thread, and through execve the program, to the table. With notify it returns
// the listener that the supervisor must get. The thread must already have no_new_privs, and be locked.
//
// Other threads are left alone (no TSYNC): one of them must send the listener, by calls that the filter may ask the
// supervisor about, who could not answer yet.
func installFilter(rows []row, notify bool) (listener int, err error) {
	raw, err := assemble(rows)
	if err != nil {
		return -1, err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	var flags uintptr
	if notify {
		// WAIT_KILLABLE_RECV (Linux 5.19): a call that the supervisor has begun to answer is not restarted by an
		// ordinary signal, of which Go and Java programs have many.
		flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno == unix.EINVAL && notify {
		flags &^= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
		fd, _, errno = unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	}
	if errno != 0 {
		return -1, fmt.Errorf("install the seccomp filter: %w", errno)
	}
	if !notify {
		return -1, nil
	}
	return int(fd), nil
}

// seccompAction tells whether the kernel knows an action.
func seccompAction(action uint32) bool {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return errno == 0
}
