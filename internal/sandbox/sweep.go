package sandbox

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sweepAfter = time.Second // how old a copy must be to be looked for
	sweepMost  = 30 * time.Second
)

// sweepLater arranges for a look at the copies that are held for long; mu is held. A program that makes a socket and
// closes it unused tells nobody.
func (b *broker) sweepLater() {
	if b.sweeps == nil && !b.closed {
		b.sweeps = time.AfterFunc(sweepAfter, b.sweepAgain)
	}
}

func (b *broker) sweepAgain() {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	b.aside.Add(1) // close waits for the descriptors that looking takes
	defer b.aside.Done()
	b.mu.Unlock()
	took := b.sweep(time.Now().Add(-sweepAfter))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sweeps = nil
	if len(b.held)+len(b.waiting)+len(b.blocked) > 0 && !b.closed {
		// A fiftieth of one processor at most, however many descriptors the program has.
		b.sweeps = time.AfterFunc(min(max(50*took, sweepAfter), sweepMost), b.sweepAgain)
	}
}

// sweep gives up the copies, made before the given time, of sockets that no process of the program has any more. Twice
// in a row, since a descriptor may move from one process to another while we look.
func (b *broker) sweep(before time.Time) time.Duration {
	began := time.Now()
	b.mu.Lock()
	looking := len(b.blocked) > 0
	for o := range b.copies() {
		looking = looking || o.since.Before(before)
	}
	b.mu.Unlock()
	if !looking {
		return 0
	}
	alive := socketsInUse()
	b.mu.Lock()
	defer b.mu.Unlock()
	for o := range b.copies() {
		switch {
		case alive[o.inode] || !o.since.Before(before):
			o.missed = 0
		case o.missed > 0:
			if b.waiting[o.fd] == o {
				b.abandon(o)
			}
			b.shutAside(b.release(o))
		default:
			o.missed++
		}
	}
	for n, o := range b.blocked {
		if b.serving && !alive[o.inode] && !b.from.valid(n) {
			_ = unix.Shutdown(o.fd, unix.SHUT_RDWR) // our thread's wait is over; a socket that is connected by now closes anyway
		}
	}
	return time.Since(began)
}

// copies are those that are held, and those that are no longer held or never were and are connecting; mu is held.
func (b *broker) copies() iter.Seq[*twin] {
	return func(yield func(*twin) bool) {
		for _, o := range b.held {
			if !yield(o) {
				return
			}
		}
		for _, o := range b.waiting {
			if o.gone && !yield(o) {
				return
			}
		}
	}
}

// socketsInUse are the inodes of the sockets of every process that we may look into. The program's are among them: one
// that we may not look into could not connect either.
func socketsInUse() map[uint64]bool {
	inodes := map[uint64]bool{}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return inodes
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		process := fmt.Sprintf("/proc/%d", pid)
		if found, err := addSockets(inodes, process+"/fd"); found || errors.Is(err, unix.ENOENT) {
			continue
		}
		// Perhaps its first thread has ended; the others have what it had, unless it is somebody else's.
		threads, err := os.ReadDir(process + "/task")
		if err != nil {
			continue
		}
		for _, t := range threads {
			if t.Name() == p.Name() {
				continue
			}
			if found, err := addSockets(inodes, process+"/task/"+t.Name()+"/fd"); found || errors.Is(err, unix.EACCES) {
				break
			}
		}
	}
	return inodes
}

// addSockets notes the sockets of one table, and tells whether there is anything in it.
func addSockets(inodes map[uint64]bool, folder string) (found bool, err error) {
	descriptors, err := os.ReadDir(folder)
	if err != nil {
		return false, err
	}
	for _, d := range descriptors {
		link, err := os.Readlink(folder + "/" + d.Name())
		if err != nil {
			continue
		}
		if inode, ok := socketLink(link); ok {
			inodes[inode] = true
		}
	}
	return len(descriptors) > 0, nil
}
