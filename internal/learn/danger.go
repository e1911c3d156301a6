package learn

import (
	_ "embed"
	"encoding/csv"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
)

// Danger is something that the service did and that no learned profile allows.
type Danger struct {
	What string // a path, or where it connected
	Why  string
}

//go:embed dangers.csv
var dangersCSV string

// peril is one line of dangers.csv.
type peril struct {
	access, pattern, why, source string
}

// perils reads dangers.csv once. The file is part of the program: a line that cannot be read is a defect that the first
// use shows.
var perils = sync.OnceValue(func() []peril {
	list, err := readPerils(dangersCSV)
	if err != nil {
		panic("learn: dangers.csv: " + err.Error())
	}
	return list
})

func readPerils(text string) ([]peril, error) {
	r := csv.NewReader(strings.NewReader(text))
	r.Comment, r.FieldsPerRecord = '#', 4
	records, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	var list []peril
	for _, f := range records {
		p := peril{f[0], f[1], f[2], f[3]}
		switch {
		case p.access == "" || strings.Trim(p.access, "rwx") != "":
			err = errors.New("access is made of r, w and x")
		case !strings.HasPrefix(p.pattern, "/") && !strings.HasPrefix(p.pattern, "**/"):
			err = errors.New("neither an absolute path nor one in any folder")
		case p.why == "" || p.source == "":
			err = errors.New("lacks why or source")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.pattern, err)
		}
		list = append(list, p)
	}
	return list, nil
}

// Dangerous says why one access ('r', 'w' or 'x') to a path leads out of where a service belongs, or "": those that no
// learned profile allows by itself. What is another process's in /proc is /proc/[pid].
func Dangerous(access byte, file string) string {
	for _, p := range perils() {
		if strings.IndexByte(p.access, access) >= 0 && matches(p.pattern, file) {
			return p.why
		}
	}
	return ""
}

// matches compares a path with a pattern of dangers.csv.
func matches(pattern, file string) bool {
	if rest, ok := strings.CutPrefix(pattern, "**/"); ok {
		for i := range file {
			if file[i] == '/' && matchParts(rest, file[i+1:]) {
				return true
			}
		}
		return false
	}
	return matchParts(strings.TrimPrefix(pattern, "/"), strings.TrimPrefix(file, "/"))
}

func matchParts(pattern, file string) bool {
	for {
		if pattern == "**" {
			return true
		}
		p, morePattern, inPattern := strings.Cut(pattern, "/")
		f, moreFile, inFile := strings.Cut(file, "/")
		if !matchPart(p, f) {
			return false
		}
		if !inPattern || !inFile {
			return !inFile && (!inPattern || morePattern == "**")
		}
		pattern, file = morePattern, moreFile
	}
}

// matchPart knows "*" alone: brackets stand for themselves.
func matchPart(pattern, part string) bool {
	before, after, star := strings.Cut(pattern, "*")
	return pattern == part || star && len(part) >= len(before)+len(after) && strings.HasPrefix(part, before) && strings.HasSuffix(part, after)
}

// perilBelow reports whether an access that is dangerous by its place lies in a folder, so that the folder must not be
// allowed as a whole. What is dangerous in any folder, by its name, is only found where it was seen.
func perilBelow(access byte, folder string) bool {
	for _, p := range perils() {
		if strings.IndexByte(p.access, access) < 0 || strings.HasPrefix(p.pattern, "**/") {
			continue
		}
		fixed, _, _ := strings.Cut(p.pattern, "*")
		if within(path.Clean(fixed), folder) {
			return true
		}
	}
	return false
}

// within reports whether a clean absolute path is a folder or lies in it.
func within(p, folder string) bool {
	return p == folder || folder == "/" || strings.HasPrefix(p, folder+"/")
}
