package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
)

// tunnel is two connections of which each gets what the other sends.
type tunnel struct {
	client, server net.Conn
	idle           time.Duration
	last           atomic.Int64 // when a byte was last seen, in Unix nanoseconds
	half           atomic.Bool  // one side has said all

	once sync.Once
	code policy.Code // why it ended, if not because both sides had said all; once guards it
}

// tunnel copies until both sides have said all, or the connection breaks, is idle, is too old or ctx ends. early is what
// the client has sent already, late what the destination has. It closes both connections.
func (x *passage) tunnel(ctx context.Context, client net.Conn, early []byte, server net.Conn, late []byte) {
	t := &tunnel{client: client, server: server, idle: x.p.config.Limits.IdleTimeout}
	t.last.Store(time.Now().UnixNano())
	lifetime := time.AfterFunc(x.p.config.Limits.TunnelLifetime, func() { t.end(codeLifetime) })
	stop := context.AfterFunc(ctx, func() { t.end(codeClosing) })
	unguard := x.guard(true, t.end)
	var watch *time.Timer // for what no deadline ends: one side has said all, and does not read the other
	watch = time.AfterFunc(time.Hour, func() {
		if t.still() >= 2*t.idle {
			t.end(codeIdle)
			return
		}
		watch.Reset(t.idle)
	})
	watch.Reset(t.idle)
	back := make(chan int64)
	go func() { back <- t.copy(client, server, late) }()
	x.in = t.copy(server, client, early)
	x.back = <-back
	lifetime.Stop()
	watch.Stop()
	stop()
	unguard()
	t.end("")
	x.later = x.meanwhile()
	if ctx.Err() != nil {
		t.code = codeClosing
	}
	if t.code != "" && x.failure == "" {
		x.failure = t.code
	}
}

// still is how long no byte was seen.
func (t *tunnel) still() time.Duration { return time.Since(time.Unix(0, t.last.Load())) }

// end closes both connections, which ends what is being copied.
func (t *tunnel) end(code policy.Code) {
	t.once.Do(func() {
		t.code = code
		t.client.Close()
		t.server.Close()
	})
}

// copy copies one direction to its end and says so to the other side. Between TCP connections the bytes do not leave the
// kernel (splice): nothing is seen of them but, whenever the deadline has passed, how many there were.
func (t *tunnel) copy(to, from net.Conn, first []byte) int64 {
	var total int64
	if len(first) > 0 {
		n, err := to.Write(first)
		total = int64(n)
		if err != nil {
			t.end(codeBroken)
			return total
		}
	}
	for {
		from.SetReadDeadline(time.Now().Add(t.idle / 2))
		n, err := io.Copy(to, from)
		total += n
		if n > 0 {
			t.last.Store(time.Now().UnixNano())
		}
		switch {
		case err == nil:
			if t.half.Swap(true) {
				return total // the other direction has ended: both are closed now
			}
			if h, ok := to.(interface{ CloseWrite() error }); !ok || h.CloseWrite() != nil {
				t.end("")
			}
			return total
		case !errors.Is(err, os.ErrDeadlineExceeded):
			t.end(codeBroken)
			return total
		case t.still() >= t.idle:
			t.end(codeIdle)
			return total
		}
	}
}
