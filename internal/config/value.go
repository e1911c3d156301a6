package config

import (
	"net/netip"
	"net/url"
	"time"

	"go.yaml.in/yaml/v4"
)

// value is one place of the file: what the tree says of it, and what stands there. A key that is not written has a
// value too, so that sections can be read without asking first; its accessors return zero values.
type value struct {
	key    *key   // of a choice: the alternative that was chosen
	name   string // ingress.issuers[0].audience
	line   int    // where it stands, or where its section stands when it is not written
	column int
	isSet  bool
	ok     bool // written, and nothing is wrong with it or below it

	raw     string            // of a scalar: as written
	data    any               // of a scalar: string, int64, float64, bool, time.Duration, time.Time, *url.URL or netip.Prefix
	fields  map[string]*value // of a section
	entries []*value          // of a sequence or table, in the order of the file
	names   []string          // of a table: the key of each entry
}

// get returns what a section says for a key.
func (v *value) get(name string) *value {
	if f := v.fields[name]; f != nil {
		return f
	}
	return &value{name: join(v.name, name), line: v.line, column: v.column}
}

func (v *value) text() string            { s, _ := v.data.(string); return s }
func (v *value) number() int64           { n, _ := v.data.(int64); return n }
func (v *value) fraction() float64       { f, _ := v.data.(float64); return f }
func (v *value) yes() bool               { b, _ := v.data.(bool); return b }
func (v *value) duration() time.Duration { d, _ := v.data.(time.Duration); return d }
func (v *value) time() time.Time         { t, _ := v.data.(time.Time); return t }
func (v *value) url() *url.URL           { u, _ := v.data.(*url.URL); return u }
func (v *value) prefix() netip.Prefix    { p, _ := v.data.(netip.Prefix); return p }

// texts returns a list of texts without those that are wrong. It is nil when nothing is written or the list is empty.
func (v *value) texts() []string {
	var out []string
	for _, e := range v.entries {
		if e.ok {
			out = append(out, e.text())
		}
	}
	return out
}

// is reports whether the value was written in the given shape: which alternative of a choice it is.
func (v *value) is(k kind) bool { return v.isSet && v.key != nil && v.key.kind == k }

// wrong reports whether something was written, and refused.
func (v *value) wrong() bool { return v.isSet && !v.ok }

// place gives a value the position of a node.
func (v *value) place(n *yaml.Node) { v.line, v.column = max(n.Line, 1), max(n.Column, 1) }
