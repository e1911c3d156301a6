// Package story reads the audit log: it verifies its chains, and tells what happened as a person can read it.
//
// A log is its files in their order, and what it says is in doc/audit.md. Verifier finds the first line that is not as it
// was written. Read finds what a Filter asks for and what belongs to it: the outcome of each decision, the connections
// that a request caused, the request that caused a connection. Printer writes that as a timeline.
//
// Limits: Read believes what stands in the lines; verify first. It keeps in memory what it finds, and no more than that.
package story

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// maxText is longer than any line, with what a line that was cut short may have left before it.
const maxText = 64 << 10

// Line is a line of the log. Members that it does not have are zero.
type Line struct {
	Version     int       `json:"v"`
	Time        time.Time `json:"time"`
	Kind        string    `json:"kind"`
	ID          string    `json:"id"`
	Point       string    `json:"point"`
	Decision    string    `json:"decision"`
	Code        string    `json:"code"`
	Reason      string    `json:"reason"`
	Route       string    `json:"route"`
	Method      string    `json:"method"`
	Path        string    `json:"path"`
	Host        string    `json:"host"`
	Source      string    `json:"source"`
	Issuer      string    `json:"issuer"`
	Subject     string    `json:"subject"`
	Client      string    `json:"client"`
	TokenID     string    `json:"token_id"`
	TokenDigest string    `json:"token_digest"`
	Detail      Detail    `json:"detail"`

	Status   int     `json:"status"` // of an outcome
	BytesIn  int64   `json:"bytes_in"`
	BytesOut int64   `json:"bytes_out"`
	Millis   float64 `json:"duration_ms"`
	Error    string  `json:"error"`

	Refused int       `json:"refused"` // of a gap
	Lost    int       `json:"lost"`
	Since   time.Time `json:"since"`

	Why string `json:"why"` // of a checkpoint

	Raw  json.RawMessage `json:"-"` // the line
	File string          `json:"-"`
	At   int             `json:"-"` // its number in the file, from 1
}

// Detail is as much of a record's detail as is looked at.
type Detail struct {
	Requests    []string `json:"requests"` // the requests that caused it
	Level       string   `json:"level"`
	Cause       string   `json:"cause"`
	Window      int      `json:"window"`
	Destination string   `json:"destination"`
	Port        int      `json:"port"`
	Would       string   `json:"would"`
	Dropped     []string `json:"dropped"`
	Path        string   `json:"path"` // what was to be run or written

	// What a revocation or an alarm is about.
	Issuer  string `json:"issuer"`
	TokenID string `json:"token_id"`
	Digest  string `json:"digest"`
	Subject string `json:"subject"`
	Client  string `json:"client"`
	Session string `json:"session"`
	KeyID   string `json:"key_id"`
	By      string `json:"by"`
	Reason  string `json:"reason"`
}

// Parse reads a line without its end: one JSON object of schema version 1, with a time and a kind. A detail of another
// shape than is known is passed over.
func Parse(text []byte) (Line, error) {
	var l Line
	err := json.Unmarshal(text, &l)
	if _, shape := errors.AsType[*json.UnmarshalTypeError](err); shape && l.Version == 1 {
		err = nil // the rest has been read
	}
	switch {
	case err != nil:
		return Line{}, fmt.Errorf("read a line: %w", err)
	case l.Version != 1:
		return Line{}, fmt.Errorf("read a line: schema version %d is not 1", l.Version)
	case l.Kind == "" || l.Time.IsZero():
		return Line{}, errors.New("read a line: it has no kind or no time")
	}
	l.Raw = bytes.Clone(text)
	return l, nil
}

// Scan reads the whole log, and calls f with each line that parses, but for those of which skip, by their bytes, says that
// nobody wants them. The lines that do not parse were cut short, and are counted.
type Scan func(skip func(text []byte) bool, f func(Line)) (passed int, err error)

// Lines is a Scan of one file. skip may be nil.
func Lines(name string, r io.Reader, skip func(text []byte) bool, f func(Line)) (passed int, err error) {
	b := bufio.NewReaderSize(r, maxText)
	for at := 1; ; at++ {
		text, err := b.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = b.ReadSlice('\n')
			}
			text = nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				if len(text) > 0 {
					passed++
				}
				return passed, nil
			}
			return passed, fmt.Errorf("read %s: %w", name, err)
		}
		if skip != nil && bytes.HasSuffix(text, []byte("}\n")) && skip(text) {
			continue
		}
		l, err := Parse(bytes.TrimSuffix(text, []byte{'\n'}))
		if err != nil {
			// behind a line that was cut short, a whole one may stand
			if from := bytes.LastIndex(text, []byte(begins)); from > 0 {
				l, err = Parse(bytes.TrimSuffix(text[from:], []byte{'\n'}))
			}
		}
		if err != nil {
			passed++
			continue
		}
		l.File, l.At = name, at
		f(l)
	}
}

// Filter says which decisions are asked for: those that fit everything that is set.
type Filter struct {
	Token    string // a jti, or the digest of a token that has none
	Request  string // the id of a request or an attempt
	Subject  string
	Client   string
	Route    string
	Source   string
	Code     string
	Decision string
	Point    string
	Since    time.Time
	Until    time.Time
}

