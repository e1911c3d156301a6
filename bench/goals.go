package main

import (
	"fmt"
	"math"
)

// goals judges the race by what it is to show: ratios of the same round, their median and spread.
func (r *race) goals() {
	t := &table{Name: "gateways-goals", Title: "Goals of the gate in front", Columns: []column{{"measured", "as named"}}}
	g := goalBook{t}
	for _, pattern := range []string{"one", "many"} {
		which := map[string]string{"one": "one token", "many": "10,000 tokens in turn"}[pattern]
		es, rs := r.table(raceName(es256, pattern)), r.table(raceName(rs256, pattern))
		g.ratio("ES256, "+which+": requests, of "+haproxyVerify, es, oursName, es, haproxyVerify, 0, atLeast(3))
		g.ratio("ES256, "+which+": requests, of "+haproxyCached, es, oursName, es, haproxyCached, 0, atLeast(1))
		g.ratio("ES256, "+which+": requests, of "+haproxyBare, es, oursName, es, haproxyBare, 0, atLeast(0.8))
		g.ratio("RS256, "+which+": requests, of "+haproxyVerify, rs, oursName, rs, haproxyVerify, 0, atLeast(1.8))
		for _, peer := range []string{apacheOIDC, nginxNJS, oauth2Proxy} {
			g.ratio("ES256, "+which+": requests, of "+peer, es, oursName, es, peer, 0, atLeast(8))
		}
		g.ratio("ES256, "+which+": requests, of "+goReverseProxy, es, oursName, es, goReverseProxy, 0, nil)
	}
	g.everyNew(r)
	g.ratio("p99 at 0.7 of our own most, of "+haproxyCached, r.table("gateways-rate"), oursName, r.table("gateways-rate"), haproxyCached, 0, atMost(1))
	g.ratio("p50 on one connection, of "+haproxyBare, r.table("gateways-single"), oursName, r.table("gateways-single"), haproxyBare, 0, atMost(1.3))
	g.value("idle, MiB", r.table("gateways-memory").row(oursName), 0, atMost(25))
	g.value("with 64 connections and 10,000 tokens, MiB", r.table("gateways-memory").row(oursName), 1, atMost(60))
	g.value("first verified answer after execve(2), ms", r.table("gateways-start").row(oursName), 0, atMost(50))
	g.value("the same with 10,000 routes, ms", r.table("gateways-start").row(manyRoutes), 0, atMost(1000))
	if parts := r.table("gateways-parts"); parts != nil {
		g.difference("assertion, records and condition together, µs of a processor", parts.row("all of it"), parts.row("without the three"), atMost(10))
		g.difference("the same, the assertion reused", parts.row("assertion reused"), parts.row("without the three"), atMost(10))
	}
	for _, c := range []struct{ name, table, few, most string }{
		{"10,000 routes, of 1", "gateways-routes", "1 route", manyRoutes},
		{"1,000,000 known tokens, of 10", "gateways-known", "10 tokens", "1,000,000 tokens"},
		{"1,000,000 revocations, of none", "gateways-revoked", "0 revocations", "1,000,000 revocations"},
	} {
		grown := r.table(c.table)
		g.ratio("processor each with "+c.name, grown, c.most, grown, c.few, 0, atMost(1.1))
	}
	r.tables = append([]*table{t}, r.tables...)
}

// goalBook writes rows of goals.
type goalBook struct{ t *table }

// limit is a goal: at least, or at most.
type limit struct {
	value float64
	most  bool
}

func atLeast(v float64) *limit { return &limit{v, false} }
func atMost(v float64) *limit  { return &limit{v, true} }

func (l *limit) judge(v float64) *goal {
	if l == nil {
		return nil
	}
	if l.most {
		return &goal{fmt.Sprintf("at most %g", l.value), v <= l.value}
	}
	return &goal{fmt.Sprintf("at least %g", l.value), v >= l.value}
}

func (g goalBook) add(name string, list []float64, l *limit) {
	if len(list) == 0 {
		return
	}
	f := summary(list)
	g.t.Rows = append(g.t.Rows, &row{Name: name, Figures: []figure{f}, Goal: l.judge(f.Median)})
}

// ratio compares two rows by a column, round by round. If one of them is not there, or its table was not asked for, that is said.
func (g goalBook) ratio(name string, a *table, over string, b *table, under string, column int, l *limit) {
	x, y := a.row(over), b.row(under)
	if x == nil || y == nil {
		g.t.Missing = append(g.t.Missing, name)
		return
	}
	g.add(name, eachRound(x, y, column, func(x, y float64) float64 { return x / y }), l)
}

func (g goalBook) difference(name string, x, y *row, l *limit) {
	if x != nil && y != nil {
		g.add(name, eachRound(x, y, 0, func(x, y float64) float64 { return x - y }), l)
	}
}

func (g goalBook) value(name string, r *row, column int, l *limit) {
	if r == nil {
		g.t.Missing = append(g.t.Missing, name)
		return
	}
	g.add(name, r.column(column), l)
}

// everyNew compares what a new token costs with the two things that it cannot do without.
func (g goalBook) everyNew(r *race) {
	const name = "a new ES256 token each: processor, of the signature check alone and a known token"
	fresh, warm := r.table("gateways-new"), r.table(raceName(es256, "one"))
	ours, check, known := fresh.row(oursName), fresh.row(signatureRow), warm.row(oursName)
	if ours == nil || check == nil || known == nil {
		g.t.Missing = append(g.t.Missing, name)
		return
	}
	base := known.Figures[1].Median
	g.add(name, eachRound(ours, check, 1, func(x, y float64) float64 { return x / (y + base) }), atMost(1.2))
}

func eachRound(x, y *row, column int, of func(x, y float64) float64) (list []float64) {
	a, b := x.column(column), y.column(column)
	for i := range min(len(a), len(b)) {
		if v := of(a[i], b[i]); !math.IsNaN(v) && !math.IsInf(v, 0) {
			list = append(list, v)
		}
	}
	return list
}
