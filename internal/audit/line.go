package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// version is the schema's: the first member of every line.
const version = 1

const (
	redactedMark  = "[redacted]"
	truncatedMark = "[truncated]"
)

// How long a member's value may be, in bytes of the line.
const (
	shortText    = 128
	nameText     = 512
	longText     = 1024
	pathText     = 2048
	claimsSize   = 4 << 10
	detailSize   = 8 << 10
	maxLine      = 24 << 10
	maxNesting   = 8
	maxWorkloads = 8 // as identity has it
	workloadText = 256
	timePattern  = "2006-01-02T15:04:05.000000Z"
)

// line is one JSON line under construction.
type line struct{ b []byte }

// begin starts a line with what every line has.
func (e *line) begin(t time.Time, kind string) {
	if t.IsZero() {
		t = time.Now()
	}
	e.b = append(e.b[:0], `{"v":`...)
	e.b = strconv.AppendInt(e.b, version, 10)
	e.b = append(e.b, `,"time":"`...)
	e.b = appendTime(e.b, t)
	e.b = append(e.b, `","kind":"`...)
	e.b = append(e.b, kind...)
	e.b = append(e.b, '"')
}

// appendTime writes a time as timePattern has it, and faster.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	if year < 0 || year > 9999 {
		return t.AppendFormat(b, timePattern)
	}
	hour, minute, second := t.Clock()
	b = digits(b, year, 4)
	b = digits(append(b, '-'), int(month), 2)
	b = digits(append(b, '-'), day, 2)
	b = digits(append(b, 'T'), hour, 2)
	b = digits(append(b, ':'), minute, 2)
	b = digits(append(b, ':'), second, 2)
	b = digits(append(b, '.'), t.Nanosecond()/1000, 6)
	return append(b, 'Z')
}

// digits appends a number with so many digits.
func digits(b []byte, n, width int) []byte {
	for range width {
		b = append(b, '0')
	}
	for i := len(b) - 1; n > 0; i, n = i-1, n/10 {
		b[i] = '0' + byte(n%10)
	}
	return b
}

func (e *line) end() { e.b = append(e.b, "}\n"...) }

// record writes a decision, its members in the order of doc/audit.md.
func (e *line) record(r Record, claims []string) {
	e.begin(r.Time, "decision")
	e.text("id", r.ID, nameText)
	e.text("point", r.Point, shortText)
	switch {
	case r.Decision.Allowed():
		e.text("decision", "allow", shortText)
	case r.Point != "run" && r.Point != "state" && r.Point != "watch": // which tell of what happened, not of what was asked for
		e.text("decision", "deny", shortText)
	}
	e.text("code", string(r.Decision.Code), shortText)
	e.text("reason", r.Decision.Reason, longText)
	e.text("route", r.Decision.Route, nameText)
	e.text("method", r.Method, shortText)
	e.text("path", r.Path, pathText)
	e.text("host", r.Host, nameText)
	if r.Source.IsValid() {
		e.name("source")
		e.b = append(e.b, '"')
		e.b = r.Source.WithZone("").AppendTo(e.b)
		e.b = append(e.b, '"')
	}
	if c := r.Caller; c != nil {
		e.text("issuer", c.Issuer, nameText)
		e.text("subject", c.Subject, nameText)
		e.text("client", c.Client, nameText)
		e.text("token_id", c.TokenID, nameText)
		if c.TokenID == "" {
			e.text("token_digest", c.Digest, shortText)
		}
		e.claims(claims, c.Claims)
		if c.Transaction != r.ID { // which begins with this record
			e.text("transaction", c.Transaction, nameText)
		}
		e.workloads(c.Workloads)
	}
	if len(r.Detail) > 0 {
		e.object("detail", r.Detail, detailSize)
	}
	e.end()
}

func (e *line) outcome(o Outcome) {
	e.begin(o.Time, "outcome")
	e.text("id", o.ID, nameText)
	e.integer("status", int64(o.Status))
	e.integer("bytes_in", o.BytesIn)
	e.integer("bytes_out", o.BytesOut)
	e.name("duration_ms")
	e.b = strconv.AppendFloat(e.b, float64(o.Duration)/float64(time.Millisecond), 'f', 3, 64)
	e.text("error", o.Error, longText)
	if len(o.Detail) > 0 {
		e.object("detail", o.Detail, detailSize)
	}
	e.end()
}

func (e *line) gap(f fault, now time.Time) {
	e.begin(now, "gap")
	e.name("since")
	e.b = append(e.b, '"')
	e.b = appendTime(e.b, f.since)
	e.b = append(e.b, '"')
	e.integer("refused", int64(f.refused))
	e.integer("lost", int64(f.lost))
	e.text("error", f.err.Error(), longText)
	e.end()
}

// name appends a member's name, one of ours.
func (e *line) name(name string) {
	e.b = append(e.b, `,"`...)
	e.b = append(e.b, name...)
	e.b = append(e.b, `":`...)
}

func (e *line) integer(name string, n int64) {
	e.name(name)
	e.b = strconv.AppendInt(e.b, n, 10)
}

// text appends a member unless its value is empty.
func (e *line) text(name, value string, limit int) {
	if value != "" {
		e.name(name)
		e.quote(value, limit)
	}
}

