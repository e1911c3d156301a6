package follow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// happens is what the kernel is asked about. IN_MODIFY is not in it: each line of a log beside the files would wake us, and
// what is being written is not to be read.
const happens = unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ATTRIB |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// maxLinks is how many links of a name are followed, as the kernel does (path_resolution(7)).
const maxLinks = 40

// notifier hears of what happens to names in folders. Nil hears nothing.
type notifier struct {
	fd       int // of file, whose Fd would make it one that blocks
	file     *os.File
	happened chan<- struct{}
	done     chan struct{}

	mu      sync.Mutex
	folders map[int32]*folder
}

// folder is one that the kernel is asked about.
type folder struct {
	path    string
	names   map[string]bool // that concern us
	writing map[string]bool // of these, files that somebody has made and not closed yet
}

func newNotifier(happened chan<- struct{}) (*notifier, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("ask the kernel to tell of files (inotify_init1): %w", err)
	}
	n := &notifier{
		fd: fd, file: os.NewFile(uintptr(fd), "inotify"), happened: happened, done: make(chan struct{}), folders: map[int32]*folder{},
	}
	go n.read()
	return n, nil
}

func (n *notifier) close() {
	if n == nil {
		return
	}
	n.file.Close()
	<-n.done
}

// watch asks about the names that lead to the files. A folder that cannot be asked about is an error, and the others are
// watched.
func (n *notifier) watch(files []string) error {
	if n == nil {
		return nil
	}
	wanted := map[string]map[string]bool{}
	for _, name := range files {
		lead(name, wanted)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	folders := map[int32]*folder{}
	for path, names := range wanted {
		wd, err := unix.InotifyAddWatch(n.fd, path, happens)
		switch {
		case errors.Is(err, unix.ENOENT): // it went meanwhile, which is told
		case err != nil:
			errs = append(errs, fmt.Errorf("ask the kernel to tell of files in %s: %w", path, err))
		case folders[int32(wd)] != nil: // under another name
			maps.Copy(folders[int32(wd)].names, names)
		default:
			folders[int32(wd)] = &folder{path: path, names: names, writing: map[string]bool{}}
			if before := n.folders[int32(wd)]; before != nil {
				folders[int32(wd)].writing = before.writing
			}
		}
	}
	for wd := range n.folders {
		if folders[wd] == nil {
			_, _ = unix.InotifyRmWatch(n.fd, uint32(wd)) // it may have gone by itself
		}
	}
	n.folders = folders
	return errors.Join(errs...)
}

// busy reports whether somebody has made one of the files and not closed it yet: that is told.
func (n *notifier) busy() bool {
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.folders {
		if len(f.writing) > 0 {
			return true
		}
	}
	return false
}

// lead adds the names on the way to a file, by the folders that they are in: each link, the file itself, or the first name
// that is not there.
func lead(name string, into map[string]map[string]bool) {
	rest := strings.Split(strings.Trim(filepath.Clean(name), "/"), "/")
	at, links := "/", 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		if part == ".." {
			at = filepath.Dir(at)
			continue
		}
		full := filepath.Join(at, part)
		info, err := os.Lstat(full)
		link := err == nil && info.Mode().Type() == fs.ModeSymlink
		if link || err != nil || len(rest) == 0 {
			if into[at] == nil {
				into[at] = map[string]bool{}
			}
			into[at][part] = true
		}
		if err != nil {
			return
		}
		if !link {
			at = full
			continue
		}
		target, err := os.Readlink(full)
		if links++; err != nil || links > maxLinks {
			return
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		var parts []string
		for _, p := range strings.Split(target, "/") {
			if p != "" && p != "." {
				parts = append(parts, p)
			}
		}
		rest = append(parts, rest...)
	}
}

// read reads events until the notifier is closed.
func (n *notifier) read() {
	defer close(n.done)
	buffer := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		size, err := n.file.Read(buffer)
		if err != nil {
			return
		}
		if n.concerns(buffer[:size]) {
			select {
			case n.happened <- struct{}{}:
			default:
			}
		}
	}
}

// concerns reports whether one of the events is about a name that we asked for.
func (n *notifier) concerns(events []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	any := false
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		mask := binary.NativeEndian.Uint32(events[4:])
		length := int(binary.NativeEndian.Uint32(events[12:]))
		events = events[unix.SizeofInotifyEvent:]
		if length > len(events) {
			return true // what cannot be read may be about anything
		}
		name := strings.TrimRight(string(events[:length]), "\x00")
		events = events[length:]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			for _, f := range n.folders {
				clear(f.writing) // the end of it may be among what was lost
			}
			any = true
		} else if f := n.folders[wd]; f != nil {
			any = f.concerns(mask, name) || any
		}
	}
	return any
}

// concerns takes what happened to a name in the folder, or to the folder itself.
func (f *folder) concerns(mask uint32, name string) bool {
	switch {
	case mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0:
		return true
	case !f.names[name]:
		return false
	case mask&unix.IN_CREATE != 0:
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(f.path, name), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 1 {
			f.writing[name] = true // neither a link of either kind: whoever made it will close it
		}
	case mask&unix.IN_ATTRIB == 0:
		delete(f.writing, name)
	}
	return true
}
