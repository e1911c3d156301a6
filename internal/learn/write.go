package learn

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// The keys that are learned; all others of the two sections are kept as the file has them.
func learnedKeys(section string) []string {
	if section == "sandbox" {
		return []string{"read", "write", "execute", "network", "sockets"}
	}
	return []string{"mode", "destinations"}
}

// mostLines bounds how many comments of one kind are written; the rest is counted.
const mostLines = 100

// yaml writes the two sections.
func (p *profile) yaml() ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Learned by sallyport run --learn, from what this was seen to do:\n#   %s\n", comment(strings.Join(p.given.Command, " ")))
	b.WriteString("# Read it, put the two sections in place of those in the configuration, and run sallyport check.\n# What was not exercised is not here.\n")
	if p.seen.Lost > 0 {
		fmt.Fprintf(&b, "#\n# INCOMPLETE: more was opened than was kept; %d further paths are not here.\n", p.seen.Lost)
	}
	for _, d := range p.danger {
		fmt.Fprintf(&b, "# DANGEROUS, left out: %s: %s\n", comment(d.What), comment(d.Why))
	}
	b.WriteString("\nsandbox:\n")
	kept, err := p.kept("sandbox")
	if err != nil {
		return nil, err
	}
	b.WriteString(kept)
	p.list(&b, "read", p.read, p.given.Read)
	p.list(&b, "write", p.write, p.given.Write)
	p.list(&b, "execute", p.execute, p.given.Execute)
	network := "broker"
	if p.presentScalar("sandbox", "network") == "none" {
		network = "none"
	}
	fmt.Fprintf(&b, "  network: %s\n", network)
	p.list(&b, "sockets", p.unix, p.given.Sockets)
	p.notes(&b)
	b.WriteString("\negress:\n")
	if kept, err = p.kept("egress"); err != nil {
		return nil, err
	}
	b.WriteString(kept)
	if err := p.destinations(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// list writes one of the profile's lists, and says what the present one has and nobody used.
func (p *profile) list(b *bytes.Buffer, key string, paths, present []string) {
	for i, q := range present {
		used := slices.ContainsFunc(paths, func(r string) bool { return within(r, q) || within(q, r) })
		if !used && i < mostLines {
			fmt.Fprintf(b, "  # in %s before, and not seen to be needed: %s\n", key, comment(q))
		}
	}
	if len(paths) == 0 {
		return
	}
	fmt.Fprintf(b, "  %s:\n", key)
	for _, q := range paths {
		fmt.Fprintf(b, "    - %s\n", scalar(q))
	}
}

// notes writes what is left out and is no danger.
func (p *profile) notes(b *bytes.Buffer) {
	for i, l := range p.left {
		if i == mostLines {
			fmt.Fprintf(b, "  # left out: %d more\n", len(p.left)-mostLines)
			break
		}
		fmt.Fprintf(b, "  # left out: %s: %s\n", comment(l.What), comment(l.Why))
	}
	for _, l := range p.seen.Listens {
		fmt.Fprintf(b, "  # refused: to listen on %s; where it is meant, add the port to listen, beside that of ingress.upstream\n", comment(l))
	}
}

func (p *profile) destinations(b *bytes.Buffer) error {
	for _, d := range p.unused {
		fmt.Fprintf(b, "  # in destinations before, and not seen to be used: %s\n", comment(d.name))
	}
	if len(p.old)+len(p.fresh) == 0 {
		b.WriteString("  destinations: []\n")
		return nil
	}
	b.WriteString("  destinations:\n")
	for _, d := range p.old {
		b.WriteString(indent(d.kept, "    "))
	}
	for _, d := range p.fresh {
		hosts := make([]string, len(d.hosts))
		for i, h := range d.hosts {
			hosts[i] = fmt.Sprintf("%q", h) // of letters, digits and brackets
		}
		fmt.Fprintf(b, "    - name: %s\n      hosts: [%s]\n      for: any # whatever causes it: better the routes that need it, for: {routes: [...]}\n      protocol: %s\n", scalar(d.name), strings.Join(hosts, ", "), d.protocol)
	}
	return nil
}

// section is the mapping of a section in the present file, or nil.
func (p *profile) section(name string) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(p.given.Present, &doc); err != nil {
		return nil, fmt.Errorf("read the present configuration: %w", err)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, nil
	}
	return value(doc.Content[0], name), nil
}

// value is what a mapping has under a key, or nil.
func value(mapping *yaml.Node, key string) *yaml.Node {
	if mapping == nil || mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

func (p *profile) presentScalar(section, key string) string {
	s, err := p.section(section)
	if v := value(s, key); err == nil && v != nil {
		return v.Value
	}
	return ""
}

// kept is the text of a section's keys that are not learned.
func (p *profile) kept(section string) (string, error) {
	s, err := p.section(section)
	if err != nil || s == nil || s.Kind != yaml.MappingNode {
		return "", err
	}
	rest := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i+1 < len(s.Content); i += 2 {
		if !slices.Contains(learnedKeys(section), s.Content[i].Value) {
			rest.Content = append(rest.Content, s.Content[i], s.Content[i+1])
		}
	}
	if len(rest.Content) == 0 {
		return "", nil
	}
	text, err := encode(rest)
	return indent(text, "  "), err
}

// present are the destinations of the present file.
func (p *profile) present() ([]destination, error) {
	s, err := p.section("egress")
	list := value(s, "destinations")
	if err != nil || list == nil || list.Kind != yaml.SequenceNode {
		return nil, err
	}
	var found []destination
	for _, item := range list.Content {
		var d struct {
			Name  string
			Hosts []string
		}
		if err := item.Decode(&d); err != nil {
			return nil, fmt.Errorf("read the present destinations: %w", err)
		}
		text, err := encode(&yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{item}})
		if err != nil {
			return nil, err
		}
		found = append(found, destination{name: d.Name, hosts: d.Hosts, kept: text})
	}
	return found, nil
}

func encode(n *yaml.Node) (string, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return "", fmt.Errorf("write what is kept: %w", err)
	}
	if err := e.Close(); err != nil {
		return "", fmt.Errorf("write what is kept: %w", err)
	}
	return b.String(), nil
}

func indent(text, by string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) != "" {
			b.WriteString(by)
		}
		b.WriteString(line)
	}
	return b.String()
}

// scalar writes a string so that YAML reads it back as that string.
func scalar(s string) string {
	plain := s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@") == "" && (s[0] == '/' || 'a' <= s[0] && s[0] <= 'z') && strings.Trim(s, "0123456789abcdef-") != ""
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

// comment writes anything on one line.
func comment(s string) string {
	if plainLine(s) {
		return s
	}
	return fmt.Sprintf("%q", s)
}
