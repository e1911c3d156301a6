package learn

import (
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// few is how many files of one folder are named each by itself.
const few = 2

// many is how many files below a folder, in whatever folders, make it one.
const many = 8

// roots are shared by many programs: none of them is opened as a whole because some files of it were.
func roots() []string {
	return []string{"/", "/bin", "/boot", "/dev", "/dev/shm", "/etc", "/home", "/lib", "/lib32", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root",
		"/run", "/run/secrets", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/local/bin", "/usr/local/lib", "/usr/sbin", "/usr/share",
		"/var", "/var/cache", "/var/lib", "/var/log", "/var/run", "/var/spool", "/var/tmp"}
}

// shared reports whether a folder is everybody's, or somebody's home.
func shared(folder string) bool {
	return slices.Contains(roots(), folder) || path.Dir(folder) == "/home" ||
		within(folder, "/proc") || within(folder, "/sys") || within(folder, "/dev")
}

// dangers finds what is dangerous by its path, before anything is allowed, so that no folder is that holds it. One path may
// have been seen twice, once refused; what is dangerous once is dangerous.
func (p *profile) dangers() {
	blocks := map[string]bool{}
	for _, o := range p.seen.Opened {
		blocks[o.Path] = blocks[o.Path] || o.Block
		if o.Write {
			p.wrote = append(p.wrote, o)
		}
	}
	p.seen.Opened = slices.Clone(p.seen.Opened)
	for i := range p.seen.Opened {
		o := &p.seen.Opened[i]
		for _, a := range []struct {
			on     *bool
			letter byte
			verb   string
		}{{&o.Read, 'r', "read"}, {&o.Write, 'w', "write"}, {&o.Execute, 'x', "execute"}} {
			if !*a.on {
				continue
			}
			why := Dangerous(a.letter, o.Path)
			switch {
			case blocks[o.Path]:
				why = "a block device: every file on it"
			case why == "" && a.letter != 'x' && slices.ContainsFunc(p.given.Private, func(q string) bool { return within(o.Path, q) }):
				why = "it is sallyport's own"
			}
			if why == "" {
				continue
			}
			*a.on = false
			if a.letter == 'x' {
				p.neverRun = append(p.neverRun, o.Path)
			} else {
				p.dangerAt = append(p.dangerAt, o.Path)
			}
			p.warn(o.Path, a.verb+": "+why)
		}
	}
}

// holdsDanger reports whether something that was seen, and must not be read or written, is at a path or below it.
func (p *profile) holdsDanger(file string) bool {
	return slices.ContainsFunc(p.dangerAt, func(d string) bool { return within(d, file) })
}

// usable reports whether a path can be named in a profile at all, and says why not.
func (p *profile) usable(o Opened) bool {
	switch {
	case !plain(o.Path):
		p.leave(o.Path, "its name cannot be written in the file")
	case o.Refused:
		p.leave(o.Path, "its mode refuses the service's user, with or without a profile")
	default:
		return true
	}
	return false
}

// plain reports whether a path reads the same in every editor, and is one that the configuration takes.
func plain(file string) bool {
	for _, s := range []string{"*", ":/", "${"} { // a pattern, a URL, a variable: whoever means one of these is told so
		if strings.Contains(file, s) {
			return false
		}
	}
	return utf8.ValidString(file) && path.IsAbs(file) && path.Clean(file) == file && len(file) < 4096 && strings.TrimSpace(file) == file &&
		!strings.ContainsFunc(file, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar })
}

// writes chooses what may be written.
func (p *profile) writes() {
	var want []string
	for _, o := range p.seen.Opened {
		switch {
		case !o.Write || !p.usable(o):
		case o.Gone && o.Made:
			want = append(want, path.Dir(o.Path)) // made, used and removed: the folder above is what it needs
		case o.Gone:
			p.leave(o.Path, "written, and gone now: a profile names what is there")
		default:
			want = append(want, o.Path)
		}
	}
	want = slices.DeleteFunc(want, func(w string) bool { return !p.mayWrite(w, true) })
	p.write = collapse(want, func(folder string) bool { return shared(folder) || !p.mayWrite(folder, false) })
}

// mayWrite judges one path with all that lies in it.
func (p *profile) mayWrite(w string, say bool) bool {
	warn, leave := p.warn, p.leave
	if !say {
		warn, leave = func(string, string) {}, func(string, string) {}
	}
	holds := func(list []string) string {
		if i := slices.IndexFunc(list, func(q string) bool { return within(q, w) || within(w, q) }); i >= 0 {
			return list[i]
		}
		return ""
	}
	if why := Dangerous('w', w); why != "" {
		warn(w, "write: "+why)
		return false
	}
	if p.holdsDanger(w) {
		warn(w, "write: it holds what is left out")
		return false
	}
	if q := holds(p.given.Private); q != "" {
		warn(w, "write: it holds "+q+", which is sallyport's own: let the service write in a folder of its own")
		return false
	}
	if q := holds(p.given.Programs); q != "" {
		warn(w, "write: it holds "+q+", which is executed: let the service write in a folder of its own")
		return false
	}
	switch {
	case within(w, "/dev/pts") || w == "/dev/tty" || w == "/dev/console":
		leave(w, "a terminal, which is another one next time")
		return false
	case within(w, "/proc"):
		leave(w, "no path means this for every process")
		return false
	}
	if w != "/tmp" && (shared(w) && !strings.HasPrefix(w, "/dev/") || perilBelow('w', w)) {
		leave(w, "many share it: let the service write in a folder of its own below it")
		return false
	}
	return true
}

