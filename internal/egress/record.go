package egress

import (
	"time"

	"github.com/sallyport/sallyport/internal/audit"
)

// record puts the decision into the audit log. If the log does not accept it, nothing happens.
func (x *passage) record() bool {
	d := x.decision
	d.Route = "" // the destination's name, which stands in the detail
	detail := x.detail()
	err := x.p.config.Audit.Record(audit.Record{
		ID:       x.id,
		Time:     x.began,
		Point:    "egress",
		Decision: d,
		Method:   x.out.Method,
		Path:     x.out.Path,
		Host:     x.out.Host.Name,
		Source:   x.peer,
		Caller:   x.caller(),
		Detail:   detail,
	})
	if err != nil {
		x.p.log.Error("record a decision: the attempt is refused", "attempt", x.id, "error", err)
		x.failure = codeAudit
		return false
	}
	x.recorded = true
	return true
}

func (x *passage) detail() map[string]any {
	d := map[string]any{"via": x.via}
	x.describe(d)
	if name := x.name(); name != "" {
		d["destination"] = name
	}
	if x.out.Host.Port != 0 {
		d["port"] = int(x.out.Host.Port)
	}
	if x.process != 0 {
		d["process"] = x.process
	}
	if len(x.out.Addresses) > 0 {
		addresses := make([]string, len(x.out.Addresses))
		for i, a := range x.out.Addresses {
			addresses[i] = a.Addr().String()
		}
		d["addresses"] = addresses
	}
	if h := x.out.Hello; h != nil && h.ServerName != "" && h.ServerName != x.out.Host.Name {
		d["server_name"] = h.ServerName
	}
	if len(x.dropped) > 0 {
		d["dropped"] = x.dropped
	}
	if x.skipped > 0 {
		d["unrecorded"] = x.skipped
	}
	if x.waived != "" {
		d["would"] = string(x.waived)
	}
	if x.refused != nil && x.refused.Entry != "" {
		d["entry"] = x.refused.Entry
	}
	return d
}

// outcome ends the line, however it went. It is deferred by whoever began the passage.
func (x *passage) outcome() {
	now := time.Now()
	if x.recorded {
		o := audit.Outcome{
			ID: x.id, Time: now, Status: x.status, Duration: now.Sub(x.began), Error: string(x.failure),
			BytesIn: x.in, BytesOut: x.back, Detail: x.later,
		}
		if err := x.p.config.Audit.Outcome(o); err != nil {
			x.p.log.Error("record an outcome", "attempt", x.id, "error", err)
		}
	}
	if !x.unmetered {
		x.p.metrics.done(x)
	}
	x.report(now)
	x.leave()
}

// leave gives the attempt's place back.
func (x *passage) leave() {
	x.release()
	if x.placed {
		x.placed = false
		x.p.inFlight.Add(-1)
	}
}
