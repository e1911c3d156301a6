package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net/netip"
	"strings"
	"testing"
)

// v2 is a header of version 2, with the length that its rest has.
func v2(command, family byte, rest string) string {
	return signature + string([]byte{command, family}) + string(binary.BigEndian.AppendUint16(nil, uint16(len(rest)))) + rest
}

const (
	four = "\xc0\x00\x02\x01\x0a\x00\x00\x01\x30\x39\x01\xbb" // 192.0.2.1:12345 to 10.0.0.1:443
	six  = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02" + "\x30\x39\x01\xbb"
)

func tlv(kind byte, value string) string {
	return string([]byte{kind}) + string(binary.BigEndian.AppendUint16(nil, uint16(len(value)))) + value
}

// summed is a header with the checksum that it should have, changed by wrong.
func summed(wrong uint32) string {
	h := v2(0x21, 0x11, four+tlv(3, "\x00\x00\x00\x00")+tlv(2, "api.example.com"))
	sum := crc32.Checksum([]byte(h), crc32.MakeTable(crc32.Castagnoli)) ^ wrong
	return strings.Replace(h, tlv(3, "\x00\x00\x00\x00"), tlv(3, string(binary.BigEndian.AppendUint32(nil, sum))), 1)
}

func TestRead(t *testing.T) {
	for _, c := range []struct{ in, source string }{
		{"PROXY TCP4 192.0.2.1 10.0.0.1 12345 443\r\n", "192.0.2.1:12345"},
		{"PROXY TCP4 1.1.1.1 1.1.1.1 0 0\r\n", "1.1.1.1:0"},
		{"PROXY TCP6 2001:db8::1 2001:db8::2 12345 443\r\n", "[2001:db8::1]:12345"},
		{"PROXY TCP6 ::ffff:192.0.2.1 ::1 12345 443\r\n", "192.0.2.1:12345"},
		{"PROXY TCP6 :: :: 1 1\r\n", "[::]:1"},
		{"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
		{"PROXY UNKNOWN\r\n", ""},
		{"PROXY UNKNOWN ffff:f...f:ffff any thing 65535\r\n", ""},
		{v2(0x21, 0x11, four), "192.0.2.1:12345"},
		{v2(0x21, 0x21, six), "[2001:db8::1]:12345"},
		{v2(0x21, 0x21, strings.Repeat("\x00", 10)+"\xff\xff\xc0\x00\x02\x01"+six[16:]), "192.0.2.1:12345"},
		{v2(0x21, 0x11, four+tlv(1, "h2")+tlv(0x20, strings.Repeat("x", 1000))), "192.0.2.1:12345"},
		{v2(0x21, 0x11, four+tlv(4, strings.Repeat("\x00", 4096-12-3))), "192.0.2.1:12345"},
		{v2(0x21, 0x00, ""), ""},
		{v2(0x21, 0x00, tlv(2, "api.example.com")), ""},
		{v2(0x21, 0x31, strings.Repeat("/", 216)), ""},
		{v2(0x20, 0x00, ""), "local"},
		{v2(0x20, 0x11, ""), "local"},
		{v2(0x20, 0xff, "anything"), "local"},
		{summed(0), "192.0.2.1:12345"},
	} {
		r := strings.NewReader(c.in + "GET / HTTP/1.1\r\n")
		h, err := Read(r)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		want := Header{Version: 1, Local: c.source == "local"}
		if c.in[0] == '\r' {
			want.Version = 2
		}
		if !want.Local && c.source != "" {
			want.Source = netip.MustParseAddrPort(c.source)
		}
		if h != want {
			t.Errorf("%q: read as %+v, want %+v", c.in, h, want)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "GET / HTTP/1.1\r\n" {
			t.Errorf("%q: behind the header %q is left", c.in, rest)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for _, in := range []string{
		"", "G", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n", " PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\r\n\r\nGET / HTTP/1.1\r\n",
		"PROXY TCP4 192.0.2.1 10.0.0.1 12345 443\n", "PROXY TCP4 192.0.2.1 10.0.0.1 12345 443\r", "PROXY TCP4 192.0.2.1 10.0.0.1 12345 443 \r\n",
		"PROXY TCP4 192.0.2.1 10.0.0.1 12345 443\r\r\n", "PROXY TCP4 192.0.2.1 10.0.0.1 12345\n443\r\n",
		"PROXY  TCP4 192.0.2.1 10.0.0.1 12345 443\r\n", "PROXY TCP4  192.0.2.1 10.0.0.1 12345 443\r\n", "PROXY\tTCP4 192.0.2.1 10.0.0.1 12345 443\r\n",
		"PROXY TCP4 192.0.2.1 10.0.0.1 12345\r\n", "PROXY TCP4 192.0.2.1 10.0.0.1 12345 443 1\r\n", "PROXY TCP5 192.0.2.1 10.0.0.1 12345 443\r\n",
		"PROXY TCP4 2001:db8::1 2001:db8::2 12345 443\r\n", "PROXY TCP6 192.0.2.1 10.0.0.1 12345 443\r\n", "PROXY TCP4 192.0.2.1 ::1 12345 443\r\n",
		"PROXY TCP6 fe80::1%eth0 ::1 12345 443\r\n", "PROXY TCP4 192.0.2.01 10.0.0.1 12345 443\r\n", "PROXY TCP4 192.0.2 10.0.0.1 12345 443\r\n",
		"PROXY TCP4 192.0.2.1 10.0.0.1 012345 443\r\n", "PROXY TCP4 192.0.2.1 10.0.0.1 65536 443\r\n", "PROXY TCP4 192.0.2.1 10.0.0.1 +1 443\r\n",
		"PROXY TCP4 192.0.2.1 10.0.0.1 99999999999999999999 443\r\n", "PROXY TCP4 192.0.2.1 10.0.0.1 1 -1\r\n",
		"PROXY UNKNOWNX\r\n", "PROXY UNKNOWN \x00\r\n", "PROXY " + strings.Repeat("x", 200) + "\r\n", "PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n",
		v2(0x11, 0x11, four), v2(0x22, 0x11, four), v2(0x2f, 0x11, four), v2(0x21, 0x12, four), v2(0x21, 0x10, four), v2(0x21, 0x41, four), v2(0x21, 0x01, ""),
		v2(0x21, 0x11, four[:11]), v2(0x21, 0x21, four), v2(0x21, 0x11, four+"\x01"), v2(0x21, 0x11, four+"\x01\x00\x02x"), v2(0x21, 0x31, "/run/a.sock"),
		v2(0x21, 0x11, four+tlv(4, strings.Repeat("\x00", 4096-12-2))), v2(0x20, 0x00, strings.Repeat("x", 4097)),
		v2(0x21, 0x11, four)[:15], v2(0x21, 0x11, four)[:20], summed(1), v2(0x21, 0x11, four+tlv(3, "abc")), strings.Replace(v2(0x21, 0x11, four), "QUIT", "QUID", 1),
	} {
		if h, err := Read(strings.NewReader(in)); err == nil {
			t.Errorf("%q is read as %+v", in, h)
		}
	}
}

// What is no header is known by its first bytes: nobody waits for more of it.
func TestMissing(t *testing.T) {
	for _, in := range []string{"G", "\x16", "PROXX ", "\r\n\r\nGE", ""} {
		r, w := io.Pipe()
		go func() {
			io.WriteString(w, in)
			if in == "" {
				w.Close()
			}
		}()
		if _, err := Read(r); !errors.Is(err, ErrMissing) {
			t.Errorf("%q: %v", in, err)
		}
		r.Close()
	}
}

// Whatever is read, nothing beyond it is, and byte by byte it reads the same.
func FuzzRead(f *testing.F) {
	for _, in := range []string{"PROXY TCP4 192.0.2.1 10.0.0.1 12345 443\r\nGET", "PROXY TCP6 2001:db8::1 ::2 1 443\r\n", "PROXY UNKNOWN\r\n", v2(0x21, 0x11, four) + "GET", v2(0x21, 0x21, six+tlv(1, "h2")), v2(0x20, 0, "x"), summed(0)} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole := bytes.NewReader(in)
		h, err := Read(whole)
		piece, pieceErr := Read(&trickle{in: in})
		if h != piece || (err == nil) != (pieceErr == nil) {
			t.Fatalf("read at once %+v, %v; byte by byte %+v, %v", h, err, piece, pieceErr)
		}
		if err != nil {
			if h != (Header{}) {
				t.Fatalf("refused, and says %+v", h)
			}
			return
		}
		used := len(in) - whole.Len()
		if used < least || used > 16+maxRest {
			t.Fatalf("a header of %d bytes", used)
		}
		if again, err := Read(bytes.NewReader(in[:used])); err != nil || again != h {
			t.Fatalf("without what follows it reads as %+v, %v", again, err)
		}
		if _, err := Read(bytes.NewReader(in[:used-1])); err == nil {
			t.Fatal("the last byte is not needed: one was read beyond the header")
		}
		if a := h.Source.Addr(); a.Is4In6() || a.Zone() != "" || h.Local && h.Source.IsValid() {
			t.Fatalf("source %s", h.Source)
		}
	})
}

type trickle struct{ in []byte }

func (r *trickle) Read(p []byte) (int, error) {
	if len(r.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.in[:1])
	r.in = r.in[n:]
	return n, nil
}
