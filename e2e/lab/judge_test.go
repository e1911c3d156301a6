package main

import "testing"

// TestJudge holds who is said to have stopped an attack, to what is on record.
func TestJudge(t *testing.T) {
	at := func(point, decision, code string) record {
		return record{Kind: "decision", Point: point, Decision: decision, Code: code}
	}
	let := at("ingress", "allow", "allowed")
	let.Route = "lookup"
	taken := at("egress", "allow", "allowed")
	taken.Detail.Dropped = []string{"authorization"}
	shell := at("sandbox", "deny", "exec_denied")
	shell.TokenID = "t-1"
	revoked := record{Kind: "decision", Point: "state", Code: "revoked"}
	revoked.Detail.By, revoked.Detail.TokenID = "watch", "t-1"
	byHand := revoked
	byHand.Detail.By = "admin"
	another := revoked
	another.Detail.TokenID = "t-2"
	refused := at("ingress", "deny", "insufficient_scope")
	for name, c := range map[string]struct {
		own, billing   []record
		ends           bool
		by             layer
		reason, record string
	}{
		"nothing on record":               {by: "", reason: "unexplained: <nil> "},
		"the gate":                        {own: []record{refused}, by: gate, reason: "insufficient_scope", record: "deny at ingress"},
		"the gate before all others":      {own: []record{let, shell, at("egress", "deny", "x"), refused}, billing: []record{refused}, by: gate, reason: "insufficient_scope", record: "deny at ingress"},
		"the walls, and they say so":      {own: []record{let, shell}, by: walls, reason: "exec_denied", record: "deny at sandbox"},
		"billing's gate":                  {own: []record{let}, billing: []record{refused}, by: gate, reason: "at billing insufficient_scope", record: "deny at billing's ingress"},
		"billing's gate, without the key": {own: []record{let, taken}, billing: []record{refused}, by: behind, reason: "dropped authorization; at billing insufficient_scope", record: "allow at egress; deny at billing's ingress"},
		"nothing was left of it":          {own: []record{let, taken}, by: behind, reason: "dropped authorization", record: "allow at egress"},
		"the token is ended":              {own: []record{let, shell, revoked}, ends: true, by: walls, reason: "exec_denied", record: "deny at sandbox; token revoked"},
		"it is not":                       {own: []record{let, shell}, ends: true, by: "", reason: "exec_denied, and a token that was used for it is not revoked", record: "deny at sandbox"},
		"an operator has ended it":        {own: []record{let, shell, byHand}, ends: true, by: "", reason: "exec_denied, and a token that was used for it is not revoked", record: "deny at sandbox"},
		"another is ended":                {own: []record{let, shell, another}, ends: true, by: "", reason: "exec_denied, and a token that was used for it is not revoked", record: "deny at sandbox"},
		"nobody knows whose it was":       {own: []record{let, at("sandbox", "deny", "exec_denied")}, ends: true, by: "", reason: "exec_denied, and a token that was used for it is not revoked", record: "deny at sandbox"},
	} {
		earlier := []record{at("ingress", "deny", "earlier")}
		o := judge(attack{ends: c.ends}, answer{}, books{earlier, earlier}, books{append(earlier, c.own...), append(earlier, c.billing...)})
		if o.succeeded || o.by != c.by || o.reason != c.reason || o.record != c.record {
			t.Errorf("%s: %+v", name, o)
		}
	}
}
