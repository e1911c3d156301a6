package main

import (
	"fmt"
	"slices"
)

// How the rows of a table compare with its base.
const (
	byRatio      = "ratio"      // of the base; more is better
	byDifference = "difference" // to the base; less is better
)

// table is what is compared: one row for each way of doing the same.
type table struct {
	Name    string   `json:"name"`
	Title   string   `json:"title"`
	Columns []column `json:"columns"` // the first is compared
	By      string   `json:"by"`
	Base    string   `json:"base"` // the row that is compared with; of the proxies the fastest that checks destinations
	Rows    []*row   `json:"rows"`
	Missing []string `json:"missing,omitempty"` // what was to be compared and could not be, with the reason
}

type column struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
}

// row is one way of doing it.
type row struct {
	Name    string   `json:"name"`
	Note    string   `json:"note,omitempty"`
	Figures []figure `json:"figures"` // one for each column
	Against *figure  `json:"against,omitempty"`
	Goal    *goal    `json:"goal,omitempty"`

	checks bool     // a peer of the egress that checks destinations
	limit  *float64 // of the goal: at least this ratio, or at most this difference
	once   func() ([]float64, error)
	rounds [][]float64
}

// figure is what was measured: the median of the rounds, and between what they were.
type figure struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

type goal struct {
	Text string `json:"text"`
	Met  bool   `json:"met"`
}

// run measures each row once in each round, in an order that turns, and then compares. Before the rounds there is one that
// does not count. A row that fails is missing from then on; the error is the first failure of a row that is not a peer's.
func (t *table) run(s *site, rounds int) error {
	if !s.wants(t.Name) {
		return nil
	}
	warmUp := 1
	if s.brief {
		rounds, warmUp = 1, 0
	}
	var failure error
	for i := range rounds + warmUp {
		for j := range len(t.Rows) {
			r := t.Rows[(i+j)%len(t.Rows)]
			if r.once == nil {
				continue
			}
			if err := s.ctx.Err(); err != nil {
				return err
			}
			values, err := r.once()
			if err != nil {
				t.Missing = append(t.Missing, fmt.Sprintf("%s: %v", r.Name, err))
				if !r.checks && failure == nil {
					failure = fmt.Errorf("%s, %s: %w", t.Name, r.Name, err)
				}
				r.once = nil
				continue
			}
			if i >= warmUp {
				r.rounds = append(r.rounds, values)
			}
		}
	}
	t.Rows = slices.DeleteFunc(t.Rows, func(r *row) bool { return r.once == nil })
	t.judge()
	return failure
}

// judge computes the figures, and compares.
func (t *table) judge() {
	for _, r := range t.Rows {
		r.Figures = nil
		for i := range t.Columns {
			r.Figures = append(r.Figures, summary(r.column(i)))
		}
	}
	if t.Base == "" {
		t.Base = t.fastestThatChecks()
	}
	at := slices.IndexFunc(t.Rows, func(r *row) bool { return r.Name == t.Base })
	for i, r := range t.Rows {
		if at < 0 || i == at {
			continue
		}
		var list []float64
		base := t.Rows[at].column(0)
		for i, v := range r.column(0) {
			if t.By == byRatio {
				list = append(list, v/base[i])
			} else {
				list = append(list, v-base[i])
			}
		}
		f := summary(list)
		r.Against = &f
		if r.limit == nil {
			continue
		}
		if t.By == byRatio {
			r.Goal = &goal{fmt.Sprintf("at least %.2f of %s", *r.limit, t.Base), f.Median >= *r.limit}
		} else {
			r.Goal = &goal{fmt.Sprintf("at most %.0f %s more than %s", *r.limit, t.Columns[0].Unit, t.Base), f.Median <= *r.limit}
		}
	}
}

// fastestThatChecks is the peer with the best median.
func (t *table) fastestThatChecks() string {
	best, name := 0.0, ""
	for _, r := range t.Rows {
		if r.checks && r.Figures[0].Median > best {
			best, name = r.Figures[0].Median, r.Name
		}
	}
	return name
}

func (r *row) column(i int) []float64 {
	list := make([]float64, len(r.rounds))
	for j := range r.rounds {
		list[j] = r.rounds[j][i]
	}
	return list
}

func summary(list []float64) figure {
	if len(list) == 0 {
		return figure{}
	}
	sorted := slices.Sorted(slices.Values(list))
	median := sorted[len(sorted)/2]
	if len(sorted)%2 == 0 {
		median = (median + sorted[len(sorted)/2-1]) / 2
	}
	return figure{median, sorted[0], sorted[len(sorted)-1]}
}
