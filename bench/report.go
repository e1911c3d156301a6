package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// report is all that was measured, and where.
type report struct {
	Machine []fact   `json:"machine"`
	Seconds float64  `json:"seconds"`
	Tables  []*table `json:"tables"`
}

// fact is one thing to know of the machine.
type fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (r *report) write(w io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.text(w)
}

// text prints each table with its goals.
func (r *report) text(w io.Writer) error {
	for _, f := range r.Machine {
		fmt.Fprintf(w, "%-12s %s\n", f.Name, f.Value)
	}
	for _, t := range r.Tables {
		fmt.Fprintf(w, "\n%s\n\n", t.Title)
		var aligned strings.Builder
		tab := tabwriter.NewWriter(&aligned, 0, 0, 2, ' ', 0)
		head := []string{""}
		for _, c := range t.Columns {
			head = append(head, c.Name+", "+c.Unit)
		}
		if t.Base != "" {
			against := "of " + t.Base
			if t.By == byDifference {
				against = "more than " + t.Base
			}
			head = append(head, against, "goal")
		} else if slices.ContainsFunc(t.Rows, func(r *row) bool { return r.Goal != nil }) {
			head = append(head, "", "goal")
		}
		fmt.Fprintf(tab, "  %s\n", strings.Join(head, "\t"))
		for _, row := range t.Rows {
			fmt.Fprintf(tab, "  %s\n", strings.Join(t.cells(row), "\t"))
		}
		if err := tab.Flush(); err != nil {
			return err
		}
		for line := range strings.Lines(aligned.String()) {
			fmt.Fprintln(w, strings.TrimRight(line, " \n"))
		}
		for _, row := range t.Rows {
			if row.Note != "" {
				fmt.Fprintf(w, "  %s: %s\n", row.Name, row.Note)
			}
		}
		for _, m := range t.Missing {
			fmt.Fprintf(w, "  not measured: %s\n", m)
		}
	}
	_, err := fmt.Fprintf(w, "\nMedians of the rounds, and between what they were. %.0f s in all.\n", r.Seconds)
	return err
}

func (t *table) cells(r *row) []string {
	cells := []string{r.Name}
	for _, f := range r.Figures {
		cells = append(cells, f.String())
	}
	against, verdict := "", ""
	switch {
	case r.Against == nil:
	case t.By == byRatio:
		against = fmt.Sprintf("%.3f (%.2f–%.2f)", r.Against.Median, r.Against.Min, r.Against.Max)
	default:
		against = r.Against.String()
	}
	switch {
	case r.Goal == nil:
	case r.Goal.Met:
		verdict = r.Goal.Text + ": met"
	default:
		verdict = r.Goal.Text + ": MISSED"
	}
	return append(cells, against, verdict)
}

func (f figure) String() string {
	return fmt.Sprintf("%s (%s–%s)", three(f.Median), three(f.Min), three(f.Max))
}

// three writes a number with three digits, or all that stand before the point.
func three(v float64) string {
	switch a := max(v, -v); {
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// loadBefore is the name of what the kernel says of the minute before.
const loadBefore = "load before"

// machine says on what it was measured.
func machine(o options) []fact {
	var facts []fact
	add := func(name, value string) {
		if value = strings.TrimSpace(value); value != "" {
			facts = append(facts, fact{name, value})
		}
	}
	cpu := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	add("processor", fmt.Sprintf("%s, %d cores", cpu, runtime.NumCPU()))
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		add("kernel", unix.ByteSliceToString(u.Release[:]))
	}
	add("go", runtime.Version())
	add("node", firstLine("node", "--version"))
	add("smokescreen", strings.TrimPrefix(firstLine(o.smokescreen, "--version"), "smokescreen version "))
	add("squid", strings.TrimPrefix(firstLine("squid", "-v"), "Squid Cache: Version "))
	add("tinyproxy", strings.TrimPrefix(firstLine("tinyproxy", "-v"), "tinyproxy "))
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ := strings.Cut(string(b), " ")
		add(loadBefore, load)
	}
	return facts
}

// firstLine is what a program says first, empty if it is not here.
func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
