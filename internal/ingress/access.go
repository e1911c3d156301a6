package ingress

import (
	"cmp"
	"time"

	"github.com/sallyport/sallyport/internal/access"
)

// tell writes a line about a request that has ended. Nobody waits for it.
func (x *exchange) tell(now time.Time) {
	log := x.g.config.Access
	if log == nil {
		return
	}
	log.Write(access.Entry{
		Time: x.began, ID: x.id, Method: x.request.Method, Path: x.request.Path, Route: x.decision.Route,
		Status: x.w.status, Code: string(cmp.Or(x.failure, x.decision.Code)), Duration: now.Sub(x.began),
		BytesIn: x.upload.n.Load() + x.w.tunnelIn.Load(), BytesOut: x.w.n + x.w.tunnelOut.Load(),
		Source: x.request.Source, Protocol: x.r.Proto, Way: x.entryPoint(),
	})
}
