package watch

import (
	"slices"
	"strconv"
	"time"

	"github.com/sallyport/sallyport/internal/audit"
)

// recent is what is remembered of one of the last records.
type recent struct {
	time                  time.Time
	id, point, code, what string
	token                 string   // as sight.value has it
	requests              []string // that caused it
}

// remember keeps what a story may need of a record; w.mu is held.
func (w *Watcher) remember(r *audit.Record) {
	s := sight{r}
	w.recent[w.next] = recent{
		time: r.Time, id: r.ID, point: r.Point, code: string(r.Decision.Code), what: what(r),
		token: s.value("token"), requests: s.requests(),
	}
	w.next = (w.next + 1) % len(w.recent)
}

func what(r *audit.Record) string {
	port, _ := r.Detail["port"].(int)
	switch {
	case r.Point == "ingress", r.Host == "":
		return r.Method + " " + r.Path
	case port != 0:
		return r.Host + ":" + strconv.Itoa(port)
	}
	return r.Host
}

// story is what led to a record: what else there is of its token and of the requests that caused it; w.mu is held.
func (w *Watcher) story(s *sight) []Event {
	token, requests := s.value("token"), s.requests()
	var out []Event
	for i := range w.recent {
		r := &w.recent[(w.next-1-i+2*len(w.recent))%len(w.recent)] // newest first
		if r.id == "" || len(out) == maxStory {
			break
		}
		if token != "" && r.token == token || slices.Contains(requests, r.id) || r.id == s.ID ||
			slices.ContainsFunc(r.requests, func(id string) bool { return slices.Contains(requests, id) }) {
			out = append(out, Event{Time: r.time.UTC(), ID: r.id, Point: r.point, Code: r.code, What: r.what})
		}
	}
	slices.Reverse(out)
	return out
}
