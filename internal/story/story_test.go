package story

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode"
)

func scanText(text string) Scan {
	return func(skip func([]byte) bool, f func(Line)) (int, error) {
		return Lines("f", strings.NewReader(text), skip, f)
	}
}

// Whatever is asked for is told once: with its outcome, its cause above it, and what it caused below.
func TestReadTellsEverythingOnce(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		var text strings.Builder
		at := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
		line := func(format string, args ...any) {
			at = at.Add(time.Duration(random.IntN(1000)) * time.Microsecond)
			fmt.Fprintf(&text, `{"v":1,"time":"%s",%s}`+"\n", at.Format("2006-01-02T15:04:05.000000Z"), fmt.Sprintf(format, args...))
		}
		var inbound, open []string
		subject := map[string]string{}
		for n := range 200 {
			id := fmt.Sprint(n)
			switch random.IntN(4) {
			case 0:
				subject[id] = fmt.Sprint(random.IntN(5))
				line(`"kind":"decision","point":"ingress","decision":"allow","id":"%s","subject":"%s"`, id, subject[id])
				inbound, open = append(inbound, id), append(open, id)
			case 1:
				requests := `[]`
				if len(inbound) > 0 {
					requests = fmt.Sprintf(`["%s"]`, inbound[random.IntN(len(inbound))])
				}
				line(`"kind":"decision","point":"egress","decision":"allow","id":"%s","host":"h","detail":{"requests":%s}`, id, requests)
				open = append(open, id)
			case 2:
				if len(open) > 0 {
					i := random.IntN(len(open))
					line(`"kind":"outcome","id":"%s","status":200,"duration_ms":1.5`, open[i])
					open = append(open[:i], open[i+1:]...)
				}
			case 3:
				text.WriteString(`{"v":1,"ti[torn]` + "\n")
			}
		}
		s, err := Read(scanText(text.String()), Filter{Subject: "1"}, 1000)
		if err != nil {
			t.Fatal(err)
		}
		told := map[string]int{}
		count := func(e *Event) {
			told[e.ID]++
			if e.Outcome != nil {
				told["end "+e.ID]++
			}
		}
		for _, e := range s.Events {
			count(e)
			for _, c := range e.Caused {
				count(c)
				if c.Detail.Requests[0] != e.ID || c.Time.Before(e.Time) {
					t.Errorf("seed %d: %s stands under %s", seed, c.Raw, e.Raw)
				}
			}
		}
		_, err = scanText(text.String())(nil, func(l Line) {
			key, wanted := l.ID, subject[l.ID] == "1"
			if l.Kind == "outcome" {
				key = "end " + l.ID
				wanted = told[l.ID] > 0
			} else if len(l.Detail.Requests) > 0 {
				wanted = subject[l.Detail.Requests[0]] == "1"
			}
			if wanted != (told[key] == 1) || told[key] > 1 {
				t.Errorf("seed %d: told %d times, wanted %t: %s", seed, told[key], wanted, l.Raw)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		var out, text2 bytes.Buffer
		if err := (&Printer{W: &out}).Story(s.Events); err != nil {
			t.Fatal(err)
		}
		if err := JSON(&text2, s.Events); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(text2.Bytes(), []byte("\n")); n != len(told) {
			t.Errorf("%d objects, %d lines were found", n, len(told))
		}
	}
}

func TestLastOnes(t *testing.T) {
	var text strings.Builder
	for n := range 25 {
		fmt.Fprintf(&text, `{"v":1,"time":"2027-03-01T12:00:%02dZ","kind":"decision","point":"ingress","id":"%d"}`+"\n", n, n)
	}
	for _, last := range []int{1, 3, 10, 24, 25, 1000} {
		s, err := Read(scanText(text.String()), Filter{}, last)
		if err != nil || len(s.Events) != min(last, 25) || s.Left != 25-min(last, 25) || s.Events[len(s.Events)-1].ID != "24" {
			t.Errorf("last %d: %d events, %d left, %v", last, len(s.Events), s.Left, err)
		}
	}
}

// A whole line behind one that was cut short is read; what is too long, is not.
func TestLinesPassesOver(t *testing.T) {
	const whole = `{"v":1,"time":"2027-03-01T12:00:00Z","kind":"decision","id":"1"}`
	text := `{"v":1,"ti` + whole + "\n" + strings.Repeat("x", 3*maxText) + "\n" + whole + "\n" + `{"v":2,"time":"2027-03-01T12:00:00Z","kind":"decision"}` + "\n" + whole[:20]
	var at []int
	passed, err := scanText(text)(nil, func(l Line) { at = append(at, l.At) })
	if err != nil || passed != 3 || fmt.Sprint(at) != "[1 3]" {
		t.Errorf("%d passed, lines %v, %v", passed, at, err)
	}
}

// FuzzParse: what is read can be printed, each line on its own, and nothing in it acts on a terminal.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"v":1,"time":"2027-03-01T12:00:00Z","kind":"decision","id":"1","point":"egress","host":"h\u001b[2J\n","detail":{"port":1,"requests":["a"]}}`))
	f.Add([]byte(`{"v":1,"time":"2027-03-01T12:00:00Z","kind":"outcome","id":"1","status":200,"duration_ms":1.5,"error":"\u202e"}`))
	f.Add([]byte(`{"v":1,"time":"2027-03-01T12:00:00Z","kind":"gap","since":"2027-03-01T12:00:00Z","error":"x"}`))
	f.Add([]byte(`{"v":1,"time":"2027-03-01T12:00:00Z","kind":"\u0007","detail":"another shape"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := Parse(text)
		if err != nil {
			return
		}
		if !json.Valid(text) || l.Version != 1 || l.Kind == "" {
			t.Fatalf("%q was taken for a line", text)
		}
		var out bytes.Buffer
		if err := (&Printer{W: &out, Flat: true}).Line(&l, 1); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 2 {
			t.Errorf("%d lines for one: %q", len(lines), out.String())
		}
		for _, r := range strings.Join(lines, "") {
			if !unicode.IsPrint(r) {
				t.Errorf("%q is printed: %q", r, out.String())
			}
		}
	})
}

// Colour is there when it is asked for, around the words alone.
func TestColour(t *testing.T) {
	l, err := Parse([]byte(`{"v":1,"time":"2027-03-01T12:00:00Z","kind":"decision","id":"1","point":"ingress","decision":"deny","code":"no_route","method":"GET","path":"/x"}`))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := (&Printer{W: &out, Colour: true}).Line(&l, 0); err != nil {
		t.Fatal(err)
	}
	if want := "\x1b[2mMonday 2027-03-01, UTC\x1b[0m\n12:00:00.000000  \x1b[31mdeny  \x1b[0m  GET /x | no_route | id 1\n"; out.String() != want {
		t.Errorf("%q", out.String())
	}
}
