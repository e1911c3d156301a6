package ingress

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// smuggled is a line of testdata/smuggling.txt.
type smuggled struct {
	reaches, answers []string
	name             string
	pieces           []string
}

func smuggledStreams(t testing.TB) (made []smuggled) {
	t.Helper()
	b, err := os.ReadFile("testdata/smuggling.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if line[0] == '#' {
			continue
		}
		cells := strings.SplitN(strings.TrimSuffix(line, "\n"), " | ", 4)
		if len(cells) != 4 {
			t.Fatalf("%q is not four cells", line)
		}
		v := smuggled{name: cells[2], answers: strings.Split(cells[1], ", ")}
		if cells[0] != "-" {
			v.reaches = strings.Split(strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(cells[0]), ", ")
		}
		for rest := cells[3]; rest != ""; {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			piece, _ := strconv.Unquote(quoted)
			v.pieces = append(v.pieces, piece)
			rest = strings.TrimPrefix(rest[len(quoted):], " ")
		}
		made = append(made, v)
	}
	return made
}

// witness is a service that says what has reached it: method, target and, if there is a body, "=" and that.
func witness(t testing.TB) (service *sallytest.Recorder, saw func() []string) {
	var mu sync.Mutex
	var seen []string
	service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
		what := r.Method + " " + r.RequestURI
		b, err := io.ReadAll(r.Body)
		if r.ContentLength != 0 {
			what += "=" + string(b)
		}
		if err != nil {
			what += " broken"
		}
		mu.Lock()
		seen = append(seen, what)
		mu.Unlock()
		io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	return service, func() []string {
		mu.Lock()
		defer mu.Unlock()
		was := seen
		seen = nil
		return was
	}
}

// Whatever is known to smuggle: what reaches the service is exactly the requests that there are, and each is answered once.
func TestWhatReachesTheService(t *testing.T) {
	service, saw := witness(t)
	s := open(t, func(s *stage) { s.service = service })
	for _, v := range smuggledStreams(t) {
		t.Run(v.name, func(t *testing.T) {
			s := *s
			s.t = t
			p := s.dial()
			for n, piece := range v.pieces {
				if n > 0 {
					time.Sleep(20 * time.Millisecond)
				}
				p.send(piece)
			}
			reaches := v.reaches
			open := true
			for n, want := range v.answers {
				a := p.read("GET")
				if got := strings.TrimSpace(fmt.Sprint(a.StatusCode, " ", a.code)); got != want {
					t.Errorf("answer %d is %s, want %s", n, got, want)
				}
				open = !a.Close
			}
			if open {
				p.send(get("/public/canary"))
				if a := p.read("GET"); a.StatusCode != 200 {
					t.Errorf("the canary was answered %d %s", a.StatusCode, a.code)
				}
				reaches = append(reaches[:len(reaches):len(reaches)], "GET /public/canary")
			} else if !p.closed() {
				t.Error("the connection is open still")
			}
			if got := saw(); !slices.Equal(got, reaches) {
				t.Errorf("the service saw %q, want %q", got, reaches)
			}
		})
	}
}

// What a service says behind its answer, or before it was asked, is nobody's answer: neither that of the next request on its
// connection, nor that of another client.
func TestAnswersThatAreSplit(t *testing.T) {
	const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
	for _, c := range []struct{ name, answer, later string }{
		{"two answers", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + poison, ""},
		{"a second one later", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", poison},
		{"behind no content", "HTTP/1.1 204 No Content\r\n\r\n" + poison, ""},
		{"behind chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + poison, ""},
		{"behind what is not modified", "HTTP/1.1 304 Not Modified\r\nContent-Length: 45\r\n\r\n" + poison, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, func(s *stage) {
				s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
					if r.URL.Path == "/public/victim" {
						io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine")
						return
					}
					io.WriteString(w, c.answer)
					if c.later != "" {
						time.Sleep(20 * time.Millisecond)
						io.WriteString(w, c.later)
					}
				})
			})
			for range 5 {
				s.ask(get("/public/attack"))
				time.Sleep(40 * time.Millisecond)
				if a, _ := s.ask(get("/public/victim")); a.body != "mine" {
					t.Errorf("the victim was answered %d %q", a.StatusCode, a.body)
				}
			}
		})
	}
}

// A service that never stops to inform has no answer.
func TestInformationalFlood(t *testing.T) {
	if engine == engineStandard {
		return // http.Transport bounds it by bytes, and passes all on until then
	}
	s := open(t, func(s *stage) {
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, _ *http.Request) {
			for range 10_000 {
				if _, err := io.WriteString(w, "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"); err != nil {
					return
				}
			}
		})
	})
	if a, _ := s.ask(get("/public/a")); a.StatusCode != 502 || a.code != "upstream_bad_answer" {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
}
