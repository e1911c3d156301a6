package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sandbox"
)

// handOver makes the folders and files that sallyport writes, and gives them to the user that it is about to become.
// Where it is not root it makes them, and they are its own.
func handOver(f *config.File) error {
	h, err := heirOf(f)
	if err != nil {
		return err
	}
	// The keys are ours alone; what is published is for the service and whoever else verifies.
	if err := h.folder(f.Keys.Path, 0o700); err != nil {
		return withHint(err, "keys.path must be where a folder can be made: its keys sign the audit log's checkpoints, and assertions")
	}
	if f.Keys.Publish != "" {
		if err := h.folder(filepath.Dir(f.Keys.Publish), 0o755); err != nil {
			return err
		}
	}
	if f.Ingress.KeepKeys != "" {
		if err := h.folder(f.Ingress.KeepKeys, 0o700); err != nil {
			return err
		}
	}
	if f.State.Path != "" {
		if err := h.file(f.State.Path); err != nil {
			return err
		}
	}
	if f.Audit.File != "-" {
		if err := h.file(f.Audit.File); err != nil {
			return err
		}
	}
	if log := f.AccessLog.File; log != "" && log != "-" {
		if err := h.file(log); err != nil {
			return err
		}
	}
	for _, address := range addresses(f) {
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			if err := h.give(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// heir is who gets what we make.
type heir struct {
	uid, gid int
	gives    bool // we are root and become somebody else
}

func heirOf(f *config.File) (heir, error) {
	if os.Getuid() != 0 {
		return heir{}, nil
	}
	uid, gid, err := sandbox.Identity(f.Sandbox)
	return heir{uid: uid, gid: gid, gives: uid != 0}, err
}

// give never follows a link: root must not be led to give away another file.
func (h heir) give(path string) error {
	if !h.gives {
		return nil
	}
	if err := os.Lchown(path, h.uid, h.gid); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return withHint(fmt.Errorf("give %s to uid %d: %w", path, h.uid, err),
			"sallyport gives up root before it serves; what it writes must belong to sandbox.user")
	}
	return nil
}

// folder makes a folder that is ours alone, and gives it with the files in it.
func (h heir) folder(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("make the folder %s: %w", dir, err)
	}
	if !h.gives {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the folder %s: %w", dir, err)
	}
	errs := []error{h.give(dir)}
	for _, e := range entries {
		if e.Type().IsRegular() {
			errs = append(errs, h.give(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// file makes a file, and its folder where there is none: then the folder is ours alone too, and rotation can make new
// files in it. A folder that was there stays whose it is.
func (h heir) file(path string) error {
	dir := filepath.Dir(path)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := h.folder(dir, 0o755); err != nil {
			return err
		}
	}
	if !h.gives {
		return nil
	}
	// No link is followed, and nothing is cut short.
	fd, err := syscall.Open(path, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_APPEND|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := syscall.Close(fd); err != nil {
		return &os.PathError{Op: "close", Path: path, Err: err}
	}
	return h.give(path)
}
