package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Learned is what a program was seen to do whose profile is learnt (Profile.Learn): what it needs beyond what its file, its
// preset and the base of every program give it already. It knows what the program has done, and not what it will do.
type Learned struct {
	Opened []Opened // by path
	// Needs is what the kernel and the dynamic loader open for a program that it executes, by that program's path: interpreters
	// and loaders to execute, folders of libraries to read.
	Needs    map[string][]Opened
	Programs []string // what it may execute in any case, by real paths
	Listens  []string // TCP addresses that it asked to listen on, and was refused
	Dir      string   // its working directory, which the profile must let it look into; empty where it need not say so
	Lost     int      // how much more was opened than was kept
}

// Opened is one path that the program opened, executed, or changed something at. Files that it made or removed in a folder
// show as writing in that folder.
type Opened struct {
	Path    string // the real one; what is its own in /proc as /proc/self, what is another process's as /proc/[pid]
	Read    bool
	Write   bool
	Execute bool
	Folder  bool // it is one
	Made    bool // the program made this folder, or tried to
	Block   bool // it is a block device
	Refused bool // its mode, or that of a folder above it, refused the program's user
	Gone    bool // there is nothing by this name now
	Given   bool // it is another process's, and the program may read it with the rest of /proc anyway
}

// maxLearned bounds what is kept.
const maxLearned = 20000

// learner notes what a program opens. Nothing depends on what it notes: the kernel has the last word, and reads every
// path anew.
type learner struct {
	needs []rule // what a profile need not say
	dir   string // the program's working directory
	path  string // the program's PATH, where scripts look for their interpreter
	calls map[int32]learnedCall

	mu      sync.Mutex
	noted   map[learnedKey]learned
	listens map[string]bool
	lost    int
}

// learnedKey tells what the mode of a file refused from what it let pass.
type learnedKey struct {
	path    string
	refused bool
}

type learned struct {
	access       access
	folder, made bool
	block, given bool
}

func newLearner(needs []rule, dir, path string) *learner {
	l := &learner{needs: needs, dir: dir, path: path, calls: map[int32]learnedCall{}, noted: map[learnedKey]learned{}, listens: map[string]bool{}}
	for _, c := range learnedCalls() {
		l.calls[int32(c.nr)] = c
	}
	return l
}

// covered is what the program may do at a path by what it needs anyway.
func (l *learner) covered(path string) (a access) {
	for _, r := range l.needs {
		if beneath(path, r.Path) {
			a |= r.Access
		}
	}
	return a
}

// put notes one access, unless it is covered. What is another process's is noted all the same: what covers it was meant
// for the program's own.
func (l *learner) put(key learnedKey, what learned) {
	if rest := what.access &^ l.covered(key.path); rest == 0 && strings.HasPrefix(key.path, "/proc/[pid]/") {
		what.given = true
	} else {
		what.access = rest
	}
	if what.access == 0 && !what.made {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old, known := l.noted[key]
	if !known && len(l.noted) >= maxLearned {
		l.lost++
		return
	}
	old.access |= what.access
	old.folder, old.made, old.block = what.folder, old.made || what.made, what.block
	old.given = what.given && (old.given || !known)
	l.noted[key] = old
}

// refusedListen notes where the program was not let listen.
func (l *learner) refusedListen(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.listens) < 64 {
		l.listens[address] = true
	}
}

// count is how much there is.
func (l *learner) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.noted)
}

