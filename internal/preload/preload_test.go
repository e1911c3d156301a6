package preload

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestWrite holds that the file is whole, readable to all and writable by nobody, and that a second start takes it again.
func TestWrite(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	first, err := Write(parent)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(first)
	if err != nil || string(got) != string(source) {
		t.Fatalf("the file differs: %v", err)
	}
	for path, want := range map[string]os.FileMode{first: 0o444, filepath.Dir(first): 0o755} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	if again, err := Write(parent); err != nil || again != first {
		t.Errorf("a second start: %s, %v", again, err)
	}
}

// TestWriteBesideOthers holds that what somebody else could have put there is left alone.
func TestWriteBesideOthers(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, file string){
		"another text": func(t *testing.T, file string) {
			replace(t, file, "process.exit(1)", 0o444)
		},
		"writable file": func(t *testing.T, file string) { mustChmod(t, file, 0o666) },
		"open folder":   func(t *testing.T, file string) { mustChmod(t, filepath.Dir(file), 0o777) },
		"a link": func(t *testing.T, file string) {
			moved := file + ".moved"
			if err := os.Rename(file, moved); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(moved, file); err != nil {
				t.Fatal(err)
			}
		},
		"no file": func(t *testing.T, file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parent := t.TempDir()
			first, err := Write(parent)
			if err != nil {
				t.Fatal(err)
			}
			spoil(t, first)
			second, err := Write(parent)
			if err != nil || second == first {
				t.Fatalf("%s, %v", second, err)
			}
			if got, err := os.ReadFile(second); err != nil || string(got) != string(source) {
				t.Errorf("the file differs: %v", err)
			}
		})
	}
	if _, err := Write(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("it was written into a folder that is not there")
	}
}

func replace(t *testing.T, file, text string, mode os.FileMode) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func mustChmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// TestOptions holds that Node reads what is written, whatever the folder is called, and still what the operator wants.
func TestOptions(t *testing.T) {
	t.Parallel()
	node, err := exec.LookPath("node")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("node is not installed")
	}
	for _, name := range []string{"plain", "with a space", `with "quotes"`, `with\backslash`} {
		folder := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(folder, fileName)
		if err := os.WriteFile(file, []byte(`globalThis.preloaded = true`), 0o644); err != nil {
			t.Fatal(err)
		}
		c := exec.Command(node, "-p", "[globalThis.preloaded, process.env.NODE_OPTIONS.includes('--max-http-header-size'), require('http').maxHeaderSize].join()")
		c.Env = []string{"NODE_OPTIONS=" + Options(file, "--max-http-header-size=12345")}
		if out, err := c.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "true,true,12345" {
			t.Errorf("%s: %s %v", name, out, err)
		}
	}
	if got := Options("/p.cjs", ""); got != "--require=/p.cjs" {
		t.Error(got)
	}
}
