package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxErrors is how many errors are reported for one file: beyond that a person is no better served, and a hostile
// file would make us print without end.
const maxErrors = 100

// Error is one thing wrong with the file.
type Error struct {
	File    string `json:"file"`
	Line    int    `json:"line"`   // from 1
	Column  int    `json:"column"` // from 1, in characters
	Key     string `json:"key"`    // ingress.issuers[0].audience; empty for the file as a whole
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to write instead
}

// Error is "file:line:col: key: message".
func (e *Error) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", e.File, e.Line, e.Column, e.Key, e.Message)
}

// Errors is everything wrong with the file, in the order of its lines.
type Errors []*Error

// Error has one line for each error, and below it the hint where there is one.
func (e Errors) Error() string {
	var b strings.Builder
	for i, one := range e {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(one.Error())
		if one.Hint != "" {
			b.WriteString("\n    hint: ")
			b.WriteString(one.Hint)
		}
	}
	return b.String()
}

// sorted returns the errors by line and column, each once, and at most maxErrors of them.
func (e Errors) sorted() Errors {
	slices.SortStableFunc(e, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), strings.Compare(a.Key, b.Key))
	})
	e = slices.CompactFunc(e, func(a, b *Error) bool { return *a == *b })
	if len(e) <= maxErrors {
		return e
	}
	last := *e[maxErrors]
	last.Key, last.Hint = "", ""
	last.Message = fmt.Sprintf("%d more errors from here on", len(e)-maxErrors)
	return append(e[:maxErrors:maxErrors], &last)
}

// quote shows a piece of the file in a message: on one line, printable, and not for ever.
func quote(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "..."
	}
	return fmt.Sprintf("%q", s)
}
