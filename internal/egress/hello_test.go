package egress

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
)

// helloOf is what a real client says first.
func helloOf(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	c.InsecureSkipVerify = true
	go func() {
		tls.Client(client, c).Handshake()
		client.Close()
	}()
	header := make([]byte, recordHeader)
	if _, err := io.ReadFull(server, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(header[3])<<8|int(header[4]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	return append(header, body...)
}

// records writes a message in records of at most n bytes.
func records(message []byte, n int) []byte {
	var b []byte
	for len(message) > 0 {
		k := min(n, len(message))
		b = append(b, recordHandshake, 3, 1, byte(k>>8), byte(k))
		b = append(b, message[:k]...)
		message = message[k:]
	}
	return b
}

// withExtension adds an extension to a hello's end and sets its lengths right.
func withExtension(t testing.TB, hello []byte, kind int, body []byte) []byte {
	t.Helper()
	m := bytes.Clone(hello[recordHeader:])
	at := messageHeader + 2 + 32
	at += 1 + int(m[at])
	at += 2 + (int(m[at])<<8 | int(m[at+1]))
	at += 1 + int(m[at])
	m = append(m, byte(kind>>8), byte(kind), byte(len(body)>>8), byte(len(body)))
	m = append(m, body...)
	n := len(m) - at - 2
	m[at], m[at+1] = byte(n>>8), byte(n)
	n = len(m) - messageHeader
	m[1], m[2], m[3] = byte(n>>16), byte(n>>8), byte(n)
	return records(m, maxRecord)
}

func sni(name string) []byte {
	b := []byte{0, byte(len(name) + 3), 0, 0, byte(len(name))}
	return append(b, name...)
}

func TestReadHello(t *testing.T) {
	named := helloOf(t, &tls.Config{ServerName: "Api.Example"})
	old := helloOf(t, &tls.Config{ServerName: "api.example", MaxVersion: tls.VersionTLS12})
	nameless := helloOf(t, &tls.Config{})
	for _, c := range []struct {
		name string
		b    []byte
		want policy.Hello
		err  error
	}{
		{"named", named, policy.Hello{ServerName: "api.example"}, nil},
		{"TLS 1.2", old, policy.Hello{ServerName: "api.example"}, nil},
		{"nameless", nameless, policy.Hello{}, nil},
		{"more behind it", append(bytes.Clone(named), 20, 3, 3, 0, 1, 1), policy.Hello{ServerName: "api.example"}, nil},
		{"in small records", records(named[recordHeader:], 10), policy.Hello{ServerName: "api.example"}, nil},
		{"in records of one byte", records(named[recordHeader:], 1), policy.Hello{ServerName: "api.example"}, nil},
		{"encrypted", withExtension(t, named, extensionECH, []byte{0, 0, 1, 0, 1, 7}), policy.Hello{ServerName: "api.example", Encrypted: true}, nil},
		{"encrypted, as it was before", withExtension(t, named, extensionESNI, []byte{1}), policy.Hello{ServerName: "api.example", Encrypted: true}, nil},
		{"name added", withExtension(t, nameless, extensionName, sni("a.b")), policy.Hello{ServerName: "a.b"}, nil},
		{"two names", withExtension(t, named, extensionName, sni("other.example")), policy.Hello{}, errHelloMalformed},
		{"no name in the list", withExtension(t, nameless, extensionName, []byte{0, 0}), policy.Hello{}, errHelloMalformed},
		{"another kind of name", withExtension(t, nameless, extensionName, []byte{0, 4, 1, 0, 1, 'a'}), policy.Hello{}, errHelloMalformed},
		{"a dot at the end", withExtension(t, nameless, extensionName, sni("a.b.")), policy.Hello{}, errHelloMalformed},
		{"NUL in the name", withExtension(t, nameless, extensionName, sni("a\x00.b")), policy.Hello{}, errHelloMalformed},
		{"bytes behind the name", withExtension(t, nameless, extensionName, append(sni("a.b"), 0)), policy.Hello{}, errHelloMalformed},
		{"bytes behind the message", append(append([]byte{22, 3, 1, byte((len(named) - 4) >> 8), byte(len(named) - 4)}, named[5:]...), 0), policy.Hello{}, errHelloMalformed},
		{"nothing", nil, policy.Hello{}, errHelloShort},
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), policy.Hello{}, errHelloMalformed},
		{"an empty record", []byte{22, 3, 1, 0, 0}, policy.Hello{}, errHelloMalformed},
		{"another message", []byte{22, 3, 1, 0, 4, 2, 0, 0, 0}, policy.Hello{}, errHelloMalformed},
		{"SSL 2", []byte{0x80, 0x2e, 1, 3, 1}, policy.Hello{}, errHelloMalformed},
		{"too long", []byte{22, 3, 1, 0, 4, 1, 1, 0, 0}, policy.Hello{}, errHelloMalformed},
	} {
		if h, err := readHello(c.b); h != c.want || err != c.err {
			t.Errorf("%s: %+v, %v", c.name, h, err)
		}
	}
	for _, whole := range [][]byte{named, records(named[recordHeader:], 10)} {
		for i := range whole {
			if h, err := readHello(whole[:i]); err != errHelloShort {
				t.Fatalf("the first %d of %d bytes: %+v, %v", i, len(whole), h, err)
			}
		}
	}
}

