package egress

import (
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/safedial"
)

// maxHello bounds a ClientHello, in bytes with its record headers. Those with post-quantum keys have about 2 KiB.
const maxHello = 24 << 10

// Of TLS (RFC 8446, sections 4 and 5.1; RFC 6066, section 3; RFC 9849 for Encrypted Client Hello, and its forerunner).
const (
	recordHandshake   = 22
	recordCCS         = 20
	recordHeader      = 5
	maxRecord         = 1 << 14
	messageHeader     = 4
	clientHello       = 1
	extensionName     = 0
	extensionECH      = 0xfe0d
	extensionESNI     = 0xffce
	extensionPSK      = 41
	sniHostName       = 0
	alertAccessDenied = 49
	alertInternal     = 80
)

var (
	errHelloShort     = errors.New("the ClientHello is not whole yet")
	errHelloMalformed = errors.New("not a ClientHello")
)

// readHello reads the ClientHello that a TLS client begins with. It is strict: one handshake message in records of the
// handshake type and nothing behind it in them, every length exact, no extension twice, at most one name in the
// server_name extension, in the syntax of a name. b may hold more than it. Incomplete input gives errHelloShort.
func readHello(b []byte) (policy.Hello, error) {
	message, err := joinRecords(b)
	if err != nil {
		return policy.Hello{}, err
	}
	r := reader{b: message[messageHeader:]}
	version := r.uint(2)
	r.take(32) // random
	session := r.vector(1)
	ciphers := r.vector(2)
	compression := r.vector(1)
	if r.bad || version>>8 != 3 || len(session) > 32 || len(ciphers) < 2 || len(ciphers)%2 != 0 || len(compression) == 0 {
		return policy.Hello{}, errHelloMalformed
	}
	if len(r.b) == 0 {
		return policy.Hello{}, nil // no extensions, so no name
	}
	extensions := reader{b: r.vector(2)}
	if r.bad || len(r.b) != 0 {
		return policy.Hello{}, errHelloMalformed
	}
	return readExtensions(extensions)
}

// joinRecords returns the first handshake message of a stream, taken out of as many records as it fills.
func joinRecords(b []byte) ([]byte, error) {
	var joined []byte
	for {
		switch {
		case len(b) > 0 && b[0] != recordHandshake, len(b) > 1 && b[1] != 3:
			return nil, errHelloMalformed
		case len(b) < recordHeader:
			return nil, errHelloShort
		}
		n := int(b[3])<<8 | int(b[4])
		if n == 0 || n > maxRecord {
			return nil, errHelloMalformed
		}
		whole := len(b) >= recordHeader+n
		fragment := b[recordHeader:min(recordHeader+n, len(b))]
		if joined == nil && whole {
			joined = fragment[:len(fragment):len(fragment)] // nearly always all of it: no copy
		} else {
			joined = append(joined, fragment...)
		}
		if len(joined) > 0 && joined[0] != clientHello {
			return nil, errHelloMalformed
		}
		if len(joined) >= messageHeader {
			want := messageHeader + (int(joined[1])<<16 | int(joined[2])<<8 | int(joined[3]))
			switch {
			case want > maxHello, len(joined) > want:
				return nil, errHelloMalformed
			case len(joined) == want && whole:
				return joined, nil
			}
		}
		if !whole {
			return nil, errHelloShort
		}
		b = b[recordHeader+n:]
	}
}

func readExtensions(r reader) (policy.Hello, error) {
	var h policy.Hello
	var seen [1 << 13]byte // a bit for each type
	for len(r.b) > 0 {
		kind := r.uint(2)
		body := r.vector(2)
		if r.bad || seen[kind>>3]&(1<<(kind&7)) != 0 {
			return policy.Hello{}, errHelloMalformed
		}
		seen[kind>>3] |= 1 << (kind & 7)
		switch kind {
		case extensionECH, extensionESNI:
			h.Encrypted = true
		case extensionPSK:
			if len(r.b) > 0 { // it must be the last (RFC 8446, section 4.2.11)
				return policy.Hello{}, errHelloMalformed
			}
		case extensionName:
			name, ok := readName(body)
			if !ok {
				return policy.Hello{}, errHelloMalformed
			}
			h.ServerName = name
		}
	}
	return h, nil
}

// readName reads the server_name extension: a list of one host name.
func readName(body []byte) (string, bool) {
	r := reader{b: body}
	list := reader{b: r.vector(2)}
	kind := list.uint(1)
	name := list.vector(2)
	if r.bad || list.bad || len(r.b) > 0 || len(list.b) > 0 || kind != sniHostName {
		return "", false
	}
	s := string(name)
	if safedial.Host(s) != nil {
		return "", false
	}
	return strings.ToLower(s), true
}

// reader takes a message apart. What is not there makes it bad, and empty.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.bad = nil, true
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

// uint reads a number of so many bytes.
func (r *reader) uint(bytes int) int {
	n := 0
	for _, c := range r.take(bytes) {
		n = n<<8 | int(c)
	}
	return n
}

// vector reads a length of so many bytes, and what it is the length of.
func (r *reader) vector(bytes int) []byte { return r.take(r.uint(bytes)) }

// alert is the record that tells a TLS client, which waits for a ServerHello, why there is none.
func alert(description byte) []byte { return []byte{21, 3, 3, 0, 2, 2, description} }

// peekHello reads a ClientHello from a connection, of which early was read before, and all that has come with it: it is
// to be sent on as it is.
func peekHello(c net.Conn, early []byte, patience time.Duration) (policy.Hello, []byte, error) {
	b := append(make([]byte, 0, max(4<<10, 2*len(early))), early...)
	c.SetReadDeadline(time.Now().Add(patience))
	defer c.SetReadDeadline(time.Time{})
	for {
		if h, err := readHello(b); err != errHelloShort {
			return h, b, err
		}
		if len(b) >= maxHello {
			return policy.Hello{}, b, errHelloMalformed
		}
		b = slices.Grow(b, 1)
		n, err := c.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if n == 0 && err != nil {
			return policy.Hello{}, b, err
		}
	}
}
