// Package watch reads what is recorded, joins cause and effect, and raises alarms: an attempt to get out ends the token
// that caused it.
//
//	w, err := watch.New(watch.Config{Rules: watch.Rules(), Record: log.Record, Revoke: revoke, Lifetime: lifetime})
//	log, err := audit.Open(audit.Config{Observe: w.Observe, ...}, logger)
//	go w.Run(ctx)
//
// Each record is shown to every rule (rules.yml says what a rule is) as it is accepted. What a rule does about it happens
// beside: the alarm is recorded, sent to a webhook, and the token revoked, in this order, within a fraction of a second.
//
// # What is known of a record
//
// The token is that of the record's caller. At egress it is that of the request that caused the attempt, where there is one
// such request: where several could have been it (a window of several callers), nobody is blamed, and the alarm lists them.
//
// # Limits
//
// What was counted is forgotten at a restart; what was learned (novel) is kept if there is a file for it. Of each rule at
// most a million keys are counted, the oldest are forgotten first: an attacker who has a million addresses can count anew.
// Each replica counts for itself. A window begins with the first record that it counts, so that a burst spread over two
// windows may be up to twice as large before it is an alarm.
package watch

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/state"
)

const (
	maxKeys   = 1 << 20 // of one rule
	maxRecent = 4096    // records from which the story of an alarm is told
	maxStory  = 16
	maxAlarms = 1000 // that are remembered
	maxTodo   = 4096 // alarms that wait to be acted upon
	minPause  = time.Minute
)

// Config is what a watcher is built from.
type Config struct {
	Rules    []Rule
	Record   func(audit.Record) error                            // puts an alarm into the log; required
	Revoke   func(ctx context.Context, r state.Revocation) error // ends tokens; required
	Lifetime func(issuer string) time.Duration                   // the longest that a token of the issuer may be valid; required
	Webhook  *Webhook                                            // nil: alarms are sent nowhere
	Baseline string                                              // file that keeps what novel has learned; empty: it is learned anew after a restart
	Metrics  prometheus.Registerer                               // nil: none
	Logger   *slog.Logger                                        // nil: none
	Now      func() time.Time                                    // nil means time.Now
}

// Webhook is where alarms are sent: an https URL, POST, one JSON object.
type Webhook struct {
	URL    string
	Secret func() (string, error) // sent as "Authorization: Bearer"; nil: none
	Client *http.Client           // required: one that dials only what is safe to dial
}

// Alarm is something that somebody should look at.
type Alarm struct {
	ID       string    `json:"id"` // of its record
	Time     time.Time `json:"time"`
	Rule     string    `json:"rule"`
	Says     string    `json:"says"`
	Code     string    `json:"code"`   // of the record that raised it
	Record   string    `json:"record"` // its id
	Issuer   string    `json:"issuer,omitempty"`
	TokenID  string    `json:"token_id,omitempty"`
	Digest   string    `json:"token_digest,omitempty"`
	Subject  string    `json:"subject,omitempty"`
	Client   string    `json:"client,omitempty"`
	Source   string    `json:"source,omitempty"`
	Route    string    `json:"route,omitempty"`
	Requests []string  `json:"requests,omitempty"` // inbound requests that caused it, or could have
	Story    []Event   `json:"story,omitempty"`    // what led to it, the latest last
	Did      []string  `json:"did,omitempty"`      // "quarantine", "quarantine subject"
	Not      string    `json:"not,omitempty"`      // why something was not done
}

// Event is one line of a story.
type Event struct {
	Time  time.Time `json:"time"`
	ID    string    `json:"id"`
	Point string    `json:"point"`
	Code  string    `json:"code"`
	What  string    `json:"what"` // method and path, or host and port
}

// Watcher is the watch. Safe for concurrent use.
type Watcher struct {
	config  Config
	log     *slog.Logger
	now     func() time.Time
	metrics *metrics
	seed    maphash.Seed
	todo    chan *work
	book    *baseline

	mu     sync.Mutex
	rules  []*counted
	recent []recent // a ring
	next   int
	alarms []*Alarm // newest last
}

