package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

const pageHead = "# How the gate in front stands beside other gateways\n\n" +
	"<!-- Made by make bench BENCH=gateways (bench/page.go): what is changed here by hand is lost. -->\n\n" +
	`    make bench BENCH=gateways                  the race alone, in a quarter of an hour; it writes this page
    make bench                                 the same, and all other benchmarks (doc/performance.md)
    build/bench -only gateways-es256-one       one table of it
    build/bench -only gateways -engine net/http,http1    a row for each engine; the first has the goals

Each gateway has one core, one worker, and a process of its own for each algorithm; the load, the issuer and the service that answers 200 bytes have the
others. All gateways of a table are alive at the same time and asked in turns of less than a second, in an order that turns, in the rounds that
stand below, after one that does not count. A figure is the median of the rounds, and in brackets is between what they were; ratios and differences
are those of the same round. ` + "`processor`" + ` is what all processes of the gateway spent of user and system time for each request, ` + "`memory`" + ` what they have resident. The load
is a thread that waits in ` + "`epoll`" + ` and sends the next request of a connection when the last has its answer, each with the token whose turn it
is; at a constant rate an answer's time counts from when its request was due.

Each gateway that verifies was first seen to let a good token through and to refuse, before and after it: no token, a bad signature, an expired token, another
audience, another issuer, another key; and, some seconds after it had expired, a token that it had let through. One that lets any of them through
is disqualified by name.

sallyport does all that it is for: strict reading, a policy with scopes and a CEL condition, a record of the decision in the kernel before the request goes on
and one of its outcome after, and a signed assertion in place of the token. The others verify and forward, and log nothing.

`

// quietLoad is up to which the machine counts as ours alone.
const quietLoad = 0.7

// writePage writes what was measured of gateways as a page.
func (r *report) writePage(s *site) error {
	var b strings.Builder
	b.WriteString(pageHead)
	fmt.Fprintf(&b, "## This run\n\n%s, %.0f s.\n\n| | |\n|---|---|\n", time.Now().UTC().Format("2 January 2006"), r.Seconds)
	for _, f := range append(slices.Clone(r.Machine), gatewayVersions(s)...) {
		fmt.Fprintf(&b, "| %s | %s |\n", f.Name, f.Value)
	}
	b.WriteString("\n")
	if i := slices.IndexFunc(r.Machine, func(f fact) bool { return f.Name == loadBefore }); i >= 0 {
		if busy, err := strconv.ParseFloat(r.Machine[i].Value, 64); err == nil && busy > quietLoad {
			b.WriteString("**This machine did other work at the same time**, as its load says: what is left of these figures is their order. Those of a quiet one take `make bench BENCH=gateways` there.\n\n")
		}
	}
	for _, t := range r.Tables {
		if slices.Contains(gatewayTables(), t.Name) {
			t.markdown(&b)
		}
	}
	b.WriteString("## The configurations\n\nBetween @ and @ stands what differs from one run to the next: ports, folders, the algorithm. Each program ran on one core (`sched_setaffinity(2)`).\n\n")
	seen := map[string]bool{}
	for _, a := range algorithms() {
		for _, g := range s.gateways(a) {
			if seen[g.name] {
				continue
			}
			seen[g.name] = true
			g.asPage(s, &b)
		}
	}
	return os.WriteFile(s.page, []byte(strings.TrimRight(b.String(), "\n")+"\n"), 0o644)
}

func (g *gateway) asPage(s *site, b *strings.Builder) {
	words := append([]string{g.program}, g.args...)
	for i, w := range words {
		w = strings.ReplaceAll(w, s.peersIn, "build")
		words[i] = strings.ReplaceAll(strings.ReplaceAll(w, s.sallyport, "sallyport"), s.self, "bench")
	}
	fmt.Fprintf(b, "### %s\n\n    %s\n\n", g.name, strings.Join(words, " "))
	if g.config != "" {
		fmt.Fprintf(b, "```\n%s\n```\n\n", strings.TrimRight(g.config, "\n"))
	}
	for name, text := range g.files {
		fmt.Fprintf(b, "`%s`:\n\n```\n%s\n```\n\n", name, strings.TrimRight(text, "\n"))
	}
}

// markdown writes a table with its goals.
func (t *table) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "## %s\n\n", t.Title)
	goals := slices.ContainsFunc(t.Rows, func(r *row) bool { return r.Goal != nil })
	head := []string{""}
	for _, c := range t.Columns {
		head = append(head, c.Name+", "+c.Unit)
	}
	if t.Base != "" {
		against := "of " + t.Base
		if t.By == byDifference {
			against = "more than " + t.Base
		}
		head = append(head, against)
	}
	if goals {
		head = append(head, "goal")
	}
	rounds := 0
	if len(t.Rows) > 0 {
		fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	}
	for _, r := range t.Rows {
		cells := t.cells(r)
		verdict := cells[len(cells)-1]
		cells = cells[:len(cells)-1]
		if t.Base == "" {
			cells = cells[:len(cells)-1]
		}
		if goals {
			cells = append(cells, verdict)
		}
		if r.Name == oursName {
			cells[0] = "**" + cells[0] + "**"
		}
		fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
		rounds = max(rounds, len(r.rounds))
	}
	b.WriteString("\n")
	if rounds > 0 {
		fmt.Fprintf(b, "%d rounds.\n", rounds)
	}
	for _, r := range t.Rows {
		if r.Note != "" {
			fmt.Fprintf(b, "- %s: %s\n", r.Name, r.Note)
		}
	}
	for _, m := range t.Missing {
		fmt.Fprintf(b, "- not measured: %s\n", m)
	}
	b.WriteString("\n")
}

// gatewayVersions are those of what is compared, where it is here.
func gatewayVersions(s *site) (list []fact) {
	add := func(name, value string) {
		if value = strings.TrimSpace(value); value != "" {
			list = append(list, fact{name, value})
		}
	}
	add("sallyport", firstLine(s.sallyport, "version"))
	add("HAProxy", strings.TrimPrefix(firstLine("/usr/sbin/haproxy", "-v"), "HAProxy version "))
	if out, err := exec.Command("/usr/sbin/nginx", "-v").CombinedOutput(); err == nil {
		add("nginx", strings.TrimPrefix(string(out), "nginx version: nginx/"))
	}
	add("njs", debianVersion("libnginx-mod-http-js"))
	add("Apache", strings.TrimPrefix(firstLine("/usr/sbin/apache2", "-v"), "Server version: Apache/"))
	add("mod_auth_openidc", debianVersion("libapache2-mod-auth-openidc"))
	add("golang-jwt", moduleVersion(s.self, "github.com/golang-jwt/jwt/v5"))
	add("oauth2-proxy", moduleVersion(s.beside("oauth2-proxy"), "github.com/oauth2-proxy/oauth2-proxy/v7"))
	return list
}

func debianVersion(name string) string {
	return firstLine("dpkg-query", "-W", "-f", "${Version}", name)
}

// moduleVersion is that of a module in a program of Go.
func moduleVersion(program, module string) string {
	out, err := exec.Command("go", "version", "-m", program).Output()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) >= 3 && f[1] == module {
			return f[2]
		}
	}
	return ""
}
