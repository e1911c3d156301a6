package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

const (
	maxSize  = 1 << 20 // bytes
	maxDepth = 12      // mappings and lists inside one another; the deepest that means anything is 6
)

// load turns bytes into the one document's root. It refuses everything that an editor, a reviewer and a YAML parser
// could take differently: what is left reads the same to all three.
func load(name string, data []byte) (*yaml.Node, Errors) {
	if errs := characters(name, data); len(errs) > 0 {
		return nil, errs
	}
	if line := directive(data); line > 0 {
		return nil, Errors{{File: name, Line: line, Column: 1, Message: "YAML directives are not read",
			Hint: "remove the line that begins with %"}}
	}
	l, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(maxDepth))))
	if err != nil {
		return nil, Errors{{File: name, Line: 1, Column: 1, Message: fmt.Sprintf("read YAML: %v", err)}}
	}
	var doc yaml.Node
	switch err := l.Load(&doc); {
	case errors.Is(err, io.EOF):
		return nil, Errors{{File: name, Line: 1, Column: 1, Message: "the file holds no configuration", Hint: "begin with `version: 1`"}}
	case err != nil:
		return nil, Errors{syntax(name, data, err)}
	}
	var second yaml.Node
	switch err := l.Load(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, Errors{syntax(name, data, err)}
	default:
		return nil, Errors{{File: name, Line: second.Line, Column: second.Column, Message: "a second document begins here",
			Hint: "one file holds one document: join the two, or remove what follows `---`"}}
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind == yaml.ScalarNode && doc.Content[0].ShortTag() == "!!null" {
		return nil, Errors{{File: name, Line: 1, Column: 1, Message: "the file holds no configuration", Hint: "begin with `version: 1`"}}
	}
	return doc.Content[0], nil
}

// characters finds what must not be in the file at all, wherever it stands: bytes that are not UTF-8, control
// characters, line ends that only some programs count, marks that reverse what a reviewer sees, and tabs as
// indentation. Any of them may be written as an escape inside double quotes.
func characters(name string, data []byte) Errors {
	var errs Errors
	line, column, indent := 1, 1, true
	report := func(message, hint string) {
		if len(errs) <= maxErrors {
			errs = append(errs, &Error{File: name, Line: line, Column: column, Message: message, Hint: hint})
		}
	}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			report("the file is not UTF-8", "save it as UTF-8 without a byte order mark")
			return errs // what follows would only repeat it
		case r == '\uFEFF':
			report("byte order mark", "save the file as UTF-8 without a byte order mark")
		case r == '\t' && indent:
			report("tab in the indentation", "indent with spaces")
			indent = false // once a line
		case r == '\r' && (i+1 == len(data) || data[i+1] != '\n'), r == '\u0085', r == '\u2028', r == '\u2029':
			report(fmt.Sprintf("line break that not every program counts (%U)", r), "end lines with a line feed")
		case r < ' ' && r != '\n' && r != '\t' && r != '\r', r >= 0x7f && r <= 0x9f:
			report(fmt.Sprintf("control character (%U)", r), "remove it, or write it as an escape inside double quotes")
		case r >= '\u202A' && r <= '\u202E', r >= '\u2066' && r <= '\u2069':
			report(fmt.Sprintf("character that changes the direction of the text (%U)", r), "remove it: a reader would see another file than sallyport")
		}
		i += size
		column++
		if r == '\n' {
			line, column, indent = line+1, 1, true
		} else if r != ' ' {
			indent = false
		}
	}
	return errs
}

// directive returns the line of a %YAML or %TAG directive, or 0. They can stand before the first content only.
func directive(data []byte) int {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		switch text := bytes.TrimSpace(line); {
		case len(text) == 0 || text[0] == '#':
		case line[0] == '%':
			return n
		default:
			return 0
		}
	}
	return 0
}

// syntax says in our words where the YAML parser gave up, and why.
func syntax(name string, data []byte, err error) *Error {
	e := &Error{File: name, Line: 1, Column: 1, Message: fmt.Sprintf("not YAML: %v", err)}
	var le *yaml.LoadError
	if !errors.As(err, &le) {
		return e
	}
	e.Line, e.Column, e.Message = max(le.Mark.Line, 1), max(le.Mark.Column, 1), "not YAML: "+le.Message
	if le.ContextMsg != "" && le.ContextMark.Line > 0 && le.ContextMark.Line != le.Mark.Line {
		e.Message += fmt.Sprintf(", %s that begins on line %d", le.ContextMsg, le.ContextMark.Line)
	}
	// At the end of the file the parser may stand on the line after the last one.
	if last := bytes.Count(data, []byte("\n")) + 1; e.Line > last {
		e.Line, e.Column = last, 1
	}
	switch {
	case strings.Contains(le.Message, "exceeded max depth"):
		e.Message = fmt.Sprintf("nested more than %d deep", maxDepth)
	case strings.Contains(le.Message, "unknown anchor"):
		e.Message, e.Hint = "aliases are not read", "write the value out"
	case strings.Contains(le.Message, "mapping values are not allowed"):
		e.Hint = "check the indentation; text that holds `: ` must be in quotes"
	case strings.Contains(le.Message, "cannot start any token"):
		e.Hint = "put text that begins with @, % or ` in quotes"
	case strings.Contains(le.Message, "did not find expected"), strings.Contains(le.Message, "could not find expected"):
		e.Hint = "check the indentation and that every quote and bracket is closed"
	}
	return e
}