// counted is a rule and what it has counted.
type counted struct {
	Rule
	codes map[string]bool
	tally *tally
}

// work is an alarm to be acted upon.
type work struct {
	alarm *Alarm
	rule  *Rule
}

// New checks the rules and builds a watcher.
func New(c Config) (*Watcher, error) {
	if c.Record == nil || c.Revoke == nil || c.Lifetime == nil {
		return nil, errors.New("watch: Record, Revoke and Lifetime are required")
	}
	w := &Watcher{config: c, log: c.Logger, now: c.Now, seed: maphash.MakeSeed(), todo: make(chan *work, maxTodo), recent: make([]recent, maxRecent)}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if w.now == nil {
		w.now = time.Now
	}
	if c.Webhook != nil && (c.Webhook.Client == nil || !strings.HasPrefix(c.Webhook.URL, "https://") && !strings.HasPrefix(c.Webhook.URL, "http://")) {
		return nil, errors.New("watch: the webhook needs a URL and a client")
	}
	for i := range c.Rules {
		r := &counted{Rule: c.Rules[i], codes: map[string]bool{}, tally: newTally(maxKeys)}
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("watch: rule %s: %w", r.Name, err)
		}
		r.Count = max(r.Count, 1)
		for _, code := range r.Codes {
			r.codes[code] = true
		}
		w.rules = append(w.rules, r)
	}
	var err error
	if w.book, err = openBaseline(c.Baseline, w.now()); err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	if w.metrics, err = newMetrics(c.Metrics, w); err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	return w, nil
}

// Observe is shown each record and each outcome that the log has accepted. It does not wait for anything.
func (w *Watcher) Observe(r *audit.Record, _ *audit.Outcome) {
	if r == nil || r.Point == "watch" || r.Point == "state" || r.Point == "run" {
		return
	}
	s := w.read(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remember(r)
	for _, rule := range w.rules {
		if rule.matches(r) && w.judge(rule, &s) {
			w.raise(rule, &s)
		}
	}
}

func (r *counted) matches(rec *audit.Record) bool {
	if rec.Point != r.Point || len(r.codes) > 0 && !r.codes[string(rec.Decision.Code)] {
		return false
	}
	return r.Decision == "" || (r.Decision == "allow") == rec.Decision.Allowed()
}

// judge reports whether the record makes an alarm of a rule that it matches; w.mu is held.
func (w *Watcher) judge(r *counted, s *sight) bool {
	now := w.now()
	if len(r.Novel) > 0 {
		return w.novel(r, s, now)
	}
	by := s.value(r.By)
	if r.By == "source" {
		by = neighbourhood(s.Source) // who has one IPv6 address has 2^64
	}
	if r.By != "" && by == "" {
		return false // nobody whose records could count together
	}
	key := w.hash(by)
	var value uint64
	if r.Distinct != "" {
		different := s.value(r.Distinct)
		if different == "" {
			return false
		}
		value = w.hash(different) | 1
	}
	slot, n := r.tally.add(key, value, now, r.Within)
	if n < r.Count {
		return false
	}
	// While it goes on it is one alarm; but each token that is to be ended for it is, or whoever has two could spend one.
	if token := s.value("token"); token != "" && r.does(doQuarantine) {
		slot, _ = r.tally.add(w.hash("quarantine\x00"+token), 0, now, 0)
	}
	return slot.quiet(now, max(r.Within, minPause))
}

// novel reports whether the combination is new, after it was learned for long enough what is not. A request that caused
// something is one of the routes that the record names.
func (w *Watcher) novel(r *counted, s *sight, now time.Time) (alarm bool) {
	for _, route := range s.routes() {
		parts := []string{r.Name}
		for _, n := range r.Novel {
			if n == "route" {
				parts = append(parts, route)
			} else {
				parts = append(parts, s.value(n))
			}
		}
		if w.book.learn(strings.Join(parts, "\x00")) && now.Sub(w.book.since) >= r.Warmup {
			alarm = true
		}
	}
	return alarm
}

func (w *Watcher) hash(s string) uint64 { return maphash.String(w.seed, s) }

// raise makes an alarm and hands it on; w.mu is held.
func (w *Watcher) raise(r *counted, s *sight) {
	now := w.now()
	a := &Alarm{
		ID: audit.NewID(now), Time: now.UTC(), Rule: r.Name, Says: r.Says, Code: string(s.Decision.Code), Record: s.ID,
		Source: s.value("source"), Route: strings.Join(s.routes(), " "), Requests: s.requests(), Story: w.story(s),
	}
	if c := s.Caller; c != nil {
		a.Issuer, a.TokenID, a.Subject, a.Client = c.Issuer, c.TokenID, c.Subject, c.Client
		if c.TokenID == "" {
			a.Digest = c.Digest
		}
	}
	w.metrics.alarms.WithLabelValues(r.Name).Inc()
	if len(w.alarms) == maxAlarms {
		w.alarms = slices.Delete(w.alarms, 0, maxAlarms/10)
	}
	w.alarms = append(w.alarms, a)
	select {
	case w.todo <- &work{a, &r.Rule}:
	default:
		w.metrics.lost.Inc()
		w.log.Error("alarm: too many at once, this one is not acted upon", "rule", r.Name, "record", s.ID)
	}
}

// Alarms are the latest, newest first, at most limit.
func (w *Watcher) Alarms(limit int) []Alarm {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]Alarm, 0, min(limit, len(w.alarms)))
	for _, a := range slices.Backward(w.alarms) {
		if len(out) == limit {
			break
		}
		out = append(out, *a)
	}
	return out
}

