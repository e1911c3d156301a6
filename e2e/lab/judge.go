package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// outcome is what an attack came to. How it was stopped is read from what the service and the attacker saw and from
// the audit log; nothing of it is taken from the list of attacks but which protection to look for.
type outcome struct {
	succeeded bool
	by        layer  // empty: nothing shows what stopped it
	reason    string // a code, or an error number with the call
	record    string // what the audit log has of it
}

// record is a line of the audit log, as far as the lab reads it.
type record struct {
	Kind     string `json:"kind"`
	Point    string `json:"point"`
	Decision string `json:"decision"`
	Code     string `json:"code"`
	Route    string `json:"route"`
	TokenID  string `json:"token_id"`
	Detail   struct {
		Event     string   `json:"event"`
		By        string   `json:"by"`
		TokenID   string   `json:"token_id"`
		Dropped   []string `json:"dropped"`
		Entry     string   `json:"entry"`
		Addresses []string `json:"addresses"`
		Enforced  []struct {
			Name    string `json:"name"`
			InForce bool   `json:"in_force"`
		} `json:"enforced"`
	} `json:"detail"`
}

// books are the audit logs: the variant's own, and that of billing's sallyport.
type books struct{ own, billing []record }

func (s *service) books() (b books, err error) {
	if b.own, err = records(filepath.Join(s.dir(), "lab", "audit.jsonl")); err == nil {
		b.billing, err = records(filepath.Join(s.lab.dir, "billing", "audit.jsonl"))
	}
	return b, err
}

// records reads an audit log; none where there is no sallyport.
func records(path string) ([]record, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []record
	for line := range bytes.Lines(content) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("the audit log: %w", err)
		}
		all = append(all, r)
	}
	return all, nil
}

// judge says who stopped an attack that did not succeed: the gate if it denied a request, else the gate behind if it
// denied a connection, else the walls if they say that they refused, else billing's gate if that denied a request, which is the
// gate behind's work where it took the service's own credential away. Of the rest the walls if the service or the attacker
// met an error number and the start's record has the protection. Where nothing was denied, the gate has stopped it that
// gave the service an assertion in the place of the token, and the gate behind that dropped what was to leave, or let the service
// connect to the address alone that it had judged.
func judge(a attack, got answer, before, after books) outcome {
	fresh, elsewhere := after.own[len(before.own):], after.billing[len(before.billing):]
	o := denied(fresh, elsewhere)
	if o.by == "" {
		o = explain(a, got, fresh, after.own)
	}
	switch {
	case !a.ends:
	case punished(fresh):
		o.record += "; token revoked"
	default:
		o.by, o.reason = "", o.reason+", and a token that was used for it is not revoked"
	}
	return o
}

// denied is what the denials on record say.
func denied(fresh, elsewhere []record) outcome {
	if codes := denials(fresh, "ingress"); len(codes) > 0 {
		return outcome{by: gate, reason: strings.Join(codes, ", "), record: "deny at ingress"}
	}
	if codes := denials(fresh, "egress"); len(codes) > 0 {
		return outcome{by: behind, reason: strings.Join(codes, ", "), record: "deny at egress"}
	}
	if codes := denials(fresh, "sandbox"); len(codes) > 0 {
		return outcome{by: walls, reason: strings.Join(codes, ", "), record: "deny at sandbox"}
	}
	dropped, codes := droppings(fresh), denials(elsewhere, "ingress")
	switch {
	case len(codes) > 0 && dropped != "":
		return outcome{by: behind, reason: "dropped " + dropped + "; at billing " + strings.Join(codes, ", "), record: "allow at egress; deny at billing's ingress"}
	case len(codes) > 0:
		return outcome{by: gate, reason: "at billing " + strings.Join(codes, ", "), record: "deny at billing's ingress"}
	case dropped != "":
		return outcome{by: behind, reason: "dropped " + dropped, record: "allow at egress"}
	}
	return outcome{}
}

