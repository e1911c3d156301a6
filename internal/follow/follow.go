// Package follow tells when one of a few files holds something else than before.
//
//	f := follow.New(follow.Options{})
//	f.Follow(files)
//	f.Run(ctx, func() (again bool) { return reload() != nil })
//
// It looks where the names lead: at files that are written in place, replaced by a rename, taken away and made anew, and at
// links of which one on the way is set to another target, as Kubernetes does with the files of a ConfigMap. What counts is
// what the files hold: a file that was touched, or written again as it was, has not changed.
//
// # How it hears
//
// It asks the kernel (inotify(7)) about the folders on the way, and there about the names on the way and no other: what else
// lies in the folder may be written as often as it likes. It is not asked about each write, but about the closing of a file
// that was written: one that somebody has begun to write is not looked at. When nothing more has happened for a moment
// (Options.Settle), the files are read.
//
// Network and layered file systems tell the kernel nothing of what others do there. Therefore the files are looked at besides
// every half minute (Options.Poll); what is found only so has to look the same twice, since nobody says whether it is whole.
//
// # Limits
//
// A file of which 16 MiB are the same is the same. Whoever replaces two files with two renames has both taken if they are
// not further apart than Settle. A program that writes a file in place and never closes it is seen by the second way alone.
package follow

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	defaultSettle = 150 * time.Millisecond
	defaultPoll   = 30 * time.Second
	patience      = 10 // how often Settle may begin again before the files are read all the same
	maxRead       = 16 << 20
)

// Options say how long it takes. The zero value is for use.
type Options struct {
	Settle time.Duration // from the last thing that happened until the files are read; zero means 150 ms
	Poll   time.Duration // between two looks that nothing made us take; zero means 30 s
	Failed func(error)   // hears why the kernel does not tell, once for each reason; nil: nobody
}

// Follower follows files. Safe for concurrent use, Run but once.
type Follower struct {
	options Options
	told    chan struct{} // of capacity 1: there are other files to follow

	mu    sync.Mutex
	files []string
	seen  map[string]sight

	failures map[string]bool // of Run alone
	deaf     bool            // the kernel is not asked, for tests
}

// sight is what was found where a name leads: the hash of what it holds, or why it could not be read.
type sight struct {
	sum   [sha256.Size]byte
	fault string
}

// New makes a follower of nothing.
func New(o Options) *Follower {
	if o.Settle <= 0 {
		o.Settle = defaultSettle
	}
	if o.Poll <= 0 {
		o.Poll = defaultPoll
	}
	return &Follower{options: o, told: make(chan struct{}, 1), seen: map[string]sight{}, failures: map[string]bool{}}
}

// Follow replaces what is followed. What was followed before keeps its last look; what is new is looked at now.
func (f *Follower) Follow(files []string) {
	files = slices.Compact(slices.Sorted(slices.Values(files)))
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := make(map[string]sight, len(files))
	for _, name := range files {
		if s, ok := f.seen[name]; ok {
			seen[name] = s
		} else {
			seen[name] = look(name)
		}
	}
	f.files, f.seen = files, seen
	select {
	case f.told <- struct{}{}:
	default:
	}
}

// Know says what the caller has read in a file that is followed, the SHA-256 of it, where it was read before Follow.
func (f *Follower) Know(name string, sum [sha256.Size]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[name] = sight{sum: sum}
}

// Look takes the files as they are now for known. Whoever is about to read them calls it first: what changes from here on is
// told, and what changed before is not.
func (f *Follower) Look() { f.differs() }

// differs looks at the files, and reports whether one is not as it was at the last look.
func (f *Follower) differs() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := make(map[string]sight, len(f.files))
	for _, name := range f.files {
		now[name] = look(name)
	}
	changed := !maps.Equal(now, f.seen)
	f.seen = now
	return changed
}

// Run calls changed when a file has changed, until ctx ends. While changed has not returned nothing else is told. Where it
// asks for that, it is called again at the next Poll, changed or not.
func (f *Follower) Run(ctx context.Context, changed func() (again bool)) {
	happened := make(chan struct{}, 1)
	var n *notifier
	if !f.deaf {
		var err error
		n, err = newNotifier(happened)
		f.failed(err)
	}
	defer n.close()
	poll := time.NewTicker(f.options.Poll)
	defer poll.Stop()
	settle := time.NewTimer(0) // what has changed since the files were looked at
	defer settle.Stop()
	var last, next string // how the files looked from outside when they were read, and at the last poll
	var since time.Time   // the first thing that happened and was not looked at
	again := false
	for {
		polled := false
		select {
		case <-ctx.Done():
			return
		case <-f.told:
			settle.Reset(f.options.Settle)
			continue
		case <-happened:
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) < patience*f.options.Settle {
				settle.Reset(f.options.Settle)
			}
			continue
		case <-poll.C:
			polled = true
			before := next
			next = f.outside()
			if !again && (next == last || next != before) {
				continue
			}
		case <-settle.C:
		}
		since = time.Time{}
		f.failed(n.watch(f.names())) // before the look: what happens after it is told
		if !polled && n.busy() {
			continue
		}
		last = f.outside()
		if f.differs() || again {
			again = changed()
		}
	}
}

func (f *Follower) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.files
}

func (f *Follower) failed(err error) {
	if err == nil || f.options.Failed == nil || f.failures[err.Error()] {
		return
	}
	f.failures[err.Error()] = true
	f.options.Failed(err)
}

// outside is how the files look without being read.
func (f *Follower) outside() string {
	var s []byte
	for _, name := range f.names() {
		info, err := os.Stat(name)
		if err != nil {
			s = fmt.Appendf(s, "%s\x00%s\n", name, reason(err))
			continue
		}
		var device, inode uint64
		var changed syscall.Timespec
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			device, inode, changed = uint64(sys.Dev), sys.Ino, sys.Ctim
		}
		s = fmt.Appendf(s, "%s\x00%d %d %d %d %v\n", name, device, inode, info.Size(), info.ModTime().UnixNano(), changed)
	}
	return string(s)
}

// look reads a file. Nobody is waited for at the other end of a pipe.
func look(name string) (s sight) {
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return sight{fault: reason(err)}
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("no regular file")
	}
	hash := sha256.New()
	if err == nil {
		_, err = io.Copy(hash, io.LimitReader(file, maxRead))
	}
	if err != nil {
		return sight{fault: reason(err)}
	}
	hash.Sum(s.sum[:0])
	return s
}

// reason is an error without the name of the file.
func reason(err error) string {
	if of, ok := errors.AsType[*fs.PathError](err); ok {
		return of.Err.Error()
	}
	return err.Error()
}
