package sandbox

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// effect is what a call does to the file that it names.
type effect int

const (
	effectOpen     effect = iota + 1 // flags in the argument flags
	effectOpenHow                    // flags behind the pointer in the argument flags
	effectCreate                     // creat(2)
	effectExecute                    // execve(2)
	effectRemove                     // a name goes
	effectMake                       // a name comes
	effectFolder                     // a folder comes
	effectMove                       // from the first name to the second
	effectLink                       // the first name gets a second
	effectTruncate                   // it is shortened
)

// name is a path among a call's arguments, and the folder that it is relative to: the working directory if dir is
// negative.
type name struct{ dir, path int }

// learnedCall is a call that is noted.
type learnedCall struct {
	name   string
	nr     uint32
	effect effect
	paths  []name
	flags  int // the argument, where the effect depends on one
}

// learnedCalls are those that Landlock mediates. Of the rest (stat, chmod, ...) no profile says anything.
func learnedCalls() []learnedCall {
	return append([]learnedCall{
		{"openat", unix.SYS_OPENAT, effectOpen, []name{{0, 1}}, 2},
		{"openat2", unix.SYS_OPENAT2, effectOpenHow, []name{{0, 1}}, 2},
		{"execve", unix.SYS_EXECVE, effectExecute, []name{{-1, 0}}, 0},
		{"execveat", unix.SYS_EXECVEAT, effectExecute, []name{{0, 1}}, 0},
		{"unlinkat", unix.SYS_UNLINKAT, effectRemove, []name{{0, 1}}, 0},
		{"renameat", unix.SYS_RENAMEAT, effectMove, []name{{0, 1}, {2, 3}}, 0},
		{"renameat2", unix.SYS_RENAMEAT2, effectMove, []name{{0, 1}, {2, 3}}, 0},
		{"mkdirat", unix.SYS_MKDIRAT, effectFolder, []name{{0, 1}}, 0},
		{"mknodat", unix.SYS_MKNODAT, effectMake, []name{{0, 1}}, 0},
		{"symlinkat", unix.SYS_SYMLINKAT, effectMake, []name{{1, 2}}, 0},
		{"linkat", unix.SYS_LINKAT, effectLink, []name{{0, 1}, {2, 3}}, 0},
		{"truncate", unix.SYS_TRUNCATE, effectTruncate, []name{{-1, 0}}, 0},
	}, archLearnedCalls()...)
}

// learnedRows ask about them.
func learnedRows() (rows []row) {
	for _, c := range learnedCalls() {
		rows = append(rows, row{c.name, c.nr, nil, answerAsk, "learning: it is noted, and passed on to the kernel"})
	}
	return rows
}

// learn notes a call, if it is one of those. The caller must pass it on if the answer is true, whatever was found: what
// cannot be read, or does not exist, is not noted.
func (b *broker) learn(n *notification) bool {
	if b.learner == nil {
		return false
	}
	call, ok := b.learner.calls[n.Data.Nr]
	if !ok {
		return false
	}
	if b.silent() || n.TID == 0 {
		return true
	}
	c := caller{n.TID}
	var paths []string
	for _, p := range call.paths {
		path, ok := b.readPath(n, p)
		if !ok {
			return true
		}
		paths = append(paths, path)
	}
	switch call.effect {
	case effectOpen, effectOpenHow, effectCreate:
		if flags, ok := b.openFlags(n, call); ok {
			b.learner.open(c, paths[0], flags)
		}
	default:
		b.learner.change(c, call.effect, paths)
	}
	return true
}

// openFlags are the flags of a call that opens, as open(2) has them.
func (b *broker) openFlags(n *notification, call learnedCall) (flags int, ok bool) {
	switch call.effect {
	case effectOpen:
		return int(n.Data.Args[call.flags]), true
	case effectCreate:
		return unix.O_CREAT | unix.O_WRONLY | unix.O_TRUNC, true
	}
	how, errno := b.readMemory(n, n.Data.Args[call.flags], 8)
	if errno != 0 {
		return 0, false
	}
	return int(binary.NativeEndian.Uint64(how)), true // struct open_how begins with the flags
}

