package config

import (
	"encoding/json"
	"fmt"

	"go.yaml.in/yaml/v4"
)

// Schema is the JSON Schema (draft 2020-12) of the file. It admits all that Read admits; Read refuses more: what takes
// two keys to see, and what a pattern cannot say.
func Schema() []byte {
	s := describe().schema()
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "sallyport configuration"
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		// Strings, numbers, lists and maps of them: encoding/json has no error for these.
		panic(fmt.Sprintf("encode the schema: %v", err))
	}
	return append(out, '\n')
}

// schema describes one key to an editor.
func (k *key) schema() map[string]any {
	s := make(map[string]any)
	if d := k.description(); d != "" {
		s["description"] = d
	}
	switch k.kind {
	case section:
		k.sectionSchema(s)
	case table:
		s["type"] = "object"
		s["additionalProperties"] = k.item.schema()
		s["propertyNames"] = map[string]any{"pattern": k.names.patternOf()}
	case sequence:
		s["type"], s["items"] = "array", k.item.schema()
		if k.item.nodeKind() == yaml.ScalarNode {
			s["uniqueItems"] = true
		}
		if k.least > 0 {
			s["minItems"] = k.least
		}
	case choice:
		alts := make([]any, len(k.alts))
		for i := range k.alts {
			alts[i] = k.alts[i].schema()
		}
		s["oneOf"] = alts
	case integer:
		s["type"] = "integer"
		if k.min != 0 || k.max != 0 {
			s["minimum"], s["maximum"] = k.min, k.max
		}
	case boolean:
		s["type"] = "boolean"
	case fraction:
		s["type"], s["minimum"], s["maximum"] = "number", 0, 1
	default:
		k.textSchema(s)
	}
	if k.def != "" {
		s["default"] = k.literal(k.def)
	}
	if k.example != "" && k.kind != section {
		s["examples"] = []any{k.literal(k.example)}
	}
	return s
}

func (k *key) sectionSchema(s map[string]any) {
	properties := make(map[string]any, len(k.keys))
	required, unless, others := []string{}, []string{}, []string(nil)
	for i := range k.keys {
		properties[k.keys[i].name] = k.keys[i].schema()
		if k.keys[i].required {
			required = append(required, k.keys[i].name)
		}
		if len(k.keys[i].unless) > 0 {
			unless, others = append(unless, k.keys[i].name), k.keys[i].unless
		}
	}
	s["type"], s["properties"], s["additionalProperties"] = "object", properties, false
	if len(required) > 0 {
		s["required"] = required
	}
	if len(unless) > 0 {
		ways := []any{map[string]any{"required": unless}}
		for _, name := range others {
			ways = append(ways, map[string]any{"required": []string{name}})
		}
		s["anyOf"] = ways
	}
	groups := make([]any, len(k.either))
	for i, group := range k.either {
		members := make([]any, len(group))
		for j, name := range group {
			members[j] = map[string]any{"required": []string{name}}
		}
		groups[i] = map[string]any{"anyOf": members}
	}
	if len(groups) > 0 {
		s["oneOf"] = groups
	}
}

func (k *key) textSchema(s map[string]any) {
	s["type"] = "string"
	if k.number {
		s["type"] = []string{"string", "integer"}
	}
	if k.enum != nil {
		s["enum"] = k.enum
		return
	}
	if p := k.patternOf(); p != "" {
		s["pattern"] = p
	} else if k.check != nil {
		s["minLength"] = 1
	}
	if k.kind == date {
		s["format"] = "date"
	}
}

// description joins what a key is for and what follows when it is not written.
func (k *key) description() string {
	if k.doc == "" || k.unset == "" {
		return k.doc
	}
	return k.doc + " Not written: " + k.unset + "."
}

// literal turns a value of the tree, which is written as in the file, into one of JSON. A test reads each of them.
func (k *key) literal(written string) any {
	var doc yaml.Node
	if err := yaml.Load([]byte(written), &doc); err != nil || len(doc.Content) != 1 {
		return written
	}
	return plainValue(doc.Content[0])
}

// plainValue is a node as JSON has it. What is neither number, bool nor null in JSON is text: a date, for one.
func plainValue(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = plainValue(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		l := make([]any, len(n.Content))
		for i, c := range n.Content {
			l[i] = plainValue(c)
		}
		return l
	}
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		return n.Value == "true"
	case "!!int", "!!float":
		if number := json.Number(n.Value); json.Valid([]byte(number)) {
			return number
		}
	}
	return n.Value
}
