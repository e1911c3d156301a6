package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
)

const (
	keptFor   = 4 * time.Second // Node closes an idle connection after 5 s: we are first, or a request meets the close
	keptMost  = 64              // to one host
	maxAnswer = 64 << 10        // bytes of an answer's header
)

var errAnswerTooLarge = errors.New("the header of the answer is over the limit")

// link is a connection to a destination.
type link struct {
	net.Conn // what is spoken on: the TLS connection where we originate one
	raw      net.Conn
	address  netip.AddrPort
	patience time.Duration // for the next byte
	read     *bufio.Reader // of the Conn's answers
	write    *bufio.Writer // of requests
	head     int           // how many bytes of a header may still come; negative: none is being read
	any      bool          // a byte has come since the last request
	used     bool          // an earlier request went over it
	timer    *time.Timer   // that closes it while it is kept

	readBy, writeBy time.Time // the deadlines that are set
}

// secure makes a link of a new connection, with TLS on it if we are to originate it: the destination must prove its name.
func (x *passage) secure(ctx context.Context, c net.Conn) (*link, error) {
	l := &link{Conn: c, raw: c, patience: x.p.config.Limits.IdleTimeout, head: -1}
	l.address, _ = netip.ParseAddrPort(c.RemoteAddr().String())
	if x.destination == nil || !x.destination.Originate {
		return l, nil
	}
	client := tls.Client(c, &tls.Config{
		ServerName: x.out.Host.Name,
		RootCAs:    x.destination.roots,
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
	})
	ctx, cancel := context.WithTimeout(ctx, x.p.config.Limits.DialTimeout)
	defer cancel()
	if err := client.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	l.Conn = client
	return l, nil
}

// requests is where requests are written.
func (l *link) requests() *bufio.Writer {
	if l.write == nil {
		l.write = bufio.NewWriterSize(l, 4<<10)
	}
	return l.write
}

// answers is where answers are read.
func (l *link) answers() *bufio.Reader {
	if l.read == nil {
		l.read = bufio.NewReaderSize(answerReader{l}, 8<<10)
	}
	return l.read
}

// answerReader reads from a link, patiently and, while it is a header, not without end.
type answerReader struct{ *link }

func (r answerReader) Read(p []byte) (int, error) {
	switch {
	case r.head == 0:
		return 0, errAnswerTooLarge
	case r.head > 0 && r.head < len(p):
		p = p[:r.head]
	}
	if err := r.renew(&r.readBy, r.raw.SetReadDeadline); err != nil {
		return 0, err
	}
	n, err := r.Conn.Read(p)
	if r.head > 0 {
		r.head -= n
	}
	r.any = r.any || n > 0
	return n, err
}

// Write gives the destination its time to take some of p.
func (l *link) Write(p []byte) (int, error) {
	if err := l.renew(&l.writeBy, l.raw.SetWriteDeadline); err != nil {
		return 0, err
	}
	return l.Conn.Write(p)
}

// renew puts a deadline off, unless that was done a moment ago: it is done for each piece of each request, and its
// accuracy is nobody's concern.
func (l *link) renew(by *time.Time, set func(time.Time) error) error {
	now := time.Now()
	if by.Sub(now) > l.patience-l.patience/8 {
		return nil
	}
	*by = now.Add(l.patience)
	return set(*by)
}

// close closes a link that may not be there.
func (l *link) close() {
	if l != nil {
		l.Conn.Close()
	}
}

// quiet reports whether nothing has come over a kept link: no end, and no byte that nobody asked for.
func (l *link) quiet() bool {
	c, ok := l.raw.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = err == syscall.EAGAIN
		return true
	})
	return quiet && err == nil
}

// drained reports whether TLS holds nothing that came with the last answer and is no part of it.
func (l *link) drained() bool {
	if l.Conn == l.raw {
		return true
	}
	if l.raw.SetReadDeadline(time.Unix(1, 0)) != nil { // what it has not read yet stays where quiet looks
		return false
	}
	n, err := l.Conn.Read(make([]byte, 1))
	l.readBy = time.Time{}
	return l.raw.SetReadDeadline(l.readBy) == nil && n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

// kept holds links between requests. Each belongs to the rules by which its address was judged.
type kept struct {
	mu    sync.Mutex
	links map[policy.Host][]*link
}

func newKept() *kept { return &kept{links: map[policy.Host][]*link{}} }

// take returns the link to the host that was used last, nil if there is none that is good.
func (k *kept) take(h policy.Host) *link {
	k.mu.Lock()
	defer k.mu.Unlock()
	for list := k.links[h]; len(list) > 0; {
		l := list[len(list)-1]
		list = list[:len(list)-1]
		k.links[h] = list
		if l.timer.Stop() && l.quiet() {
			return l
		}
		l.close()
	}
	return nil
}

// put keeps a link whose last answer has been read to its end, for a while.
func (k *kept) put(h policy.Host, l *link) {
	if l.read.Buffered() > 0 || !l.drained() {
		l.close()
		return
	}
	l.used = true
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.links[h]) >= keptMost {
		l.close()
		return
	}
	if l.timer == nil {
		l.timer = time.AfterFunc(keptFor, func() { k.expire(h, l) })
	} else {
		l.timer.Reset(keptFor) // take has stopped it
	}
	k.links[h] = append(k.links[h], l)
}

func (k *kept) expire(h policy.Host, l *link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := k.links[h]
	for i := range list {
		if list[i] == l {
			k.links[h] = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	l.close()
}

// close closes every link that is kept. What is put later is closed in its time.
func (k *kept) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for h, list := range k.links {
		for _, l := range list {
			if l.timer.Stop() {
				l.close()
			}
		}
		delete(k.links, h)
	}
}
