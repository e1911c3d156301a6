package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// reader reads nodes as the tree describes them, and collects what is wrong.
type reader struct {
	source
	root     *key
	errs     Errors
	warnings Errors
	patterns map[string]*regexp.Regexp // compiled when first needed
}

// fail reports an error at a value, and marks it.
func (r *reader) fail(v *value, hint, format string, args ...any) {
	v.ok = false
	r.errs = append(r.errs, &Error{r.name, v.line, v.column, v.name, fmt.Sprintf(format, args...), hint})
}

// warn reports what is not an error and yet should be known.
func (r *reader) warn(v *value, hint, format string, args ...any) {
	r.warnings = append(r.warnings, &Error{r.name, v.line, v.column, v.name, fmt.Sprintf(format, args...), hint})
}

// read reads the node of a key. Everything that is wrong below it has been reported when it returns.
func (r *reader) read(k *key, name string, n *yaml.Node) *value {
	v := &value{key: k, name: name, isSet: true, ok: true}
	v.place(n)
	if !r.plainNode(v, n) {
		return v
	}
	if k.kind == choice {
		if v.key = k.alternative(n); v.key == nil {
			v.key = k
			r.fail(v, k.exampleHint(), "must be %s, not %s", k.describe(), describeNode(n))
			return v
		}
		k = v.key
	}
	if want := k.nodeKind(); n.Kind != want {
		hint := k.exampleHint()
		if want == yaml.SequenceNode && n.Kind == yaml.ScalarNode {
			hint = "a list of one is written in brackets: `[...]`"
		}
		r.fail(v, hint, "must be %s, not %s", k.describe(), describeNode(n))
		return v
	}
	switch k.kind {
	case section:
		r.section(v, n)
	case table:
		r.table(v, n)
	case sequence:
		r.sequence(v, n)
	default:
		r.scalar(v, n)
	}
	return v
}

// plainNode refuses what YAML has and a configuration does not need: nothing in the file stands for something that is
// written elsewhere or is other than it looks.
func (r *reader) plainNode(v *value, n *yaml.Node) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		r.fail(v, "write the value out", "aliases are not read")
	case n.Anchor != "":
		r.fail(v, fmt.Sprintf("remove the &%s", n.Anchor), "anchors are not read")
	case n.Style&yaml.TaggedStyle != 0, n.Tag == "!":
		r.fail(v, "remove the tag; text that looks like a number is written in quotes", "tags are not read")
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		hint := "give it a value, or remove the key"
		if v.key.unset != "" {
			hint += ": then " + v.key.unset
		}
		r.fail(v, hint, "has no value")
	default:
		return true
	}
	return false
}

// pairs calls f for each key of a mapping that is plain text and not a repetition.
func (r *reader) pairs(v *value, n *yaml.Node, f func(name *value, at, node *yaml.Node)) {
	first := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		at := n.Content[i]
		name := &value{key: &key{kind: text}, name: join(v.name, at.Value), ok: true}
		name.place(at)
		switch {
		case at.Kind == yaml.ScalarNode && at.ShortTag() == "!!merge":
			r.fail(name, "write the keys out", "merge keys are not read")
		case at.Kind != yaml.ScalarNode || at.Anchor != "" || at.Style&yaml.TaggedStyle != 0 || at.ShortTag() != "!!str":
			name.name = v.name
			hint := ""
			if at.Kind == yaml.ScalarNode {
				hint = "a key that looks like a number is written in quotes"
			}
			r.fail(name, hint, "a key must be plain text")
		case first[at.Value] != 0:
			r.fail(name, "keep one of them", "written twice: first on line %d", first[at.Value])
		default:
			first[at.Value] = name.line
			f(name, at, n.Content[i+1])
		}
		v.ok = v.ok && name.ok
	}
}

func (r *reader) section(v *value, n *yaml.Node) {
	v.fields = make(map[string]*value, len(v.key.keys))
	unknown := false
	misspelt := make(map[string]bool) // what an unknown key probably means, and so is not reported missing
	r.pairs(v, n, func(name *value, at, node *yaml.Node) {
		if k := v.key.child(at.Value); k != nil {
			f := r.read(k, name.name, node)
			v.fields[at.Value] = f
			v.ok = v.ok && f.ok
			return
		}
		meant := nearest(at.Value, v.key.childNames())
		unknown, misspelt[meant] = true, true
		r.fail(name, r.unknownHint(v.key, at.Value, meant), "unknown key")
	})
	if !unknown {
		r.either(v)
	}
	for i := range v.key.keys {
		k := &v.key.keys[i]
		if v.needs(k) && v.fields[k.name] == nil && !misspelt[k.name] {
			missing := &value{name: join(v.name, k.name), line: v.line, column: v.column}
			r.fail(missing, k.exampleHint(), "is required")
			v.ok = false
		}
	}
}

// needs reports whether a section is not whole without a key.
func (v *value) needs(k *key) bool {
	written := func(name string) bool { return v.fields[name] != nil }
	return k.required || len(k.unless) > 0 && !slices.ContainsFunc(k.unless, written)
}

