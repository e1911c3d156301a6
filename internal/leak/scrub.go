package leak

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
)

const shortestSecret = 8 // a shorter one would mask words

// Scrubber masks secrets in an answer, where they stand as they are, percent-encoded up to three times over, in standard and
// in URL base64 at any alignment, percent-encoded too, and with the escapes of JSON. What is masked keeps its length, so that
// a Content-Length holds; everything else stays as it is. A nil Scrubber masks nothing. Safe for concurrent use.
type Scrubber struct {
	patterns [][]byte
	begins   [256][][]byte // the patterns of which a spelling can begin with a byte
	mask     byte          // in no pattern
}

// NewScrubber makes a Scrubber of secrets of at least 8 bytes.
func NewScrubber(secrets ...string) (*Scrubber, error) {
	s := &Scrubber{}
	for _, secret := range secrets {
		if len(secret) < shortestSecret {
			return nil, errors.New("a secret of fewer than 8 bytes cannot be masked: others would be taken for it")
		}
		s.patterns = append(s.patterns, []byte(secret))
		for before := range 3 {
			s.patterns = append(s.patterns, inside(base64.RawStdEncoding, secret, before), inside(base64.RawURLEncoding, secret, before))
		}
	}
	slices.SortFunc(s.patterns, slices.Compare)
	s.patterns = slices.CompactFunc(s.patterns, slices.Equal)
	// what can stand inside of a spelling of something else is no mask
	at := strings.IndexFunc("*#~^|!$&=_-.", func(mask rune) bool {
		return !slices.ContainsFunc(s.patterns, func(p []byte) bool { return slices.Contains(p, byte(mask)) })
	})
	if at < 0 {
		return nil, errors.New("the secrets have every character that could mask them")
	}
	s.mask = "*#~^|!$&=_-."[at]
	for _, p := range s.patterns {
		for b := range s.begins {
			if c := byte(b); c == p[0] || c == '%' || c == '\\' || c == '+' && p[0] == ' ' {
				s.begins[b] = append(s.begins[b], p)
			}
		}
	}
	return s, nil
}

// inside is the base64 of a secret that comes after so many bytes (mod 3) of something else: those characters that say nothing
// of what is around it.
func inside(encoding *base64.Encoding, secret string, before int) []byte {
	text := encoding.EncodeToString([]byte("\x00\x00"[:before] + secret))
	return []byte(text[(before*8+5)/6 : (before+len(secret))*8/6])
}

// Value masks the secrets in a header's value.
func (s *Scrubber) Value(value string) string {
	if s == nil {
		return value
	}
	masked := []byte(value)
	s.scrub(masked, true)
	return string(masked)
}

// Header masks the secrets in the values of an answer's header or trailer.
func (s *Scrubber) Header(h http.Header) {
	if s == nil {
		return
	}
	for _, values := range h {
		for i, v := range values {
			values[i] = s.Value(v)
		}
	}
}

// Body masks the secrets in a body as it is read. What may be the beginning of one is held back until what follows has shown
// what it is, or the body has ended. A body with a content encoding must be decoded first.
func (s *Scrubber) Body(body io.ReadCloser) io.ReadCloser {
	if s == nil {
		return body
	}
	return &scrubbed{body: body, scrubber: s}
}

type scrubbed struct {
	body     io.ReadCloser
	scrubber *Scrubber
	buffer   []byte // what was read and not passed on
	decided  int    // so many bytes of it may be
	err      error
}

func (b *scrubbed) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for b.decided == 0 && b.err == nil {
		b.buffer = slices.Grow(b.buffer, max(len(p), 4096))
		n, err := b.body.Read(b.buffer[len(b.buffer):cap(b.buffer)])
		b.buffer, b.err = b.buffer[:len(b.buffer)+n], err
		b.decided = b.scrubber.scrub(b.buffer, err != nil)
	}
	if b.decided == 0 {
		return 0, b.err
	}
	n := copy(p, b.buffer[:b.decided])
	b.decided -= n
	b.buffer = b.buffer[:copy(b.buffer, b.buffer[n:])]
	return n, nil
}

func (b *scrubbed) Close() error { return b.body.Close() }

