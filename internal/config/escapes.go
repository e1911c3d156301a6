package config

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/egress"
	"github.com/sallyport/sallyport/safedial"
)

// escapes refuses what the escape-target registry names and egress.unlock does not: it would be refused at each
// attempt, and whoever reads the file would believe it open. Addresses that are computed on the machine (the node's, the
// orchestrator's) are judged there alone.
func (r *reader) escapes(v *value, rules egress.Rules, sockets *value) {
	for _, e := range locked(rules.Unlock) {
		for _, d := range v.get("destinations").entries {
			for _, h := range d.get("hosts").entries {
				if h.ok && leadsTo(h.text(), e) {
					r.locked(h, e)
				}
			}
		}
		for _, s := range sockets.entries {
			if s.ok && e.Kind == "socket" && isSocket(s.text(), e.Value) {
				r.locked(s, e)
			}
		}
	}
}

// locked lists the registry's entries that stay refused. One thing may have several names, each of which unlocks it; it
// is listed under the first.
func locked(unlock []egress.Unlock) []safedial.Escape {
	all := safedial.Escapes()
	done := make(map[[2]string]bool)
	for _, e := range all {
		if slices.ContainsFunc(unlock, func(u egress.Unlock) bool { return u.Name == e.Name }) {
			done[[2]string{e.Kind, e.Value}] = true
		}
	}
	return slices.DeleteFunc(all, func(e safedial.Escape) bool {
		thing := [2]string{e.Kind, e.Value}
		listed := done[thing]
		done[thing] = true
		return listed
	})
}

func (r *reader) locked(v *value, e safedial.Escape) {
	r.fail(v, "remove it; if it is really meant, `egress: {unlock: [{name: "+e.Name+", reason: ...}]}`", "leads out of the container: %s: %s", e.Name, e.Why)
}

// leadsTo reports whether a destination's host is an entry of the registry, as far as its text shows.
func leadsTo(host string, e safedial.Escape) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return false
	}
	switch e.Kind {
	case "port":
		return port == e.Value
	case "address", "name":
		return name == e.Value
	}
	return false
}

// isSocket reports whether a path is, or leads to, a socket of the registry: a path, perhaps with "*" for parts of it,
// or "*/" and a name that is meant in any folder.
func isSocket(path, value string) bool {
	run := path
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		run = "/run/" + rest // one folder wherever the file will be used, if not here (FHS 3.0, section 5.13)
	}
	for _, p := range []string{path, run, realPath(path)} {
		if name, anywhere := strings.CutPrefix(value, "*/"); anywhere {
			if strings.HasSuffix(p, "/"+name) {
				return true
			}
			continue
		}
		for _, v := range []string{value, realPath(value)} {
			if match, err := filepath.Match(v, p); err == nil && match {
				return true
			}
		}
	}
	return false
}

func realPaths(paths []string) []string {
	var out []string
	for _, p := range paths {
		out = append(out, realPath(p))
	}
	return out
}

// realPath follows the links of a clean absolute path, whether there is anything at its end or not: a socket is often made
// later.
func realPath(path string) string {
	const most = 40 // as the kernel, path_resolution(7)
	for range most {
		next, linked := followFirst(path)
		if !linked {
			return path
		}
		path = next
	}
	return path
}

// followFirst puts what the first link of a path leads to in its place.
func followFirst(path string) (string, bool) {
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		to, err := os.Readlink(path[:i])
		if err != nil {
			continue
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path[:i]), to)
		}
		return filepath.Join(to, path[i:]), true
	}
	return path, false
}
