package watch

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/state"
)

func TestParseRulesRefuses(t *testing.T) {
	rule := "version: 1\nrules:\n  - {name: a, says: b, point: egress, codes: [c], do: [record]}\n"
	if _, err := ParseRules("good.yml", strings.NewReader(rule)); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ file, want string }{
		"nothing":             {"", "bad.yml:1: not a file of rules"},
		"another version":     {"version: 2\nrules: []\n", "version 2 is not 1"},
		"an unknown key":      {"version: 1\nrulez: []\n", "not a file of rules"},
		"a rule's typo":       {strings.Replace(rule, "codes", "coeds", 1), "bad.yml:3: rule"},
		"a second document":   {rule + "---\nversion: 1\n", "second document"},
		"twice the name":      {rule + "  - {name: a, says: b, point: egress, codes: [c], do: [record]}\n", "bad.yml:4: rule a: its name is that of another rule"},
		"no name":             {strings.Replace(rule, "name: a, ", "", 1), "name:"},
		"no records":          {strings.Replace(rule, "codes: [c], ", "", 1), "codes or decision"},
		"another point":       {strings.Replace(rule, "egress", "somewhere", 1), `point: "somewhere"`},
		"no action":           {strings.Replace(rule, "[record]", "[]", 1), "do:"},
		"another action":      {strings.Replace(rule, "[record]", "[explode]", 1), `do: "explode"`},
		"a count and no time": {strings.Replace(rule, "do:", "count: 5, do:", 1), "within"},
		"no time":             {strings.Replace(rule, "do:", "count: 5, within: soon, do:", 1), "soon"},
		"distinct of one":     {strings.Replace(rule, "do:", "distinct: path, do:", 1), "distinct: with count"},
		"novel and count":     {strings.Replace(rule, "do:", "novel: [route], warmup: 1h, count: 5, within: 1m, do:", 1), "novel: it excludes"},
		"novel at once":       {strings.Replace(rule, "do:", "novel: [route], do:", 1), "warmup"},
		"whoever is the last": {strings.Replace(rule, "do: [record]", "by: source, count: 5, within: 1m, do: [quarantine]", 1), "by: with quarantine"},
		"a subject for free":  {strings.Replace(rule, "do:", "subject: 1h, do:", 1), "subject: it belongs"},
	} {
		_, err := ParseRules("bad.yml", strings.NewReader(c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

// FuzzParseRules holds that what is accepted builds a watcher, which survives any record.
func FuzzParseRules(f *testing.F) {
	f.Add(string(builtin), "escape_target")
	f.Add("version: 1\nrules:\n  - {name: a, says: b, point: egress, codes: [c], do: [record]}\n", "c")
	f.Fuzz(func(t *testing.T, file, code string) {
		rules, err := ParseRules("f", strings.NewReader(file))
		if err != nil {
			return
		}
		w, err := New(Config{
			Rules: rules, Record: func(audit.Record) error { return nil }, Revoke: func(context.Context, state.Revocation) error { return nil },
			Lifetime: func(string) time.Duration { return time.Hour },
		})
		if err != nil {
			t.Fatalf("accepted, and it does not build: %v", err)
		}
		for _, point := range []string{"ingress", "egress", "sandbox"} {
			w.Observe(&audit.Record{ID: "x", Point: point, Decision: policy.Deny(policy.Code(code), "")}, nil)
			w.Observe(&audit.Record{ID: "x", Point: point, Decision: allowed, Caller: caller("t"), Detail: map[string]any{"requests": []string{"y"}, "destination": 7}}, nil)
		}
	})
}
