package leak

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"
)

const characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// random is n characters of base64url.
func random(r *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = characters[r.IntN(64)]
	}
	return string(b)
}

// signed is a token as an issuer makes them: header and much of the payload are alike in all of them.
func signed(r *rand.Rand, signature int) string {
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"at+jwt","kid":"ES256-1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"}`))
	payload := base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://auth.example.com","aud":"https://api.example.com","sub":"alice","jti":"` + random(r, 22) + `"}`))
	return header + "." + payload + "." + random(r, signature)
}

func percent(s string, every bool, r *rand.Rand) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case every || c == '%' || c == '+' || c == '/' || c == '=' || r.IntN(4) == 0:
			form := "%%%02X"
			if r.IntN(2) == 0 {
				form = "%%%02x"
			}
			fmt.Fprintf(&b, form, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// spellings are what a secret can look like in what leaves. Each takes the text that the secret is in the middle of.
var spellings = []struct {
	name  string
	spell func(text string, r *rand.Rand) string
}{
	{"raw", func(s string, _ *rand.Rand) string { return s }},
	{"standard alphabet", func(s string, _ *rand.Rand) string { return strings.NewReplacer("-", "+", "_", "/").Replace(s) }},
	{"base64", func(s string, _ *rand.Rand) string { return base64.StdEncoding.EncodeToString([]byte(s)) }},
	{"base64url", func(s string, _ *rand.Rand) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }},
	{"base64 in lines", func(s string, _ *rand.Rand) string {
		return lines(base64.StdEncoding.EncodeToString([]byte(s)), 76, "\r\n")
	}},
	{"base64 in JSON", func(s string, _ *rand.Rand) string {
		return strings.ReplaceAll(base64.StdEncoding.EncodeToString([]byte(s)), "/", `\/`)
	}},
	{"base64 twice", func(s string, _ *rand.Rand) string {
		return base64.StdEncoding.EncodeToString([]byte("a:" + base64.URLEncoding.EncodeToString([]byte(s))))
	}},
	{"hex", func(s string, _ *rand.Rand) string { return hex.EncodeToString([]byte(s)) }},
	{"HEX", func(s string, _ *rand.Rand) string { return strings.ToUpper(hex.EncodeToString([]byte(s))) }},
	{"percent", func(s string, r *rand.Rand) string { return percent(s, true, r) }},
	{"percent here and there", func(s string, r *rand.Rand) string { return percent(s, false, r) }},
	{"percent twice", func(s string, r *rand.Rand) string { return percent(percent(s, false, r), false, r) }},
	{"percent three times", func(s string, r *rand.Rand) string { return percent(percent(percent(s, true, r), false, r), true, r) }},
	{"base64 in percent", func(s string, r *rand.Rand) string {
		return percent(base64.StdEncoding.EncodeToString([]byte(s)), false, r)
	}},
	{"percent in base64", func(s string, r *rand.Rand) string {
		return base64.StdEncoding.EncodeToString([]byte(percent(s, false, r)))
	}},
	{"percent in base64 in percent", func(s string, r *rand.Rand) string {
		return percent(percent(base64.StdEncoding.EncodeToString([]byte(percent(percent(s, false, r), false, r))), false, r), true, r)
	}},
	{"hex in percent three times", func(s string, r *rand.Rand) string {
		return percent(percent(percent(hex.EncodeToString([]byte(s)), true, r), true, r), true, r)
	}},
	{"hex twice in percent three times", func(s string, r *rand.Rand) string {
		return percent(percent(percent(hex.EncodeToString([]byte(hex.EncodeToString([]byte(s)))), true, r), true, r), true, r)
	}},
	{"hex in percent", func(s string, r *rand.Rand) string { return percent(hex.EncodeToString([]byte(s)), false, r) }},
}

func lines(s string, width int, end string) string {
	var b strings.Builder
	for len(s) > width {
		b.WriteString(s[:width] + end)
		s = s[width:]
	}
	return b.String() + s
}

func far() time.Time { return time.Now().Add(time.Hour) }

