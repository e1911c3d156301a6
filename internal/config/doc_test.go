package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestManual holds doc/configuration.md to the tree. With -update it is written anew.
func TestManual(t *testing.T) {
	path := filepath.Join("..", "..", "doc", "configuration.md")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, path, manual(t))
}

// manual is the reference manual: rules, one file that shows each key, and one table for each section.
func manual(t *testing.T) []byte {
	var b bytes.Buffer
	root := describe()
	fmt.Fprintf(&b, `# Configuration

<!-- Made from internal/config/describe.go: go test ./internal/config -run TestManual -update -->

One YAML file, read by every command that takes %[1]s-c FILE%[1]s. %[1]ssallyport check%[1]s says everything that is wrong with it, with line,
column and what to write instead; %[1]ssallyport check --schema%[1]s prints its JSON Schema, with which an editor completes and
explains each key:

    sallyport check --schema > sallyport.schema.json
    # and as the first line of sallyport.yaml:
    # yaml-language-server: $schema=sallyport.schema.json

The shortest file that does something:

%[1]s%[1]s%[1]syaml
%[2]s%[1]s%[1]s%[1]s

## Rules

- **Unset means closed.** What opens something is written out. Each key below says what follows when it is not written.
- **Unknown keys are errors**, and so are keys written twice, keys without a value, and lists that hold an entry twice.
- **The file is what it looks like.** Aliases, anchors, tags, merge keys, directives, a second document, tabs as
  indentation, control characters and marks that turn the direction of text are errors. It is UTF-8 without a byte order
  mark, at most 1 MiB, and nested at most %[3]d deep.
- **Paths** are relative to the folder of the file. %[1]s~%[1]s, variables and patterns are not expanded.
- **Durations** have units: %[1]s500ms%[1]s, %[1]s30s%[1]s, %[1]s5m%[1]s, %[1]s1h30m%[1]s. **Sizes** too: %[1]s512B%[1]s, %[1]s64KiB%[1]s, %[1]s10MiB%[1]s, %[1]s1GiB%[1]s. **Dates** are %[1]s2027-06-01%[1]s, in UTC.
- **Text that looks like something else** (%[1]s3000%[1]s, %[1]strue%[1]s) is written in quotes.
- **Secrets are not written here.** No key takes one, and a variable of %[1]ssandbox.env.set%[1]s that looks like one is an error:
  pass it on from the environment by name, or set the name of a file that holds it.
`, "`", read(t, "testdata/least.good.yml"), maxDepth)
	sections(&b, root, "")
	fmt.Fprintf(&b, "\n## Every key\n\n```yaml\n%s```\n", read(t, "testdata/full.good.yml"))
	return b.Bytes()
}

// sections writes a table for a section and then for those below it.
func sections(b *bytes.Buffer, k *key, path string) {
	if k.kind == section {
		title := path
		if path == "" {
			title = "top level"
		}
		fmt.Fprintf(b, "\n## %s\n\n", title)
		if k.doc != "" && path != "" {
			fmt.Fprintf(b, "%s", k.doc)
			if k.unset != "" {
				fmt.Fprintf(b, " Not written: %s.", k.unset)
			}
			b.WriteString("\n\n")
		}
		b.WriteString("| key | value | for example | what it is for | not written |\n|---|---|---|---|---|\n")
		for i := range k.keys {
			row(b, &k.keys[i])
		}
	}
	for i := range k.keys {
		sections(b, &k.keys[i], join(path, k.keys[i].name))
	}
	for i := range k.alts {
		sections(b, &k.alts[i], path)
	}
	if k.item != nil && k.kind == sequence {
		sections(b, k.item, path+"[]")
	}
}

func row(b *bytes.Buffer, k *key) {
	example := ""
	if k.kind != section && (k.item == nil || k.item.kind != section) {
		example = "`" + k.example + "`"
	}
	unset := k.unset
	if k.required {
		unset = "**required**"
	}
	fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", k.name, valueOf(k), example, k.doc, unset)
}

// valueOf says what a key takes.
func valueOf(k *key) string {
	var s string
	switch k.kind {
	case sequence:
		switch {
		case k.item.kind == section:
			s = "a list of mappings"
		default:
			s = "a list of " + valueOf(k.item)
		}
		if k.least > 0 {
			s += ", not empty"
		}
		return s
	case table:
		return "a mapping of names to text"
	case choice:
		alts := make([]string, len(k.alts))
		for i := range k.alts {
			alts[i] = valueOf(&k.alts[i])
		}
		return strings.Join(alts, ", or ")
	}
	s = k.describe()
	if k.shape != "" {
		s = k.shape
	}
	switch {
	case k.kind == integer && k.max > k.min:
		s += fmt.Sprintf(", %d to %d", k.min, k.max)
	case k.kind == integer && k.max != 0:
		s = fmt.Sprintf("`%d`", k.min)
	case k.kind == size && k.max != 0:
		s += fmt.Sprintf(", %s to %s", amount(k.min), amount(k.max))
	case k.kind == duration && k.max != 0:
		s += fmt.Sprintf(", %s to %s", span(time.Duration(k.min)), span(time.Duration(k.max)))
	}
	return s
}
