package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/preload"
	"github.com/sallyport/sallyport/internal/sandbox"
)

// attribution is what a Node program is given so that its requests out name the requests that cause them. The zero value is
// for a program that is given nothing.
type attribution struct {
	file string // the preload; empty: there is none
}

// attribute decides whether the program gets the preload, and writes it while folders can still be had that only we, and
// not the program, can write.
func attribute(f *config.File, program string, log *slog.Logger) (attribution, error) {
	if !preloads(f, program) {
		return attribution{}, nil
	}
	written := f.Preload != "" // then it must be there; else it is missed, and said to be
	var last error
	for _, parent := range preloadFolders(f) {
		file, err := preload.Write(parent)
		if err == nil {
			return attribution{file}, nil
		}
		last = err
	}
	if last == nil {
		last = fmt.Errorf("every folder that could hold it can be written by the program (sandbox.write)")
	}
	if written {
		return attribution{}, withHint(fmt.Errorf("sandbox.preload: %w", last), "set TMPDIR to a folder that sallyport may write and sandbox.write does not hold")
	}
	log.Warn("the program gets no preload: which request causes what it sends is judged by the requests in flight", "error", last)
	return attribution{}, nil
}

// preloads reports whether a program is one for the preload, and its connections pass where it matters.
func preloads(f *config.File, program string) bool {
	switch p := f.Sandbox; {
	case f.Preload == "none", network(p) == "none", network(p) == "ports" && f.Egress.Listen == "":
		return false
	case strings.HasPrefix(f.Egress.Listen, "unix:"): // no client of Node's knows a proxy there
		return false
	case f.Preload == "node", p.Preset == "node":
		return true
	}
	return slices.Contains([]string{"node", "nodejs", "npm", "npx", "yarn", "pnpm"}, filepath.Base(program))
}

// preloadFolders lists where the preload may be put: where the program can read, and cannot write by what its profile says.
func preloadFolders(f *config.File) []string {
	candidates := []string{os.TempDir(), "/run", "/dev/shm", "/var/tmp"}
	if f.Audit.File != "-" {
		candidates = append(candidates, filepath.Dir(f.Audit.File))
	}
	writable := f.Sandbox.Write
	for _, l := range f.Sandbox.Listen {
		if l.Unix != "" {
			writable = append(writable[:len(writable):len(writable)], filepath.Dir(l.Unix))
		}
	}
	var list []string
	for _, c := range candidates {
		real, err := filepath.EvalSymlinks(c)
		if err == nil && entered(real) && !below(real, writable) {
			list = append(list, real)
		}
	}
	return list
}

// below reports whether a folder is one of those or lies in one.
func below(folder string, those []string) bool {
	for _, w := range those {
		if real, err := filepath.EvalSymlinks(w); err == nil {
			w = real
		}
		if rel, err := filepath.Rel(w, folder); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return true
		}
	}
	return false
}

// entered reports whether every user can get into a folder: the program may become another than we are.
func entered(folder string) bool {
	for d := folder; ; d = filepath.Dir(d) {
		if st, err := os.Stat(d); err != nil || !st.IsDir() || st.Mode().Perm()&0o001 == 0 {
			return false
		}
		if d == "/" {
			return true
		}
	}
}

// tell completes the profile with what the preload needs, beside where the forward proxy is.
func (a attribution) tell(p *sandbox.Profile) {
	if a.file == "" || p.Env.Set["SALLYPORT_PROXY"] == "" {
		return
	}
	p.Env.Set["NODE_OPTIONS"] = preload.Options(a.file, p.Env.Set["NODE_OPTIONS"])
	p.Read = append(p.Read[:len(p.Read):len(p.Read)], filepath.Dir(a.file))
}