// either checks that exactly one of the groups of keys that exclude each other is there.
func (r *reader) either(v *value) {
	var names []string
	var found []*value // the first of each group that is there
	for _, group := range v.key.either {
		names = append(names, group...)
		for _, name := range group {
			if f := v.fields[name]; f != nil {
				found = append(found, f)
				break
			}
		}
	}
	switch {
	case len(v.key.either) == 0 || len(found) == 1:
	case len(found) == 0:
		r.fail(v, v.key.say, "must say %s", list(names))
	default:
		r.fail(found[1], "remove one of the two", "excludes %s", found[0].name)
		v.ok = false
	}
}

// unknownHint says what was probably meant, or where the key belongs, or what there is.
func (r *reader) unknownHint(k *key, name, meant string) string {
	if meant != "" {
		return didYouMean(meant)
	}
	var places []string
	r.root.each("", func(at string, k *key) {
		if k.kind == section && k.child(name) != nil {
			places = append(places, join(at, name))
		}
	})
	if len(places) > 0 && len(places) <= 3 {
		return "it belongs elsewhere: " + list(places)
	}
	return "keys here are " + list(k.childNames())
}

func (r *reader) table(v *value, n *yaml.Node) {
	r.pairs(v, n, func(name *value, at, node *yaml.Node) {
		name.key, name.data = v.key.names, at.Value
		if problem, hint := r.judge(v.key.names, at.Value); problem != "" {
			r.fail(name, hint, "%s", problem)
			return
		}
		e := r.read(v.key.item, name.name, node)
		v.names, v.entries = append(v.names, at.Value), append(v.entries, e)
		v.ok = v.ok && e.ok
	})
}

func (r *reader) sequence(v *value, n *yaml.Node) {
	first := make(map[string]int, len(n.Content))
	for i, node := range n.Content {
		e := r.read(v.key.item, fmt.Sprintf("%s[%d]", v.name, i), node)
		if node.Kind == yaml.ScalarNode && e.ok {
			if before, again := first[node.Value]; again {
				r.fail(e, "keep one of them", "the same as entry %d", before)
			} else {
				first[node.Value] = i
			}
		}
		v.entries = append(v.entries, e)
		v.ok = v.ok && e.ok
	}
	if len(n.Content) < v.key.least {
		hint := v.key.exampleHint()
		if v.key.unset != "" {
			hint = "name at least one, or remove the key: then " + v.key.unset
		}
		r.fail(v, hint, "the list is empty")
	}
}

// alternative selects what a choice reads a node as: by its shape alone, so that an error can be about what was meant.
func (k *key) alternative(n *yaml.Node) *key {
	number := n.Kind == yaml.ScalarNode && n.ShortTag() == "!!int"
	var found *key
	for i := range k.alts {
		alt := &k.alts[i]
		if alt.nodeKind() == n.Kind && (found == nil || number == (alt.kind == integer)) {
			found = alt
		}
	}
	return found
}

func (k *key) nodeKind() yaml.Kind {
	switch k.kind {
	case section, table:
		return yaml.MappingNode
	case sequence:
		return yaml.SequenceNode
	default:
		return yaml.ScalarNode
	}
}

// describe says what a value of the key must be, in words.
func (k *key) describe() string {
	switch k.kind {
	case section, table:
		return "a mapping"
	case sequence:
		return "a list"
	case integer:
		return "a number"
	case boolean:
		return "true or false"
	case fraction:
		return "a number from 0 to 1"
	case duration:
		return "a duration"
	case size:
		return "a size"
	case date:
		return "a date"
	case path:
		return "a path"
	case address:
		return "an address"
	case link:
		return "a URL"
	case prefix:
		return "an address range"
	case choice:
		words := make([]string, len(k.alts))
		for i := range k.alts {
			words[i] = k.alts[i].describe()
		}
		return strings.Join(words, " or ")
	}
	if len(k.enum) > 0 {
		return list(k.enum)
	}
	return "text"
}

// describeNode says what stands in the file, without its value: that may be a secret.
func describeNode(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!timestamp":
		return "a date"
	}
	return "text"
}

// exampleHint shows how the key is written.
func (k *key) exampleHint() string {
	if k.example == "" {
		return ""
	}
	if k.name == "" {
		return fmt.Sprintf("for example `%s`", k.example)
	}
	return fmt.Sprintf("for example `%s: %s`", k.name, k.example)
}

// join writes the path of a key below another; names that are not plain are quoted.
func join(parent, name string) string {
	plain := name != "" && len(name) <= 60
	for _, c := range []byte(name) {
		plain = plain && (c == '_' || c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z')
	}
	switch {
	case !plain:
		return parent + "[" + quote(name) + "]"
	case parent == "":
		return name
	}
	return parent + "." + name
}

// digits reports whether s is a decimal number as the file writes it: no sign, no leading zero.
func digits(s string) (int64, bool) {
	if s == "" || len(s) > 1 && s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}
