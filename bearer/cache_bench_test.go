package bearer

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"testing"

	"github.com/sallyport/sallyport/internal/jws"
)

var large = flag.Bool("large", false, "measure with a million tokens, which take 2 GB and half a minute")

// plant makes a token of its own that v remembers, without the cost of a signature.
func plant(t testing.TB, v *Verifier, s signer, number int) string {
	signature := make([]byte, 64)
	binary.LittleEndian.PutUint64(signature, uint64(number)+1)
	raw := b64([]byte(mustJSON(s.header()))) + "." + b64([]byte(mustJSON(with(goodClaims(testNow), object{"jti": strconv.Itoa(number)})))) + "." + b64(signature)
	token, err := jws.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	a := v.authorities[testIssuer]
	k, refusal := a.keys.lookup(token.KeyID, true, token.Algorithm)
	if refusal != nil {
		t.Fatal(refusal)
	}
	p := a.proofOf(token, k)
	p.name = v.cache.nameOf(raw)
	v.cache.keep(p, testNow)
	v.cache.keep(p, testNow)
	return raw
}

// BenchmarkRemembered is what a token costs that has been verified before, among how many that are known: asked for in no
// order, so that what the processor caches does not help, and one of them again and again.
func BenchmarkRemembered(b *testing.B) {
	s, issuer := signers()["ES256"], allAlgorithms(b)
	for _, known := range []int{10, 10_000, 1_000_000} {
		if known > 10_000 && !*large {
			continue
		}
		var v *Verifier
		var tokens []Token
		run := func(name string, pick func() int) {
			b.Run(fmt.Sprintf("%s/%d", name, known), func(b *testing.B) {
				if v == nil {
					v = mustVerifier(b, Options{Now: clock, Remember: 8 << 30}, issuer)
					for i := range known {
						tokens = append(tokens, NewToken(plant(b, v, s, i)))
					}
					runtime.GC()
				}
				ctx := b.Context()
				b.ReportAllocs()
				for b.Loop() {
					if _, err := v.Verify(ctx, tokens[pick()]); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				if _, misses, entries, _ := v.Remembered(); misses > 0 || entries != known {
					b.Fatalf("%d misses, %d of %d tokens known", misses, entries, known)
				}
			})
		}
		run("any", func() int { return rand.IntN(known) })
		run("one", func() int { return known / 2 })
	}
}

// BenchmarkNotRemembered is what a new token costs beside nothing that is remembered and beside a full cache.
func BenchmarkNotRemembered(b *testing.B) {
	s, issuer := signers()["ES256"], allAlgorithms(b)
	for _, size := range []int64{0, 4 << 20} {
		v := mustVerifier(b, Options{Now: clock, Remember: size}, issuer)
		for i := 0; size > 0 && i < 10_000; i++ {
			plant(b, v, s, i)
		}
		b.Run(strconv.FormatInt(size, 10), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				token := NewToken(s.token(with(goodClaims(testNow), object{"jti": strconv.Itoa(-i)})))
				b.StartTimer()
				if _, err := v.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