// script is a connection that says something and hears nothing.
type script struct {
	net.Conn
	r io.Reader
}

func (s script) Read(p []byte) (int, error)       { return s.r.Read(p) }
func (s script) Write(p []byte) (int, error)      { return len(p), nil }
func (s script) Close() error                     { return nil }
func (s script) SetDeadline(time.Time) error      { return nil }
func (s script) SetReadDeadline(time.Time) error  { return nil }
func (s script) SetWriteDeadline(time.Time) error { return nil }

// FuzzReadHello: of what readHello accepts, a server reads the same name, if it reads anything; and what comes in
// pieces is read as what comes whole.
func FuzzReadHello(f *testing.F) {
	named := helloOf(f, &tls.Config{ServerName: "api.example"})
	f.Add(named)
	f.Add(helloOf(f, &tls.Config{ServerName: "api.example", MaxVersion: tls.VersionTLS12}))
	f.Add(records(named[recordHeader:], 100))
	f.Add(withExtension(f, named, extensionECH, []byte{0, 0, 1}))
	f.Add(withExtension(f, named, extensionName, sni("other.example")))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(b)
		if err != nil {
			if h != (policy.Hello{}) {
				t.Errorf("%+v beside %v", h, err)
			}
			return
		}
		if strings.ToLower(h.ServerName) != h.ServerName || strings.ContainsAny(h.ServerName, "\x00 /:@") {
			t.Errorf("name %q", h.ServerName)
		}
		server := ""
		seen := errors.New("seen")
		tls.Server(script{r: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			server = i.ServerName
			return nil, seen
		}}).Handshake()
		if server != "" && strings.ToLower(server) != h.ServerName {
			t.Errorf("a server reads %q, we %q", server, h.ServerName)
		}
	})
}

// A hello in many small records is put together anew for each piece that comes: that must stay cheap.
func TestHelloInCrumbs(t *testing.T) {
	var b []byte
	for i := range 4000 {
		crumb := []byte{recordHandshake, 3, 1, 0, 1, 0}
		switch i {
		case 0:
			crumb[5] = clientHello
		case 2:
			crumb[5] = 0x40 // of 16 KiB
		}
		b = append(b, crumb...)
	}
	allocations := testing.AllocsPerRun(5, func() {
		if _, err := readHello(b); err != errHelloShort {
			t.Fatal(err)
		}
	})
	if allocations > 50 {
		t.Errorf("%v allocations for 4000 records", allocations)
	}
}
