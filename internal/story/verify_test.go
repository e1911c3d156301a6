package story

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
)

func newKey(seed byte) identity.Key {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	return identity.Key{ID: identity.Thumbprint(private.Public().(ed25519.PublicKey)), Private: private}
}

func lookup(keys ...identity.Key) func(string) (ed25519.PublicKey, bool) {
	return func(kid string) (ed25519.PublicKey, bool) {
		for _, k := range keys {
			if k.ID == kid {
				return k.Private.Public().(ed25519.PublicKey), true
			}
		}
		return nil, false
	}
}

// files are a log's, in their order, each a list of lines with their ends.
type files [][]string

func (f files) verify(v *Verifier) error {
	for i, lines := range f {
		if err := v.File(fmt.Sprint(i), strings.NewReader(strings.Join(lines, ""))); err != nil {
			return err
		}
	}
	return v.End()
}

func (f files) clone() files {
	g := make(files, len(f))
	for i := range f {
		g[i] = slices.Clone(f[i])
	}
	return g
}

// write has several writers, which come and go, write real logs: rotated, reopened where they are, cut short in the middle
// of a line by a crash, and gone on behind.
func write(t testing.TB, random *rand.Rand, steps int) files {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	key := newKey(1)
	open := func() *audit.Log {
		durability := []audit.Durability{audit.Buffered, audit.Written}[random.IntN(2)]
		l, err := audit.Open(audit.Config{File: path, Durability: durability, Sign: func() identity.Key { return key }}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	logs := []*audit.Log{open(), open(), open()}
	var names []string
	for n := range steps {
		i := random.IntN(len(logs))
		switch random.IntN(30) {
		case 0:
			to := filepath.Join(dir, fmt.Sprint(len(names)))
			must(os.Rename(path, to))
			names = append(names, to)
			for _, j := range random.Perm(len(logs)) {
				must(logs[j].Reopen())
			}
		case 1:
			must(logs[i].Reopen())
		case 2:
			must(logs[i].Close())
			logs[i] = open()
		case 3: // a crash of another writer, in the middle of a line
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			must(err)
			_, err = f.WriteString(`{"v":1,"time":"2027-03-01T12:00:00.123456Z","kind":"decision","id":"x`)
			must(errors.Join(err, f.Close()))
			if random.IntN(2) == 0 {
				must(logs[i].Close())
				logs[i] = open()
			}
		default:
			id := fmt.Sprint(n)
			must(logs[i].Record(audit.Record{ID: id, Point: "ingress", Path: "/" + strings.Repeat("x", random.IntN(40))}))
			must(logs[i].Outcome(audit.Outcome{ID: id}))
		}
	}
	for _, l := range logs {
		must(l.Close())
	}
	var all files
	for _, name := range append(names, path) {
		data, err := os.ReadFile(name)
		must(err)
		all = append(all, slices.Collect(strings.Lines(string(data))))
	}
	return all
}

// sealedAt is the part of a line that is sealed, and its place; ok is false for what was cut short.
func sealedAt(line string) (from int, p audit.Place, ok bool) {
	text, whole := strings.CutSuffix(line, "\n")
	p, ok = audit.PlaceOf([]byte(text))
	return strings.LastIndex(text, begins), p, ok && whole
}

// pins are the heads of all chains, as an operator holds them who was told of each.
func pins(f files) map[string]bool {
	v := &Verifier{}
	if err := f.verify(v); err != nil {
		panic(err)
	}
	heads := map[string]bool{}
	for _, c := range v.Report().Chains {
		heads[c.Head] = false
	}
	return heads
}

func TestUnchangedLogVerifies(t *testing.T) {
	for seed := range uint64(10) {
		f := write(t, rand.New(rand.NewPCG(seed, 1)), 150)
		v := &Verifier{Keys: lookup(newKey(1)), Heads: pins(f), Whole: true}
		if err := f.verify(v); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, c := range v.Report().Chains {
			if !c.Ended || c.Signed != c.Last || c.First != 1 {
				t.Errorf("%+v", c)
			}
		}
		// The later files alone verify too, and say that chains began before.
		if len(f) > 1 {
			if err := f[1:].verify(&Verifier{Keys: lookup(newKey(1))}); err != nil {
				t.Errorf("seed %d, without the first file: %v", seed, err)
			}
		}
	}
}

// spot is a line that is sealed.
type spot struct {
	file, line int
	chain      string
}

// Whatever single thing is changed is found, and where it was.
func TestEveryChangeIsFound(t *testing.T) {
	kinds := map[Code]int{}
	for seed := range uint64(6) {
		random := rand.New(rand.NewPCG(seed, 2))
		f := write(t, random, 120)
		var spots []spot
		for i := range f {
			for j, line := range f[i] {
				if _, p, ok := sealedAt(line); ok {
					spots = append(spots, spot{i, j, string(p.Chain)})
				}
			}
		}
		next := func(k int) *spot { // of the same chain
			for i := range spots[k+1:] {
				if spots[k+1+i].chain == spots[k].chain {
					return &spots[k+1+i]
				}
			}
			return nil
		}
		heads := pins(f)
		for range 100 {
			k := random.IntN(len(spots))
			s, after := spots[k], next(k)
			line := f[s.file][s.line]
			g := f.clone()
			what, wantFile, wantLine := "", s.file, s.line+1
			exact := true
			switch random.IntN(5) {
			case 0:
				from, _, _ := sealedAt(line)
				b := []byte(line)
				at := from + random.IntN(len(b)-from)
				b[at] ^= byte(1 + random.IntN(255))
				what = fmt.Sprintf("byte %d is %q", at, b[at])
				g[s.file][s.line] = string(b)
			case 1:
				what = "deleted"
				g[s.file] = slices.Delete(g[s.file], s.line, s.line+1)
				if after == nil {
					exact = false
				} else if wantFile, wantLine = after.file, after.line+1; after.file == s.file {
					wantLine--
				}
			case 2:
				if after == nil {
					continue
				}
				what = "swapped with " + fmt.Sprint(*after)
				g[s.file][s.line], g[after.file][after.line] = g[after.file][after.line], g[s.file][s.line]
			case 3:
				at := s.line + 1 + random.IntN(len(g[s.file])-s.line)
				what = fmt.Sprintf("repeated at %d", at+1)
				g[s.file] = slices.Insert(g[s.file], at, line)
				wantLine = at + 1
				exact = !slices.ContainsFunc(g[s.file][:at], func(s string) bool { return !strings.HasSuffix(s, "\n") })
			case 4:
				what, exact = "cut", false
				g[s.file] = append(g[s.file][:s.line:s.line], line[:random.IntN(len(line))])
			}
			v := &Verifier{Keys: lookup(newKey(1)), Heads: maps.Clone(heads), Whole: true}
			found, ok := errors.AsType[*Finding](g.verify(v))
			if !ok {
				t.Fatalf("seed %d: line %d of file %d %s, and nobody sees: %s", seed, s.line+1, s.file, what, line)
			}
			kinds[found.Code]++
			at := fmt.Sprintf("%d:%d", wantFile, wantLine)
			// a checkpoint of another chain may have seen the line before its own chain comes to it
			early := found.Code == Unseen && (found.File > fmt.Sprint(s.file) || found.Line >= s.line)
			if got := fmt.Sprintf("%s:%d", found.File, found.Line); exact && got != at && !early {
				t.Fatalf("seed %d: line %d of file %d %s: want it at %s: %v", seed, s.line+1, s.file, what, at, found)
			}
		}
	}
	t.Log(kinds)
	for _, code := range []Code{Altered, Missing, Repeated, Beheaded, Unseen, HeadMissing} {
		if kinds[code] == 0 {
			t.Errorf("%s never found", code)
		}
	}
}

var update = flag.Bool("update", false, "write testdata/audit.jsonl anew")

// A log that was written once verifies for ever.
func TestOldLogVerifies(t *testing.T) {
	if *update {
		f := write(t, rand.New(rand.NewPCG(1, 3)), 12)
		if err := os.WriteFile("testdata/audit.jsonl", []byte(strings.Join(slices.Concat(f...), "")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile("testdata/audit.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	v := &Verifier{Keys: lookup(newKey(1)), Whole: true}
	if err := (files{slices.Collect(strings.Lines(string(data)))}).verify(v); err != nil {
		t.Fatal(err)
	}
	if r := v.Report(); len(r.Chains) < 3 || r.Torn == 0 || r.Chains[0].Signed == 0 {
		t.Errorf("%+v", r)
	}
}

// FuzzVerify: whatever passes, with the keys and the heads, holds the same sealed lines as what was written, each chain's in
// the same order. Nothing is added, taken away or changed but between them.
func FuzzVerify(f *testing.F) {
	data, err := os.ReadFile("testdata/audit.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	whole := string(data)
	logged := files{slices.Collect(strings.Lines(whole))}
	heads := pins(logged)
	f.Add([]byte(whole))
	f.Add([]byte(whole[:len(whole)/2]))
	f.Add([]byte(strings.ReplaceAll(whole, "\n", "")))
	f.Add([]byte(`{"v":1}` + "\n" + whole))
	want := chains(whole)
	f.Fuzz(func(t *testing.T, data []byte) {
		pinned := map[string]bool{}
		for head := range heads {
			pinned[head] = false
		}
		v := &Verifier{Keys: lookup(newKey(1)), Heads: pinned}
		err := v.File("f", bytes.NewReader(data))
		if err == nil {
			err = v.End()
		}
		if found, ok := errors.AsType[*Finding](err); err != nil && (!ok || found.Line > bytes.Count(data, []byte{'\n'})+1) {
			t.Fatalf("%v", err)
		}
		if err == nil && fmt.Sprint(chains(string(data))) != fmt.Sprint(want) {
			t.Errorf("passes: %q", data)
		}
	})
}

// chains are the sealed lines of each chain.
func chains(data string) map[string][]string {
	all := map[string][]string{}
	for line := range strings.Lines(data) {
		if from, p, ok := sealedAt(line); ok && from >= 0 {
			all[string(p.Chain)] = append(all[string(p.Chain)], line[from:])
		}
	}
	return all
}

// What a forger can do who has no key, and what one sees without keys.
func TestForgery(t *testing.T) {
	make := func(seed byte, ids ...string) []string {
		var b bytes.Buffer
		c := audit.Config{}
		if seed != 0 {
			c.Sign = func() identity.Key { return newKey(seed) }
		}
		l := audit.New(&b, c)
		for _, id := range ids {
			if err := l.Record(audit.Record{ID: id}); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return slices.Collect(strings.Lines(b.String()))
	}
	ours, theirs, unsigned := make(1, "a", "b"), make(2, "a", "b"), make(0, "a", "b")
	old := "{\"v\":1,\"kind\":\"decision\"}\n"
	resealed := slices.Clone(ours) // an altered record, hashes made anew, the signature taken along
	{
		s := &state{Chain: &Chain{}}
		v := &Verifier{}
		for i, line := range resealed {
			if i == 1 {
				line = strings.Replace(line, `"id":"a"`, `"id":"z"`, 1)
			}
			text := strings.TrimSuffix(line, "\n")
			if i == len(resealed)-1 {
				text = strings.Replace(text, `"head":"`+string(placeOf(ours[i-1]).Hash), `"head":"`+string(placeOf(resealed[i-1]).Hash), 1)
			}
			p, _ := audit.PlaceOf([]byte(text))
			s.sum = v.digest(s.sum, p.Text)
			resealed[i] = string(p.Text) + `,"hash":"` + encode(s.sum) + "\"}\n"
		}
	}
	for _, test := range []struct {
		name  string
		lines []string
		keys  bool
		code  Code
		line  int
	}{
		{"ours", ours, true, "", 0},
		{"ours, without keys", ours, false, "", 0},
		{"another key", theirs, true, UnknownKey, 1},
		{"another key, without keys", theirs, false, "", 0},
		{"unsigned", unsigned, true, Unsigned, 1},
		{"another chain behind", append(slices.Clone(ours), unsigned...), true, Unsigned, len(ours) + 1},
		{"made anew", resealed, true, BadSignature, len(ours)},
		{"made anew, without keys", resealed, false, "", 0},
		{"from before", append([]string{old}, ours...), true, "", 0},
		{"from before, alone", []string{old}, true, Unsigned, 1},
		{"in no chain, later", append(slices.Clone(ours), old), true, Unchained, len(ours) + 1},
		{"after the end", append(slices.Clone(ours), after(ours)), false, Continued, len(ours) + 1},
		{"an empty line", append([]string{"\n"}, ours...), false, Altered, 1},
		{"too long", []string{strings.Repeat("x", 2*maxText) + "\n"}, false, Altered, 1},
	} {
		v := &Verifier{}
		if test.keys {
			v.Keys = lookup(newKey(1))
		}
		err := files{test.lines}.verify(v)
		found, _ := errors.AsType[*Finding](err)
		if test.code == "" && err != nil || test.code != "" && (found == nil || found.Code != test.code || found.Line != test.line) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func placeOf(line string) audit.Place {
	p, _ := audit.PlaceOf([]byte(strings.TrimSuffix(line, "\n")))
	return p
}

func encode(sum [sha256.Size]byte) string { return base64.RawURLEncoding.EncodeToString(sum[:]) }

// after is a line that goes on where a chain has ended.
func after(lines []string) string {
	p := placeOf(lines[len(lines)-1])
	var before [sha256.Size]byte
	decode(string(p.Hash), before[:])
	text := fmt.Sprintf(`{"v":1,"kind":"decision","chain":"%s","n":%d`, p.Chain, p.N+1)
	return text + `,"hash":"` + encode((&Verifier{}).digest(before, []byte(text))) + "\"}\n"
}

func BenchmarkVerify(b *testing.B) {
	var data bytes.Buffer
	l := audit.New(&data, audit.Config{Sign: func() identity.Key { return newKey(1) }})
	caller := &identity.Caller{Issuer: "https://auth.example.com", Subject: "alice", Client: "shop", TokenID: "t-1"}
	for n := range 10_000 {
		id := audit.NewID(time.Now())
		r := audit.Record{ID: id, Point: "ingress", Method: "GET", Path: fmt.Sprint("/orders/", n), Host: "api.example.com", Caller: caller}
		if err := errors.Join(l.Record(r), l.Outcome(audit.Outcome{ID: id, Status: 200})); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(data.Len()))
	b.ReportAllocs()
	for b.Loop() {
		v := &Verifier{Keys: lookup(newKey(1))}
		if err := v.File("f", bytes.NewReader(data.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}
