package oauth

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

const maxFile = 64 << 10

// version is by what a changed file is known: another file, or this one written again.
type version struct {
	device, inode  uint64
	size           int64
	mode           os.FileMode
	written, moved time.Time
}

// Kept returns a function that reads a file, and reads it again when it has changed: what read makes of its bytes. A file that is
// gone, that others may use, that its group may write, or that read refuses, is an error, whatever it held before. Safe for
// concurrent use.
func Kept[T any](path string, read func(data []byte) (T, error)) func() (T, error) {
	return kept(path, 0o027, read)
}

// kept is Kept for a file whose mode has none of these bits.
func kept[T any](path string, closed os.FileMode, read func(data []byte) (T, error)) func() (T, error) {
	var mu sync.Mutex
	var last version
	var content T
	there := false
	return func() (T, error) {
		mu.Lock()
		defer mu.Unlock()
		var none T
		info, err := os.Stat(path)
		if err != nil {
			return none, err // "stat PATH: reason"
		}
		if there && versionOf(info) == last {
			return content, nil
		}
		there = false
		data, version, err := readClosed(path, closed)
		if err == nil {
			content, err = read(data)
		}
		if err != nil {
			return none, fmt.Errorf("read %s: %w", path, err)
		}
		there, last = true, version
		return content, nil
	}
}

func versionOf(info os.FileInfo) version {
	v := version{size: info.Size(), mode: info.Mode(), written: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		v.device, v.inode, v.moved = uint64(sys.Dev), sys.Ino, time.Unix(sys.Ctim.Unix())
	}
	return v
}

// readClosed judges the file that it reads, which need not be the one that had the name before.
func readClosed(path string, closed os.FileMode) ([]byte, version, error) {
	// not to wait for the other end of a named pipe
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, version{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, version{}, err
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, version{}, errors.New("not a regular file")
	case mode.Perm()&closed&0o007 != 0:
		return nil, version{}, fmt.Errorf("others may use it: its mode is %04o, and must end in 0", mode.Perm())
	case mode.Perm()&closed&0o020 != 0:
		return nil, version{}, fmt.Errorf("its group may write it: its mode is %04o", mode.Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = errors.New("longer than 64 KiB")
	}
	return data, versionOf(info), err
}