func TestFindsEverySpellingAtEveryAlignment(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	secrets := []string{random(r, 40), random(r, 43), random(r, 64), random(r, 300), signed(r, 43), signed(r, 86), signed(r, 342)}
	for _, secret := range secrets {
		set := NewSet(10)
		set.Add(secret, "req-1", far())
		for _, sp := range spellings {
			for offset := range 9 {
				text := "x" + random(r, offset) + secret + random(r, r.IntN(9))
				what := sp.spell(text, r)
				if id, found := set.Find([]byte("/orders?q="), []byte(what), []byte("; b")); !found || id != "req-1" {
					t.Fatalf("%s, at %d, of %d bytes: not found in %s", sp.name, offset, len(secret), what)
				}
			}
		}
	}
}

func TestFindsEveryHalf(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for n := 40; n < 400; n += 37 {
		secret := random(r, n)
		set := NewSet(10)
		set.Add(secret, "a", far())
		for at := 0; at+(n+1)/2 <= n; at++ {
			half := secret[at : at+(n+1)/2]
			for _, sp := range spellings {
				if at%11 != 0 && sp.name != "raw" {
					continue
				}
				if _, found := set.Find([]byte(sp.spell("!"+half+"!", r))); !found {
					t.Fatalf("%s: the half at %d of %d bytes is not found", sp.name, at, n)
				}
			}
		}
	}
}

// TestFindsAcrossParts cuts a token anywhere, into a header and another one, or path and query.
func TestFindsAcrossParts(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, secret := range []string{random(r, 40), signed(r, 86), signed(r, 342)} {
		set := NewSet(10)
		set.Add(secret, "a", far())
		for at := range secret {
			first, second := []byte("q="+secret[:at]), []byte(secret[at:])
			if _, found := set.Find(second, []byte("between"), first); !found {
				t.Fatalf("cut at %d of %d: not found in headers apart", at, len(secret))
			}
			if _, found := set.Find(first, second); !found {
				t.Fatalf("cut at %d of %d: not found in neighbours", at, len(secret))
			}
		}
		// in pieces of 11, in order
		var pieces [][]byte
		for rest := []byte(secret); len(rest) > 0; rest = rest[min(11, len(rest)):] {
			pieces = append(pieces, rest[:min(11, len(rest))])
		}
		if _, found := set.Find(pieces...); !found {
			t.Error("not found in neighbouring pieces")
		}
	}
}

func TestStreamFindsAcrossPieces(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	secret := signed(r, 86)
	set := NewSet(10)
	set.Add(secret, "a", far())
	for _, sp := range spellings {
		body := []byte(strings.Repeat("{}", r.IntN(2000)) + sp.spell(" "+secret, r) + strings.Repeat("!", 900))
		for _, size := range []int{1, 7, 100, 511, 512, 513, 4096} {
			stream, found := set.Stream(), false
			for rest := body; len(rest) > 0 && !found; rest = rest[min(size, len(rest)):] {
				_, found = stream.Find(rest[:min(size, len(rest))])
			}
			if !found {
				t.Errorf("%s in pieces of %d: not found", sp.name, size)
			}
		}
	}
}

// TestTokensOfOneIssuerAreApart holds that a token which shares header and most of the payload with a watched one is not
// taken for it.
func TestTokensOfOneIssuerAreApart(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	set := NewSet(1000)
	for range 500 {
		set.Add(signed(r, 86), "a", far())
	}
	for range 500 {
		if _, found := set.Find([]byte("Bearer " + signed(r, 86))); found {
			t.Fatal("another token of the issuer is taken for a watched one")
		}
	}
}

func TestRandomBase64IsNotFound(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	set := NewSet(20_000)
	for range 20_000 {
		set.Add(random(r, 43+r.IntN(300)), "a", far())
	}
	for range 30 {
		if _, found := set.Find([]byte(random(r, 20_000))); found {
			t.Fatal("random characters are taken for a secret")
		}
	}
}

