package http1

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// read is an answer as one reader read it.
type read struct {
	status int
	header string
	body   string
	whole  bool
	rest   string // behind it
}

func headerText(h http.Header) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if name != "Transfer-Encoding" && name != "Trailer" && name != "Connection" && name != "Content-Length" {
			for _, v := range h[name] {
				b.WriteString(name + ": " + v + "\n")
			}
		}
	}
	return b.String()
}

// byLink reads a stream as the answer to a request. ok is false if it is refused.
func byLink(stream []byte, size int, method string) (r read, ok bool, l *Link) {
	c := &Client{Patience: time.Minute, MaxHead: 64 << 10}
	conn := newScript(stream, size)
	l = &Link{Conn: conn, client: c, buf: make([]byte, smallBuffer)}
	l.read.Set, l.write.Set = conn.SetReadDeadline, conn.SetWriteDeadline
	var a Answer
	h := http.Header{}
	for {
		if err := l.ReadAnswer(&a, method, h, time.Time{}); err != nil {
			return r, false, l
		}
		if a.Status >= 200 || a.Status == http.StatusSwitchingProtocols {
			break
		}
		clear(h)
	}
	r.status, r.header = a.Status, headerText(h)
	for {
		p, err := l.Next()
		r.body += string(p)
		if err == nil && len(p) == 0 {
			err = l.Fill()
			if err == nil {
				continue
			}
		}
		if err == io.EOF {
			r.whole = true
			break
		}
		if err != nil {
			break
		}
	}
	rest, _ := io.ReadAll(conn)
	r.rest = string(l.buf[l.r:l.w]) + string(rest)
	return r, true, l
}

// byNetHTTP is the same by the standard library.
func byNetHTTP(stream []byte, method string) (r read, ok bool) {
	b := bufio.NewReader(bytes.NewReader(stream))
	for {
		res, err := http.ReadResponse(b, &http.Request{Method: method})
		if err != nil {
			return r, false
		}
		if res.StatusCode < 200 && res.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		r.status, r.header = res.StatusCode, headerText(res.Header)
		if res.StatusCode == http.StatusSwitchingProtocols {
			r.whole = true
		} else {
			body, err := io.ReadAll(res.Body)
			r.body, r.whole = string(body), err == nil
		}
		rest, _ := io.ReadAll(b)
		r.rest = string(rest)
		return r, true
	}
}

// checkAnswer: what is taken for an answer reads the same to the standard library, to the byte behind it.
func checkAnswer(t testing.TB, stream []byte, size int, method string) (taken read, ok bool) {
	t.Helper()
	ours, ok, l := byLink(stream, size, method)
	if !ok {
		return ours, false
	}
	theirs, fine := byNetHTTP(stream, method)
	if !fine {
		t.Fatalf("%s in pieces of %d: %q is taken, net/http refuses it: %+v", method, size, stream, ours)
	}
	if !ours.whole && !theirs.whole {
		ours.rest, theirs.rest, ours.body, theirs.body = "", "", "", ""
	}
	if ours != theirs {
		t.Fatalf("%s in pieces of %d: %q:\nours   %+v\ntheirs %+v", method, size, stream, ours, theirs)
	}
	if kept := !l.spent && l.body == noBody && l.r == l.w; kept && !ours.whole {
		t.Fatalf("%q would be followed by another request", stream)
	}
	return ours, true
}

type answerVector struct {
	name, method, verdict string // refused, cut, last (its connection ends), or good
	raw                   string
}

func answerVectors(t testing.TB) (made []answerVector) {
	t.Helper()
	b, err := os.ReadFile("testdata/answers.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		cells := strings.SplitN(strings.TrimSuffix(line, "\n"), " | ", 4)
		if len(cells) != 4 || line[0] == '#' {
			continue
		}
		raw, err := strconv.Unquote(cells[3])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		made = append(made, answerVector{strings.TrimSpace(cells[2]), strings.TrimSpace(cells[1]), strings.TrimSpace(cells[0]), raw})
	}
	return made
}

func TestAnswers(t *testing.T) {
	for _, v := range answerVectors(t) {
		for _, size := range []int{1, 2, 5, 1 << 20} {
			r, ok := checkAnswer(t, []byte(v.raw), size, v.method)
			_, _, l := byLink([]byte(v.raw), size, v.method)
			verdict := "good"
			switch {
			case !ok:
				verdict = "refused"
			case !r.whole:
				verdict = "cut"
			case l.spent || r.rest != "":
				verdict = "last"
			}
			if verdict != v.verdict {
				t.Errorf("%s, in pieces of %d: %s, want %s: %+v", v.name, size, verdict, v.verdict, r)
			}
		}
	}
}

func FuzzAnswers(f *testing.F) {
	for _, v := range answerVectors(f) {
		f.Add([]byte(v.raw), uint16(7), v.method == "HEAD")
		f.Add([]byte(v.raw), uint16(4000), v.method == "HEAD")
	}
	f.Fuzz(func(t *testing.T, stream []byte, size uint16, head bool) {
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		checkAnswer(t, stream, int(size)+1, method)
	})
}