// Match reports whether a decision fits.
func (f *Filter) Match(l *Line) bool {
	d := &l.Detail
	is := func(want string, has ...string) bool { return want == "" || slices.Contains(has, want) }
	return l.Kind == "decision" && f.within(l.Time) &&
		is(f.Token, l.TokenID, l.TokenDigest, d.TokenID, d.Digest) &&
		is(f.Request, append(d.Requests, l.ID)...) &&
		is(f.Subject, l.Subject, d.Subject) &&
		is(f.Client, l.Client, d.Client) &&
		is(f.Route, l.Route) && is(f.Source, l.Source) && is(f.Code, l.Code, d.Would) && is(f.Decision, l.Decision) && is(f.Point, l.Point)
}

// skip reports whether a line is none that fits, without reading it: most of a log is not about what is asked for.
func (f *Filter) skip(text []byte) bool {
	if isOutcome(text) {
		return true
	}
	for _, value := range []string{f.Token, f.Request, f.Subject, f.Client, f.Route, f.Source, f.Code} {
		// as it stands in JSON, unless something in it is escaped there
		if value != "" && !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r >= 0x7f || strings.ContainsRune("\"\\/<>&", r) }) &&
			!bytes.Contains(text, []byte(value)) {
			return true
		}
	}
	return false
}

func isOutcome(text []byte) bool { _, ok := idOf(text, "outcome"); return ok }

// idOf reads the id of a line of a kind where sallyport writes it. Not ok: it must be read as JSON.
func idOf(text []byte, kind string) (id []byte, ok bool) {
	if len(text) < beforeKind {
		return nil, false
	}
	rest, ok := bytes.CutPrefix(text[beforeKind:], []byte(`"kind":"`+kind+`","id":"`))
	id, _, closed := bytes.Cut(rest, []byte{'"'})
	return id, ok && closed && !bytes.Contains(id, []byte{'\\'})
}

func (f *Filter) within(t time.Time) bool {
	return (f.Since.IsZero() || !t.Before(f.Since)) && (f.Until.IsZero() || t.Before(f.Until))
}

// Event is a decision, its outcome, and what it caused.
type Event struct {
	Line
	Outcome *Line // nil: in flight, or cut short
	Caused  []*Event
}

// Story is what was found, in the order of time.
type Story struct {
	Events []*Event
	Left   int // decisions that fit, earlier than the last ones that were asked for
	Passed int // lines that do not parse
}

// Read finds the last decisions that fit, at most that many, and what belongs to them. It scans the log twice.
func Read(scan Scan, f Filter, last int) (Story, error) {
	var s Story
	var hits []Line // without their text
	if _, err := scan(f.skip, func(l Line) {
		if !f.Match(&l) {
			return
		}
		l.Raw = nil
		if hits = append(hits, l); len(hits) >= 2*last {
			hits = slices.Delete(hits, 0, len(hits)-last)
			s.Left += last
		}
	}); err != nil {
		return s, err
	}
	if over := len(hits) - last; over > 0 {
		hits = hits[over:]
		s.Left += over
	}
	c := &collection{hit: map[string]bool{}, wanted: map[string]bool{}, events: map[string]*Event{}}
	for _, l := range hits {
		c.hit[l.ID], c.wanted[l.ID] = true, true
		for _, id := range l.Detail.Requests {
			c.wanted[id] = true // the cause, so that it can be read from the top
		}
	}
	if len(hits) > 0 {
		c.from, c.to = hits[0].Time, hits[len(hits)-1].Time
	}
	passed, err := scan(c.skip, c.take)
	s.Events, s.Passed = c.join(), passed
	return s, err
}

// collection is what the second reading finds.
type collection struct {
	hit, wanted map[string]bool // ids: of what was asked for, and of what belongs to it
	from, to    time.Time
	events      map[string]*Event
	order       []*Event
}

// skip reports whether a line is none of what is wanted, without reading it.
func (c *collection) skip(text []byte) bool {
	if id, ok := idOf(text, "outcome"); ok {
		return c.events[string(id)] == nil
	}
	id, ok := idOf(text, "decision")
	return ok && !c.wanted[string(id)] && !bytes.Contains(text, []byte(`"requests"`))
}

func (c *collection) take(l Line) {
	switch l.Kind {
	case "decision":
		caused := slices.ContainsFunc(l.Detail.Requests, func(id string) bool { return c.hit[id] })
		if c.wanted[l.ID] || caused {
			e := &Event{Line: l}
			c.events[l.ID] = e
			c.order = append(c.order, e)
		}
	case "outcome":
		if e := c.events[l.ID]; e != nil && e.Outcome == nil {
			e.Outcome = &l
		}
	case "gap":
		if len(c.hit) > 0 && !l.Time.Before(c.from) && !l.Since.After(c.to) {
			c.order = append(c.order, &Event{Line: l})
		}
	}
}

// join puts what was caused under its cause.
func (c *collection) join() []*Event {
	byTime := func(a, b *Event) int { return a.Time.Compare(b.Time) }
	slices.SortStableFunc(c.order, byTime)
	var top []*Event
	for _, e := range c.order {
		cause := slices.IndexFunc(e.Detail.Requests, func(id string) bool { return c.events[id] != nil && c.events[id] != e })
		// an alarm is about a token, of which the request was but the last straw
		if e.Kind != "decision" || e.Point == "watch" || cause < 0 || len(c.events[e.Detail.Requests[cause]].Detail.Requests) > 0 {
			top = append(top, e)
			continue
		}
		by := c.events[e.Detail.Requests[cause]]
		by.Caused = append(by.Caused, e)
	}
	return top
}
