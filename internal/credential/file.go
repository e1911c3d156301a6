package credential

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/leak"
)

const maxSecret = 8 << 10

// secretFile is a file with one secret, read again when it has changed.
type secretFile struct {
	path string

	mu      sync.Mutex
	version version
	content *content // nil: never read
}

type content struct {
	secret string
	scrub  *leak.Scrubber
}

// version is by what a changed file is known: another file, or this one written again.
type version struct {
	device, inode  uint64
	size           int64
	mode           os.FileMode
	written, moved time.Time
}

// read returns what is in the file now. One that is gone, or that others can read, has no secret, whatever it had before.
func (s *secretFile) read() (*content, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := os.Stat(s.path)
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	if s.content != nil && versionOf(info) == s.version {
		return s.content, nil
	}
	s.content = nil
	if s.content, s.version, err = readSecret(s.path); err != nil {
		return nil, fmt.Errorf("read secret %s: %w", s.path, err)
	}
	return s.content, nil
}

func versionOf(info os.FileInfo) version {
	v := version{size: info.Size(), mode: info.Mode(), written: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		v.device, v.inode, v.moved = uint64(sys.Dev), sys.Ino, time.Unix(sys.Ctim.Unix())
	}
	return v
}

// readSecret judges the file that it reads, which need not be the one that had the name before.
func readSecret(path string) (*content, version, error) {
	// not to wait for the other end of a named pipe
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, version{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, version{}, err
	case !info.Mode().IsRegular():
		return nil, version{}, errors.New("not a regular file")
	case info.Mode().Perm()&0o007 != 0:
		return nil, version{}, fmt.Errorf("others may use it: its mode is %04o, and must end in 0", info.Mode().Perm())
	case info.Mode().Perm()&0o020 != 0:
		return nil, version{}, fmt.Errorf("its group may write it: its mode is %04o", info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, version{}, err
	}
	secret := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	switch {
	case len(data) > maxSecret:
		return nil, version{}, errors.New("longer than 8 KiB")
	case secret == "":
		return nil, version{}, errors.New("it is empty")
	case !isField(secret) || strings.TrimSpace(secret) != secret:
		return nil, version{}, errors.New("it is not one line of printable ASCII without spaces around it")
	}
	scrub, err := leak.NewScrubber(secret)
	if err != nil {
		return nil, version{}, err
	}
	return &content{secret, scrub}, versionOf(info), nil
}
