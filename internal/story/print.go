package story

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Printer writes a timeline for a person. What comes from the log is printed so that a terminal does nothing with it.
type Printer struct {
	W      io.Writer
	Colour bool
	Flat   bool // lines in the order of the log: an outcome names its decision
	err    error
	day    string
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
	faint  = "2"
)

// Story prints everything that was found.
func (p *Printer) Story(events []*Event) error {
	for _, e := range events {
		p.event(e, 0)
	}
	return p.err
}

// event prints from top to bottom: the decision, what it caused and how that ended, how it ended, what came after that.
func (p *Printer) event(e *Event, depth int) {
	p.Line(&e.Line, depth)
	open := []*Event{e} // whose end has not been printed
	for _, c := range e.Caused {
		open = p.endBefore(open, c.Time, depth, e)
		p.Line(&c.Line, depth+1)
		open = append(open, c)
	}
	p.endBefore(open, time.Time{}, depth, e)
}

// endBefore prints the outcomes that came before t, all of them if it is zero, and returns those that remain.
func (p *Printer) endBefore(open []*Event, t time.Time, depth int, top *Event) []*Event {
	slices.SortStableFunc(open, func(a, b *Event) int { return ended(a).Compare(ended(b)) })
	for i, e := range open {
		if !t.IsZero() && !ended(e).Before(t) {
			return open[i:]
		}
		in, of := depth, ""
		if e != top {
			in, of = depth+1, where(&e.Line)
		}
		switch {
		case e.Outcome != nil:
			p.row(e.Outcome.Time, in, "end", faint, append([]string{of}, outcome(e.Outcome, e.Point)...))
		case e.Kind == "decision" && e.Decision == "allow":
			p.row(time.Time{}, in, "open", yellow, []string{of, "no outcome: in flight, or cut short"})
		}
	}
	return nil
}

func ended(e *Event) time.Time {
	if e.Outcome == nil {
		return time.Unix(1<<40, 0) // last
	}
	return e.Outcome.Time
}

// Line prints one line of the log.
func (p *Printer) Line(l *Line, depth int) error {
	switch l.Kind {
	case "decision":
		word, colour := wordOf(l)
		p.row(l.Time, depth, word, colour, decision(l))
	case "outcome":
		parts := outcome(l, "")
		if p.Flat {
			parts = append(parts, label("id ", l.ID))
		}
		p.row(l.Time, depth, "end", faint, parts)
	case "gap":
		p.row(l.Time, depth, "gap", red, []string{fmt.Sprintf("nothing could be recorded since %s: %d refused, %d outcomes lost",
			l.Since.UTC().Format(time.RFC3339), l.Refused, l.Lost), l.Error})
	case "checkpoint":
		p.row(l.Time, depth, "seal", faint, []string{l.Why})
	default:
		p.row(l.Time, depth, l.Kind, "", nil)
	}
	return p.err
}

func wordOf(l *Line) (word, colour string) {
	switch {
	case l.Point == "watch":
		return "alarm", red
	case l.Point == "state":
		return "state", yellow
	case l.Decision == "allow" && l.Code == "would_deny":
		return "report", yellow
	case l.Decision == "allow":
		return "allow", green
	case l.Decision == "deny":
		return "deny", red
	}
	return "event", ""
}

// decision is what a decision says, in the order in which a person asks.
func decision(l *Line) []string {
	d := &l.Detail
	parts := []string{what(l)}
	if l.Decision != "allow" || l.Code == "would_deny" {
		why := l.Code
		if d.Would != "" {
			why = "would be " + d.Would
		}
		if l.Reason != "" {
			why += ": " + l.Reason
		}
		parts = append(parts, why)
	}
	parts = append(parts, label("", l.Route))
	if l.Point == "egress" || l.Point == "sandbox" {
		parts = append(parts, cause(d))
		if len(d.Dropped) > 0 {
			parts = append(parts, "dropped "+strings.Join(d.Dropped, ", "))
		}
	}
	parts = append(parts, who(l.Subject, l.Client), label("token ", l.TokenID), label("token digest ", l.TokenDigest))
	if l.Point == "state" || l.Point == "watch" {
		parts = append(parts, label("token ", d.TokenID), label("token digest ", d.Digest), label("subject ", d.Subject), label("client ", d.Client),
			label("session ", d.Session), label("key ", d.KeyID), label("of ", d.Issuer), label("by ", d.By), d.Reason)
	}
	if l.Point == "run" {
		parts = append(parts, label("by ", d.By))
	}
	if l.Point != "egress" && l.Point != "sandbox" {
		parts = append(parts, label("from ", l.Source))
	}
	return append(parts, label("id ", l.ID))
}

