// Package proxyproto reads the header by which a load balancer says who has connected to it: the PROXY protocol, versions 1
// and 2 (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
//
//	c.SetReadDeadline(time.Now().Add(patience))
//	header, err := proxyproto.Read(c)
//
// The caller has established that the peer is one that may say so, and bounds the time.
//
// # What it refuses
//
// It reads no byte beyond the header, so that what is behind it, a TLS handshake or a request, is read by whoever comes next. Of version 1
// the grammar is exact: single spaces, ports without leading zeros, addresses of the family that was named, at most 107
// bytes. Of version 2 the length must be that of the addresses and of whole TLVs, in all at most 4 KiB; a checksum, where there
// is one, must be right. Families, protocols and commands that the specification does not list are refused, and so are
// datagrams, which are no connection.
//
// # Limits
//
// TLVs are not told. A header of a family without addresses (UNKNOWN, UNSPEC, unix sockets) says nothing of who has
// connected: Source is not valid then.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"strings"
)

// Header is what the proxy says.
type Header struct {
	Version int
	// Local says that the proxy has connected for itself, as for a health check.
	Local bool
	// Source is who has connected to the proxy, in a form without zone and never IPv4 in IPv6; not valid where it does not say.
	Source netip.AddrPort
}

// ErrMissing says that what came is no header at all.
var ErrMissing = errors.New("no PROXY header")

const (
	prefix1   = "PROXY "
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	maxLine   = 107     // of version 1
	maxRest   = 4 << 10 // of version 2, behind the first 16 bytes
	// least is the length of the shortest header there is, "PROXY UNKNOWN\r\n".
	least = 15
)

// Read reads one header. An error says what is wrong with it, or that it ended too early.
func Read(r io.Reader) (Header, error) {
	b := make([]byte, least, maxLine)
	// One piece at a time, each as long as what began so well must at least be.
	n := 0
	for _, until := range []int{1, len(prefix1), least} {
		if _, err := io.ReadFull(r, b[n:until]); err != nil {
			return Header{}, short(n, err)
		}
		n = until
		if got := b[:n]; !bytes.HasPrefix([]byte(prefix1), got[:min(n, len(prefix1))]) && !bytes.HasPrefix([]byte(signature), got[:min(n, len(signature))]) {
			return Header{}, ErrMissing
		}
	}
	if b[0] == signature[0] {
		return read2(r, b)
	}
	return read1(r, b)
}

// short is the error of a header that ended after n bytes.
func short(n int, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		if n == 0 {
			return fmt.Errorf("%w: the connection ended", ErrMissing)
		}
		return fmt.Errorf("the PROXY header is cut short: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read the PROXY header: %w", err)
}

// read1 reads the rest of the line, never more than must still come: two bytes while its end has not begun, else one.
func read1(r io.Reader, b []byte) (Header, error) {
	for !bytes.HasSuffix(b, []byte("\r\n")) {
		more := 2
		if b[len(b)-1] == '\r' {
			more = 1
		}
		n := len(b)
		if n+more > maxLine {
			return Header{}, errors.New("a PROXY line has at most 107 bytes")
		}
		b = b[:n+more]
		if _, err := io.ReadFull(r, b[n:]); err != nil {
			return Header{}, short(n, err)
		}
		if bytes.IndexByte(b[n:], '\n') >= 0 && !bytes.HasSuffix(b, []byte("\r\n")) {
			return Header{}, errors.New("a PROXY line ends in CR LF")
		}
	}
	line := string(b[len(prefix1) : len(b)-2])
	for _, c := range []byte(line) {
		if c < ' ' || c > '~' {
			return Header{}, errors.New("a PROXY line holds what is not printable ASCII")
		}
	}
	if line == "UNKNOWN" || strings.HasPrefix(line, "UNKNOWN ") {
		return Header{Version: 1}, nil // what follows is to be ignored
	}
	fields := strings.Split(line, " ")
	if len(fields) != 5 || fields[0] != "TCP4" && fields[0] != "TCP6" {
		return Header{}, errors.New("a PROXY line is TCP4 or TCP6, two addresses and two ports; or UNKNOWN")
	}
	four := fields[0] == "TCP4"
	source, err := address1(fields[1], fields[3], four)
	if err != nil {
		return Header{}, fmt.Errorf("a PROXY line's source: %w", err)
	}
	if _, err := address1(fields[2], fields[4], four); err != nil {
		return Header{}, fmt.Errorf("a PROXY line's destination: %w", err)
	}
	return Header{Version: 1, Source: source}, nil
}

