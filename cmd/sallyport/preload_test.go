package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sandbox"
)

// TestPreloads holds for which programs Node's options are touched.
func TestPreloads(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		program, key, preset, network, listen string
		want                                  bool
	}{
		{program: "node", want: true},
		{program: "/usr/local/bin/node", want: true},
		{program: "nodejs", want: true},
		{program: "/app/server"},
		{program: "node-red"},
		{program: "/usr/bin/npm", want: true},
		{program: "/app/server", key: "node", want: true},
		{program: "npm", preset: "node", want: true},
		{program: "node", key: "none"},
		{program: "npm", preset: "node", key: "none"},
		{program: "node", network: "none"},
		{program: "node", network: "ports"},
		{program: "node", network: "ports", listen: "127.0.0.1:8081", want: true},
		{program: "node", listen: "unix:/run/egress.sock"},
	} {
		f := &config.File{Preload: tt.key, Sandbox: sandbox.Profile{Preset: tt.preset, Network: tt.network}, Egress: config.Egress{Listen: tt.listen}}
		if got := preloads(f, tt.program); got != tt.want {
			t.Errorf("%+v: %t", tt, got)
		}
	}
}

// TestPreloadFolder holds that the preload is put where the program cannot write, by what its profile says.
func TestPreloadFolder(t *testing.T) {
	readable, err := os.MkdirTemp("", "sallyport-preload-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(readable) })
	link := filepath.Join(readable, "link")
	for path, mode := range map[string]os.FileMode{readable: 0o755, filepath.Join(readable, "tmp"): 0o777, filepath.Join(readable, "closed"): 0o700} {
		if err := os.MkdirAll(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(readable, "tmp"), link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		tmp, socket string
		write       []string
		first       bool // it is the folder for temporary files
	}{
		{tmp: "tmp", first: true},
		{tmp: "tmp", write: []string{"/elsewhere"}, first: true},
		{tmp: "tmp", write: []string{filepath.Join(readable, "tmp", "cache")}, first: true},
		{tmp: "tmp", write: []string{filepath.Join(readable, "tmp")}},
		{tmp: "tmp", write: []string{readable}},
		{tmp: "tmp", write: []string{link}},
		{tmp: "link", write: []string{filepath.Join(readable, "tmp")}},
		{tmp: "tmp", socket: filepath.Join(readable, "tmp", "app.sock")},
		{tmp: "closed"},
	} {
		t.Setenv("TMPDIR", filepath.Join(readable, tt.tmp))
		f := &config.File{Sandbox: sandbox.Profile{Write: tt.write}}
		f.Audit.File = "-"
		if tt.socket != "" {
			f.Sandbox.Listen = []sandbox.Listen{{Unix: tt.socket}}
		}
		folders := preloadFolders(f)
		got := len(folders) > 0 && strings.HasPrefix(folders[0], readable)
		if got != tt.first {
			t.Errorf("%+v: %v", tt, folders)
		}
	}
}

// TestAttribute holds what a program is told, and that what was asked for and cannot be refuses to start.
func TestAttribute(t *testing.T) {
	dir, err := os.MkdirTemp("", "sallyport-preload-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	f := &config.File{Preload: "node", Sandbox: sandbox.Profile{Write: []string{"/"}}}
	f.Audit.File = "-"
	if _, err := attribute(f, "app", log); err == nil || !strings.Contains(err.Error(), "sandbox.preload") {
		t.Errorf("there is no place for it: %v", err)
	}
	f.Preload = ""
	if a, err := attribute(f, "node", log); err != nil || a.file != "" || !strings.Contains(said.String(), "gets no preload") {
		t.Errorf("%+v, %v, %s", a, err, said.String())
	}
	f.Sandbox.Write = nil
	a, err := attribute(f, "node", log)
	if err != nil || a.file == "" {
		t.Fatalf("%+v, %v", a, err)
	}

	set := map[string]string{"NODE_OPTIONS": "--enable-source-maps", "SALLYPORT_PROXY": "http://127.0.0.1:1"}
	p := sandbox.Profile{Read: []string{"/app"}, Env: sandbox.Env{Set: set}}
	a.tell(&p)
	if got := set["NODE_OPTIONS"]; got != "--require="+a.file+" --enable-source-maps" {
		t.Errorf("NODE_OPTIONS=%s", got)
	}
	if len(p.Read) != 2 || p.Read[1] != filepath.Dir(a.file) {
		t.Errorf("it may read %v", p.Read)
	}
	for name, none := range map[string]attribution{"a program without it": {}, "no proxy": a} {
		p := sandbox.Profile{Env: sandbox.Env{Set: map[string]string{}}}
		none.tell(&p)
		if len(p.Env.Set) > 0 || p.Read != nil {
			t.Errorf("%s: it is told %+v", name, p)
		}
	}
}