// what was asked for.
func what(l *Line) string {
	switch l.Point {
	case "egress":
		if l.Method != "" && l.Path != "" {
			return l.Method + " " + where(l) + " " + l.Path
		}
		return "connect " + where(l)
	case "ingress":
		return strings.TrimSpace(l.Method + " " + l.Path)
	case "sandbox":
		if l.Code == "exec_denied" {
			return "run " + l.Detail.Path
		}
		return "write " + l.Detail.Path
	}
	return ""
}

// where a connection leads.
func where(l *Line) string {
	to := l.Host
	if to == "" {
		to = l.Path // of a socket
	}
	if l.Detail.Port != 0 {
		to += fmt.Sprint(":", l.Detail.Port)
	}
	if l.Detail.Destination != "" {
		to += " (" + l.Detail.Destination + ")"
	}
	return to
}

// cause is how far an attempt could be traced, and to what.
func cause(d *Detail) string {
	s := d.Level
	if d.Cause != "" {
		s = strings.TrimSpace(s + " " + d.Cause)
	}
	if n := max(d.Window, len(d.Requests)); n > 1 {
		s += fmt.Sprintf(", one of %d requests", n)
	}
	return s
}

func who(subject, client string) string {
	switch {
	case client == "" || client == subject:
		return subject
	case subject == "":
		return "client " + client
	}
	return subject + " via " + client
}

// outcome is how it ended; point is where, if that is known.
func outcome(l *Line, point string) []string {
	parts := []string{""}
	switch {
	case l.Status != 0:
		parts[0] = fmt.Sprint(l.Status)
	case point == "ingress":
		parts[0] = "no answer"
	}
	if l.BytesIn > 0 {
		parts = append(parts, fmt.Sprintf("%d bytes in", l.BytesIn))
	}
	if l.BytesOut > 0 {
		parts = append(parts, fmt.Sprintf("%d bytes out", l.BytesOut))
	}
	parts = append(parts, fmt.Sprintf("%.1f ms", l.Millis), l.Error)
	return parts
}

func label(name, value string) string {
	if value == "" {
		return ""
	}
	return name + value
}

// row prints a line of the timeline, and the day before it where another begins.
func (p *Printer) row(t time.Time, depth int, word, colour string, parts []string) {
	clock := ""
	if !t.IsZero() {
		t = t.UTC()
		if day := t.Format("Monday 2006-01-02"); day != p.day {
			p.day = day
			p.printf("%s\n", p.paint(faint, day+", UTC"))
		}
		clock = t.Format("15:04:05.000000")
	}
	parts = slices.DeleteFunc(parts, func(s string) bool { return s == "" })
	for i := range parts {
		parts[i] = safe(parts[i])
	}
	p.printf("%-15s  %s%s  %s\n", clock, strings.Repeat("    ", depth), p.paint(colour, fmt.Sprintf("%-6s", safe(word))), strings.Join(parts, " | "))
}

func (p *Printer) paint(colour, s string) string {
	if !p.Colour || colour == "" {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

func (p *Printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.W, format, args...)
	}
}

// safe escapes what a terminal might act on, and what would look like the end of a part.
func safe(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "\\u%04x", r)
		}
	}
	return b.String()
}

// JSON writes one object a line: each line of the log, where it stands, and under which request.
func JSON(w io.Writer, events []*Event) error {
	return writeJSON(json.NewEncoder(w), events, "")
}

func writeJSON(e *json.Encoder, events []*Event, under string) error {
	e.SetEscapeHTML(false)
	for _, event := range events {
		for _, l := range []*Line{&event.Line, event.Outcome} {
			if l == &event.Line || l != nil {
				out := struct {
					File   string          `json:"file"`
					Line   int             `json:"line"`
					Under  string          `json:"under,omitempty"`
					Record json.RawMessage `json:"record"`
				}{l.File, l.At, under, l.Raw}
				if err := e.Encode(out); err != nil {
					return fmt.Errorf("write output: %w", err)
				}
			}
			if l == &event.Line {
				if err := writeJSON(e, event.Caused, event.ID); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
