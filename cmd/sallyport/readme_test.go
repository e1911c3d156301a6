package main

import (
	"os"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
)

// TestReadme holds the README's promises that a machine can hold: its configuration is one, in about the lines it
// says, and its commands are all there are.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(readme), "```yaml\n")
	example, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("README.md has no yaml block")
	}
	if _, err := config.Parse("README.md", t.TempDir(), []byte(example)); err != nil {
		t.Errorf("the README's configuration:\n%v", err)
	}
	if n := strings.Count(example, "\n"); n > 16 {
		t.Errorf("the README's configuration has %d lines: it is the short one", n)
	}
	for _, c := range newRoot(newTerminal(nil, nil, nil)).Commands() {
		if c.Name() != "help" && !strings.Contains(string(readme), "sallyport "+c.Name()) && !strings.Contains(string(readme), "| "+c.Name()) {
			t.Errorf("the README does not name the command %s", c.Name())
		}
	}
}
