package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/sandbox"
)

// told is one record at "sandbox".
type told struct {
	Point, Decision, Code, Reason string
	TokenID                       string `json:"token_id"`
	Detail                        struct {
		Level, Cause, Path string
		Requests, Routes   []string
		Window, Process    int
		Unrecorded         int
	}
}

// ward is refusals with a log that can be read and a clock that can be set.
type ward struct {
	*refusals
	book bytes.Buffer
	at   time.Time
}

func newWard(t *testing.T) *ward {
	w := &ward{at: time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)}
	log := audit.New(&w.book, audit.Config{})
	t.Cleanup(func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	g := &gate{flight: cause.NewFlight(), audit: log, registry: prometheus.NewRegistry(), log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	w.refusals = newRefusals(g)
	w.now = func() time.Time { return w.at }
	return w
}

// told returns what was recorded since the last time.
func (w *ward) told(t *testing.T) (all []told) {
	t.Helper()
	for line := range strings.Lines(w.book.String()) {
		var r told
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if r.Point != "" {
			all = append(all, r)
		}
	}
	w.book.Reset()
	return all
}

func inflight(id, route, token string) cause.Request {
	r := cause.Request{ID: id, Route: route}
	if token != "" {
		r.Caller = &identity.Caller{Issuer: "https://issuer.example", Subject: "mallory", TokenID: token, Digest: "d-" + token}
	}
	return r
}

// What leads out is recorded, with the caller whose request it must have been; what does not is left to the walls.
func TestRefusalsName(t *testing.T) {
	w := newWard(t)
	shell := sandbox.Denied{Process: 7, Execute: true, Path: "/usr/bin/dash"}
	if !w.hear(shell) || !w.hear(sandbox.Denied{Path: "/proc/sys/kernel/core_pattern"}) {
		t.Error("what leads out is left to the walls")
	}
	for _, harmless := range []sandbox.Denied{{Execute: true, Path: "/data/report"}, {Path: "/srv/cache"}, {Path: "/data/bin/sh"}, {Path: "/usr/bin/dash-notes/x", Execute: true}} {
		if w.hear(harmless) {
			t.Errorf("%+v is recorded", harmless)
		}
	}
	a := w.flight.Begin(inflight("A", "lookup", "t1"))
	w.hear(shell)
	b := w.flight.Begin(inflight("B", "upload", "t2"))
	w.at = w.at.Add(refusalPause)
	w.hear(shell)
	a.Done()
	b.Done()
	got := w.told(t)
	if len(got) != 4 {
		t.Fatalf("%+v", got)
	}
	for i, want := range []struct{ code, path, token, cause, requests, routes string }{
		{"exec_denied", "/usr/bin/dash", "", "background", "[]", "[]"},
		{"file_denied", "/proc/sys/kernel/core_pattern", "", "background", "[]", "[]"},
		{"exec_denied", "/usr/bin/dash", "t1", "", "[A]", "[lookup]"},
		{"exec_denied", "/usr/bin/dash", "", "", "[B A]", "[lookup upload]"},
	} {
		r := got[i]
		d := r.Detail
		if r.Point != "sandbox" || r.Decision != "deny" || r.Code != want.code || d.Path != want.path || r.TokenID != want.token || d.Cause != want.cause ||
			fmt.Sprint(d.Requests) != want.requests || fmt.Sprint(d.Routes) != want.routes || d.Level != "window" || d.Window != len(d.Requests) || !strings.HasPrefix(r.Reason, d.Path+": ") {
			t.Errorf("record %d: %+v, want %+v", i, r, want)
		}
	}
	if got[0].Detail.Process != 7 {
		t.Error("the process is not named")
	}
}

// A service in a loop does not fill the disk, and nobody hides behind another's loop.
func TestRefusalsInALoop(t *testing.T) {
	w := newWard(t)
	shell := sandbox.Denied{Execute: true, Path: "/bin/sh"}
	for range 100 {
		if !w.hear(shell) {
			t.Fatal("an attempt without a record is let go on")
		}
	}
	mallory := w.flight.Begin(inflight("M", "lookup", "t1"))
	w.hear(shell)
	if got := w.told(t); len(got) != 2 || got[0].Detail.Unrecorded != 0 || got[1].TokenID != "t1" {
		t.Errorf("%+v", got)
	}
	mallory.Done()
	w.flight = cause.NewFlight()
	w.at = w.at.Add(refusalPause)
	w.hear(shell)
	if got := w.told(t); len(got) != 1 || got[0].Detail.Unrecorded != 99 {
		t.Errorf("%+v", got)
	}
	for i := range 10_000 {
		w.hear(sandbox.Denied{Path: fmt.Sprint("/etc/", i)})
	}
	if got := w.told(t); len(got) != refusalBurst-1 {
		t.Errorf("%d of different paths in one second", len(got))
	}
	w.at = w.at.Add(refusalPause)
	w.hear(sandbox.Denied{Path: "/etc/one-more"})
	if got := w.told(t); len(got) != 1 || got[0].Detail.Unrecorded != 10_000-refusalBurst+1 {
		t.Errorf("%+v", got)
	}
	for i := range 100 * refusalBurst { // there is an end to what is remembered
		w.at = w.at.Add(refusalPause / refusalBurst)
		w.hear(sandbox.Denied{Path: fmt.Sprint("/usr/", i)})
	}
	if len(w.last) > maxRemembered {
		t.Errorf("%d are remembered", len(w.last))
	}
	if n := testutil.ToFloat64(w.count.WithLabelValues(string(codeFileDenied))); n != float64(10_001+100*refusalBurst) {
		t.Errorf("%v are counted", n)
	}
}

// Where nothing can be recorded it is refused all the same.
func TestRefusalsWithoutLog(t *testing.T) {
	w := newWard(t)
	w.record = func(audit.Record) error { return errors.New("the disk is full") }
	if !w.hear(sandbox.Denied{Execute: true, Path: "/bin/sh"}) {
		t.Error("it is let go on")
	}
}
