package egress

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/trace"
)

// report sends a span of an attempt that has ended, in the trace of the request that it comes from, if that is sampled and known:
// for certain, or by the service's word.
func (x *passage) report(now time.Time) {
	e := x.causing()
	if x.p.config.Tracer == nil || e == nil || !e.Sampled || x.unmetered {
		return
	}
	parent := e.Own[:16] // of the request to the service; better is that of the service, where it says so
	if x.claim.trace == e.Trace && len(x.claim.parent) == 16 && trace.ID(x.claim.parent) {
		parent = x.claim.parent
	}
	var id [8]byte
	rand.Read(id[:])
	name := cmp.Or(x.name(), "egress")
	s := trace.Span{
		Trace: e.Trace, ID: hex.EncodeToString(id[:]), Parent: parent, Kind: trace.Client, Name: "egress " + name, Began: x.began, Ended: now,
		Failed: !x.decision.Allowed() || x.failure != "",
		Attributes: []trace.Attribute{
			{Key: "sallyport.destination", Text: x.name()}, {Key: "sallyport.code", Text: string(x.code())}, {Key: "sallyport.via", Text: x.via},
			{Key: "sallyport.level", Text: x.cause.level}, {Key: "sallyport.attempt_id", Text: x.id}, {Key: "http.response.status_code", Number: int64(x.status)},
		},
	}
	if x.left != "" { // the trace has another id there
		s.LinkedTrace, s.LinkedSpan, _, _ = trace.Parse(x.left)
	}
	x.p.config.Tracer.End(s)
}

// causing is the one request that the attempt comes from; nil: none, or it is not known which.
func (x *passage) causing() *cause.Entry {
	if x.cause.entry != nil {
		return x.cause.entry
	}
	return x.cause.window.Only
}
