package leak

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
)

func scrubber(t testing.TB, secrets ...string) *Scrubber {
	t.Helper()
	s, err := NewScrubber(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// masked are the spellings that a Scrubber masks.
func masked(r *rand.Rand) []func(string) string {
	std := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	return []func(string) string{
		func(s string) string { return s },
		std,
		func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) },
		func(s string) string { return percent(s, true, r) },
		func(s string) string { return percent(s, false, r) },
		func(s string) string { return percent(percent(s, false, r), false, r) },
		func(s string) string { return percent(percent(percent(s, true, r), true, r), true, r) },
		func(s string) string { return percent(std(s), false, r) },
		func(s string) string { return strings.ReplaceAll(std(s), "/", `\/`) },
		url.QueryEscape,
		func(s string) string {
			return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "/", `\/`, "<", `\u003c`, ">", `\u003E`).Replace(s)
		},
	}
}

func TestScrubMasksEverySpelling(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, secret := range []string{random(r, 8), random(r, 40), "pa%ss%25wor\\d/+ \"<x>", "aaaaaaaaaaaa", signed(r, 86), "%25%25%25%25", `\\\\\\\\`, "********"} {
		s := scrubber(t, secret)
		for i, spell := range masked(r) {
			for before := range 4 {
				text := "<" + "xyz"[:before] + secret + ">"
				spelled := spell(text)
				got := s.Value("A " + spelled + " B")
				if len(got) != len(spelled)+4 || got[:2] != "A " || got[len(got)-2:] != " B" {
					t.Fatalf("spelling %d of %q: %q became %q", i, secret, spelled, got)
				}
				if reveals(got, secret) {
					t.Errorf("spelling %d of %q: %q became %q", i, secret, spelled, got)
				}
			}
		}
	}
}

// reveals looks for a secret in another way than the Scrubber does: it decodes.
func reveals(text, secret string) bool {
	for range 1 + maxPercent {
		if strings.Contains(text, secret) {
			return true
		}
		for from := range text {
			if from > 0 && sextet[text[from-1]] < 64 {
				continue
			}
			to := from
			for to < len(text) && sextet[text[to]] < 64 {
				to++
			}
			run := strings.NewReplacer("+", "-", "/", "_").Replace(text[from:to])
			for phase := range min(4, len(run)) {
				n := len(run) - phase
				if n%4 == 1 {
					n--
				}
				decoded, err := base64.RawURLEncoding.DecodeString(run[phase : phase+n])
				if err == nil && bytes.Contains(decoded, []byte(secret)) {
					return true
				}
			}
		}
		text = string(unescape(nil, []byte(text)))
	}
	return false
}

func TestScrubLeavesTheRest(t *testing.T) {
	s := scrubber(t, "s3cr3t/value+of-ours")
	for _, same := range []string{"", "s3cr3t", "s3cr3t/value+of-our", `{"a":"%41\u0041"}`, "%", "%%%25", strings.Repeat("s3cr3t/", 50)} {
		if got := s.Value(same); got != same {
			t.Errorf("%q became %q", same, got)
		}
	}
	if got, want := s.Value("a=s3cr3t/value+of-ours;b=s3cr3t%2fvalue%2Bof-ours"), "a="+strings.Repeat("*", 20)+";b="+strings.Repeat("*", 24); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	h := http.Header{"X-A": {"ok", "Bearer s3cr3t/value+of-ours"}}
	s.Header(h)
	if h["X-A"][0] != "ok" || h["X-A"][1] != "Bearer "+strings.Repeat("*", 20) {
		t.Errorf("header became %v", h)
	}
	var none *Scrubber
	if none.Value("x") != "x" || none.Body(http.NoBody) != http.NoBody {
		t.Error("a nil Scrubber changes something")
	}
	if _, err := NewScrubber("1234567"); err == nil {
		t.Error("a secret of 7 bytes is taken")
	}
	if _, err := NewScrubber("*#~^|!$&=_-."); err == nil {
		t.Error("a secret with every mask is taken")
	}
}