// claims appends those of the listed claims that the caller has.
func (e *line) claims(listed []string, claims map[string]any) {
	var chosen map[string]any
	for _, name := range listed {
		if value, ok := claims[name]; ok {
			if chosen == nil {
				chosen = make(map[string]any, len(listed))
			}
			chosen[name] = value
		}
	}
	if chosen != nil {
		e.object("claims", chosen, claimsSize)
	}
}

// workloads appends the services that a transaction came through, if it came through any.
func (e *line) workloads(names []string) {
	if len(names) == 0 {
		return
	}
	e.name("workloads")
	e.b = append(e.b, '[')
	for i, name := range names[:min(len(names), maxWorkloads)] {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.quote(name, workloadText)
	}
	e.b = append(e.b, ']')
}

// object appends a member that is an object, or the mark in its place if it is
// longer than limit.
func (e *line) object(name string, value map[string]any, limit int) {
	e.name(name)
	start := len(e.b)
	e.value(value, start+limit, 0)
	if len(e.b) > start+limit {
		e.b = append(e.b[:start], `{"`+truncatedMark+`":true}`...)
	}
}

// value appends any value. Once the line is longer than end it appends little
// more, and what it has appended is no JSON: the caller takes it back.
func (e *line) value(v any, end, depth int) {
	if len(e.b) > end {
		return
	}
	if depth > maxNesting {
		e.quote(truncatedMark, longText)
		return
	}
	switch v := v.(type) {
	case nil:
		e.b = append(e.b, "null"...)
	case string:
		e.quote(v, longText)
	case bool:
		e.b = strconv.AppendBool(e.b, v)
	case int:
		e.b = strconv.AppendInt(e.b, int64(v), 10)
	case int64:
		e.b = strconv.AppendInt(e.b, v, 10)
	case json.Number:
		e.b = append(e.b, v...)
	case []any:
		e.array(len(v), func(i int) any { return v[i] }, end, depth)
	case []string:
		e.array(len(v), func(i int) any { return v[i] }, end, depth)
	case map[string]any:
		e.b = append(e.b, '{')
		names := slices.AppendSeq(make([]string, 0, len(v)), maps.Keys(v))
		slices.Sort(names)
		for i, name := range names {
			if i > 0 {
				e.b = append(e.b, ',')
			}
			e.quote(name, nameText)
			e.b = append(e.b, ':')
			e.value(v[name], end, depth+1)
		}
		e.b = append(e.b, '}')
	case error:
		e.quote(v.Error(), longText)
	default:
		e.other(v, end, depth)
	}
}

func (e *line) array(n int, at func(int) any, end, depth int) {
	e.b = append(e.b, '[')
	for i := range n {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.value(at(i), end, depth+1)
	}
	e.b = append(e.b, ']')
}

// other appends a value of any type that encoding/json knows, or else as fmt
// prints it. It goes through JSON so that strings inside are redacted as well.
func (e *line) other(v any, end, depth int) {
	data, err := json.Marshal(v)
	if err != nil {
		e.quote(fmt.Sprint(v), longText)
		return
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber() // as it was written: a float64 would round a large integer
	var plain any
	if err := d.Decode(&plain); err != nil {
		e.quote(fmt.Sprint(v), longText)
		return
	}
	e.value(plain, end, depth)
}

const hex = "0123456789abcdef"

// quote appends a JSON string of at most about limit bytes, redacted, with
// everything escaped that a terminal might act on. What is no UTF-8 becomes U+FFFD.
func (e *line) quote(s string, limit int) {
	if len(s) < limit && isPlain(s) {
		e.b = append(e.b, '"')
		e.b = append(e.b, s...)
		e.b = append(e.b, '"')
		return
	}
	e.escape(s, limit)
}

// escape is quote where there may be something to escape, to redact or to cut.
func (e *line) escape(s string, limit int) {
	// before it is cut, because half a token is not recognised
	s = redact(s)
	e.b = append(e.b, '"')
	end := len(e.b) + limit
	for i := 0; i < len(s); {
		if len(e.b) >= end {
			e.b = append(e.b, truncatedMark...)
			break
		}
		c := s[i]
		if c >= 0x20 && c < 0x7f && c != '"' && c != '\\' {
			e.b = append(e.b, c)
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		e.rune(r)
		i += size
	}
	e.b = append(e.b, '"')
}

// isPlain reports whether a string is written as it is: nothing in it is escaped, and nothing is a token, which redact
// would find by how it begins.
func isPlain(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c < 0x20 || c > 0x7e || c == '"' || c == '\\' || c == '%':
			return false
		case c == 'e' && i+1 < len(s) && (s[i+1] == 'y' || s[i+1] == 'w'):
			return false
		}
	}
	return true
}

// rune appends one character that is not plain ASCII.
func (e *line) rune(r rune) {
	switch {
	case r == '"' || r == '\\':
		e.b = append(e.b, '\\', byte(r))
	case r < 0x20 || isUnsafe(r):
		e.b = append(e.b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
	default:
		e.b = utf8.AppendRune(e.b, r)
	}
}

// isUnsafe says whether a character beyond ASCII's controls changes how a line
// looks: C1 controls, line separators, and marks of direction and joining.
func isUnsafe(r rune) bool {
	switch {
	case 0x7f <= r && r <= 0x9f, r == 0xad, r == 0x61c, r == 0x180e, 0x200b <= r && r <= 0x200f,
		0x2028 <= r && r <= 0x202e, 0x2060 <= r && r <= 0x206f, r == 0xfeff, 0xfff9 <= r && r <= 0xfffc:
		return true
	}
	return false
}
