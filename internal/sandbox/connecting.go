package sandbox

import (
	"errors"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A connection that was begun and is not there yet: either a thread of ours waits for it, or poll does.

// block notes that a thread of ours waits for a caller's connection. False: too many do.
func (b *broker) block(n *notification, o *twin) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.blocked) >= min(maxBlocked, b.most) || !b.identify(o) {
		return false
	}
	b.blocked[n] = o
	b.sweepLater()
	return true
}

// identify makes sure that sweep can tell a copy that was fetched; mu is held.
func (b *broker) identify(o *twin) bool {
	if o.inode != 0 {
		return true
	}
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return false
	}
	b.made++
	o.inode, o.number, o.since = st.Ino, b.made, time.Now()
	return true
}

// watch keeps a copy until the socket is connected or has failed. False: it is not kept.
func (b *broker) watch(o *twin, ended func(error)) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.waiting[o.fd] != nil || !b.identify(o) {
		return false // another thread began the same; its end is ours
	}
	if err := unix.EpollCtl(b.poll, unix.EPOLL_CTL_ADD, o.fd, &unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLONESHOT, Fd: int32(o.fd)}); err != nil {
		return false
	}
	if len(b.waiting) >= b.most {
		b.abandon(slices.MinFunc(slices.Collect(maps.Values(b.waiting)), older))
	}
	o.refs++
	o.ended = ended
	b.waiting[o.fd] = o
	b.sweepLater()
	return true
}

// abandon waits no more for how connecting ends; mu is held.
func (b *broker) abandon(o *twin) {
	ended := o.ended
	o.ended = nil
	b.unwatch(o)
	last := b.drop(o)
	b.aside.Go(func() {
		if ended != nil {
			ended(errors.New("given up before it was connected"))
		}
		shut(last)
	})
}

// unwatch is called before a copy closes: the kernel remembers what it polls as long as the program has the socket. mu
// is held.
func (b *broker) unwatch(o *twin) {
	_ = unix.EpollCtl(b.poll, unix.EPOLL_CTL_DEL, o.fd, nil) // it fails only if there is nothing to forget
	delete(b.waiting, o.fd)
}

// settled learns how connecting ended. The socket's error is the program's to read, and is left alone.
func (b *broker) settled(fd int, events uint32) {
	b.mu.Lock()
	o := b.waiting[fd]
	if o == nil {
		b.mu.Unlock()
		return
	}
	b.unwatch(o)
	ended := o.ended
	o.ended = nil
	b.mu.Unlock()
	var err error
	switch {
	case events&(unix.EPOLLERR|unix.EPOLLHUP) == 0:
		b.retire(o, pastConnected)
	case !wasConnected(fd):
		err = errors.New("not connected")
	}
	b.aside.Go(func() { b.put(o) }) // not on this thread, which others wait for
	if ended != nil {
		ended(err)
	}
}

// wasConnected tells whether a peer ever answered: a connection that is over already looks like one that failed.
func wasConnected(fd int) bool {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.Bytes_acked > 0 // the SYN counts
}

// dissolve undoes an association, after which nobody could tell how connecting ended.
func (b *broker) dissolve(o *twin, address []byte) unix.Errno {
	var ends []int
	b.mu.Lock()
	if b.identify(o) {
		for fd, other := range b.waiting {
			if other.inode == o.inode {
				ends = append(ends, fd)
			}
		}
	}
	b.mu.Unlock()
	for _, fd := range ends {
		b.settled(fd, unix.EPOLLHUP)
	}
	return rawConnect(o.fd, address)
}