// executes chooses what may be executed. Programs are always named one by one.
func (p *profile) executes() {
	for _, o := range p.seen.Opened {
		if !o.Execute || o.Folder || !p.usable(o) {
			continue
		}
		written := slices.ContainsFunc(p.wrote, func(w Opened) bool {
			return w.Path == o.Path || w.Folder && within(o.Path, w.Path)
		}) || p.overlaps(o.Path)
		switch {
		case o.Gone:
			p.warn(o.Path, "execute: it was made, executed and removed")
		case p.holdsDanger(o.Path):
			p.warn(o.Path, "execute: it holds what is left out")
		case written:
			p.warn(o.Path, "execute: it can write what it executes")
		default:
			p.executeWithNeeds(o)
		}
	}
	slices.Sort(p.execute)
	p.execute = slices.Compact(p.execute)
}

// overlaps reports whether what may be written holds, or lies in, a path.
func (p *profile) overlaps(file string) bool {
	return slices.ContainsFunc(p.write, func(w string) bool { return within(file, w) || within(w, file) })
}

// executeWithNeeds allows a program with its interpreters, or neither.
func (p *profile) executeWithNeeds(o Opened) {
	needs := p.seen.Needs[o.Path]
	for _, n := range needs {
		if p.holdsDanger(n.Path) {
			p.warn(o.Path, "execute: it needs "+n.Path+", which holds what is left out")
			return
		}
		if n.Execute && p.overlaps(n.Path) {
			p.warn(o.Path, "execute: it needs "+n.Path+", which it can write")
			return
		}
		if n.Execute && slices.Contains(p.neverRun, n.Path) {
			p.warn(o.Path, "execute: it needs "+n.Path+", which is left out")
			return
		}
		loader := strings.HasPrefix(path.Base(n.Path), "ld-") // of the program, which alone decides what it loads
		if why := Dangerous('x', n.Path); n.Execute && !loader && why != "" {
			p.warn(o.Path, "execute: it needs "+n.Path+": "+why)
			return
		}
	}
	p.execute = append(p.execute, o.Path)
	for _, n := range needs {
		switch {
		case !plain(n.Path):
		case n.Execute:
			p.execute = append(p.execute, n.Path)
		case n.Read:
			p.read = append(p.read, n.Path)
		}
	}
}

// reads chooses what may be read beyond that.
func (p *profile) reads() {
	given := slices.Concat(p.write, p.execute, p.read)
	if d := p.seen.Dir; d != "" && !slices.ContainsFunc(given, func(g string) bool { return within(d, g) }) {
		// Without it nothing would start. It is opened as a whole, as naming it does.
		p.seen.Opened = append(p.seen.Opened, Opened{Path: d, Read: true, Folder: true})
	}
	covered := func(file string) bool {
		return slices.ContainsFunc(given, func(g string) bool { return within(file, g) })
	}
	barred := func(folder string) bool {
		return shared(folder) || perilBelow('r', folder) || p.holdsDanger(folder)
	}
	var want []string
	for _, o := range p.seen.Opened {
		switch {
		case !o.Read || o.Given || covered(o.Path) || !p.usable(o):
		case o.Gone:
			p.leave(o.Path, "read, and gone now: a profile names what is there")
		case strings.HasPrefix(o.Path, "/proc/self/") || o.Path == "/proc/self" || strings.HasPrefix(o.Path, "/proc/[pid]"):
			p.leave(path.Join("/proc", strings.TrimPrefix(o.Path, "/proc/")), "no path means this for every process: where the service fails without it, `read: [/proc]`, as `preset: node` does")
		case within(o.Path, "/sys/fs/cgroup"):
			p.leave(o.Path, "how much machine there is, whose place differs from machine to machine: programs do without it")
		case o.Folder && barred(o.Path) || p.holdsDanger(o.Path):
			p.leave(o.Path, "listed: naming it would open all that lies in it")
		default:
			want = append(want, o.Path)
		}
	}
	all := append(p.read, collapse(want, barred)...)
	slices.Sort(all)
	p.read = nil
	for _, r := range slices.Compact(all) { // a folder stands before what lies in it
		if !slices.ContainsFunc(p.read, func(q string) bool { return within(r, q) }) {
			p.read = append(p.read, r)
		}
	}
}

// collapse makes folders of files: one that holds more than few, or has many below it, stands for them all, unless it is
// barred. What lies in a folder that is named is dropped.
func collapse(files []string, barred func(folder string) bool) []string {
	set := map[string]bool{}
	for _, f := range files {
		set[f] = true
	}
	deepest := 0
	for f := range set {
		deepest = max(deepest, depth(f))
	}
	for d := deepest - 1; d >= 1; d-- {
		direct, below := map[string]int{}, map[string]int{}
		for f := range set {
			if folder := ancestor(f, d); folder != "" {
				below[folder]++
				if path.Dir(f) == folder {
					direct[folder]++
				}
			}
		}
		for folder, n := range below {
			if set[folder] || (direct[folder] > few || n >= many) && !barred(folder) {
				for f := range set {
					if f != folder && within(f, folder) {
						delete(set, f)
					}
				}
				set[folder] = true
			}
		}
	}
	var list []string
	for f := range set {
		list = append(list, f)
	}
	slices.Sort(list)
	return list
}

// depth is how many parts a path has.
func depth(file string) int {
	if file == "/" {
		return 0
	}
	return strings.Count(file, "/")
}

// ancestor is the folder of d parts that a path lies in; "" if it has not so many.
func ancestor(file string, d int) string {
	if depth(file) <= d {
		return ""
	}
	end := 0
	for range d {
		end += 1 + strings.IndexByte(file[end+1:], '/')
	}
	return file[:end]
}

// plainLine reports whether a text can stand in a comment as it is.
func plainLine(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
