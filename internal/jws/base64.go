package jws

import (
	"encoding/base64"
	"strings"
)

// canonical refuses padding and non-zero bits after the last byte.
var canonical = base64.RawURLEncoding.Strict()

// decode reads one segment. Each byte string has exactly one spelling that it
// accepts, so that no second token carries the same content: a denylist of
// token hashes would miss it.
func decode(part, segment string) ([]byte, error) {
	// before decoding, because encoding/base64 skips line ends in any mode
	if strings.ContainsAny(segment, "\r\n") {
		return nil, refuse(CodeBase64, part+" has a line end")
	}
	data, err := canonical.DecodeString(segment)
	if err != nil {
		return nil, refuse(CodeBase64, part+" is not canonical base64url without padding")
	}
	return data, nil
}
