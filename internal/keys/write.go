package keys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/jws"
)

// temporary ends the name of a file that is being written.
const temporary = ".tmp"

// lockPatience is how long another process may hold the folder before we give up.
const lockPatience = 5 * time.Second

// makeFolder makes a folder for private keys, and those above it.
func makeFolder(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// lock keeps other processes, and other rings of this one, from writing into
// the folder until unlock is called. The flock is on the folder itself: it
// leaves no file, and the end of the process ends it.
func lock(folder string) (unlock func(), err error) {
	f, err := os.OpenFile(folder, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("lock the signing keys: %w", err)
	}
	for deadline := time.Now().Add(lockPatience); ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			f.Close()
			return nil, fmt.Errorf("lock the signing keys: flock %s: %w", folder, err)
		case time.Now().After(deadline):
			f.Close()
			return nil, fmt.Errorf("lock the signing keys: another process has held %s for %v", folder, lockPatience)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// publish writes the set, where every user may read it.
func publish(path string, set []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("publish the signing keys: %w", err)
	}
	if err := writeFile(path, append(bytes.Clone(set), '\n'), 0o644); err != nil {
		return fmt.Errorf("publish the signing keys: %w", err)
	}
	return nil
}

// isPublished says whether the file holds the set, readable by every user.
func isPublished(path string, set []byte) bool {
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(bytes.TrimSuffix(data, []byte("\n")), set) {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode().Perm() == 0o644
}

// readPublished returns the names of the keys that the file holds; none if it cannot be read.
func readPublished(path string) map[string]bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	set, err := jws.Object(data)
	if err != nil {
		return nil
	}
	list, _ := set["keys"].([]any)
	names := make(map[string]bool, len(list))
	for _, element := range list {
		jwk, _ := element.(map[string]any)
		if kid, ok := jwk["kid"].(string); ok {
			names[kid] = true
		}
	}
	return names
}

// writeFile replaces a file: after a crash at any instant, path holds all of
// the old content or all of the new. Only one writer at a time may be at it.
//
// The file gets the owner of its folder where we are root: a key that an
// operator makes by hand is for the user that sallyport runs as.
func writeFile(path string, data []byte, mode os.FileMode) (err error) {
	name := path + temporary
	// what an ended process left behind, or somebody put there; O_EXCL then follows no link
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(name)
		}
	}()
	if err := fill(f, data, mode); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(name, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func fill(f *os.File, data []byte, mode os.FileMode) error {
	if os.Geteuid() == 0 {
		info, err := os.Stat(filepath.Dir(f.Name()))
		if err != nil {
			return err
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
			if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
				return err
			}
		}
	}
	// Chmod, because the umask narrows the mode of OpenFile
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// syncFolder makes what was renamed or removed in the folder outlast a crash.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
