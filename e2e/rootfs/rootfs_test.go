package rootfs

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"slices"
	"testing"
)

func TestTar(t *testing.T) {
	r := Tar(func(f *FS) {
		f.Dir("/tmp", 0o1777)
		f.File("/etc/shadow", 0o600, []byte("secret"))
		f.File("/etc/shadow", 0o644, []byte("not written again"))
		f.Tree(".", "/src", "testdata")
		f.Program("sh", "/bin/sh")
	})
	defer r.Close()
	var names []string
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(names, h.Name) {
			t.Errorf("%s is in it twice", h.Name)
		}
		names = append(names, h.Name)
		if h.Name == "etc/shadow" && (h.Mode != 0o600 || h.Size != 6) {
			t.Errorf("%+v", h)
		}
	}
	for _, want := range []string{"tmp/", "etc/", "etc/shadow", "src/rootfs.go", "bin/sh"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in %v", want, names)
		}
	}
}

func TestTarError(t *testing.T) {
	r := Tar(func(f *FS) {
		f.Copy("no such file", "/x", 0o644)
		f.File("/y", 0o644, nil)
	})
	defer r.Close()
	if b, err := io.ReadAll(r); !errors.Is(err, fs.ErrNotExist) || len(b) != 0 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