// at notes an access to what has this real path, which exists.
func (l *learner) at(c caller, real string, a access) {
	var st unix.Stat_t
	if unix.Stat(real, &st) != nil {
		return
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFSOCK || kind == unix.S_IFLNK {
		return // neither can be opened
	}
	bits := uint32(0)
	for _, b := range []struct {
		access access
		bit    uint32
	}{{accessRead, unix.R_OK}, {accessWrite, unix.W_OK}, {accessExecute, unix.X_OK}} {
		if a&b.access != 0 {
			bits |= b.bit
		}
	}
	folder := kind == unix.S_IFDIR
	if folder && a&accessWrite != 0 {
		bits |= unix.X_OK
	}
	// Our user is the program's, so that our answer is its own. /proc asks for more than a mode.
	refused := unix.Access(real, bits) != nil
	l.put(learnedKey{c.nameOf(real), refused}, learned{access: a, folder: folder, block: kind == unix.S_IFBLK})
}

// in notes that something is made in, or removed from, the folder that holds the path.
func (l *learner) in(c caller, path string) { l.at(c, filepath.Dir(path), accessWrite) }

// result is what was learnt so far.
func (l *learner) result() Learned {
	r := Learned{Needs: map[string][]Opened{}}
	l.mu.Lock()
	r.Lost = l.lost
	for k, v := range l.noted {
		r.Opened = append(r.Opened, opened(k, v))
	}
	r.Listens = slices.Sorted(maps.Keys(l.listens))
	l.mu.Unlock()
	if real, err := filepath.EvalSymlinks(l.dir); err == nil && !mayWorkIn(real, l.needs) {
		r.Dir = real
	}
	for _, n := range l.needs {
		if n.Access&accessExecute != 0 {
			r.Programs = append(r.Programs, n.Path)
		}
	}
	slices.SortFunc(r.Opened, func(a, b Opened) int {
		if c := strings.Compare(a.Path, b.Path); c != 0 || a.Refused == b.Refused {
			return c
		} else if a.Refused {
			return 1
		}
		return -1
	})
	for i, o := range r.Opened {
		if !strings.HasPrefix(o.Path, "/proc/") {
			var st unix.Stat_t
			r.Opened[i].Gone = unix.Stat(o.Path, &st) != nil
		}
		if o.Execute && !o.Refused && !r.Opened[i].Gone {
			r.Needs[o.Path] = l.neededBy(o.Path)
		}
	}
	return r
}

func opened(k learnedKey, v learned) Opened {
	return Opened{
		Path: k.path, Read: v.access&accessRead != 0, Write: v.access&accessWrite != 0, Execute: v.access&accessExecute != 0,
		Folder: v.folder, Made: v.made, Block: v.block, Refused: k.refused, Given: v.given,
	}
}

// neededBy is what a program needs beyond what is covered.
func (l *learner) neededBy(program string) (list []Opened) {
	needs, err := programNeeds(program, l.path)
	if err != nil {
		return nil // no program that could begin
	}
	for _, n := range needs {
		real, err := filepath.EvalSymlinks(n.path)
		if err != nil || real == program {
			continue
		}
		if a := n.access &^ l.covered(real); a != 0 {
			st, err := os.Stat(real)
			list = append(list, opened(learnedKey{path: real}, learned{access: a, folder: err == nil && st.IsDir()}))
		}
	}
	return list
}

// caller is the thread whose call is noted.
type caller struct{ tid uint32 }

// nameOf writes a real path as it means the same for every process of the program: numbers of processes in /proc do not.
func (c caller) nameOf(real string) string {
	rest, ok := strings.CutPrefix(real, "/proc/")
	if !ok {
		return real
	}
	number, rest, _ := strings.Cut(rest, "/")
	pid, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return real
	}
	who := "[pid]"
	if uint32(pid) == c.tid || uint32(pid) == c.process() {
		who = "self"
	}
	parts := strings.Split(rest, "/")
	for i, p := range parts {
		if _, err := strconv.ParseUint(p, 10, 32); err == nil {
			parts[i] = "[" + map[bool]string{true: "tid", false: "n"}[i > 0 && parts[i-1] == "task"] + "]"
		}
	}
	return filepath.Join("/proc", who, strings.Join(parts, "/"))
}

// process is the number of the caller's process, of which it is one thread.
func (c caller) process() uint32 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.tid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "Tgid:"); ok {
			pid, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			return uint32(pid)
		}
	}
	return 0
}

// realPath follows the links of a path as the kernel would for the caller, except for the last one unless follow is true.
// exists is false where all but the last part is there. ok is false where more is missing, or the path leads to no file
// with a name (a pipe, a file that was removed).
func (c caller) realPath(path string, follow bool) (real string, exists, ok bool) {
	const mostLinks = 40 // path_resolution(7)
	links := 0
	parts := strings.Split(path, "/")
	real = "/"
	for len(parts) > 0 {
		part := parts[0]
		parts = parts[1:]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			real = filepath.Dir(real)
			continue
		}
		next := filepath.Join(real, part)
		if next == "/proc/self" || next == "/proc/thread-self" { // another one to us
			real = fmt.Sprintf("/proc/%d", c.tid)
			continue
		}
		last := !slices.ContainsFunc(parts, func(p string) bool { return p != "" && p != "." })
		target, err := os.Readlink(next)
		switch {
		case err == nil && last && !follow:
			return next, true, true
		case err == nil:
			if links++; links > mostLinks || strings.HasPrefix(next, "/proc/") && !strings.HasPrefix(target, "/") && strings.Contains(target, ":") {
				return "", false, false
			}
			if strings.HasPrefix(target, "/") {
				real = "/"
			}
			parts = append(strings.Split(target, "/"), parts...)
		case os.IsNotExist(err):
			return next, false, last
		case errors.Is(err, unix.EINVAL): // no link
			real = next
		default:
			return "", false, false
		}
	}
	return real, true, true
}
