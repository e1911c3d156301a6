package http1

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/wire"
)

// A request that comes while its connection is told to end is read whole and answered.
func TestRequestThatMeetsTheDrain(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	near.SetDeadline(time.Now().Add(20 * time.Second))
	got := ""
	s := &Server{Base: context.Background(), Idle: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if got = string(b); err != nil {
			t.Error(err)
		}
	})}
	w := wire.New(far, wire.Limits{HeaderBytes: 1 << 10, HeaderFields: 10, HeaderTimeout: time.Minute, BodyTimeout: time.Minute}, nil)
	defer w.Close()
	w.Direct(&s.buffers, s.Idle)
	c := &Conn{server: s, wire: w, ctx: t.Context(), end: func() {}}
	go func() {
		io.WriteString(near, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
		io.WriteString(near, "hello")
		io.Copy(io.Discard, near)
	}()
	if !c.wait() {
		t.Fatal("nothing came")
	}
	s.draining.Store(true)
	c.retire()
	if c.serve() || got != "hello" {
		t.Errorf("read %q", got)
	}
	if c.wait() {
		t.Error("another is waited for")
	}
}