// TestBodyPassesOnWhatIsDecided holds that an event is not held back until the next one comes.
func TestBodyPassesOnWhatIsDecided(t *testing.T) {
	in, out := io.Pipe()
	body := scrubber(t, "the-secret-value").Body(in)
	go func() {
		fmt.Fprint(out, "data: 1\n\n")
		fmt.Fprint(out, "data: the-sec")
		fmt.Fprint(out, "ret-value\n\n")
		out.CloseWithError(errors.New("gone"))
	}()
	for _, want := range []string{"data: 1\n\n", "data: ", "****************\n\n"} {
		got := make([]byte, 100)
		n, err := body.Read(got)
		if err != nil || string(got[:n]) != want {
			t.Fatalf("read %q, %v; want %q", got[:n], err, want)
		}
	}
	if _, err := body.Read(make([]byte, 1)); err == nil || err.Error() != "gone" {
		t.Errorf("ended with %v", err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzScrub: whatever the body and however it is read, the output has its length, does not hold the secret, differs from the
// input in masked bytes only, and is what masking the whole at once gives.
func FuzzScrub(f *testing.F) {
	f.Add("correct-horse-battery", uint64(1), []byte("\x00a\x01b\x02%\x03"), 3)
	f.Add("aaaaaaaaaaaaa%25", uint64(2), []byte("aaaaaaa\x04\x04%2\x05"), 1)
	f.Add(`\\"\\"/%%%2525`, uint64(3), []byte("\x06\x07\x08\x09\x0a"), 50)
	f.Fuzz(func(t *testing.T, secret string, seed uint64, plan []byte, size int) {
		s, err := NewScrubber(secret)
		if err != nil || len(secret) > 60 || len(plan) > 24 {
			t.Skip()
		}
		r := rand.New(rand.NewPCG(seed, 0))
		all := masked(r)
		var input []byte
		for _, b := range plan { // a small byte is a spelling of the secret, or of the beginning of it; others stand for themselves
			switch {
			case int(b) < len(all):
				input = append(input, all[b](random(r, r.IntN(4))+secret)...)
			case int(b) < 2*len(all):
				what := all[int(b)-len(all)](secret)
				input = append(input, what[:r.IntN(len(what)+1)]...)
			default:
				input = append(input, b)
			}
		}
		whole := s.Value(string(input))
		size = max(1, size%5000)
		var reader io.Reader = bytes.NewReader(input)
		switch seed % 3 {
		case 0:
			reader = iotest.OneByteReader(reader)
		case 1:
			reader = iotest.DataErrReader(reader)
		}
		output, err := readBy(s.Body(io.NopCloser(reader)), size)
		if err != nil || string(output) != whole {
			t.Fatalf("%q: read by %d became %q (%v), at once %q", input, size, output, err, whole)
		}
		if len(output) != len(input) {
			t.Fatalf("%d bytes became %d", len(input), len(output))
		}
		for i := range input {
			if output[i] != input[i] && output[i] != s.mask {
				t.Fatalf("byte %d, %q, became %q", i, input[i], output[i])
			}
		}
		if reveals(whole, secret) {
			t.Fatalf("%q became %q, which reveals %q", input, whole, secret)
		}
		// base64 that says all but a few bits of the first and last byte is masked too
		if !reveals(string(input), secret[1:len(secret)-1]) && len(plan) > 0 && whole != string(input) && !strings.ContainsAny(string(input), `\+%`) {
			t.Fatalf("%q became %q, and did not reveal %q", input, whole, secret)
		}
	})
}

func readBy(r io.Reader, size int) (out []byte, err error) {
	p := make([]byte, size)
	for {
		n, err := r.Read(p)
		out = append(out, p[:n]...)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
	}
}

func BenchmarkScrub(b *testing.B) {
	r := rand.New(rand.NewPCG(2, 2))
	s := scrubber(b, random(r, 43))
	for name, body := range map[string][]byte{
		"json":    bytes.Repeat([]byte(`{"id":"8c2f1e4b","status":"open","amount":1299,"lines":["widget","gadget"]},`), 1000)[:64<<10],
		"base64":  []byte(random(r, 64<<10)),
		"hostile": []byte(strings.Repeat("%25", 64<<10/3)),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				s.scrub(body, true)
			}
		})
	}
}
