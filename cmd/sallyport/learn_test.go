package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/learn"
	"github.com/sallyport/sallyport/internal/sandbox"
)

func newTestLesson(t *testing.T, dir string) (*lesson, error) {
	t.Helper()
	file := filepath.Join(dir, "sallyport.yaml")
	if err := os.WriteFile(file, []byte("version: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return newLesson(&config.File{Path: file, Sandbox: sandbox.Profile{User: fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())}}, filepath.Join(dir, "learned.yaml"), slog.New(slog.DiscardHandler))
}

// The service has the user to whom the profile's file belongs, and every file open while it is learned from.
func TestTheServiceDoesNotWriteItsOwnProfile(t *testing.T) {
	dir := t.TempDir()
	l, err := newTestLesson(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path, []byte("sandbox:\n  write: [/]\n# and much more, behind what will be written\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.put([]byte("learned\n")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(l.path); err != nil || string(b) != "learned\n" {
		t.Errorf("%v %q", err, b)
	}
	if _, err := newTestLesson(t, dir); err == nil {
		t.Error("a profile was overwritten")
	}

	l, err = newTestLesson(t, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(l.path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path, []byte("sandbox:\n  write: [/]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.put([]byte("learned\n")); err == nil {
		t.Error("a file that the service put in the place of ours was taken for it")
	}
	l.discard()
	if _, err := os.Stat(l.path); err != nil {
		t.Error("a file that is not ours was removed")
	}
}

// An empty file is what a run leaves of which nothing could be learned; nothing else may be written over.
func TestEmptyFilesOnly(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, make := range map[string]func() error{
		"full":     func() error { return os.WriteFile(at("full"), []byte("x"), 0o600) },
		"readable": func() error { return os.WriteFile(at("readable"), nil, 0o644) },
		"folder":   func() error { return os.Mkdir(at("folder"), 0o700) },
		"link":     func() error { return os.Symlink("empty", at("link")) },
		"twice":    func() error { return os.WriteFile(at("twice"), nil, 0o600) },
		"empty":    func() error { return os.WriteFile(at("empty"), nil, 0o600) },
	} {
		if err := make(); err != nil {
			t.Fatal(name, err)
		}
	}
	if err := os.Link(at("twice"), at("again")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"full", "readable", "folder", "link", "twice", "absent", "empty"} {
		f, err := openEmpty(at(name))
		if (err == nil) != (name == "empty") {
			t.Errorf("%s: %v", name, err)
		}
		if f != nil {
			f.Close()
		}
	}
}

func TestHostsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	text := "127.0.0.1 localhost\n::1 localhost\n10.0.0.7\tdb.internal db # the database\n#10.0.0.8 no\nnonsense here\n10.0.0.9\n::ffff:10.0.0.10 mapped\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := hostsFile(path)
	if len(got) != 2 || !slices.Equal(got[netip.MustParseAddr("10.0.0.7")], []string{"db.internal", "db"}) || !slices.Equal(got[netip.MustParseAddr("10.0.0.10")], []string{"mapped"}) {
		t.Errorf("%v", got)
	}
	if got := hostsFile(filepath.Join(t.TempDir(), "absent")); got != nil {
		t.Errorf("%v", got)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	l := &lesson{connects: map[netip.AddrPort]*learn.Connect{}}
	for i := range maxConnects + 5 {
		l.connect(netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 1, byte(i >> 8), byte(i)}), 443), []string{"a.test"}, i == 0)
	}
	first := netip.MustParseAddrPort("1.1.0.0:443")
	if len(l.connects) != maxConnects || l.lost != 5 || !l.connects[first].Refused {
		t.Errorf("%d kept, %d lost", len(l.connects), l.lost)
	}
	l.connect(first, []string{"a.test", "b.test"}, false)
	if c := l.connects[first]; c.Refused || len(c.Names) != 2 {
		t.Errorf("%+v", c)
	}
}
