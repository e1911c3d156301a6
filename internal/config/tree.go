package config

// kind is the shape of a value in the file.
type kind int

const (
	section  kind = iota // a mapping with the keys of key.keys
	table                // a mapping with keys that the writer chooses; values are key.item
	sequence             // a list of key.item
	choice               // one of key.alts: at most one for each shape (mapping, list, number, text)
	text                 // a string
	integer              // a decimal number
	boolean              // true or false
	fraction             // a number from 0 to 1
	duration             // 90s, 1h30m
	size                 // 10MiB
	date                 // 2027-06-01
	path                 // a file or folder; relative to the file
	address              // host:port or unix:PATH
	link                 // an absolute URL
	prefix               // 10.0.0.0/8
)

// key describes one key of the file: what may be written, what it means, and what follows when it is not written. The
// parser, the JSON Schema and the reference manual are all made from the same tree of keys.
type key struct {
	name     string
	kind     kind
	doc      string // what it is for: one line
	unset    string // what follows when it is not written; required keys have none
	def      string // the default, as one would write it
	example  string // a value, as one would write it (flow style)
	required bool
	unless   []string // required all the same, unless one of these keys beside it is written

	// What a value may be. The zero value restricts nothing.
	enum     []string
	enumHint map[string]string // why a word that people try is not in enum
	pattern  string            // the whole of the text matches; a subset that RE2 and ECMA 262 read alike
	shape    string            // what the pattern admits, after "must be"
	number   bool              // text that may be written as a bare decimal number
	dash     bool              // a path may be "-", standard output
	min, max int64             // integer: the number; duration: ns; size: bytes. Both 0: no bounds
	check    check             // what a pattern cannot say
	least    int               // how many entries a sequence must hold
	either   [][]string        // groups of a section's keys: exactly one group is written, with at least one of its keys
	say      string            // the hint where none is written

	keys  []key // of a section
	item  *key  // of a sequence or table
	names *key  // of a table: its keys
	alts  []key // of a choice
}

// check judges a value that has the right shape. It returns what is wrong with it, and what to write instead.
type check func(value string) (problem, hint string)

// child returns the key of a section.
func (k *key) child(name string) *key {
	for i := range k.keys {
		if k.keys[i].name == name {
			return &k.keys[i]
		}
	}
	return nil
}

// childNames lists the keys of a section.
func (k *key) childNames() []string {
	names := make([]string, len(k.keys))
	for i := range k.keys {
		names[i] = k.keys[i].name
	}
	return names
}

// each calls f for k and everything below it. The path has "[]" for the entries of a list and ".*" for those of a table.
func (k *key) each(path string, f func(path string, k *key)) {
	f(path, k)
	for i := range k.keys {
		below := k.keys[i].name
		if path != "" {
			below = path + "." + below
		}
		k.keys[i].each(below, f)
	}
	for i := range k.alts {
		k.alts[i].each(path, f)
	}
	if k.item != nil {
		if k.kind == table {
			k.item.each(path+".*", f)
		} else {
			k.item.each(path+"[]", f)
		}
	}
}
