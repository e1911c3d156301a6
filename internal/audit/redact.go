package audit

import "strings"

// redact replaces everything in s that looks like a JWT or a JWE in compact
// form: what begins as base64url of a JSON object does, and has a dot in it.
// Characters may be percent-encoded, repeatedly.
func redact(s string) string {
	if !strings.Contains(s, "eyJ") && !strings.Contains(s, "ew") && !strings.Contains(s, "eyA") && strings.IndexByte(s, '%') < 0 {
		return s
	}
	var out strings.Builder
	kept := 0 // s up to here is in out
	boundary := true
	for i := 0; i < len(s); {
		token, skip := tokenAt(s[i:], boundary)
		if token {
			out.WriteString(s[kept:i])
			out.WriteString(redactedMark)
			kept = i + skip
		} else if skip == 0 {
			_, skip = unit(s[i:])
		}
		last, _ := unit(s[i:])
		boundary = token || last == '=' || !isBase64URL(last)
		i += skip
	}
	if kept == 0 {
		return s
	}
	out.WriteString(s[kept:])
	return out.String()
}

// tokenAt says whether s begins with a token, and how many bytes are dealt
// with: the token's, or of what cannot have one in it; 0 means one character.
func tokenAt(s string, boundary bool) (token bool, length int) {
	first, n := unit(s)
	if first != 'e' {
		return false, 0
	}
	second, m := unit(s[n:])
	third, _ := unit(s[n+m:])
	switch {
	case second == 'y' && third == 'J': // {"
		length, segments := run(s, len(s))
		return segments > 1, length
	case boundary && (second == 'y' && third == 'A' || second == 'w' && (third == 'o' || third == 'k' || third == '0')):
		// An object that begins with white space. It is unusual and such letters are not, so what is taken for one must
		// look like a token otherwise: at a word's beginning, three to five segments, the first two long.
		header, _ := run(s, 1)
		length, segments := run(s, 6)
		payload, _ := run(s, 2)
		if 3 <= segments && segments <= 5 && header >= 16 && payload >= header+9 {
			return true, length
		}
	}
	return false, 0
}

// run measures the base64url and dots that s begins with, up to the dot that
// ends the given number of segments, and counts the segments.
func run(s string, most int) (length, segments int) {
	segments = 1
	for length < len(s) {
		c, n := unit(s[length:])
		if c == '.' {
			if segments == most {
				break
			}
			segments++
		} else if !isBase64URL(c) {
			break
		}
		length += n
	}
	return length, segments
}

// unit reads one character, which may be percent-encoded any number of times
// ("%2565" is "e"), and its length in s; 0, 0 at the end.
func unit(s string) (c byte, length int) {
	if s == "" {
		return 0, 0
	}
	if s[0] != '%' {
		return s[0], 1
	}
	i := 1
	for len(s) >= i+4 && s[i] == '2' && s[i+1] == '5' && isHex(s[i+2]) && isHex(s[i+3]) {
		i += 2
	}
	if len(s) < i+2 || !isHex(s[i]) || !isHex(s[i+1]) {
		return '%', 1
	}
	return fromHex(s[i])<<4 | fromHex(s[i+1]), i + 2
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func fromHex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

func isBase64URL(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '='
}
