package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// What both drivers store: under a key that is a digest, so that it has a fixed size and no characters of anybody's,
// eight bytes that say when it may be forgotten, and for a revocation its JSON.

// id is the key of what is stored.
type id [sha256.Size]byte

// digest is of parts that cannot run into each other: each has its length before it.
func digest(parts ...string) (d id) {
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	h.Sum(d[:0])
	return d
}

// keyOf is the key under which a revocation is stored: the same for the same tokens and the same times, whoever asked and
// why.
func keyOf(r Revocation) id {
	var times [16]byte
	binary.BigEndian.PutUint64(times[:8], uint64(cutoff(r)))
	binary.BigEndian.PutUint64(times[8:], uint64(r.Until.UnixNano()))
	s, value := r.target()
	return digest("revocation", r.Issuer, string(rune('a'+s)), value, string(times[:]))
}

// maxStored bounds what is read: nine fields whose every byte JSON writes as six.
const maxStored = 8 + 10*6*maxField

// encode is what is stored for a revocation.
func encode(r Revocation) ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode a revocation: %w", err)
	}
	return append(stamp(r.Until), b...), nil
}

// decode reads what encode wrote, and refuses whatever it would not have written: an entry that is half understood would
// end other tokens than it says.
func decode(b []byte) (Revocation, error) {
	if len(b) < 8 || len(b) > maxStored {
		return Revocation{}, fmt.Errorf("read a stored revocation: it has %d bytes", len(b))
	}
	d := json.NewDecoder(bytes.NewReader(b[8:]))
	d.DisallowUnknownFields()
	var r Revocation
	if err := d.Decode(&r); err != nil {
		return Revocation{}, fmt.Errorf("read a stored revocation: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Revocation{}, errors.New("read a stored revocation: something follows it")
	}
	if err := r.form(); err != nil {
		return Revocation{}, fmt.Errorf("read a stored revocation: %w", err)
	}
	if stampOf(b) != r.Until.Add(grace).UnixNano() {
		return Revocation{}, errors.New("read a stored revocation: its two ends differ")
	}
	return r, nil
}

// stamp says when something may be forgotten.
func stamp(until time.Time) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 0, 256), uint64(until.Add(grace).UnixNano()))
}

// stampOf reads it, in unix nanoseconds. What is too short to have one is never forgotten.
func stampOf(b []byte) int64 {
	if len(b) < 8 {
		return forever
	}
	return int64(binary.BigEndian.Uint64(b))
}
