package main

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The load on gateways comes from one thread that waits in epoll(7) and allocates nothing for a request: a client that costs more than
// what it measures would measure itself. Each request has its own token, and the load can come at a fixed rate, in which
// case an answer's time counts from when its request was due: a gateway that stalls is not asked less.

// traffic is a load on one gateway.
type traffic struct {
	address     string
	connections int
	tokens      *tokens // nil: none is sent
	next        *int    // of the tokens, in turn; nil: the first, always
	wrap        bool    // begin again behind the last token, in place of an error
	rate        float64 // requests a second; 0: as many as the connections get answered
	warm        time.Duration
	lasts       time.Duration
	requests    int           // end after so many in place of lasts; 0: no
	mark        func() error  // called when the warm-up is over, and at the end
	each        time.Duration // an answer that takes longer is an error; 0: a minute
}

// driven is what came of it.
type driven struct {
	count, rate float64
	p50, p99    float64 // µs
	broken      int     // connections that were closed under us, between two requests
}

// lane is one connection.
type lane struct {
	fd    int
	in    []byte // what came and is not read
	out   []byte
	began int64 // ns since the start; when the request was due
	busy  bool
	fresh bool // nothing has been answered on it
}

type driver struct {
	*traffic
	to       *unix.SockaddrInet4
	epoll    int
	lanes    []lane
	idle     []int // stack of lanes
	start    time.Time
	times    []int64
	counting bool
	broken   int
	sent     int
}

var errNoMoreTokens = errors.New("there are no more tokens that are new")

// drive sends the load, and returns when all of it has been answered with 200.
func drive(t traffic) (driven, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	d := &driver{traffic: &t}
	if err := d.open(); err != nil {
		return driven{}, err
	}
	defer d.close()
	return d.run()
}

func (d *driver) open() (err error) {
	var host [4]byte
	var port int
	if _, err := fmt.Sscanf(d.address, "%d.%d.%d.%d:%d", &host[0], &host[1], &host[2], &host[3], &port); err != nil {
		return fmt.Errorf("address %s: %w", d.address, err)
	}
	d.to = &unix.SockaddrInet4{Addr: host, Port: port}
	if d.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	d.lanes = make([]lane, d.connections)
	d.times = make([]int64, 0, 1<<16)
	for i := range d.lanes {
		d.lanes[i] = lane{fd: -1, in: make([]byte, 0, 16<<10), out: make([]byte, 0, 4<<10)}
		if err := d.dial(i); err != nil {
			d.close()
			return err
		}
		d.idle = append(d.idle, i)
	}
	return nil
}

func (d *driver) close() {
	for i := range d.lanes {
		if d.lanes[i].fd >= 0 {
			unix.Close(d.lanes[i].fd)
		}
	}
	unix.Close(d.epoll)
}

func (d *driver) dial(i int) error {
	l := &d.lanes[i]
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	l.fd, l.in, l.fresh = fd, l.in[:0], true
	for err = unix.Connect(fd, d.to); err == unix.EINTR; err = unix.Connect(fd, d.to) {
	}
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	return unix.EpollCtl(d.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)})
}

// run is the load from its beginning to its end.
func (d *driver) run() (driven, error) {
	each := d.each
	if each == 0 {
		each = time.Minute
	}
	d.start = time.Now()
	d.counting = d.warm == 0
	if d.counting {
		if err := d.tell(); err != nil {
			return driven{}, err
		}
	}
	from, until, due := int64(0), int64(d.warm+d.lasts), int64(0)
	if d.requests > 0 {
		until = 1 << 62
	}
	events := make([]unix.EpollEvent, 256)
	last := int64(0) // when something was answered
	for {
		now := int64(time.Since(d.start))
		if !d.counting && now >= int64(d.warm) {
			if err := d.tell(); err != nil {
				return driven{}, err
			}
			now = int64(time.Since(d.start))
			d.counting, from, d.times = true, now, d.times[:0]
		}
		more := now < until && (d.requests == 0 || d.sent < d.requests)
		wait, err := d.feed(now, &due, more)
		if err != nil {
			return driven{}, err
		}
		if !more && len(d.idle) == len(d.lanes) {
			break
		}
		n, err := d.wait(events, wait)
		if err != nil {
			return driven{}, err
		}
		for _, e := range events[:n] {
			if err := d.read(int(e.Fd)); err != nil {
				return driven{}, err
			}
			last = int64(time.Since(d.start))
		}
		if now := int64(time.Since(d.start)); now-max(last, from) > int64(each) {
			return driven{}, fmt.Errorf("no answer within %s", each)
		}
	}
	took := time.Duration(int64(time.Since(d.start)) - from)
	if err := d.tell(); err != nil {
		return driven{}, err
	}
	for ; d.rate > 0 && due < until; due += int64(float64(time.Second) / d.rate) { // was due, and there was no connection to send it on
		d.times = append(d.times, int64(time.Since(d.start))-due)
	}
	return d.sum(took)
}

func (d *driver) tell() error {
	if d.mark == nil {
		return nil
	}
	return d.mark()
}

