package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// access is what a rule grants at a path and below it.
type access uint8

const (
	accessRead    access = 1 << iota // files and lists of names
	accessWrite                      // make, change, remove; never devices
	accessExecute                    // execve
)

// rule grants access at a real path and below it. No access at all marks a folder that was opened entry by entry.
type rule struct {
	Path   string
	Access access
}

// wantedPath is a path before it was looked up.
type wantedPath struct {
	path     string
	access   access
	optional bool   // may be missing; the profile's own may not
	from     string // for errors: who wants it
}

// profilePaths are the paths that the profile names itself.
func profilePaths(p Profile) ([]wantedPath, error) {
	var list []wantedPath
	for _, part := range []struct {
		key    string
		paths  []string
		access access
	}{
		{"read", p.Read, accessRead},
		{"write", p.Write, accessRead | accessWrite},
		{"execute", p.Execute, accessRead | accessExecute},
	} {
		for _, path := range part.paths {
			if !filepath.IsAbs(path) {
				return nil, fmt.Errorf("%s %q: the path is not absolute", part.key, path)
			}
			list = append(list, wantedPath{path: filepath.Clean(path), access: part.access, from: part.key})
		}
	}
	for _, l := range p.Listen {
		if l.Unix != "" {
			list = append(list, wantedPath{path: filepath.Dir(filepath.Clean(l.Unix)), access: accessRead | accessWrite, from: "listen"})
		}
	}
	return list, nil
}

// makeRules looks every path up and checks them against each other: nothing is both writable and executable, and no
// denied path is granted. It returns all errors together.
func makeRules(wanted []wantedPath, denied []string) ([]rule, error) {
	var errs []error
	granted := map[string]access{}
	origin := map[string]wantedPath{}
	for _, w := range wanted {
		real, err := lookUp(w, wanted)
		if err != nil {
			errs = append(errs, err)
		}
		if err != nil || real == "" {
			continue
		}
		if _, seen := granted[real]; !seen || origin[real].optional {
			origin[real] = w
		}
		granted[real] |= w.access
	}
	var rules []rule
	for path, a := range granted {
		rules = append(rules, rule{path, a})
	}
	slices.SortFunc(rules, func(a, b rule) int { return cmp.Compare(a.Path, b.Path) })
	errs = append(errs, checkDisjoint(rules)...)
	var split []rule
	for _, r := range rules {
		parts, err := withhold(r, denied)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", origin[r.Path].from, err))
		}
		split = append(split, parts...)
	}
	return split, errors.Join(errs...)
}

// lookUp returns the real path, or "" for an optional path that is not there.
func lookUp(w wantedPath, all []wantedPath) (string, error) {
	real, err := filepath.EvalSymlinks(w.path)
	switch {
	case err != nil && w.optional:
		return "", nil
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s %s: does not exist; what is missing now would stay closed when it appears, so make it first or leave it out", w.from, w.path)
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("%s %s: %w", w.from, w.path, cmp.Or(mayEnter(filepath.Dir(w.path)), err))
	case err != nil:
		return "", fmt.Errorf("%s: %w", w.from, err)
	}
	// A link that the program of yesterday could have written must not open a door to the program of today.
	for _, other := range all {
		if real != w.path && other.access&accessWrite != 0 && w.path != other.path && beneath(w.path, other.path) {
			return "", fmt.Errorf("%s %s: leads to %s through a link in the writable folder %s, which the program may have made: name the real path", w.from, w.path, real, other.path)
		}
	}
	if w.optional {
		return real, nil
	}
	return real, may(w.access, real)
}

// checkDisjoint holds that what can be written cannot be executed, over the whole tree: Landlock adds up the rights
// of all folders above a file.
func checkDisjoint(rules []rule) []error {
	var errs []error
	for _, w := range rules {
		for _, x := range rules {
			if w.Access&accessWrite != 0 && x.Access&accessExecute != 0 && (beneath(w.Path, x.Path) || beneath(x.Path, w.Path)) {
				errs = append(errs, fmt.Errorf("%s may be written and %s executed, and one contains the other: what can be written cannot be executed", w.Path, x.Path))
			}
		}
	}
	return errs
}

