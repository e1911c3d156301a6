package jws

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"unicode/utf8"
)

// MaxDepth is how many objects and arrays may lie inside one another, the
// outermost counted.
const MaxDepth = 8

// Object reads data as one JSON object (RFC 8259) with one reading: valid
// UTF-8, no member name twice at any depth, no lone surrogate, no NUL, nothing
// but white space around it. Member names differ if their bytes do: "ISS" is
// not "iss".
//
// A number that is written as an integer and fits is an int64, any other is a
// float64; one that overflows a float64 is refused. The error is an *Error.
func Object(data []byte) (map[string]any, error) {
	if !utf8.Valid(data) {
		return nil, refuse(CodeEncoding, "not UTF-8")
	}
	// before the walk, because Decoder.Token does not hold a document to the grammar
	if !json.Valid(data) {
		return nil, refuse(CodeJSON, "not JSON")
	}
	// before the walk, because the decoder puts U+FFFD in the place of a lone surrogate
	if err := checkEscapes(data); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	open, err := d.Token()
	if err != nil {
		return nil, refuse(CodeJSON, "not JSON")
	}
	if open != json.Delim('{') {
		return nil, refuse(CodeJSON, "not an object")
	}
	return readObject(d, 1)
}

// readObject reads the members up to the closing brace; the opening one has been read.
func readObject(d *json.Decoder, depth int) (map[string]any, error) {
	object := make(map[string]any)
	for d.More() {
		token, err := d.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return nil, refuse(CodeJSON, "not JSON")
		}
		if _, ok := object[name]; ok {
			return nil, refuse(CodeDuplicate, "a member name is given twice")
		}
		if object[name], err = readValue(d, depth); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return object, closed(err)
}

// readArray is readObject for the elements of an array.
func readArray(d *json.Decoder, depth int) ([]any, error) {
	array := []any{}
	for d.More() {
		value, err := readValue(d, depth)
		if err != nil {
			return nil, err
		}
		array = append(array, value)
	}
	_, err := d.Token()
	return array, closed(err)
}

// readValue reads a value that lies inside depth objects and arrays.
func readValue(d *json.Decoder, depth int) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, refuse(CodeJSON, "not JSON")
	}
	switch t := token.(type) {
	case json.Delim:
		if depth == MaxDepth {
			return nil, refuse(CodeDepth, "nested deeper than "+strconv.Itoa(MaxDepth))
		}
		if t == '{' {
			return readObject(d, depth+1)
		}
		return readArray(d, depth+1)
	case json.Number:
		return readNumber(string(t))
	default: // string, bool, nil
		return t, nil
	}
}

func readNumber(s string) (any, error) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return nil, refuse(CodeNumber, "a number is out of range")
	}
	return f, nil
}

// closed turns an error at a closing delimiter into a refusal. It returns an
// untyped nil otherwise.
func closed(err error) error {
	if err != nil {
		return refuse(CodeJSON, "not JSON")
	}
	return nil
}

var errEscape = errors.New("lone surrogate or NUL")

// checkEscapes refuses \u0000 and surrogates that are not a pair. data is valid
// JSON, so a backslash stands only in a string, with a whole escape after it,
// and NUL cannot stand there unescaped.
func checkEscapes(data []byte) error {
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		i++ // the character that is escaped
		if data[i] != 'u' {
			continue
		}
		n, err := escape(data[i-1:])
		if err != nil {
			return refuse(CodeEncoding, "a string has a "+err.Error())
		}
		i += n - 2
	}
	return nil
}

// escape returns the length of the \u escape, or pair of them, that s begins with.
func escape(s []byte) (int, error) {
	first, _ := strconv.ParseUint(string(s[2:6]), 16, 16)
	switch {
	case first == 0, 0xdc00 <= first && first <= 0xdfff:
		return 0, errEscape
	case first < 0xd800 || first > 0xdbff:
		return 6, nil
	}
	if len(s) < 12 || s[6] != '\\' || s[7] != 'u' {
		return 0, errEscape
	}
	second, _ := strconv.ParseUint(string(s[8:12]), 16, 16)
	if second < 0xdc00 || second > 0xdfff {
		return 0, errEscape
	}
	return 12, nil
}
