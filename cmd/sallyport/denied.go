package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/learn"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sandbox"
)

// The codes at the point "sandbox".
const (
	codeExecDenied policy.Code = "exec_denied" // a program that leads out: a shell, an interpreter, what fetches or connects
	codeFileDenied policy.Code = "file_denied" // writing where programs, settings or the kernel are
)

const (
	refusalPause  = time.Second // between two records of one caller's attempts of one kind at one path
	refusalBurst  = 32          // records in one such time, whatever they are about
	maxRemembered = 1024        // attempts that are told apart
)

// refusals records what the walls refuse a program, where that leads out of them: it is what an attacker does, and seldom
// what a service does by mistake. What else they refuse is their own matter. The broker calls hear, from one thread.
type refusals struct {
	flight *cause.Flight
	record func(audit.Record) error
	log    *slog.Logger
	now    func() time.Time
	count  *prometheus.CounterVec

	last    map[refusal]*pause
	began   time.Time // of the time in which at most refusalBurst are recorded
	written int       // in it
	missed  int       // left out for that, since the last record
}

// refusal is what makes two attempts the same.
type refusal struct {
	execute       bool
	path          string
	issuer, token string // of the one caller that it is made for
}

// pause is how long there is no other record of the same.
type pause struct {
	since  time.Time
	missed int // attempts left out since
}

func newRefusals(g *gate) *refusals {
	r := &refusals{
		flight: g.flight, record: g.audit.Record, log: g.log, now: time.Now, last: map[refusal]*pause{},
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_sandbox_refusals_total",
			Help: "Attempts to run or to write what leads out of the sandbox, refused, by code; those without a record of their own among them.",
		}, []string{"code"}),
	}
	for _, code := range []policy.Code{codeExecDenied, codeFileDenied} {
		r.count.WithLabelValues(string(code))
	}
	g.registry.MustRegister(r.count)
	return r
}

// hear is told of an attempt that the profile does not allow. It reports whether the attempt is refused for what it is
// about; all others the walls refuse. That nothing could be recorded changes nothing: it is refused.
func (r *refusals) hear(d sandbox.Denied) bool {
	access, code := byte('w'), codeFileDenied
	if d.Execute {
		access, code = 'x', codeExecDenied
	}
	why := learn.Dangerous(access, d.Path)
	if why == "" {
		return false
	}
	r.count.WithLabelValues(string(code)).Inc()
	now := r.now()
	detail, caller := r.cause()
	left, due := r.due(of(d, caller), now)
	if !due {
		return true
	}
	detail["path"], detail["process"] = d.Path, d.Process
	if left > 0 {
		detail["unrecorded"] = left
	}
	id := audit.NewID(now)
	err := r.record(audit.Record{
		ID: id, Time: now, Point: "sandbox", Decision: policy.Deny(code, fmt.Sprintf("%s: %s", d.Path, why)), Caller: caller, Detail: detail,
	})
	if err != nil {
		r.log.Error("record what the walls refuse", "id", id, "code", string(code), "error", err)
	}
	return true
}

func of(d sandbox.Denied, c *identity.Caller) refusal {
	f := refusal{execute: d.Execute, path: d.Path}
	if c != nil {
		f.issuer, f.token = c.Issuer, c.TokenID+" "+c.Digest // who came by a hop has one of them
	}
	return f
}

// cause is what is known of why it was tried, as the gate behind has it of connections: the walls see a process, which
// shows no capability, so that it is one of the requests in flight. The caller is theirs, where all are one caller's.
func (r *refusals) cause() (detail map[string]any, caller *identity.Caller) {
	w := r.flight.Window()
	detail = map[string]any{"level": "window"}
	if w.Requests == 0 {
		detail["cause"] = "background"
		return detail, nil
	}
	detail["requests"], detail["window"] = w.IDs, w.Requests
	if routes := w.Routes(); len(routes) > 0 {
		detail["routes"] = routes
	}
	if one := w.One(); one != nil {
		caller = one.Caller
	}
	return detail, caller
}

// due reports whether an attempt has a record of its own, and then how many had none since the last.
func (r *refusals) due(f refusal, now time.Time) (left int, due bool) {
	if now.Sub(r.began) >= refusalPause {
		r.began, r.written = now, 0
	}
	p := r.last[f]
	switch {
	case p != nil && now.Sub(p.since) < refusalPause:
		p.missed++
		return 0, false
	case r.written >= refusalBurst:
		r.missed++
		return 0, false
	case p == nil:
		r.forget(now)
		p = &pause{}
		r.last[f] = p
	}
	left = p.missed + r.missed
	p.since, p.missed, r.missed = now, 0, 0
	r.written++
	return left, true
}

// forget makes room for another attempt, if there is none: those whose time is over go, and are counted with the rest.
func (r *refusals) forget(now time.Time) {
	if len(r.last) < maxRemembered {
		return
	}
	for f, p := range r.last {
		if now.Sub(p.since) >= refusalPause {
			r.missed += p.missed
			delete(r.last, f)
		}
	}
}
