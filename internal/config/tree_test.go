package config

import (
	"bytes"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// keyPaths are the paths of all keys of the file as the tree has them, in its order.
func keyPaths() []string {
	var paths []string
	describe().each("", func(path string, k *key) {
		if k.name != "" {
			paths = append(paths, path)
		}
	})
	return paths
}

// TestEveryKeyIsDocumented holds the tree to what the manual needs of it.
func TestEveryKeyIsDocumented(t *testing.T) {
	seen := make(map[string]bool)
	describe().each("", func(path string, k *key) {
		if k.name == "" {
			return
		}
		if seen[path] {
			t.Errorf("%s: described twice", path)
		}
		seen[path] = true
		switch {
		case k.doc == "" || !strings.HasSuffix(k.doc, "."):
			t.Errorf("%s: its doc must be a sentence: %q", path, k.doc)
		case strings.ContainsAny(k.doc+k.unset+k.def+k.example, "\n|"):
			t.Errorf("%s: its texts must be of one line, and hold no |", path)
		case k.required == (k.unset != ""):
			t.Errorf("%s: required keys have no unset, all others say what follows", path)
		case k.example == "":
			t.Errorf("%s: no example", path)
		}
	})
}

// TestExamplesAndDefaults reads each example and each default of the tree as if it stood in a file.
func TestExamplesAndDefaults(t *testing.T) {
	root := describe()
	root.each("", func(path string, k *key) {
		for what, written := range map[string]string{"example": k.example, "default": k.def} {
			if written == "" || path == "ingress" {
				continue // the example of ingress is an outline
			}
			var doc yaml.Node
			if err := yaml.Load([]byte(written), &doc); err != nil {
				t.Errorf("%s: %s: %v", path, what, err)
				continue
			}
			r := &reader{source: source{name: what, dir: "/etc"}, root: root, patterns: map[string]*regexp.Regexp{}}
			if v := r.read(k, path, doc.Content[0]); !v.ok {
				t.Errorf("%s: %s: %v", path, what, r.errs)
			}
		}
		if strings.Contains(k.def, "]") || k.def == "" {
			return
		}
		if k.example == k.def && path != "keys.algorithm" {
			t.Errorf("%s: the example is the default: it shows nothing", path)
		}
	})
}

// shapePath turns the path of a value into that of its key: entries into "[]", names of a table into "*".
func shapePath(path string) string {
	path = regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "[]")
	return regexp.MustCompile(`^sandbox\.env\.set\..*`).ReplaceAllString(path, "sandbox.env.set")
}

// pairAt is one key of a document, and how to take it out.
type pairAt struct {
	path    string
	mapping *yaml.Node
	index   int
}

func pairsOf(n *yaml.Node, path string) []pairAt {
	var out []pairAt
	for i, c := range n.Content {
		switch {
		case n.Kind == yaml.SequenceNode:
			out = append(out, pairsOf(c, fmt.Sprintf("%s[%d]", path, i))...)
		case n.Kind == yaml.MappingNode && i%2 == 0:
			below := join(path, c.Value)
			out = append(out, pairAt{below, n, i})
			out = append(out, pairsOf(n.Content[i+1], below)...)
		}
	}
	return out
}

// TestEveryKeyHasEffect: full.good.yml holds every key of the tree, full-local.good.yml those that exclude some of them,
// and the file without any one of them is another configuration, or none. A key that is described and not decoded fails here.
func TestEveryKeyHasEffect(t *testing.T) {
	written := make(map[string]bool)
	effect := make(map[string]bool)
	withoutEach(t, "testdata/full.good.yml", written, effect)
	withoutEach(t, "testdata/full-local.good.yml", written, effect)
	for _, path := range keyPaths() {
		switch {
		case !written[path]:
			t.Errorf("%s: described, and not in full.good.yml", path)
		case !effect[path] && path != "keys.algorithm": // there is but one
			t.Errorf("%s: without it the file means the same: it is not decoded", path)
		}
		delete(written, path)
	}
	for path := range written {
		t.Errorf("%s: in full.good.yml, and not described", path)
	}
}

// withoutEach notes which keys a file has, and which of them it would be another without.
func withoutEach(t *testing.T, name string, written, effect map[string]bool) {
	t.Helper()
	data := read(t, name)
	full, err := parseFixture("full", data)
	if err != nil {
		t.Fatal(err)
	}
	root, errs := load("full", data)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for _, p := range pairsOf(root, "") {
		path := shapePath(p.path)
		written[path] = true
		before := p.mapping.Content
		p.mapping.Content = slices.Delete(slices.Clone(before), p.index, p.index+2)
		var without bytes.Buffer
		enc := yaml.NewEncoder(&without)
		if err := enc.Encode(root); err != nil {
			t.Fatal(err)
		}
		p.mapping.Content = before
		f, err := parseFixture("full", without.Bytes())
		if err != nil || !reflect.DeepEqual(unpoliced(f), unpoliced(full)) {
			effect[path] = true
		}
	}
}

// unpoliced is a copy without the compiled policy, which is made from Routes.
func unpoliced(f *File) File {
	g := *f
	g.Ingress.Policy = nil
	return g
}

// TestEveryFieldIsDecoded: full.good.yml, and full-local.good.yml beside it, leave no field of File zero. A field that no
// key fills fails here.
func TestEveryFieldIsDecoded(t *testing.T) {
	never := []string{
		"File.Warnings",                      // full.good.yml is without fault
		"File.Sandbox.Limits.Core",           // always 0
		"File.Sandbox.Proxy",                 // known when egress.listen is open
		"File.Sandbox.Learn",                 // no file turns the file rules off; run --learn does
		"File.Ingress.Upstream.*",            // a *url.URL
		"File.Ingress.Hops[].Keys.Discovery", // a gate has no metadata
		"File.Ingress.Hops[].Keys.CAFile",    // nor roots of its own
		"File.Ingress.Hops[].Keys.TokenFile",
		"File.Audit.Sign",             // what is wired, not written
		"File.Ingress.Routes[].Local", // our own, which no file writes
		"File.Audit.Observe",
	}
	zero := make(map[string]bool)
	for _, name := range []string{"testdata/full.good.yml", "testdata/full-local.good.yml"} {
		f, err := parseFixture("full", read(t, name))
		if err != nil {
			t.Fatal(err)
		}
		zeroFields(reflect.ValueOf(*f), "File", zero)
	}
	for path, isZero := range zero {
		if isZero && !slices.ContainsFunc(never, func(n string) bool {
			prefix, all := strings.CutSuffix(n, "*")
			return n == path || all && strings.HasPrefix(path, prefix)
		}) {
			t.Errorf("%s: no key of full.good.yml fills it", path)
		}
	}
}

// zeroFields notes for each field whether it is zero in every place where it occurs.
func zeroFields(v reflect.Value, path string, zero map[string]bool) {
	if was, seen := zero[path]; !seen || was {
		zero[path] = v.IsZero() || v.Kind() == reflect.Slice && v.Len() == 0
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			zeroFields(v.Elem(), path, zero)
		}
	case reflect.Slice:
		for i := range v.Len() {
			zeroFields(v.Index(i), path+"[]", zero)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				zeroFields(v.Field(i), path+"."+f.Name, zero)
			}
		}
	}
}