// explain looks for a reason where nothing was denied.
func explain(a attack, got answer, fresh, all []record) outcome {
	carried := carrier(fresh)
	if got.replaced && carried != "" {
		return outcome{by: gate, reason: "the service has an assertion in the token's place", record: carried}
	}
	refused := refusal(got)
	judged := led(fresh)
	switch {
	case refused == "" && judged != "":
		return outcome{by: behind, reason: "held to " + judged + ", the address that was judged", record: "allow at egress"}
	case refused == "":
		return outcome{reason: fmt.Sprintf("unexplained: %v %.300s", got.err, got.body)}
	case !inForce(all, a.wall):
		return outcome{reason: refused}
	case carried != "":
		carried += "; "
	}
	return outcome{by: walls, reason: refused, record: carried + a.wall + " in force"}
}

// droppings are the headers that the gate behind took away, each once.
func droppings(records []record) string {
	var all []string
	for _, r := range records {
		if r.Point == "egress" {
			all = append(all, r.Detail.Dropped...)
		}
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ", ")
}

// punished reports whether the watch has ended the tokens that attempts to get out are on record for: each, and there is one.
func punished(records []record) bool {
	revoked, used := map[string]bool{}, map[string]bool{}
	for _, r := range records {
		switch {
		case r.Point == "state" && r.Code == "revoked" && r.Detail.By == "watch":
			revoked[r.Detail.TokenID] = true
		case r.Decision == "deny" && r.TokenID != "" && slices.Contains([]string{"escape_target", "token_leaving", "exec_denied", "file_denied"}, r.Code):
			used[r.TokenID] = true
		}
	}
	for id := range used {
		if !revoked[id] {
			return false
		}
	}
	return len(used) > 0
}

// awaitRevoked waits until the watch has done what it must, for a second and what a busy machine adds.
func (s *service) awaitRevoked(ctx context.Context, from int) {
	for range 60 {
		if b, err := s.books(); err == nil && len(b.own) >= from {
			if punished(b.own[from:]) {
				return
			}
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// carrier is the record of the request that carried the attack to the service.
func carrier(records []record) string {
	for _, r := range slices.Backward(records) {
		if r.Kind == "decision" && r.Point == "ingress" && r.Decision == "allow" {
			return "allow at ingress (" + r.Route + ")"
		}
	}
	return ""
}

// led are the addresses that the gate behind let the service connect to.
func led(records []record) string {
	var all []string
	for _, r := range records {
		if r.Kind == "decision" && r.Point == "egress" && r.Decision == "allow" {
			all = append(all, r.Detail.Addresses...)
		}
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ", ")
}

// denials are the codes with which a point has denied, each once.
func denials(records []record, point string) (codes []string) {
	for _, r := range records {
		code := r.Code
		if r.Detail.Entry != "" {
			code += " " + r.Detail.Entry
		}
		if r.Kind == "decision" && r.Point == point && r.Decision == "deny" && !slices.Contains(codes, code) {
			codes = append(codes, code)
		}
	}
	return codes
}

// inForce reports whether the last start's record says so of the protection.
func inForce(records []record, protection string) bool {
	held := false
	for _, r := range records {
		if r.Point != "run" || r.Detail.Event != "started" {
			continue
		}
		for _, p := range r.Detail.Enforced {
			if p.Name == protection {
				held = p.InForce
			}
		}
	}
	return held
}

// refusal finds the error number that an attack met, and the call: in the service's answer, in what native code
// wrote, or in what the attacker's own connection met.
func refusal(got answer) string {
	if got.err != nil && strings.Contains(got.err.Error(), "connection refused") {
		return "ECONNREFUSED from connect"
	}
	number := regexp.MustCompile(`^E[A-Z0-9]+$`)
	var body struct{ Result, Error, Syscall, Message, Stderr string }
	if json.Unmarshal([]byte(got.body), &body) != nil {
		return ""
	}
	if call, name, ok := strings.Cut(body.Result, " E"); ok && number.MatchString("E"+name) {
		return "E" + name + " from " + call
	}
	if !number.MatchString(body.Error) {
		return ""
	}
	call, _, _ := strings.Cut(body.Syscall, " ")
	if call == "" {
		call, _, _ = strings.Cut(body.Message, " ")
	}
	return body.Error + " from " + call
}