// sight is what can be seen of a record.
type sight struct {
	*audit.Record
}

func (w *Watcher) read(r *audit.Record) sight { return sight{r} }

// value is one property of a record; empty where it has none.
func (s *sight) value(what string) string {
	switch c := s.Caller; what {
	case "token":
		switch {
		case c == nil:
			return ""
		case c.TokenID != "":
			return c.Issuer + "\x00" + c.TokenID
		case c.Digest != "":
			return c.Issuer + "\x00\x00" + c.Digest
		}
	case "subject":
		if c != nil && c.Subject != "" {
			return c.Issuer + "\x00" + c.Subject
		}
	case "client":
		if c != nil && c.Client != "" {
			return c.Issuer + "\x00" + c.Client
		}
	case "source":
		return addressOf(s.Source)
	case "network":
		return network(s.Source)
	case "path":
		return s.Path
	case "route":
		return strings.Join(s.routes(), " ")
	case "destination":
		d, _ := s.Detail["destination"].(string)
		return d
	}
	return ""
}

// network is what one client's addresses usually have in common: 24 bits of IPv4, 48 of IPv6.
func network(a netip.Addr) string {
	bits := 48
	if a = a.Unmap(); a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}

// neighbourhood is a client's address, and of IPv6 the 64 bits that are one customer's.
func neighbourhood(a netip.Addr) string {
	if a = a.Unmap(); !a.Is6() {
		return addressOf(a)
	}
	p, err := a.Prefix(64)
	if err != nil {
		return ""
	}
	return p.String()
}

func addressOf(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// routes are those of the request, or of the requests that caused it: behind the service a decision names the destination.
func (s *sight) routes() []string {
	if s.Point == "ingress" && s.Decision.Route != "" {
		return []string{s.Decision.Route}
	}
	if list, ok := s.Detail["routes"].([]string); ok {
		return list
	}
	if cause, _ := s.Detail["cause"].(string); cause != "" {
		return []string{cause}
	}
	return nil
}

func (s *sight) requests() []string {
	if s.Point == "ingress" {
		return []string{s.ID}
	}
	list, _ := s.Detail["requests"].([]string)
	return list
}
