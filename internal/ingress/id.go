package ingress

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// newID names a request: 32 hex digits, the milliseconds since 1970 in the first 12, chance in the rest, so that ids
// sort by time and cannot be guessed.
func newID(now time.Time) string {
	var b [16]byte
	rand.Read(b[6:])
	ms := uint64(now.UnixMilli())
	for i := range 6 {
		b[i] = byte(ms >> (8 * (5 - i)))
	}
	var s [32]byte
	hex.Encode(s[:], b[:])
	return string(s[:])
}
