package http1

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// authorizations of a request that an ear heard are in its header's text; this finds them there.
func (h *heard) authorization() string {
	const name = "Authorization: "
	for line := range strings.Lines(h.Header) {
		if text, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSuffix(text, "\n")
		}
	}
	return ""
}

// quoted spells values as an ear does.
func quoted(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return fmt.Sprintf("%q", values)
}

// latin1 reads bytes as Node is told to.
func latin1(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		b.WriteRune(rune(c))
	}
	return b.String()
}

// checkNode: a request that we take whole, Node takes for the same, with the same bytes before it and behind; or it takes
// none.
func checkNode(t testing.TB, node *sallytest.Node, stream []byte) {
	t.Helper()
	ours := hear(t, stream, 1<<20, byEngine)
	if i := slices.IndexFunc(ours, func(h heard) bool { return h.Code != "" }); i >= 0 {
		ours = ours[:i]
	}
	if len(ours) == 0 {
		return
	}
	c, err := net.Dial("tcp", node.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		c.Write(stream) // an error says that Node reads no further
		c.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(io.Discard, c)
	theirs := node.Requests(t, c.LocalAddr().(*net.TCPAddr).Port)
	for i, h := range ours {
		if i >= len(theirs) {
			t.Fatalf("%q: we read %+v, Node nothing, and does not complain", stream, h)
		}
		n := theirs[i]
		if n.Error != "" {
			return // it reads nothing behind that
		}
		if n.Method != h.Method || n.URL != h.Target || n.Host != h.Host || n.Body != latin1(h.Body) || quoted(n.Authorization) != h.authorization() {
			t.Fatalf("%q, request %d:\nours   %+v\nNode's %+v", stream, i, h, n)
		}
	}
}

func TestNodeReadsTheSame(t *testing.T) {
	node := sallytest.NewNode(t)
	for _, stream := range vectors(t) {
		checkNode(t, node, stream)
	}
}

// FuzzNode holds the engine to the parser of Node.js.
func FuzzNode(f *testing.F) {
	node := sallytest.NewNode(f)
	for _, stream := range vectors(f) {
		f.Add(stream)
	}
	f.Fuzz(func(t *testing.T, stream []byte) { checkNode(t, node, stream) })
}
