// Package rootfs makes the file system of a container image out of what is on this machine: an image from scratch, for
// tests that reach no registry of images.
//
//	tar := rootfs.Tar(func(f *rootfs.FS) {
//		f.Program("node", "/usr/local/bin/node") // with the libraries that it is linked to
//		f.Tree("dist", "/app/dist")
//	})
//	defer tar.Close()
//	... docker import - <tar
package rootfs

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// FS is a file system in the making. The first error stays and ends everything after it; what is there already is not
// written again.
type FS struct {
	tar *tar.Writer
	has map[string]bool
	err error
}

// Tar returns the file system that fill makes, as an archive that is written while it is read. Reading it returns the
// error that filling it met. The caller must close it.
func Tar(fill func(*FS)) io.ReadCloser {
	reader, writer := io.Pipe()
	go func() {
		f := &FS{tar: tar.NewWriter(writer), has: map[string]bool{}}
		fill(f)
		if f.err == nil {
			f.err = f.tar.Close()
		}
		writer.CloseWithError(f.err)
	}()
	return reader
}

// Dir makes a folder, and those above it with mode 0755.
func (f *FS) Dir(path string, mode int64) {
	path = strings.Trim(path, "/")
	if f.err != nil || path == "" || path == "." || f.has[path] {
		return
	}
	f.Dir(filepath.Dir(path), 0o755)
	f.has[path] = true
	f.err = f.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path + "/", Mode: mode})
}

// File makes a file that belongs to root.
func (f *FS) File(path string, mode int64, content []byte) {
	path = strings.Trim(path, "/")
	if f.err != nil || f.has[path] {
		return
	}
	f.Dir(filepath.Dir(path), 0o755)
	f.has[path] = true
	if f.err = f.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, Size: int64(len(content))}); f.err == nil {
		_, f.err = f.tar.Write(content)
	}
}

// Copy copies a file of this machine.
func (f *FS) Copy(from, to string, mode int64) {
	content, err := os.ReadFile(from)
	f.fail(err)
	f.File(to, mode, content)
}

// Tree copies the files of a folder, readable by everybody, without the folders of the names to skip.
func (f *FS) Tree(from, to string, skip ...string) {
	f.fail(filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains(skip, d.Name()):
			return filepath.SkipDir
		case d.Type().IsRegular():
			below, err := filepath.Rel(from, path)
			if err != nil {
				return err
			}
			f.Copy(path, filepath.Join(to, below), 0o644)
		}
		return f.err
	}))
}

// Program copies a program, found as a shell would find it, with the libraries that ldd names.
func (f *FS) Program(name, to string) {
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	f.fail(err)
	if f.err != nil {
		return
	}
	f.Copy(path, to, 0o755)
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		f.fail(fmt.Errorf("the libraries of %s: %w", path, err))
	}
	for _, field := range strings.Fields(string(out)) {
		if strings.HasPrefix(field, "/") {
			f.Copy(field, field, 0o755)
		}
	}
}

func (f *FS) fail(err error) {
	if f.err == nil {
		f.err = err
	}
}
