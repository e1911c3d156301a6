package audit

import (
	"crypto/rand"
	"time"
)

// NewID names a request or an attempt: 32 hex digits, the milliseconds since 1970 in the first 12, chance in the rest, so that ids
// sort by time and cannot be guessed.
func NewID(now time.Time) string {
	var b [16]byte
	rand.Read(b[6:])
	ms := uint64(now.UnixMilli())
	for i := range 6 {
		b[i] = byte(ms >> (8 * (5 - i)))
	}
	var s [32]byte
	for i, c := range b {
		s[2*i], s[2*i+1] = hex[c>>4], hex[c&15]
	}
	return string(s[:])
}
