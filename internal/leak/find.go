package leak

import (
	"bytes"
	"math/bits"
)

const (
	maxPercent = 3 // percent-encodings over one another
	maxBinary  = 2 // base64 or hexadecimal in one another
)

// Find says whether a secret is in the parts of what leaves, and the id of one that is. Parts that are given one after
// another are read as one text, too. It keeps nothing of them.
func (s *Set) Find(parts ...[]byte) (id string, found bool) {
	f := s.finders.Get().(*finder)
	f.set, f.filter = s, s.filter.Load()
	text := f.joined.take(0)
	if len(parts) == 1 {
		text = parts[0]
	} else {
		for _, p := range parts {
			text = append(text, p...)
		}
		f.joined.keep(text)
	}
	id, found = f.scan(text, &f.plain, 0)
	f.clean()
	s.finders.Put(f)
	return id, found
}

// Stream looks for secrets in a body, piece by piece. Not safe for concurrent use.
type Stream struct {
	set  *Set
	tail []byte
}

// overlap is how much of a body is looked at again with its next piece: a window in its longest spelling, hexadecimal twice
// (4 characters for each of 16 bytes) with every character percent-encoded three times (27 for each), and some more.
const overlap = 2 << 10

// Stream begins a body.
func (s *Set) Stream() *Stream { return &Stream{set: s} }

// Find is Set.Find for the next piece, together with the end of the one before.
func (s *Stream) Find(piece []byte) (id string, found bool) {
	id, found = s.set.Find(s.tail, piece)
	if over := len(s.tail) + len(piece) - overlap; over > 0 {
		kept := copy(s.tail, s.tail[min(over, len(s.tail)):])
		s.tail, piece = s.tail[:kept], piece[max(0, len(piece)-overlap):]
	}
	s.tail = append(s.tail, piece...)
	return id, found
}

// finder is one search, with the buffers for what is decoded on its way.
type finder struct {
	set    *Set
	filter *filter
	joined buffer            // the parts
	plain  buffer            // the text without its percent-encodings
	digits [maxBinary]buffer // a run of base64, as values of 6 bits
	binary [maxBinary]buffer // what that says
}

// buffer is used again and again.
type buffer struct {
	bytes []byte
	used  int // the most that was in it in this search
}

func (b *buffer) take(size int) []byte {
	if cap(b.bytes) < size {
		clear(b.bytes[:b.used])
		b.bytes, b.used = make([]byte, size), 0
	}
	return b.bytes[:0]
}

// keep says what has been made of the buffer.
func (b *buffer) keep(filled []byte) {
	b.bytes, b.used = filled[:0], max(b.used, len(filled))
}

// clean leaves nothing of what was looked at, which may hold a secret, and no more memory than most searches need.
func (f *finder) clean() {
	for _, b := range []*buffer{&f.joined, &f.plain, &f.digits[0], &f.digits[1], &f.binary[0], &f.binary[1]} {
		clear(b.bytes[:b.used])
		b.used = 0
		if cap(b.bytes) > 256<<10 {
			b.bytes = nil
		}
	}
	f.set, f.filter = nil, nil
}

// scan looks at each stretch of a text that is long enough and readable. level is in how many runs of base64 and
// hexadecimal it was itself; what a wrong alignment makes of one is noise, nearly all of which is passed over here.
func (f *finder) scan(text []byte, unescaped *buffer, level int) (string, bool) {
	if level == 0 {
		return f.read(text, unescaped, level)
	}
	for from, to := stretch(text, 0, readable, window); from < to; from, to = stretch(text, to, readable, window) {
		// its own bytes are room enough: what is made of them is not longer
		own := buffer{bytes: text[from:from:to]}
		if id, found := f.read(text[from:to], &own, level); found {
			return id, true
		}
	}
	return "", false
}

// read looks at a text as it is, without its percent-encodings, and at what its runs of base64 and hexadecimal say.
// unescaped has room for the text once more; it may be the text's own.
func (f *finder) read(text []byte, unescaped *buffer, level int) (string, bool) {
	if id, found := f.raw(text); found {
		return id, true
	}
	for range maxPercent {
		if bytes.IndexByte(text, '%') < 0 {
			break
		}
		plain := unescape(unescaped.take(len(text)), text)
		unescaped.keep(plain)
		if len(plain) == len(text) {
			break
		}
		text = plain
		if id, found := f.raw(text); found {
			return id, true
		}
	}
	if level == maxBinary {
		return "", false
	}
	return f.runs(text, level)
}

// raw looks for windows in each stretch of a text that a token could be in.
func (f *finder) raw(text []byte) (string, bool) {
	for from, to := stretch(text, 0, inToken, window); from < to; from, to = stretch(text, to, inToken, window) {
		if id, found := f.roll(text[from:to]); found {
			return id, true
		}
	}
	return "", false
}

// stretch finds the next bytes from a place on that are all of a class, at least so many. Of most bytes outside of such
// stretches it looks at few.
func stretch(text []byte, at int, of class, least int) (from, to int) {
	for at+least <= len(text) {
		last := at + least - 1
		for last >= at && classes[text[last]]&of != 0 {
			last--
		}
		if last >= at {
			at = last + 1
			continue
		}
		to = at + least
		for to < len(text) && classes[text[to]]&of != 0 {
			to++
		}
		return at, to
	}
	return 0, 0
}