// withhold takes the denied paths out of a rule. Landlock cannot close a path beneath an open one, so a folder that
// contains a denied path is opened entry by entry instead, as it is now. Its names cannot be listed: the right to list
// goes down to the denied folder too.
func withhold(r rule, denied []string) ([]rule, error) {
	inside := false
	for _, d := range denied {
		if beneath(r.Path, d) {
			return nil, fmt.Errorf("%s lies in %s, which the program must not see: move one of the two", r.Path, d)
		}
		inside = inside || beneath(d, r.Path)
	}
	if !inside {
		return []rule{r}, nil
	}
	if r.Access&accessWrite != 0 {
		return nil, fmt.Errorf("the writable folder %s contains %s, which the program must not see: move one of the two", r.Path, strings.Join(denied, " or "))
	}
	entries, err := os.ReadDir(r.Path)
	if err != nil {
		return nil, err
	}
	rules := []rule{{Path: r.Path}}
	for _, e := range entries {
		path := filepath.Join(r.Path, e.Name())
		// A link opens nothing by itself: what it leads to has, or has not, a rule of its own.
		if slices.Contains(denied, path) || e.Type()&fs.ModeSymlink != 0 {
			continue
		}
		parts, err := withhold(rule{path, r.Access}, denied)
		if err != nil {
			return nil, err
		}
		rules = append(rules, parts...)
	}
	return rules, nil
}

// realTargets resolves paths that need not exist yet, as far as they do. key is for errors.
func realTargets(key string, paths []string) ([]string, error) {
	var list []string
	for _, path := range paths {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%s %q: the path is not absolute", key, path)
		}
		path = filepath.Clean(path)
		rest := ""
		for {
			real, err := filepath.EvalSymlinks(path)
			if err == nil {
				list = append(list, filepath.Join(real, rest))
				break
			}
			if !errors.Is(err, fs.ErrNotExist) || path == "/" {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
			rest = filepath.Join(filepath.Base(path), rest)
			path = filepath.Dir(path)
		}
	}
	return list, nil
}

// beneath tells whether path is folder or lies in it; both are clean and real.
func beneath(path, folder string) bool {
	return path == folder || folder == "/" || strings.HasPrefix(path, folder+"/")
}

// may asks the kernel, as the program's user, whether the mode bits allow what the rule is about to allow: a rule
// opens nothing that the mode closes, and "EACCES" from the middle of a service is a poor place to learn that.
func may(a access, path string) error {
	if err := mayEnter(filepath.Dir(path)); err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	bits, verb := uint32(unix.R_OK), "read"
	if a&accessWrite != 0 {
		bits, verb = bits|unix.W_OK, "write"
	}
	if st.IsDir() {
		bits |= unix.X_OK
	} else if a&accessExecute != 0 {
		bits, verb = bits|unix.X_OK, "execute"
	}
	if err := unix.Access(path, bits); err != nil {
		return denied(verb, path, st, err)
	}
	return nil
}

// mayEnter names the first folder on the way that the user may not pass.
func mayEnter(folder string) error {
	for i := 1; i <= len(folder); i++ {
		if i < len(folder) && folder[i] != '/' {
			continue
		}
		part := folder[:i]
		if err := unix.Access(part, unix.X_OK); err != nil {
			st, serr := os.Stat(part)
			if serr != nil {
				return serr
			}
			return denied("enter", part, st, err)
		}
	}
	return nil
}

func denied(verb, path string, st fs.FileInfo, err error) error {
	owner := ""
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		owner = fmt.Sprintf(", owner %d:%d", s.Uid, s.Gid)
	}
	return fmt.Errorf("uid %d may not %s %s (mode %04o%s): %w", os.Getuid(), verb, path, st.Mode().Perm(), owner, err)
}
