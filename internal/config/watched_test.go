package config

import (
	"slices"
	"testing"
)

// TestWatched holds that what is read when the rules are built, and by nobody again, is watched; and that secrets, which are read again by who uses
// them, make no reload.
func TestWatched(t *testing.T) {
	const path = "testdata/full-local.good.yml"
	f, err := parseFixture(path, read(t, path))
	if err != nil {
		t.Fatal(err)
	}
	in := f.Ingress.Issuers[0].Introspection
	if in == nil || in.CAFile == "" || in.KeyFile == "" {
		t.Fatal("the fixture has no roots for introspection any more")
	}
	if watched := f.Watched(); !slices.Contains(watched, in.CAFile) || !slices.Contains(watched, f.Path) || slices.Contains(watched, in.KeyFile) {
		t.Errorf("watched are %q", watched)
	}
}
