package proof

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"
)

const (
	nonceLife  = 5 * time.Minute
	nonceEpoch = time.Hour // a key seals for so long, and opens for as long again
)

// Nonces makes and knows again the nonces that a proof must hold where a client's clock is not enough (RFC 9449, section 9).
// It keeps none: a nonce says when it was made, sealed under a key, together with the token that it is for.
type Nonces struct {
	// Secret is what the keys are derived from, anew for each hour. All who have the same know each other's nonces.
	Secret func() ([]byte, error)
}

// New makes a nonce for a token.
func (n *Nonces) New(token [sha256.Size]byte, now time.Time) (string, error) {
	aead, err := n.aead(now)
	if err != nil {
		return "", fmt.Errorf("make a nonce: %w", err)
	}
	made := binary.BigEndian.AppendUint64(nil, uint64(now.Unix()))
	return base64.RawURLEncoding.EncodeToString(aead.Seal(nil, nil, made, token[:])), nil
}

// Check reports whether a nonce was made for the token, and how long ago. Everything but a true is a reason for a new nonce,
// and nothing worse.
func (n *Nonces) Check(nonce string, token [sha256.Size]byte, now time.Time) (age time.Duration, ok bool) {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(nonce)
	if err != nil || len(nonce) > 128 {
		return 0, false
	}
	for _, epoch := range []time.Time{now, now.Add(-nonceEpoch), now.Add(nonceEpoch)} { // the last: of a clock that is ahead
		aead, err := n.aead(epoch)
		if err != nil {
			return 0, false
		}
		made, err := aead.Open(nil, nil, sealed, token[:])
		if err != nil || len(made) != 8 {
			continue
		}
		age := now.Sub(time.Unix(int64(binary.BigEndian.Uint64(made)), 0))
		return age, age <= nonceLife && age >= -skew
	}
	return 0, false
}

// Old reports whether a nonce of that age is due for a successor.
func Old(age time.Duration) bool { return age > nonceLife/2 }

// aead is the key of an hour.
func (n *Nonces) aead(at time.Time) (cipher.AEAD, error) {
	secret, err := n.Secret()
	if err != nil {
		return nil, err
	}
	hour := strconv.FormatInt(at.Unix()/int64(nonceEpoch/time.Second), 10)
	key, err := hkdf.Key(sha256.New, secret, nil, "sallyport dpop nonce "+hour, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
