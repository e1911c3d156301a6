package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write doc/escape-lab.md anew")

// TestLab runs the whole lab and holds doc/escape-lab.md to it.
func TestLab(t *testing.T) {
	// What the lab builds, read here so that the test cache notices a change.
	for _, dir := range []string{"native", "../neighbour", "../../cmd", "../../internal", "../../bearer", "../../identity", "../../safedial"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				_, err = os.ReadFile(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	rows, err := perform(t.Context(), attacks(), t.Output())
	if errors.Is(err, errNoEngine) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := unexpected(rows); err != nil {
		t.Errorf("%v\n%s", err, writeText(rows))
	}
	page := filepath.Join("..", "..", "doc", "escape-lab.md")
	got := writePage(rows)
	if *update {
		if err := os.WriteFile(page, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("doc/escape-lab.md is not what happened: look at each difference, then go test ./e2e/lab -update\n%s", difference(want, got))
	}
}

// difference is the lines of each that the other does not have.
func difference(want, got []byte) string {
	var b bytes.Buffer
	only := func(mark string, these, those []byte) {
		for line := range bytes.Lines(these) {
			if !bytes.Contains(those, line) {
				b.WriteString(mark)
				b.Write(line)
			}
		}
	}
	only("- ", want, got)
	only("+ ", got, want)
	return b.String()
}

// example is what a run comes to in which one attack is stopped, one is not, and one means nothing.
func example() []row {
	ok, by := outcome{succeeded: true}, outcome{by: gate, reason: "no_route", record: "deny at ingress"}
	list := serviceAttacks()
	return []row{
		{list[6], []outcome{ok, by, ok, by, by}},
		{list[7], []outcome{ok, ok, ok, ok, ok}},
		{list[8], []outcome{by, by, by, by, {reason: "unexplained"}}},
	}
}

func TestUnexpected(t *testing.T) {
	if err := unexpected(example()[:1]); err != nil {
		t.Error(err)
	}
	for _, r := range example()[1:] {
		if unexpected([]row{r}) == nil {
			t.Errorf("%s: nothing is wrong with it", r.name)
		}
	}
	elsewhere := example()[0]
	elsewhere.by = walls
	if unexpected([]row{elsewhere}) == nil {
		t.Error("stopped by another layer than expected: nothing is wrong with it")
	}
}

func TestJSON(t *testing.T) {
	b, err := writeJSON(example())
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Attacks []struct {
			Name string
			Bare struct{ Succeeded *bool }

			Guarded struct {
				Succeeded *bool
				StoppedBy string `json:"stopped_by"`
				Reason    string
			}
		}
	}
	if err := json.Unmarshal(b, &got); err != nil || len(got.Attacks) != 3 {
		t.Fatalf("%v: %s", err, b)
	}
	a := got.Attacks[0]
	if !*a.Bare.Succeeded || *a.Guarded.Succeeded || a.Guarded.StoppedBy != "gate" || a.Guarded.Reason != "no_route" {
		t.Errorf("%s", b)
	}
	if a := got.Attacks[1]; !*a.Guarded.Succeeded || a.Guarded.StoppedBy != "" {
		t.Errorf("%s", b)
	}
}

func TestRefusal(t *testing.T) {
	for body, want := range map[string]string{
		`{"result":"io_uring_setup ENOSYS"}`: "ENOSYS from io_uring_setup",
		`{"result":"ok and more"}`:           "",
		`{"error":"EACCES","syscall":"open","message":"EACCES: permission denied, open '/x'"}`: "EACCES from open",
		`{"error":"EACCES","message":"connect EACCES /var/run/docker.sock"}`:                   "EACCES from connect",
		`{"error":"EACCES","syscall":"spawn /bin/sh","message":"spawn /bin/sh EACCES"}`:        "EACCES from spawn",
		`{"error":"the words of it","message":"the words of it"}`:                              "",
		`no JSON`: "",
	} {
		if got := refusal(answer{body: body}); got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
	if got := refusal(answer{err: errors.New("dial tcp 10.0.0.1:1: connect: connection refused")}); got != "ECONNREFUSED from connect" {
		t.Error(got)
	}
}

// TestList holds that the rows can be told apart, and that each expects something.
func TestList(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range attacks() {
		if seen[a.name] || a.name == "" || a.what == "" || a.proof.text == "" || (a.by == walls && a.wall == "") {
			t.Errorf("%+v", a)
		}
		seen[a.name] = true
	}
	for _, only := range []string{"(", "no such"} {
		if _, err := choose(only); err == nil {
			t.Errorf("-only %s was taken", only)
		}
	}
}