// roll looks for the windows of secrets at each place of a text, of at least one window.
func (f *finder) roll(text []byte) (string, bool) {
	s, words, shift := f.set, f.filter.words, f.filter.shift
	var h uint64
	for _, b := range text[:window-1] {
		h = bits.RotateLeft64(h, 1) ^ s.in[b]
	}
	leaving := text[:len(text)-window+1]
	for i, b := range text[window-1:] {
		h = bits.RotateLeft64(h, 1) ^ s.in[b]
		if bit := h >> shift; words[bit/64].Load()>>(bit%64)&1 != 0 {
			if id, found := s.known(h); found {
				return id, true
			}
		}
		h ^= s.out[leaving[i]]
	}
	return "", false
}

// unescape appends text to out with each %XX as the byte that it stands for. out may be text's own beginning.
func unescape(out, text []byte) []byte {
	for i := 0; i < len(text); i++ {
		b := text[i]
		if b == '%' && i+2 < len(text) {
			if high, low := hexValue[text[i+1]], hexValue[text[i+2]]; high|low < 16 {
				b = high<<4 | low
				i += 2
			}
		}
		out = append(out, b)
	}
	return out
}

const (
	shortestBase64 = (window*8 + 5) / 6 // characters that hold a window
	shortestHex    = 2 * window
	ends64         = 0xff // in sextet: this byte is in no run of base64
	skipped        = 0xfe // in sextet: this byte may be between two characters of a run, and says nothing
)

// sextet is the value of each character in both alphabets of base64 (RFC 4648, sections 4 and 5).
var sextet = func() (table [256]uint8) {
	for i := range table {
		table[i] = ends64
	}
	for i, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") {
		table[c] = uint8(i)
	}
	table['+'], table['/'] = table['-'], table['_']
	table['\r'], table['\n'], table['\\'] = skipped, skipped, skipped
	return table
}()

// hexValue is the value of each hexadecimal digit, 0xff for what is none.
var hexValue = func() (table [256]uint8) {
	for i := range table {
		table[i] = 0xff
	}
	for i, c := range []byte("0123456789abcdef") {
		table[c] = uint8(i)
	}
	for i, c := range []byte("ABCDEF") {
		table[c] = uint8(10 + i)
	}
	return table
}()

// runs looks at what the runs of base64 and hexadecimal in a text say. Digits of the latter are characters of the former.
func (f *finder) runs(text []byte, level int) (string, bool) {
	for from, to := stretch(text, 0, inBase64, shortestBase64); from < to; from, to = stretch(text, to, inBase64, shortestBase64) {
		run := text[from:to]
		if id, found := f.base64(run, level); found {
			return id, true
		}
		if id, found := f.hex(run, level); found {
			return id, true
		}
	}
	return "", false
}

// base64 decodes a run from each of its first four characters, since it is not known where its content begins.
func (f *finder) base64(run []byte, level int) (string, bool) {
	values := f.digits[level].take(len(run))
	for _, b := range run {
		if v := sextet[b]; v < 64 {
			values = append(values, v)
		}
	}
	f.digits[level].keep(values)
	for phase := range 4 {
		if len(values)-phase < shortestBase64 {
			break
		}
		out := f.binary[level].take(len(values))
		rest := values[phase:]
		for len(rest) >= 4 {
			v := uint32(rest[0])<<18 | uint32(rest[1])<<12 | uint32(rest[2])<<6 | uint32(rest[3])
			out = append(out, byte(v>>16), byte(v>>8), byte(v))
			rest = rest[4:]
		}
		if len(rest) >= 2 {
			out = append(out, rest[0]<<2|rest[1]>>4)
		}
		if len(rest) == 3 {
			out = append(out, rest[1]<<4|rest[2]>>2)
		}
		f.binary[level].keep(out)
		if id, found := f.scan(out, &f.binary[level], level+1); found {
			return id, true
		}
	}
	return "", false
}

// hex decodes each run of hexadecimal digits in a run, from each of its first two.
func (f *finder) hex(run []byte, level int) (string, bool) {
	for from, to := stretch(run, 0, inHex, shortestHex); from < to; from, to = stretch(run, to, inHex, shortestHex) {
		for phase := range 2 {
			out := f.binary[level].take(to - from)
			for i := from + phase; i+1 < to; i += 2 {
				out = append(out, hexValue[run[i]]<<4|hexValue[run[i+1]])
			}
			f.binary[level].keep(out)
			if id, found := f.scan(out, &f.binary[level], level+1); found {
				return id, true
			}
		}
	}
	return "", false
}

// class is what a byte can be part of.
type class uint8

const (
	readable class = 1 << iota // printable ASCII and line ends
	inToken                    // RFC 6750's b64token
	inBase64                   // a run of base64, and what may be between two characters of it
	inHex
)

var classes = func() (table [256]class) {
	for c := range table {
		if 0x20 <= c && c <= 0x7e || c == '\r' || c == '\n' {
			table[c] |= readable
		}
		if sextet[c] != ends64 {
			table[c] |= inBase64
		}
		if hexValue[c] < 16 {
			table[c] |= inHex
		}
		if sextet[c] < 64 || c == '.' || c == '~' || c == '=' {
			table[c] |= inToken
		}
	}
	return table
}()