func TestLife(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	set := NewSet(3)
	set.now = func() time.Time { return now }
	r := rand.New(rand.NewPCG(13, 14))
	var secrets []string
	has := func(i int) bool { _, found := set.Find([]byte(secrets[i])); return found }
	add := func(life time.Duration) { set.Add(secrets[len(secrets)-1], "a", now.Add(life)) }
	for _, life := range []time.Duration{10, 20, 30} {
		secrets = append(secrets, random(r, 43))
		add(life * time.Second)
	}
	set.Add(secrets[0], "again", now.Add(15*time.Second))
	if id, _ := set.Find([]byte(secrets[0])); id != "again" || set.Len() != 3 {
		t.Errorf("after adding one again: %d of them, id %q", set.Len(), id)
	}
	now = now.Add(12 * time.Second)
	if !has(0) || !has(1) || !has(2) {
		t.Error("one is not found within its life")
	}
	now = now.Add(5 * time.Second)
	if has(0) || !has(1) {
		t.Error("at 17 s the first is still found, or the second is not")
	}
	secrets = append(secrets, random(r, 43))
	add(time.Minute)
	if set.Len() != 3 || set.Dropped() != 0 || !has(3) {
		t.Errorf("%d of them, %d dropped: one that has ended makes room", set.Len(), set.Dropped())
	}
	secrets = append(secrets, random(r, 43))
	add(time.Minute)
	if set.Len() != 3 || set.Dropped() != 1 || has(1) || !has(2) || !has(4) {
		t.Errorf("%d of them, %d dropped: where all live, the one that ends first goes", set.Len(), set.Dropped())
	}
	secrets = append(secrets, "short", random(r, 43))
	set.Add("short", "a", now.Add(time.Hour))
	set.Add(secrets[6], "a", now)
	if set.Len() != 3 || has(5) || has(6) {
		t.Error("a secret that is short or has ended is watched")
	}
}

// TestChurnFreesEverything holds that memory follows what lives, not what has lived.
func TestChurnFreesEverything(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	set := NewSet(5000)
	set.now = func() time.Time { return now }
	r := rand.New(rand.NewPCG(15, 16))
	var last string
	for range 30_000 {
		now = now.Add(100 * time.Millisecond)
		last = random(r, 86)
		set.Add(last, "a", now.Add(60*time.Second))
	}
	if n := set.Len(); n > 700 || len(set.entries) > 1000 || len(set.windows) > 7*700 || len(set.filter.Load().words) > 1<<minFilter/64 {
		t.Errorf("%d live, %d places, %d windows, %d words of filter", n, len(set.entries), len(set.windows), len(set.filter.Load().words))
	}
	if _, found := set.Find([]byte(last)); !found || set.Dropped() != 0 {
		t.Errorf("the last is found: %v, dropped: %d", found, set.Dropped())
	}
}

func TestNothingIsKept(t *testing.T) {
	r := rand.New(rand.NewPCG(17, 18))
	secret := random(r, 64)
	set := NewSet(10)
	set.Add(secret, "id", far())
	text := []byte("!" + base64.StdEncoding.EncodeToString([]byte(percent(random(r, 64), true, r))))
	set.Find([]byte("a"), text)
	f := set.finders.Get().(*finder)
	for _, b := range [][]byte{f.joined.bytes, f.plain.bytes, f.digits[0].bytes, f.binary[0].bytes, f.binary[1].bytes} {
		for _, c := range b[:cap(b)] {
			if c != 0 {
				t.Fatal("a buffer holds what was looked at")
			}
		}
	}
	if dump := fmt.Sprintf("%+v", set.entries); strings.Contains(dump, secret[:8]) {
		t.Error("the set holds the secret")
	}
}

// FuzzFind: a secret of 40 characters or more is found in every spelling, at every offset, in any surroundings that do not
// change what the spelling says.
func FuzzFind(f *testing.F) {
	f.Add(uint64(1), uint16(40), uint8(0), uint16(0), "", "")
	f.Add(uint64(2), uint16(86), uint8(7), uint16(5), "/a?b=", "&c=%")
	f.Add(uint64(3), uint16(300), uint8(14), uint16(100), "%25", "%41%")
	f.Fuzz(func(t *testing.T, seed uint64, length uint16, spelling uint8, offset uint16, before, after string) {
		r := rand.New(rand.NewPCG(seed, 0))
		secret := random(r, 40+int(length)%2000)
		if seed%3 == 0 {
			secret = signed(r, 40+int(length)%400)
		}
		set := NewSet(100)
		for range 20 {
			set.Add(random(r, 40+r.IntN(100)), "other", far())
		}
		set.Add(secret, "it", far())
		sp := spellings[int(spelling)%len(spellings)]
		what := sp.spell("!"+random(r, int(offset)%500)+secret+random(r, r.IntN(50)), r)
		for _, parts := range [][][]byte{
			{[]byte(before + what + after)},
			{[]byte(before), []byte(what), []byte(after)},
		} {
			if id, found := set.Find(parts...); !found || id != "it" {
				t.Fatalf("%s of %d bytes, between %q and %q: found %v %q", sp.name, len(secret), before, after, found, id)
			}
		}
		stream, found := set.Stream(), false
		for rest := []byte(what); len(rest) > 0; {
			n := min(1+r.IntN(300), len(rest))
			_, hit := stream.Find(rest[:n])
			found, rest = found || hit, rest[n:]
		}
		if !found {
			t.Fatalf("%s of %d bytes: not found in a stream", sp.name, len(secret))
		}
	})
}

