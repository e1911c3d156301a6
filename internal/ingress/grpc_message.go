package ingress

import (
	"encoding/binary"
	"errors"
	"math"
)

var errMessage = errors.New("the body is not made of gRPC messages")

const prefixLength = 5 // whether a message is compressed, and its length

// messages finds the messages in the body of a gRPC call: each is what a body is elsewhere. It holds none.
type messages struct {
	limit  int64 // bytes of one message
	prefix [prefixLength]byte
	have   int // of prefix
	left   int64
}

// between reports whether the next byte begins a message: there a call may rest.
func (m *messages) between() bool { return m.have == 0 }

// feed reads on. The error is errTooLarge or errMessage; whatever b holds must then not be used.
func (m *messages) feed(b []byte) error {
	for len(b) > 0 {
		if m.have < prefixLength {
			n := copy(m.prefix[m.have:], b)
			m.have, b = m.have+n, b[n:]
			if m.prefix[0] > 1 {
				return errMessage
			}
			if m.have < prefixLength {
				return nil
			}
			if m.left = int64(binary.BigEndian.Uint32(m.prefix[1:])); m.left > m.limit {
				return errTooLarge
			}
		} else {
			n := min(m.left, int64(len(b)))
			m.left, b = m.left-n, b[n:]
		}
		if m.left == 0 {
			m.have = 0
		}
	}
	return nil
}

// unlimited is the limit of a body whose messages have one.
const unlimited = math.MaxInt64