// open notes open(2).
func (l *learner) open(c caller, path string, flags int) {
	if flags&unix.O_PATH != 0 {
		return // it opens nothing
	}
	follow := flags&unix.O_NOFOLLOW == 0 && flags&(unix.O_CREAT|unix.O_EXCL) != unix.O_CREAT|unix.O_EXCL
	real, exists, ok := c.realPath(path, follow)
	switch {
	case !ok:
		return
	case !exists:
		if flags&unix.O_CREAT != 0 {
			l.in(c, real)
		}
		return
	case flags&unix.O_TMPFILE == unix.O_TMPFILE:
		l.at(c, real, accessWrite)
		return
	}
	var a access
	if flags&unix.O_ACCMODE != unix.O_WRONLY {
		a |= accessRead
	}
	if flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0 {
		a |= accessWrite
	}
	l.at(c, real, a)
}

// change notes what is done to names. A call that must fail, since what it needs is missing or there already, is not noted.
func (l *learner) change(c caller, e effect, paths []string) {
	follow := e == effectExecute || e == effectTruncate
	real, exists, ok := c.realPath(paths[0], follow)
	if e == effectExecute && (!ok || !exists) {
		if real, deleted := strings.CutSuffix(real, " (deleted)"); deleted {
			// Written, opened, removed, executed: there is no name by which a profile could allow it.
			l.put(learnedKey{c.nameOf(real), false}, learned{access: accessExecute})
		}
		return
	}
	if !ok || exists == (e == effectMake || e == effectFolder) {
		return
	}
	switch e {
	case effectExecute:
		l.at(c, real, accessExecute)
	case effectTruncate:
		l.at(c, real, accessWrite)
	case effectRemove, effectMake:
		l.in(c, real)
	case effectFolder:
		// That the folder above must be writable for it, whoever reads this can tell; in an image it can be made before.
		refused := unix.Access(filepath.Dir(real), unix.W_OK|unix.X_OK) != nil
		l.put(learnedKey{c.nameOf(real), refused}, learned{access: accessWrite, folder: true, made: true})
	case effectMove, effectLink:
		to, _, ok := c.realPath(paths[1], false)
		if !ok {
			return
		}
		if e == effectMove || filepath.Dir(to) != filepath.Dir(real) {
			l.in(c, real)
		}
		l.in(c, to)
	}
}

// readPath copies a path out of the caller's memory, and makes it absolute. An empty one means the descriptor itself, for
// the calls that take it so; for the others it is no file.
func (b *broker) readPath(n *notification, p name) (string, bool) {
	path, ok := b.readString(n, n.Data.Args[p.path])
	if !ok {
		return "", false
	}
	if strings.HasPrefix(path, "/") {
		return path, true
	}
	if p.dir < 0 || int32(n.Data.Args[p.dir]) == unix.AT_FDCWD {
		return fmt.Sprintf("/proc/%d/cwd/%s", n.TID, path), path != ""
	}
	return strings.TrimSuffix(fmt.Sprintf("/proc/%d/fd/%d/%s", n.TID, int32(n.Data.Args[p.dir]), path), "/"), true
}

// readString copies a string out of the caller's memory, up to the size of a path, page by page: what lies behind it may
// not be there.
func (b *broker) readString(n *notification, at uint64) (string, bool) {
	const page = 4096 // the smallest there is
	fd, err := unix.Open("/proc/"+strconv.Itoa(int(n.TID))+"/mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.say("unreadable paths", "a process of the service cannot be looked into by its supervisor: what it opens is not noted",
			"hint", "its file must be readable by the user that runs it, and kernel.yama.ptrace_scope at most 1")
		return "", false
	}
	defer unix.Close(fd)
	var text []byte
	for len(text) < unix.PathMax {
		piece := make([]byte, min(page-(at+uint64(len(text)))%page, uint64(unix.PathMax-len(text))))
		got, err := unix.Pread(fd, piece, int64(at)+int64(len(text)))
		if err != nil || got == 0 {
			return "", false
		}
		if end := slices.Index(piece[:got], 0); end >= 0 {
			text = append(text, piece[:end]...)
			return string(text), b.from.valid(n)
		}
		text = append(text, piece[:got]...)
	}
	return "", false // the kernel refuses it
}
