package ingress

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// minBodyRate is how many bytes of a body a client must send for each second that it is waited for, BodyTimeout given
// beforehand, as in package wire.
const minBodyRate = 500

// pace holds a stream of HTTP/2 to what package wire holds a connection of HTTP/1 to: a client that does not send is not
// waited for longer than BodyTimeout, nor longer in all than what it has sent has earned. Only time in which we wait for the
// client counts. A nil pace does nothing.
type pace struct {
	patience time.Duration
	late     func() // ends the body
	timer    *time.Timer
	since    time.Time
	taken    int64
	waited   time.Duration
}

func newPace(patience time.Duration, late func()) *pace { return &pace{patience: patience, late: late} }

// begin starts to wait for the client.
func (p *pace) begin() {
	if p == nil {
		return
	}
	p.since = time.Now()
	earned := time.Duration(p.taken/minBodyRate) * time.Second
	left := max(0, min(p.patience, p.patience+earned-p.waited))
	if p.timer == nil {
		p.timer = time.AfterFunc(left, p.late)
		return
	}
	p.timer.Reset(left)
}

// end stops waiting: n bytes came.
func (p *pace) end(n int) {
	if p == nil {
		return
	}
	p.timer.Stop()
	p.taken += int64(n)
	p.waited += time.Since(p.since)
}

// restart forgets what was: something new is waited for.
func (p *pace) restart() {
	if p != nil {
		p.taken, p.waited = 0, 0
	}
}

// hold bounds a body of HTTP/2 by its pace, and that of a gRPC call by its messages: between two of them a call may rest for as
// long as its token is good, and there may be any number of them.
//
// release is called when the request is over.
func (x *exchange) hold(ctx context.Context, u *upload) (release func()) {
	release = func() {}
	if x.g.transport.grpc {
		u.cut = func() { x.w.cut.reading(time.Now()) }
		stop := context.AfterFunc(ctx, func() { u.Close() }) // while it reads, the transport of HTTP/2 does not look at ctx
		release = func() { stop() }
	}
	if x.r.ProtoMajor != 2 {
		return release // package wire does the rest
	}
	u.pace = newPace(x.g.config.Limits.BodyTimeout, func() {
		u.late.Store(true)
		x.w.cut.reading(time.Now())
	})
	if x.grpc && x.g.transport.grpc {
		u.messages = &messages{limit: u.limit}
		u.limit = unlimited
	}
	return release
}

// wait reads what comes next, while the client may be waited for.
func (u *upload) wait(p []byte) (int, error) {
	if u.messages != nil && u.messages.between() {
		u.pace.restart()
		return u.body.Read(p)
	}
	u.pace.begin()
	n, err := u.body.Read(p)
	u.pace.end(n)
	return n, err
}

// follow holds a gRPC call to its messages.
func (u *upload) follow(b []byte, last bool) error {
	if u.messages == nil {
		return nil
	}
	err := u.messages.feed(b)
	if err == nil && last && !u.messages.between() {
		err = errMessage
	}
	switch err {
	case errTooLarge:
		u.tooLarge.Store(true)
	case errMessage:
		u.malformed.Store(true)
	}
	return err
}

// cutter ends what a stream waits for, from any goroutine and at any time: net/http allows it only while the handler runs.
type cutter struct {
	mu   sync.Mutex
	over bool
	w    http.ResponseWriter
}

// reading makes the body end with an error at t.
func (c *cutter) reading(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		http.NewResponseController(c.w).SetReadDeadline(t)
	}
}

// writing makes the answer end with an error at t.
func (c *cutter) writing(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		http.NewResponseController(c.w).SetWriteDeadline(t)
	}
}

// finish is called before the handler returns.
func (c *cutter) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}
