package safedial

import (
	_ "embed"
	"encoding/csv"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Escape is one line of the escape-target registry: what leads out of a container or
// into the cloud's account. A Name may have several lines; Unlock lifts them all.
type Escape struct {
	Name   string // stable, lower case with dashes
	Kind   string // "address", "port", "name", "socket" or "computed"
	Value  string // an address; a port, at any address; a host's name; a socket's path, perhaps with "*"; what is looked up on this machine
	Why    string // what it gives to who reaches it
	Source string // who says so
}

func (e Escape) reason() string { return fmt.Sprintf("%s: %s (%s)", e.Name, e.Why, e.Source) }

// The kinds of an Escape.
const (
	kindAddress  = "address"
	kindPort     = "port"
	kindName     = "name"
	kindSocket   = "socket"
	kindComputed = "computed"
)

// Escapes returns the escape-target registry, in its order. Its entries stay refused
// under any Allow, until Unlock names them.
func Escapes() []Escape { return slices.Clone(registry().list) }

//go:embed escapes.csv
var escapesCSV string

// targets is escapes.csv, read.
type targets struct {
	list      []Escape
	known     map[string]bool
	addresses map[netip.Addr][]Escape
	ports     map[uint16][]Escape
	names     map[string][]Escape
	sockets   []Escape
	computed  map[string][]Escape
}

// registry reads escapes.csv once. The file is part of the program: a line that
// cannot be read is a defect that the first use shows.
var registry = sync.OnceValue(func() *targets {
	t, err := readEscapes(escapesCSV)
	if err != nil {
		panic("safedial: escapes.csv: " + err.Error())
	}
	return t
})

func readEscapes(text string) (*targets, error) {
	r := csv.NewReader(strings.NewReader(text))
	r.Comment, r.FieldsPerRecord = '#', 5
	records, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	t := &targets{known: map[string]bool{}, addresses: map[netip.Addr][]Escape{}, ports: map[uint16][]Escape{}, names: map[string][]Escape{}, computed: map[string][]Escape{}}
	for _, record := range records {
		e := Escape{record[0], record[1], record[2], record[3], record[4]}
		if err := t.add(e); err != nil {
			return nil, fmt.Errorf("%q, %q: %w", e.Name, e.Value, err)
		}
		t.list = append(t.list, e)
		t.known[e.Name] = true
	}
	return t, nil
}

func (t *targets) add(e Escape) error {
	if e.Name == "" || strings.Trim(e.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return errors.New("the name is not lower case with dashes")
	}
	if e.Why == "" || e.Source == "" {
		return errors.New("lacks why or source")
	}
	switch e.Kind {
	case kindAddress:
		address, err := netip.ParseAddr(e.Value)
		if err != nil || address.Unmap().String() != e.Value {
			return errors.New("not an address in its usual notation")
		}
		t.addresses[address] = append(t.addresses[address], e)
	case kindPort:
		port, err := strconv.ParseUint(e.Value, 10, 16)
		if err != nil || port == 0 {
			return errors.New("not a port")
		}
		t.ports[uint16(port)] = append(t.ports[uint16(port)], e)
	case kindName:
		if _, err := netip.ParseAddr(e.Value); err == nil || ambiguous(e.Value) != "" || strings.ToLower(e.Value) != e.Value {
			return errors.New("not a name in lower case")
		}
		t.names[e.Value] = append(t.names[e.Value], e)
	case kindSocket:
		if _, err := path.Match(e.Value, "/"); err != nil || !strings.HasPrefix(e.Value, "/") && !strings.HasPrefix(e.Value, "*/") {
			return errors.New(`not an absolute path or "*/name"`)
		}
		t.sockets = append(t.sockets, e)
	case kindComputed:
		if e.Value != computedRoutes && !strings.HasPrefix(e.Value, "$") {
			return errors.New("nothing that is computed here")
		}
		t.computed[e.Value] = append(t.computed[e.Value], e)
	default:
		return errors.New("an unknown kind")
	}
	return nil
}

// escape returns the entry that refuses host, one of the readings of its address, or
// port; the zero Escape if none does. Lines with the same value are one thing with
// several names, and each of these unlocks it; different things are unlocked each.
func (r *rules) escape(host string, all []netip.Addr, port uint16) (Escape, error) {
	t := registry()
	if e, locked := r.locked(t.names[strings.ToLower(host)]); locked {
		return e, nil
	}
	for _, address := range all {
		if e, locked := r.locked(t.addresses[address]); locked {
			return e, nil
		}
	}
	if e, locked := r.locked(t.ports[port]); locked {
		return e, nil
	}
	for _, target := range r.around.look().targets {
		e, locked := r.locked(target.entries)
		switch {
		case !locked:
		case target.broken != nil && len(all) > 0:
			return Escape{}, target.broken
		case target.leads(host, all, port):
			return e, nil
		}
	}
	return Escape{}, nil
}

// CheckSocket decides about the path of a Unix socket: nil, or a *DeniedError if the
// registry has it. The path must be the real one, without symbolic links. A socket
// that is mounted at another place is known by its file name only.
func (g *Guard) CheckSocket(file string) error {
	r, err := g.prepared()
	if err != nil {
		return err
	}
	refuse := func(e Escape) error {
		return &DeniedError{Host: file, Code: CodeEscapeTarget, Entry: e.Name, Reason: e.reason()}
	}
	for _, e := range registry().sockets {
		if !r.unlocked[e.Name] && isSocket(e.Value, file) {
			return refuse(e)
		}
	}
	for _, target := range r.around.look().targets {
		if e, locked := r.locked(target.entries); locked && target.path != "" && isSocket(target.path, file) {
			return refuse(e)
		}
	}
	return nil
}

// isSocket matches a path with a pattern of the registry. /var/run is /run under
// another name, on nearly every system.
func isSocket(pattern, file string) bool {
	if name, ok := strings.CutPrefix(pattern, "*/"); ok {
		return path.Base(file) == name
	}
	plain := func(s string) string {
		s = path.Clean(s)
		if rest, ok := strings.CutPrefix(s, "/var/run/"); ok {
			s = "/run/" + rest
		}
		return s
	}
	matched, err := path.Match(plain(pattern), plain(file))
	return matched && err == nil
}

// locked returns the first of the entries, unless one of them is unlocked.
func (r *rules) locked(entries []Escape) (Escape, bool) {
	for _, e := range entries {
		if r.unlocked[e.Name] {
			return Escape{}, false
		}
	}
	if len(entries) == 0 {
		return Escape{}, false
	}
	return entries[0], true
}
