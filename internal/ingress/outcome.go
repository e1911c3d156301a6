package ingress

import (
	"errors"
	"net/http"
	"sync/atomic"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/wire"
)

// outcome ends the line, however it went: it is deferred, and a panic ends here too.
func (x *exchange) outcome() {
	p := recover()
	x.w.cut.finish()
	abort := p != nil && x.crashed(p)
	now := x.g.now()
	if x.recorded {
		o := audit.Outcome{
			ID: x.id, Time: now, Status: x.w.status, Duration: now.Sub(x.began), Error: string(x.failure),
			BytesIn:  x.upload.n.Load() + x.w.tunnelIn.Load(),
			BytesOut: x.w.n + x.w.tunnelOut.Load(),
		}
		x.forwardedElsewhere(&o)
		if err := x.g.config.Audit.Outcome(o); err != nil {
			x.g.log.Error("record an outcome", "request", x.id, "error", err)
		}
	}
	x.g.land(x)
	x.g.metrics.done(x, now.Sub(x.began))
	x.tell(now)
	x.report(now)
	x.g.inFlight.Add(-1)
	if abort {
		if x.wire != nil && !x.r.ProtoAtLeast(1, 1) {
			x.wire.Abort() // to HTTP/1.0 an end is the end of the answer
		}
		panic(http.ErrAbortHandler) // net/http closes the connection: what was begun is not whole
	}
}

// crashed finds the reason of a panic: ReverseProxy's way to say that an answer broke off, or a fault of ours. It
// reports whether the client must be told, by closing the connection, that what it has is not whole.
func (x *exchange) crashed(p any) bool {
	if p == http.ErrAbortHandler {
		if x.failure == "" {
			x.failure = x.reason(x.readErr)
		}
		return true
	}
	x.fault(p)
	x.failure = codeInternal
	if x.w.begun() {
		return true
	}
	x.answer(policy.Deny(codeInternal, ""), status(codeInternal))
	return false
}

// writer is the client's side of an answer: it counts, and remembers how far things got.
type writer struct {
	http.ResponseWriter
	wire      *wire.Conn // nil behind another server
	status    int        // 0: not begun
	n         int64      // body bytes
	length    int64      // body bytes announced; -1: not known, and then ReverseProxy flushes
	err       error      // that ended the writing
	pace      *pace      // of HTTP/2; nil: none
	cut       cutter
	tunnel    *tunnel // nil: the connection is none
	tunnelIn  atomic.Int64
	tunnelOut atomic.Int64
}

func (w *writer) begun() bool { return w.status != 0 }

// WriteHeader passes informational answers on, and the one final answer.
func (w *writer) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		if w.begun() {
			return
		}
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	if !w.begun() {
		w.WriteHeader(http.StatusOK)
	}
	w.pace.restart()
	w.pace.begin()
	n, err := w.ResponseWriter.Write(p)
	w.pace.end(n)
	w.n += int64(n)
	w.note(err)
	if err == nil && w.n < w.length {
		err = w.FlushError() // the rest may take its time
	}
	return n, err
}

func (w *writer) note(err error) {
	// A HEAD request has no body to write; that is no failure of the client.
	if err != nil && w.err == nil && !errors.Is(err, http.ErrBodyNotAllowed) {
		w.err = err
	}
}

// FlushError is what http.ResponseController looks for.
func (w *writer) FlushError() error {
	w.pace.restart()
	w.pace.begin()
	err := http.NewResponseController(w.ResponseWriter).Flush()
	w.pace.end(0)
	w.note(err)
	return err
}
