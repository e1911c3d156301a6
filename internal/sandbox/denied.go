package sandbox

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Denied is something that the program tried to execute, or to open for writing, and that its profile does not allow.
type Denied struct {
	Process int    // the caller's thread, by its number as we see it
	Execute bool   // else it was to be written
	Path    string // the real one; what is another process's in /proc as /proc/[pid]
}

// watchedCalls are the learned calls that say what is tried, where that is seldom enough to ask about each: what starts a
// program, and what opens for writing. What is opened to be read is too much; of the rest Landlock tells nobody.
func watchedCalls() []learnedCall {
	return slices.DeleteFunc(learnedCalls(), func(c learnedCall) bool {
		switch c.effect {
		case effectExecute, effectOpen, effectOpenHow, effectCreate:
			return false
		}
		return true
	})
}

// watchedRows ask about them.
func watchedRows() (rows []row) {
	const writes = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC
	for _, c := range watchedCalls() {
		var when []condition
		if c.effect == effectOpen {
			when = []condition{anyBit(c.flags, writes)}
		}
		rows = append(rows, row{c.name, c.nr, when, answerAsk, "an attempt that the walls refuse is told, and refused; all else the kernel decides"})
	}
	return rows
}

// sentry looks at what the program tries, and tells what its profile does not allow. Nothing depends on it but what is
// told: the kernel has the last word on all that it lets go on, by the walls.
type sentry struct {
	rules []rule
	calls map[int32]learnedCall
	tell  func(Denied) bool
}

func newSentry(rules []rule, tell func(Denied) bool) *sentry {
	s := &sentry{rules: rules, calls: map[int32]learnedCall{}, tell: tell}
	for _, c := range watchedCalls() {
		s.calls[int32(c.nr)] = c
	}
	return s
}

// looked is what becomes of a call that is looked at.
type looked int

const (
	lookedNot    looked = iota // it is not one of these
	lookedPass                 // the kernel is to go on with it
	lookedRefuse               // it is refused here, as the walls would
)

// look tells of a call what the profile does not allow. What cannot be read, or does not exist, the kernel refuses, or the
// walls.
func (b *broker) look(n *notification) looked {
	if b.sentry == nil {
		return lookedNot
	}
	call, ok := b.sentry.calls[n.Data.Nr]
	if !ok {
		return lookedNot
	}
	if b.silent() || n.TID == 0 {
		return lookedPass
	}
	path, ok := b.readPath(n, call.paths[0])
	if !ok {
		return lookedPass
	}
	var flags int
	if call.effect != effectExecute {
		if flags, ok = b.openFlags(n, call); !ok {
			return lookedPass
		}
	}
	d, refused := b.sentry.judge(caller{n.TID}, call.effect, path, flags)
	// what was read is the caller's own only if it still waits
	if !refused || !b.from.valid(n) || !b.sentry.tell(d) {
		return lookedPass
	}
	return lookedRefuse
}

// judge reports whether the walls refuse a call, and what it was about.
func (s *sentry) judge(c caller, e effect, path string, flags int) (Denied, bool) {
	wanted, follow := accessExecute, true
	if e != effectExecute {
		wanted, follow = accessWrite, flags&unix.O_NOFOLLOW == 0 && flags&(unix.O_CREAT|unix.O_EXCL) != unix.O_CREAT|unix.O_EXCL
		if flags&unix.O_PATH != 0 || flags&(unix.O_WRONLY|unix.O_RDWR|unix.O_TRUNC|unix.O_CREAT) == 0 {
			return Denied{}, false
		}
	}
	real, exists, ok := c.realPath(path, follow)
	switch {
	case !ok:
		return Denied{}, false
	case !exists && (wanted == accessExecute || flags&unix.O_CREAT == 0):
		return Denied{}, false // there is no such file
	case exists && wanted == accessWrite && flags&(unix.O_WRONLY|unix.O_RDWR|unix.O_TRUNC) == 0:
		return Denied{}, false // O_CREAT of what is there only reads it
	}
	for _, r := range s.rules {
		if r.Access&wanted != 0 && beneath(real, r.Path) {
			return Denied{}, false
		}
	}
	name := c.nameOf(real)
	if strings.HasPrefix(name, "/proc/self/") {
		return Denied{}, false // its own has other names too, which rules may be about
	}
	return Denied{Process: int(c.tid), Execute: wanted == accessExecute, Path: name}, true
}