func address1(address, port string, four bool) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(address)
	if err != nil || a.Zone() != "" || a.Is4() != four {
		return netip.AddrPort{}, errors.New("no address of its family")
	}
	n := 0
	for _, c := range []byte(port) {
		if c < '0' || c > '9' || n > 65535 {
			return netip.AddrPort{}, errors.New("no port")
		}
		n = n*10 + int(c-'0')
	}
	if port == "" || n > 65535 || len(port) > 1 && port[0] == '0' {
		return netip.AddrPort{}, errors.New("no port")
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// read2 reads the rest of the binary header.
func read2(r io.Reader, b []byte) (Header, error) {
	b = b[:16]
	if _, err := io.ReadFull(r, b[least:]); err != nil {
		return Header{}, short(least, err)
	}
	if b[12]>>4 != 2 || b[12]&0xf > 1 {
		return Header{}, errors.New("a PROXY header of another version than 2, or with another command than LOCAL and PROXY")
	}
	local, family, rest := b[12]&0xf == 0, b[13], int(binary.BigEndian.Uint16(b[14:]))
	if rest > maxRest {
		return Header{}, fmt.Errorf("a PROXY header with %d bytes behind its first 16, and at most %d are taken", rest, maxRest)
	}
	whole := make([]byte, 16+rest)
	copy(whole, b)
	if _, err := io.ReadFull(r, whole[16:]); err != nil {
		return Header{}, short(16, err)
	}
	addresses, known := map[byte]int{0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}[family]
	switch {
	case local:
		return Header{Version: 2, Local: true}, nil // the rest is to be skipped, whatever it is
	case !known:
		return Header{}, fmt.Errorf("a PROXY header of the family and protocol %#02x, which are none of a connection", family)
	case rest < addresses:
		return Header{}, errors.New("a PROXY header that is too short for its addresses")
	}
	if err := tlvs(whole, 16+addresses); err != nil {
		return Header{}, err
	}
	h := Header{Version: 2}
	switch family {
	case 0x11:
		h.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(whole[16:20])), binary.BigEndian.Uint16(whole[24:]))
	case 0x21:
		h.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(whole[16:32])).Unmap(), binary.BigEndian.Uint16(whole[48:]))
	}
	return h, nil
}

// The types of TLVs that are looked at.
const typeChecksum = 0x03

// tlvs establishes that what is behind the addresses is whole, and that the checksum, if there is one, is that of the header.
func tlvs(whole []byte, at int) error {
	checksum := -1
	for at < len(whole) {
		if len(whole)-at < 3 {
			return errors.New("a PROXY header with half a TLV")
		}
		n := int(binary.BigEndian.Uint16(whole[at+1:]))
		if len(whole)-at-3 < n {
			return errors.New("a PROXY header with a TLV that is longer than the header")
		}
		if whole[at] == typeChecksum {
			if n != 4 || checksum >= 0 {
				return errors.New("a PROXY header with two checksums, or one that is not four bytes long")
			}
			checksum = at + 3
		}
		at += 3 + n
	}
	if checksum < 0 {
		return nil
	}
	want := binary.BigEndian.Uint32(whole[checksum:])
	clear(whole[checksum : checksum+4])
	if crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli)) != want {
		return errors.New("a PROXY header whose checksum is wrong")
	}
	return nil
}