// FuzzNotFound: what holds no secret is not found to hold one, whatever it is, and finding never fails.
func FuzzNotFound(f *testing.F) {
	f.Add([]byte("/a?b=%41%%2541"), []byte("Basic dXNlcjpwYXNz"))
	f.Add([]byte("VVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVV"), []byte(`a\/b`))
	r := rand.New(rand.NewPCG(19, 20))
	set := NewSet(1000)
	for range 1000 {
		set.Add(signed(r, 86), "a", far())
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		x, y := bytes.Clone(a), bytes.Clone(b)
		if _, found := set.Find(a, b); found {
			t.Fatal("found")
		}
		if !bytes.Equal(a, x) || !bytes.Equal(b, y) {
			t.Fatal("the parts were changed")
		}
	})
}

// full is a set of a number of tokens.
func full(b *testing.B, n int) *Set {
	b.Helper()
	r := rand.New(rand.NewPCG(21, 22))
	set := NewSet(n)
	for i := range n {
		set.Add(random(r, 86), fmt.Sprintf("%026d", i), far())
	}
	return set
}

// usual is what a request of a service to another looks like.
func usual(r *rand.Rand) [][]byte {
	list := [][]byte{
		[]byte("/v1/invoices/8c2f1e4b-2a57-4f39-9a6b-0d5a7e1c9b32/lines"), []byte("page=2&per_page=50&sort=-created&filter=status%3Dopen"),
		[]byte("billing.internal"), []byte("axios/1.7.2"), []byte("application/json, text/plain, */*"), []byte("gzip, compress, deflate, br"),
		[]byte("application/json"), []byte("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), []byte("keep-alive"),
		[]byte("3b2f9f0e-8f0f-4b0c-a5d8-3f2f6f0e8f0f"), []byte("tenant=acme; theme=dark; session=" + random(r, 43)),
	}
	return append(list, []byte("Bearer "+signed(r, 86)))
}

func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1000, 1_000_000} {
		set := full(b, n)
		r := rand.New(rand.NewPCG(23, 24))
		parts := usual(r)
		size := len(bytes.Join(parts, nil))
		b.Run(fmt.Sprintf("request/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, found := set.Find(parts...); found {
					b.Fatal("found")
				}
			}
		})
		for name, body := range map[string][]byte{
			"json":    bytes.Repeat([]byte(`{"id":"8c2f1e4b","status":"open","amount":1299,"lines":["widget","gadget"]},`), 1000)[:64<<10],
			"base64":  []byte(random(r, 64<<10)),
			"binary":  []byte(strings.Repeat("\x00\xff\x80", 64<<10/3)),
			"hostile": []byte(strings.Repeat("V", 32<<10) + strings.Repeat("%252541", 32<<10/7)), // base64 of itself in each alignment, and escapes
		} {
			b.Run(fmt.Sprintf("body-%s/%d", name, n), func(b *testing.B) {
				b.SetBytes(int64(len(body)))
				for b.Loop() {
					if _, found := set.Find(body); found {
						b.Fatal("found")
					}
				}
			})
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	set := full(b, 1000)
	r := rand.New(rand.NewPCG(25, 26))
	secret, until := signed(r, 86), far()
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			set.Add(secret, "a", until)
		}
	})
}

// BenchmarkMemory says what a watched token costs.
func BenchmarkMemory(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				set := full(b, n)
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/token")
				runtime.KeepAlive(set)
			}
		})
	}
}
