package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// auditLine is one line of the audit log, as far as the tests read it.
type auditLine struct {
	Time     time.Time      `json:"time"`
	Kind     string         `json:"kind"`
	ID       string         `json:"id"`
	Point    string         `json:"point"`
	Decision string         `json:"decision"`
	Code     string         `json:"code"`
	Route    string         `json:"route"`
	Method   string         `json:"method"`
	Path     string         `json:"path"`
	TokenID  string         `json:"token_id"`
	Digest   string         `json:"token_digest"`
	Detail   map[string]any `json:"detail"`
	Status   int            `json:"status"`
	BytesIn  int64          `json:"bytes_in"`
	BytesOut int64          `json:"bytes_out"`
	Error    string         `json:"error"`
}

func (l auditLine) outcome() bool { return l.Kind == "outcome" }
func (l auditLine) allowed() bool { return l.Decision == "allow" }

// readAudit takes an audit log apart. A last line without its end is still being written.
func readAudit(t testing.TB, book string) (lines []auditLine) {
	t.Helper()
	for line := range strings.Lines(book) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var l auditLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("audit line %q: %v", line, err)
		}
		lines = append(lines, l)
	}
	return lines
}

// decisionsOf are the decisions of the gate, by request.
func decisionsOf(t testing.TB, book string) map[string]decision {
	t.Helper()
	decisions := make(map[string]decision)
	for _, l := range readAudit(t, book) {
		if l.Point != "ingress" || l.outcome() {
			continue
		}
		if _, twice := decisions[l.ID]; twice {
			t.Errorf("two records have the id %s", l.ID)
		}
		decisions[l.ID] = decision{l.allowed(), l.Route}
	}
	return decisions
}

// written is one decision of the book with its outcome, which is nil until it has ended.
type written struct {
	decision auditLine
	outcome  *auditLine
}

// entries are both gates' decisions with their outcomes, and what is wrong with the book: an outcome without a decision
// before it, an id twice.
func entries(t testing.TB, book string) (all map[string]written, wrong []string) {
	t.Helper()
	all = make(map[string]written)
	operators := make(map[string]bool) // what was done by no request, and may have an outcome too
	for _, l := range readAudit(t, book) {
		e, known := all[l.ID]
		switch {
		case l.outcome() && operators[l.ID]:
		case l.outcome() && (!known || e.outcome != nil):
			wrong = append(wrong, fmt.Sprintf("outcome %s: a decision before it: %t, another outcome: %t", l.ID, known, e.outcome != nil))
		case l.outcome():
			e.outcome = &l
			all[l.ID] = e
		case l.Point != "ingress" && l.Point != "egress":
			operators[l.ID] = true
		case known:
			wrong = append(wrong, fmt.Sprintf("two decisions have the id %s", l.ID))
		default:
			all[l.ID] = written{decision: l}
		}
	}
	return all, wrong
}

// entry finds one request in the book. Its outcome is written after the answer, so it is waited for a little.
func (p *product) entry(t testing.TB, id string) (e written) {
	t.Helper()
	for range 100 {
		all, _ := entries(t, p.book(t))
		if e = all[id]; e.outcome != nil {
			return e
		}
		time.Sleep(20 * time.Millisecond)
	}
	if e.decision.ID == "" {
		t.Errorf("the audit log has no record of request %q", id)
	}
	return e
}

// complete holds that the book is whole: each decision has one outcome, and none is missing.
func (p *product) complete(t testing.TB) {
	t.Helper()
	var open []string
	for range 150 {
		all, wrong := entries(t, p.book(t))
		open = wrong
		for id, e := range all {
			if e.outcome == nil {
				open = append(open, fmt.Sprintf("%s %s (%s) has no outcome", e.decision.Method, e.decision.Path, id))
			}
		}
		if len(open) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("the audit log is not whole:\n%s", sample(open, 10))
}