// scrub masks in place and returns how many bytes are decided: all, unless more may follow and a secret may have begun.
func (s *Scrubber) scrub(text []byte, whole bool) int {
	for at := 0; at < len(text); {
		patterns := s.begins[text[at]]
		if patterns == nil {
			at++
			continue
		}
		longest := 0
		first, known := firsts(text[at:], whole)
		for _, p := range patterns {
			if elsewhere(text[at:], p) || known && bytes.IndexByte(first[:], p[0]) < 0 {
				continue
			}
			length, open := match(text[at:], p)
			if open && !whole {
				return at
			}
			longest = max(longest, length)
		}
		for i := range longest {
			text[at+i] = s.mask
		}
		at += max(longest, 1)
	}
	return len(text)
}

// elsewhere says of most texts, by their first two bytes, that no spelling of a pattern begins here.
func elsewhere(text, pattern []byte) bool {
	if len(text) < 2 || text[0] == '%' || text[0] == '\\' {
		return false
	}
	b := text[1]
	return b != pattern[1] && b != '%' && b != '\\' && b != '+'
}

// firsts returns the bytes that text, which begins with a percent sign, can spell first: one for each percent-encoding that is
// undone. It is for speed alone. Not known is what it spells where that is not all there, or may be an escape of JSON.
func firsts(text []byte, whole bool) (first [1 + maxPercent]byte, known bool) {
	var room [48]byte // 27 for a byte with three percent-encodings, each of all that the one before gave
	if text[0] != '%' || !whole && len(text) < len(room) {
		return first, false
	}
	plain := room[:copy(room[:], text)]
	for i := range first {
		first[i] = plain[0]
		plain = unescape(plain[:0], plain)
	}
	return first, bytes.IndexByte(first[:], '\\') < 0 && bytes.IndexByte(first[:], '+') < 0
}

// match returns the length of the longest spelling of a pattern that text begins with, and whether with more text there could
// be another. A percent sign may stand for itself or begin an escape, so there may be several readings at once.
func match(text, pattern []byte) (length int, open bool) {
	readings, next := make([]int, 1, 8), make([]int, 0, 8)
	for _, c := range pattern {
		for _, at := range readings {
			var more bool
			next, more = spelled(text, at, c, maxPercent, next)
			open = open || more
		}
		if len(next) == 0 {
			return 0, open
		}
		slices.Sort(next)
		readings, next = slices.Compact(next), readings[:0]
	}
	return readings[len(readings)-1], open
}

// spelled appends to ends where a spelling of c that begins at a place in text can end, with at most so many
// percent-encodings over one another; more says that there could be another if text went on.
func spelled(text []byte, at int, c byte, percents int, ends []int) (_ []int, more bool) {
	if at >= len(text) {
		return ends, true
	}
	b := text[at]
	if b == c || c == ' ' && b == '+' {
		ends = append(ends, at+1)
	}
	if b == '\\' {
		return escaped(text, at, c, ends)
	}
	if b != '%' || percents == 0 {
		return ends, false
	}
	// the percent sign and the two digits may be percent-encoded themselves
	var room [3][8]int
	signs, open := spelled(text, at, '%', percents-1, room[0][:0])
	first, open1 := digit(text, signs, c>>4, percents-1, room[1][:0])
	second, open2 := digit(text, first, c&15, percents-1, room[2][:0])
	return append(ends, second...), open || open1 || open2
}

// digit appends where the spellings of a hexadecimal digit that begin at one of the places can end.
func digit(text []byte, places []int, value byte, percents int, ends []int) (_ []int, more bool) {
	for _, at := range places {
		var open bool
		ends, open = spelled(text, at, "0123456789abcdef"[value], percents, ends)
		more = more || open
		if value > 9 {
			ends, open = spelled(text, at, "0123456789ABCDEF"[value], percents, ends)
			more = more || open
		}
	}
	return ends, more
}

// escaped is spelled for the escapes of JSON (RFC 8259, section 7), of which text has a backslash.
func escaped(text []byte, at int, c byte, ends []int) (_ []int, more bool) {
	rest := text[at+1:]
	if len(rest) == 0 {
		return ends, true
	}
	if rest[0] == c && strings.IndexByte(`"\/`, c) >= 0 {
		return append(ends, at+2), false
	}
	if rest[0] != 'u' {
		return ends, false
	}
	for i, value := range [...]byte{0, 0, c >> 4, c & 15} {
		switch {
		case i+1 >= len(rest):
			return ends, true
		case hexValue[rest[i+1]] != value:
			return ends, false
		}
	}
	return append(ends, at+6), false
}
