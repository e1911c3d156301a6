package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sallyport/sallyport/internal/jws"
)

// encoder appends the members of one JSON object. The first error stays.
type encoder struct {
	b   []byte
	err error
}

func (e *encoder) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

// name appends the comma, where one is needed, and a name that needs no escape.
func (e *encoder) name(name string) {
	if e.b[len(e.b)-1] != '{' {
		e.b = append(e.b, ',')
	}
	e.b = append(e.b, '"')
	e.b = append(e.b, name...)
	e.b = append(e.b, `":`...)
}

// text appends a member that names somebody or something, unless it is empty.
func (e *encoder) text(name, value string) {
	if value == "" {
		return
	}
	// before it is written, because what names somebody goes into records
	if strings.ContainsFunc(value, isControl) {
		e.fail(errors.New(name + " has a control character"))
	}
	e.name(name)
	e.quote(value)
}

func (e *encoder) number(name string, n int64) {
	e.name(name)
	e.b = strconv.AppendInt(e.b, n, 10)
}

func isControl(r rune) bool { return r < 0x20 || 0x7f <= r && r < 0xa0 }

// quote appends a string. Two strings that differ stay different: what
// encoding/json would replace is refused.
func (e *encoder) quote(s string) {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			if !utf8.ValidString(s) {
				e.fail(errors.New("a string is not UTF-8"))
				return
			}
			e.value(s)
			return
		}
	}
	e.b = append(e.b, '"')
	e.b = append(e.b, s...)
	e.b = append(e.b, '"')
}

func (e *encoder) value(v any) {
	data, err := json.Marshal(v)
	if err != nil {
		e.fail(err)
		return
	}
	e.b = append(e.b, data...)
}

func (e *encoder) scope(scopes []string) {
	if len(scopes) == 0 {
		return
	}
	e.name("scope")
	e.b = append(e.b, '"')
	for i, s := range scopes {
		// before it is joined, because a scope with a space in it (from an
		// array in the token) would become two that nobody granted
		if !isScope(s) {
			e.fail(errors.New("a scope is empty or has a character that no scope has (RFC 6749, section 3.3)"))
		}
		if i > 0 {
			e.b = append(e.b, ' ')
		}
		e.b = append(e.b, s...)
	}
	e.b = append(e.b, '"')
}

// workload appends a member that is the name of a service.
func (e *encoder) workload(name, value string) {
	if !isWorkload(value) {
		e.fail(errors.New("the name of a service is empty, longer than 256 bytes or has a character that no such name has"))
	}
	e.name(name)
	e.quote(value)
}

// workloads appends the chain that the transaction came through, and own, the last of it.
func (e *encoder) workloads(before []string, own string) {
	if len(before) >= maxWorkloads {
		e.fail(fmt.Errorf("the transaction came through %d services already", len(before)))
	}
	e.name("req_wl")
	e.b = append(e.b, '"')
	for _, w := range before {
		// before it is joined, because a name with a comma in it would become two
		if !isWorkload(w) {
			e.fail(errors.New("the name of a service that the transaction came through has a character that no such name has"))
		}
		e.b = append(e.b, w...)
		e.b = append(e.b, ',')
	}
	if !isWorkload(own) {
		e.fail(errors.New("the name of our own service is longer than 256 bytes or has a character that no such name has"))
	}
	e.b = append(e.b, own...)
	e.b = append(e.b, '"')
}

// isWorkload says whether s can stand in req_wl, which is joined by commas.
// None of its characters needs an escape in JSON.
func isWorkload(s string) bool {
	return len(s) <= maxWorkload && isScope(s) && strings.IndexByte(s, ',') < 0
}

// requester appends what the first gate learnt from the token.
func (e *encoder) requester(c Caller) {
	e.name("rctx")
	e.b = append(e.b, '{')
	e.text("iss", c.Issuer)
	if c.TokenID != "" {
		e.text("jti", c.TokenID)
	} else {
		e.text("digest", c.Digest)
	}
	e.text("client_id", c.Client)
	session, _ := c.Claims["sid"].(string)
	e.text("sid", session)
	if at := c.IssuedAt.Unix(); !c.IssuedAt.IsZero() {
		if at <= 0 {
			e.fail(errors.New("the token was issued before 1970"))
		}
		e.number("iat", at)
	}
	e.b = append(e.b, '}')
}

// isScope says whether s is a scope-token (RFC 6749, section 3.3). None of its
// characters needs an escape in JSON.
func isScope(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return s != ""
}

// claims appends those of the listed claims that the token has.
func (e *encoder) claims(listed []string, claims map[string]any) {
	open := false
	for _, name := range listed {
		value, ok := claims[name]
		if !ok {
			continue
		}
		if !open {
			e.name("claims")
			e.b = append(e.b, '{')
			open = true
		} else {
			e.b = append(e.b, ',')
		}
		e.quote(name)
		e.b = append(e.b, ':')
		switch v := value.(type) {
		case string:
			e.quote(v)
		case int64:
			e.b = strconv.AppendInt(e.b, v, 10)
		default:
			// claims lies two levels inside the payload, so what nests to the limit in a token is too deep here
			if depth(v) > jws.MaxDepth-3 {
				e.fail(fmt.Errorf("the claim %q is nested too deeply to be passed on", name))
				return
			}
			e.value(v)
		}
	}
	if open {
		e.b = append(e.b, '}')
	}
}

// depth is how many objects and arrays lie inside one another.
func depth(v any) int {
	deepest := 0
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			deepest = max(deepest, depth(e))
		}
	case []any:
		for _, e := range v {
			deepest = max(deepest, depth(e))
		}
	default:
		return 0
	}
	return deepest + 1
}
