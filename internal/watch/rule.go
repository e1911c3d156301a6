package watch

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// The actions of a rule.
const (
	doRecord     = "record"
	doWebhook    = "webhook"
	doQuarantine = "quarantine"
)

const (
	maxRules    = 100
	maxCount    = 1000
	maxDistinct = 32 // differing values that are kept for one key
	longestTime = 30 * 24 * time.Hour
)

// Rule says which records are an alarm, and what is done then. The zero value matches nothing.
type Rule struct {
	Name     string   // required, unique, [a-z0-9-]
	Says     string   // one sentence for whoever is woken up; required
	Point    string   // of the record: ingress, egress or sandbox; required
	Codes    []string // one of them; empty: any
	Decision string   // allow or deny; empty: either
	By       string   // whose records count together: token, source, subject, client, route; empty: everybody's
	Distinct string   // what must differ to count: path, network, source, route, destination; empty: each counts
	Count    int      // how many; zero means one
	Within   time.Duration
	Novel    []string      // the combination that must be new: of route, destination, source, client; excludes Count
	Warmup   time.Duration // how long combinations are learned first
	Do       []string      // record, webhook, quarantine
	Subject  time.Duration // with quarantine: for how long the subject's tokens are refused too; zero: they are not
}

// RuleError is one thing wrong with a file of rules.
type RuleError struct {
	File string
	Line int
	Rule string // empty: the file
	Err  error
}

func (e *RuleError) Error() string {
	where := fmt.Sprintf("%s:%d: ", e.File, e.Line)
	if e.Rule != "" {
		where += "rule " + e.Rule + ": "
	}
	return where + e.Err.Error()
}

func (e *RuleError) Unwrap() error { return e.Err }

//go:embed rules.yml
var builtin []byte

// Rules are those that hold unless a file says otherwise.
func Rules() []Rule {
	rules, err := ParseRules("rules.yml", bytes.NewReader(builtin))
	if err != nil {
		panic(err) // they are a part of the program, and a test reads them
	}
	return rules
}

// written is a rule as the file has it.
type written struct {
	Name     string   `yaml:"name"`
	Says     string   `yaml:"says"`
	Point    string   `yaml:"point"`
	Codes    []string `yaml:"codes"`
	Decision string   `yaml:"decision"`
	By       string   `yaml:"by"`
	Distinct string   `yaml:"distinct"`
	Count    int      `yaml:"count"`
	Within   string   `yaml:"within"`
	Novel    []string `yaml:"novel"`
	Warmup   string   `yaml:"warmup"`
	Do       []string `yaml:"do"`
	Subject  string   `yaml:"subject"`
}

