package learn

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// observed makes up what a service did from bytes. Half of the parts of its paths are such that matter.
func observed(data []byte) (s Seen) {
	words := []string{"etc", "shadow", "app", "srv", "data", "tmp", "usr", "bin", "sh", "tool", ".ssh", ".aws", "proc", "[pid]", "self", "environ", "sys", "dev", "sda", "run",
		"secrets", "kubernetes.io", "keys", "home", "u", "var", "lib", "a", "b", "c", "docker.sock", "x", "release_agent", "fs", "cgroup", "node_modules", ".npmrc", "curl", "own"}
	next := func() int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b)
	}
	path := func() string {
		var parts []string
		for range next()%5 + 1 {
			w := words[next()%len(words)]
			if n := next(); n > 240 && len(data) > 3 {
				w = strings.Map(func(r rune) rune {
					if r == '/' || r == 0 {
						return 'q'
					}
					return r
				}, string(data[:3]))
				data = data[3:]
				if w == "." || w == ".." || w == "" {
					w = "q"
				}
			}
			parts = append(parts, w)
		}
		return "/" + strings.Join(parts, "/")
	}
	s.Needs = map[string][]Opened{}
	for len(data) > 0 {
		switch kind := next(); kind % 8 {
		case 0:
			s.Sockets = append(s.Sockets, path())
		case 1, 2:
			a := netip.AddrFrom4([4]byte{byte(next()), byte(next()), byte(next()), byte(next())})
			c := Connect{To: netip.AddrPortFrom(a, uint16([]int{443, 80, 53, 2375, 5432, 0, 10250, next()}[next()%8])), Refused: kind > 250}
			for range next() % 3 {
				c.Names = append(c.Names, strings.Trim(strings.ReplaceAll(path(), "/", "."), "."))
			}
			s.Connects = append(s.Connects, c)
		default:
			bits := next()
			o := Opened{Path: path(), Read: bits&1 != 0, Write: bits&2 != 0, Execute: bits&4 != 0, Folder: bits&8 != 0, Made: bits&0x18 == 0x18,
				Block: bits&0xe0 == 0x20, Refused: bits&0xe0 == 0x40, Gone: bits&0xe0 == 0x60}
			s.Opened = append(s.Opened, o)
			if o.Execute && bits&0xe0 == 0x80 {
				s.Needs[o.Path] = []Opened{{Path: path(), Read: true, Execute: true}, {Path: path(), Read: true, Folder: true}}
			}
		}
	}
	return s
}

// Whatever a service did: the profile can be read, allows nothing that is dangerous, and nothing both to be written and
// executed; and what is not in it is in a comment.
func FuzzProfile(f *testing.F) {
	f.Add([]byte("\x03\x01\x02\x00\x00\x01\x00"))
	f.Add([]byte{3, 1, 1, 3, 0, 4, 0, 3, 1, 1, 3, 0, 27, 0, 3, 2, 2, 3, 0, 4, 0, 30, 0, 0, 2, 19, 0, 30, 0})
	f.Add([]byte{3, 7, 3, 6, 0, 7, 0, 8, 0, 3, 2, 1, 3, 0, 3, 2, 0, 3, 0, 4, 0, 9, 0, 1, 169, 254, 169, 254, 0, 1})
	f.Add([]byte("\x03\x01\x02\x03\x00\x04\x00\xffa'b\x03\x09\x01\x03\xffa\nb#"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 2000 {
			return
		}
		r, f := learnFrom(t, observed(data))
		allowed := func(list []string, path string) bool {
			return slices.ContainsFunc(list, func(a string) bool { return within(path, a) })
		}
		box := f.Sandbox
		for _, o := range observed(data).Opened {
			reads := slices.Concat(box.Read, box.Write, box.Execute)
			for _, a := range []struct {
				on     bool
				letter byte
				list   []string
			}{{o.Read, 'r', reads}, {o.Write, 'w', box.Write}, {o.Execute, 'x', box.Execute}} {
				if a.on && (o.Block || Dangerous(a.letter, o.Path) != "") && allowed(a.list, o.Path) {
					t.Errorf("%c %s is dangerous, and allowed\n%s", a.letter, o.Path, r.YAML)
				}
			}
			lost := o.Read && !allowed(reads, o.Path) || o.Write && !o.Made && !allowed(box.Write, o.Path) || o.Execute && !o.Folder && !allowed(box.Execute, o.Path)
			if lost && !strings.Contains(string(r.YAML), ": "+comment(o.Path)+": ") && !strings.HasPrefix(o.Path, "/proc") && r.LeftOut <= mostLines {
				t.Errorf("%+v is nowhere\n%s", o, r.YAML)
			}
		}
		for _, w := range box.Write {
			if slices.ContainsFunc(slices.Concat(box.Execute, given().Programs), func(x string) bool { return within(x, w) || within(w, x) }) {
				t.Errorf("%s may be written and executed\n%s", w, r.YAML)
			}
			if slices.ContainsFunc(given().Private, func(q string) bool { return within(q, w) || within(w, q) }) {
				t.Errorf("%s is ours\n%s", w, r.YAML)
			}
			if slices.Contains(roots(), w) && w != "/tmp" && w != "/dev/shm" {
				t.Errorf("%s may be written as a whole\n%s", w, r.YAML)
			}
		}
		for _, d := range f.Egress.Rules.Destinations {
			for _, h := range d.Hosts {
				if a, err := netip.ParseAddrPort(h); err == nil && given().Guard.Check("", a) != nil {
					t.Errorf("%s is a destination\n%s", h, r.YAML)
				}
			}
		}
		for _, s := range box.Sockets {
			if given().Guard.CheckSocket(s) != nil {
				t.Errorf("%s may be connected to\n%s", s, r.YAML)
			}
		}
	})
}
