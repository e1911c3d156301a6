package bearer

import "testing"

// BenchmarkVerify is a whole verification: form, signature, claims.
func BenchmarkVerify(b *testing.B) {
	v := mustVerifier(b, Options{Now: clock}, allAlgorithms(b))
	for _, alg := range supported() {
		token := NewToken(signers()[alg].token(goodClaims(testNow)))
		b.Run(alg, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRefuse is what a token costs that is refused before any signature.
func BenchmarkRefuse(b *testing.B) {
	v := mustVerifier(b, Options{Now: clock}, allAlgorithms(b))
	s := signers()["ES256"]
	for name, raw := range map[string]string{
		"form":        s.token(goodClaims(testNow)) + ".",
		"issuer":      s.token(with(goodClaims(testNow), object{"iss": "https://evil.example"})),
		"unknown_key": newSigner("x", "ES256").token(goodClaims(testNow)),
	} {
		token := NewToken(raw)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), token); err == nil {
					b.Fatal("accepted")
				}
			}
		})
	}
}