// ParseRules reads a file of rules, at most 256 KiB of YAML. The error joins one *RuleError for each thing that is wrong.
func ParseRules(name string, r io.Reader) ([]Rule, error) {
	const largest = 256 << 10
	data, err := io.ReadAll(io.LimitReader(r, largest+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > largest {
		return nil, &RuleError{File: name, Line: 1, Err: fmt.Errorf("it is longer than %d bytes", largest)}
	}
	var file struct {
		Version int         `yaml:"version"`
		Rules   []yaml.Node `yaml:"rules"`
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		return nil, &RuleError{File: name, Line: 1, Err: fmt.Errorf("not a file of rules (version: 1, rules: [...]): %w", err)}
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, &RuleError{File: name, Line: 1, Err: errors.New("there is a second document")}
	}
	var wrong []error
	if file.Version != 1 {
		wrong = append(wrong, &RuleError{File: name, Line: 1, Err: fmt.Errorf("version %d is not 1", file.Version)})
	}
	if len(file.Rules) > maxRules {
		wrong = append(wrong, &RuleError{File: name, Line: 1, Err: fmt.Errorf("there are %d rules, over %d", len(file.Rules), maxRules)})
	}
	rules := make([]Rule, 0, len(file.Rules))
	seen := map[string]bool{}
	for i := range file.Rules {
		rule, err := readRule(&file.Rules[i])
		if err == nil && seen[rule.Name] {
			err = errors.New("its name is that of another rule")
		}
		if err != nil {
			wrong = append(wrong, &RuleError{File: name, Line: file.Rules[i].Line, Rule: rule.Name, Err: err})
			continue
		}
		seen[rule.Name] = true
		rules = append(rules, rule)
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return rules, nil
}

func readRule(node *yaml.Node) (Rule, error) {
	data, err := yaml.Marshal(node)
	if err != nil {
		return Rule{}, err
	}
	var w written
	d := yaml.NewDecoder(bytes.NewReader(data)) // of a node there is no decoder that knows its fields
	d.KnownFields(true)
	if err := d.Decode(&w); err != nil {
		return Rule{Name: w.Name}, err
	}
	r := Rule{
		Name: w.Name, Says: w.Says, Point: w.Point, Codes: w.Codes, Decision: w.Decision, By: w.By, Distinct: w.Distinct,
		Count: w.Count, Novel: w.Novel, Do: w.Do,
	}
	var wrong []error
	for _, t := range []struct {
		key, text string
		to        *time.Duration
	}{{"within", w.Within, &r.Within}, {"warmup", w.Warmup, &r.Warmup}, {"subject", w.Subject, &r.Subject}} {
		if t.text == "" {
			continue
		}
		if *t.to, err = time.ParseDuration(t.text); err != nil || *t.to <= 0 || *t.to > longestTime {
			wrong = append(wrong, fmt.Errorf("%s: %q is no duration up to %v, as 30s or 5m", t.key, t.text, longestTime))
		}
	}
	return r, errors.Join(append(wrong, r.check())...)
}

// check says everything that is wrong with a rule.
func (r *Rule) check() error {
	var wrong []error
	must := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Errorf(format, args...))
		}
	}
	one := func(key, value string, of ...string) {
		must(value == "" || slices.Contains(of, value), "%s: %q is none of %s", key, value, strings.Join(of, ", "))
	}
	must(regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`).MatchString(r.Name), "name: it is made of a-z, 0-9 and -")
	must(r.Says != "" && len(r.Says) <= 500, "says: one sentence, for whoever is woken up")
	must(r.Point != "", "point: ingress, egress or sandbox")
	one("point", r.Point, "ingress", "egress", "sandbox")
	one("decision", r.Decision, "allow", "deny")
	one("by", r.By, "token", "source", "subject", "client", "route")
	one("distinct", r.Distinct, "path", "network", "source", "route", "destination")
	must(len(r.Codes) > 0 || r.Decision != "", "codes or decision: which records?")
	must(!slices.Contains(r.Codes, ""), "codes: one is empty")
	must(r.Count >= 0 && r.Count <= maxCount, "count: %d is not 1 to %d", r.Count, maxCount)
	must(r.Distinct == "" || r.Count >= 2 && r.Count <= maxDistinct, "distinct: with count: 2 to %d", maxDistinct)
	must(r.Count <= 1 || r.Within > 0, "within: so many in what time?")
	for _, n := range r.Novel {
		one("novel", n, "route", "destination", "source", "client")
	}
	must(len(r.Novel) == 0 || r.Count == 0 && r.Distinct == "" && r.By == "" && r.Within == 0, "novel: it excludes by, count, distinct and within")
	must(len(r.Novel) > 0 || r.Warmup == 0, "warmup: of what? it belongs to novel")
	must(len(r.Novel) == 0 || r.Warmup > 0, "warmup: how long is it learned what is not new?")
	must(len(r.Do) > 0, "do: record, webhook, quarantine")
	for _, d := range r.Do {
		one("do", d, doRecord, doWebhook, doQuarantine)
		must(d != "", "do: one is empty")
	}
	must(!r.does(doQuarantine) || r.Count <= 1 || r.By == "token" || r.By == "subject",
		"by: with quarantine and count it is token or subject: else who happens to be the last is ended")
	must(r.Subject == 0 || r.does(doQuarantine), "subject: it belongs to do: [quarantine]")
	return errors.Join(wrong...)
}

func (r *Rule) does(action string) bool { return slices.Contains(r.Do, action) }