func (d *driver) sum(took time.Duration) (driven, error) {
	n := len(d.times)
	if n == 0 {
		return driven{}, errors.New("nothing was answered")
	}
	slices.Sort(d.times)
	µs := func(at int) float64 { return float64(d.times[at]) / float64(time.Microsecond) }
	return driven{
		count: float64(n), rate: float64(n) / took.Seconds(), p50: µs(n / 2), p99: µs((n - 1) * 99 / 100), broken: d.broken,
	}, nil
}

// feed sends what is due on the connections that are idle. It returns how long to wait at most.
func (d *driver) feed(now int64, due *int64, more bool) (time.Duration, error) {
	if !more {
		return time.Second, nil
	}
	for len(d.idle) > 0 {
		began := now
		if d.rate > 0 {
			if *due > now {
				return time.Duration(*due - now), nil
			}
			began = *due
			*due += int64(float64(time.Second) / d.rate)
		}
		if d.requests > 0 && d.sent >= d.requests {
			break
		}
		i := d.idle[len(d.idle)-1]
		d.idle = d.idle[:len(d.idle)-1]
		if err := d.send(i, began); err != nil {
			return 0, err
		}
	}
	return time.Second, nil
}

func (d *driver) wait(events []unix.EpollEvent, wait time.Duration) (int, error) {
	for {
		ts := unix.NsecToTimespec(int64(wait))
		n, err := epollPwait2(d.epoll, events, &ts)
		if err != unix.EINTR {
			return n, err
		}
	}
}

const (
	requestHead = "GET " + thingPath + " HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n"
	// thingPath is what is asked for. Its first half is the tenant that the tokens are of.
	thingPath = "/v1/things/acme-17"
)

func (d *driver) send(i int, began int64) error {
	l := &d.lanes[i]
	l.out = append(l.out[:0], requestHead...)
	if d.tokens != nil {
		at := 0
		if d.next != nil {
			if *d.next >= d.tokens.len() {
				if !d.wrap {
					return errNoMoreTokens
				}
				*d.next = 0
			}
			at = *d.next
			*d.next++
		}
		l.out = append(l.out, "Authorization: Bearer "...)
		l.out = append(l.out, d.tokens.at(at)...)
		l.out = append(l.out, "\r\n"...)
	}
	l.out = append(l.out, "\r\n"...)
	l.began, l.busy = began, true
	d.sent++
	return d.write(i)
}

func (d *driver) write(i int) error {
	l := &d.lanes[i]
	n, err := unix.Write(l.fd, l.out)
	if err != nil || n < len(l.out) {
		return d.again(i, fmt.Errorf("write a request: %d of %d bytes: %w", n, len(l.out), err))
	}
	return nil
}

// again sends a request on another connection, if the one that it was sent on was closed while it was idle, as it may.
func (d *driver) again(i int, why error) error {
	l := &d.lanes[i]
	if l.fresh || len(l.in) > 0 {
		return why
	}
	unix.Close(l.fd)
	d.broken++
	if err := d.dial(i); err != nil {
		return err
	}
	return d.write(i)
}

func (d *driver) read(i int) error {
	l := &d.lanes[i]
	n, err := unix.Read(l.fd, l.in[len(l.in):cap(l.in)])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return nil
	case err != nil || n == 0:
		if !l.busy { // closed between two requests
			unix.Close(l.fd)
			d.broken++
			return d.dial(i)
		}
		return d.again(i, fmt.Errorf("the connection ends before the answer: %w", err))
	case !l.busy:
		return errors.New("an answer to nothing")
	}
	l.in = l.in[:len(l.in)+n]
	size, closes, err := answerSize(l.in)
	if err != nil || size < 0 || size > len(l.in) {
		if err == nil && len(l.in) == cap(l.in) {
			err = errors.New("an answer that is too long")
		}
		return err
	}
	if size < len(l.in) {
		return errors.New("more than one answer")
	}
	l.in, l.busy, l.fresh = l.in[:0], false, false
	if d.counting {
		d.times = append(d.times, int64(time.Since(d.start))-l.began)
	}
	d.idle = append(d.idle, i)
	if closes {
		unix.Close(l.fd)
		d.broken++
		return d.dial(i)
	}
	return nil
}

// answerSize is how long the answer is that begins here, -1 if its header is not there yet, and whether the connection ends with it. One that
// is not 200, or does not say its length, is an error.
func answerSize(b []byte) (size int, closes bool, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return -1, false, nil
	}
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 200 ")) {
		line, _, _ := bytes.Cut(b, []byte("\r\n"))
		return 0, false, fmt.Errorf("the answer is %q", line)
	}
	length := -1
	for rest := b[:end+2]; len(rest) > 0; {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		if len(line) < 10 || line[0]|0x20 != 'c' {
			continue
		}
		name, value, _ := bytes.Cut(line, []byte{':'})
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil || length < 0 {
				return 0, false, fmt.Errorf("no length: %q", line)
			}
		case bytes.EqualFold(name, []byte("Connection")):
			closes = bytes.EqualFold(bytes.TrimSpace(value), []byte("close"))
		}
	}
	if length < 0 {
		return 0, false, errors.New("the answer does not say its length")
	}
	return end + 4 + length, closes, nil
}
