package bearer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// world is two verifiers of one configuration, one that remembers and one that does not, and everything that can happen to
// them: the tokens, keys, revocations and time that both see.
type world struct {
	t         *testing.T
	random    *rand.Rand
	now       atomic.Int64 // seconds
	issuers   []*worldIssuer
	tokens    []string
	latest    worldKey        // that key
	revoked   map[string]bool // by jti, asked after the verifier, as the gate does
	remembers *Verifier
	forgets   *Verifier
	hits      uint64 // of verifiers that a reload has replaced
}

type worldIssuer struct {
	config Issuer
	keys   []worldKey // published
	gone   []worldKey // that still sign
	made   int
}

type worldKey struct {
	signer
	changes object // of the published JWK
}

// pool is keys that are made once: RSA ones take their time.
var pool = sync.OnceValue(func() []signer {
	var keys []signer
	for _, alg := range []string{"ES256", "ES256", "ES256", "EdDSA", "EdDSA", "EdDSA", "RS256", "RS256"} {
		for range 2 {
			keys = append(keys, newSigner("", alg))
		}
	}
	return keys
})

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, random: rand.New(rand.NewPCG(seed, 0)), revoked: map[string]bool{}}
	w.now.Store(testNow.Unix())
	for _, name := range []string{testIssuer, "https://other.example.com"} {
		i := &worldIssuer{config: Issuer{
			Issuer: name, Audience: []string{testAudience}, TokenTypes: []string{"at+jwt"}, Keys: Keys{File: writeFile(t, "{}")},
		}}
		w.issuers = append(w.issuers, i)
		w.addKey(i)
		w.addKey(i)
		w.publish(i)
	}
	w.reload()
	return w
}

func (w *world) clock() time.Time { return time.Unix(w.now.Load(), 0) }

func pick[T any](w *world, list []T) T { return list[w.random.IntN(len(list))] }

// addKey has an issuer sign with another key too. Two issuers may have the same one.
func (w *world) addKey(i *worldIssuer) {
	i.made++
	s := pick(w, pool())
	s.kid = fmt.Sprintf("k%d", i.made)
	i.keys = append(i.keys, worldKey{signer: s})
}

// publish writes an issuer's keys down, and has both verifiers fetch them.
func (w *world) publish(i *worldIssuer) {
	var set []object
	if !slices.ContainsFunc(i.keys, func(k worldKey) bool { return k.changes == nil }) {
		w.addKey(i) // without a usable key the last set stays, and no verifier can be made
	}
	for _, k := range i.keys {
		set = append(set, k.jwk(k.changes))
	}
	if err := os.WriteFile(i.config.Keys.File, []byte(jwks(set...)), 0o600); err != nil {
		w.t.Fatal(err)
	}
	for _, v := range []*Verifier{w.remembers, w.forgets} {
		if v != nil {
			v.authorities[i.config.Issuer].keys.update(context.Background())
		}
	}
}

// reload is another configuration: two new verifiers.
func (w *world) reload() {
	var list []Issuer
	for _, i := range w.issuers {
		list = append(list, i.config)
	}
	for _, v := range []*Verifier{w.remembers, w.forgets} {
		hits, _, _, _ := v.Remembered()
		w.hits += hits
		v.Close()
	}
	size := pick(w, []int64{64 << 10, 1 << 20}) // in the first, a few dozen tokens push one another out
	w.remembers, w.forgets = w.verifier(size, list), w.verifier(0, list)
}

// verifier makes one that fetches keys when told and at no other time, so that both see the same ones.
func (w *world) verifier(remember int64, list []Issuer) *Verifier {
	o := Options{Now: w.clock, Remember: remember}
	p := defaultPace(o)
	p.missBurst, p.missEvery = 0, time.Hour
	v, err := newVerifier(list, o, p)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(v.Close)
	return v
}

// issue makes a token that is good more often than not.
func (w *world) issue() string {
	i := pick(w, w.issuers)
	k := pick(w, slices.Concat(i.keys, i.keys, i.gone))
	claims := with(goodClaims(w.clock()), object{
		"iss": i.config.Issuer, "jti": fmt.Sprint(w.random.IntN(40)), "exp": w.now.Load() + 1 + w.random.Int64N(900),
	})
	header := k.header()
	w.latest = k
	switch w.random.IntN(20) {
	case 0:
		claims["aud"] = "https://elsewhere.example.com"
	case 1:
		claims["aud"] = []any{testAudience, "https://elsewhere.example.com"}
	case 2:
		claims["nbf"] = w.now.Load() + w.random.Int64N(300)
	case 3:
		claims["cnf"] = object{"jkt": "x"}
	case 4:
		delete(header, "kid")
	case 5:
		header["kid"] = "k1"
	case 6:
		claims["iss"] = pick(w, w.issuers).config.Issuer // which may be another's
	case 7:
		claims["scope"] = 1
	case 8:
		header["typ"] = "JWT"
	case 9:
		claims["iat"] = w.now.Load() + w.random.Int64N(60)
	case 10:
		delete(claims, "iat")
		claims["exp"] = w.now.Load() + 3500 + w.random.Int64N(300)
	}
	token := k.raw(mustJSON(header), mustJSON(claims))
	switch w.random.IntN(6) {
	case 0: // the same content under a second signature, good or not
		other := pick(w, slices.Concat(i.keys, []worldKey{{signer: k.signer}}))
		input := token[:strings.LastIndex(token, ".")]
		w.tokens = append(w.tokens, input+"."+b64(other.sign(input)))
	case 1: // another content under the same signature
		dot := strings.LastIndex(token, ".")
		w.tokens = append(w.tokens, b64([]byte(mustJSON(header)))+"."+b64([]byte(mustJSON(with(claims, object{"sub": "mallory"}))))+token[dot:])
	}
	w.tokens = append(w.tokens, token)
	return token
}

// verdict is what the gate makes of a token: the verifier's, then what has been revoked.
func (w *world) verdict(v *Verifier, ctx context.Context, token string) (identity.Caller, string) {
	caller, err := v.Verify(ctx, NewToken(token))
	if err != nil {
		return caller, refusalOf(w.t, err, token).Code
	}
	if w.revoked[caller.TokenID] {
		return identity.Caller{}, "revoked"
	}
	return caller, ""
}

// compare holds the verifier that remembers against the one that does not.
func (w *world) compare(ctx context.Context, token string) (string, bool) {
	got, code := w.verdict(w.remembers, ctx, token)
	want, wantCode := w.verdict(w.forgets, ctx, token)
	if code == wantCode && reflect.DeepEqual(got, want) {
		return "", true
	}
	// who waits for another's check and goes is told that, whatever the token
	if ctx.Err() != nil && code == codeCanceled && reflect.DeepEqual(got, identity.Caller{}) {
		return "", true
	}
	return fmt.Sprintf("%q, %+v; without memory %q, %+v", code, got, wantCode, want), false
}

// step does one thing that can happen, and says what.
func (w *world) step() (what string) {
	i := pick(w, w.issuers)
	ended, end := context.WithCancel(context.Background())
	end()
	check := func(ctx context.Context, token string) string {
		if said, ok := w.compare(ctx, token); !ok {
			w.t.Errorf("verify %s: %s", token, said)
		}
		return fmt.Sprintf("verify token %d", slices.Index(w.tokens, token))
	}
	var token string
	if len(w.tokens) > 0 { // the latest ones more often: they are those that are good
		token = w.tokens[max(0, len(w.tokens)-1-int(w.random.ExpFloat64()*8))]
	}
	switch n := w.random.IntN(100); {
	case n < 15 || token == "":
		return check(context.Background(), w.issue())
	case n < 65:
		check(context.Background(), token)
		return check(context.Background(), token)
	case n < 75:
		var group sync.WaitGroup
		for c := range 8 {
			ctx := context.Background()
			if c%4 == 0 {
				ctx = ended
			}
			group.Go(func() { check(ctx, token) })
		}
		group.Wait()
		return "verify at once"
	case n < 78:
		return check(ended, token)
	case n < 81:
		w.addKey(i)
		w.publish(i)
		return "rotate"
	case n < 84:
		i, at := w.inUse(i)
		w.addKey(i)
		i.gone = append(i.gone, i.keys[at])
		i.keys = slices.Delete(i.keys, at, at+1)
		w.publishWhileBusy(i, token)
		return "withdraw"
	case n < 87:
		i, at := w.inUse(i)
		i.gone = append(i.gone, i.keys[at])
		replaced := pick(w, pool())
		replaced.kid = i.keys[at].kid
		i.keys[at] = worldKey{signer: replaced}
		w.publishWhileBusy(i, token)
		return "replace a key under its kid"
	case n < 89:
		i, at := w.inUse(i)
		i.keys[at].changes = pick(w, []object{{"kid": nil}, {"alg": nil}, {"alg": "PS256"}, {"use": "enc"}, {"kid": "k9"}, nil})
		w.publish(i)
		return "change what a key is for"
	case n < 92:
		w.revoked[fmt.Sprint(w.random.IntN(40))] = w.random.IntN(3) > 0
		return "revoke"
	case n < 94:
		i.config.Audience = pick(w, [][]string{{testAudience}, {"https://elsewhere.example.com"}, {testAudience, "orders"}})
		i.config.MaxLifetime = pick(w, []time.Duration{0, 10 * time.Minute, time.Minute})
		i.config.Leeway = pick(w, []time.Duration{0, time.Second, 30 * time.Second})
		w.reload()
		return "reload"
	case n < 99:
		w.now.Add(pick(w, []int64{1, 5, 20, 100, 290, 310, 600, -30, -400}))
		return "time"
	default:
		w.now.Add(3900 - 30) // and the keys, unless they were fetched meanwhile, will soon be too old
		for range 10 {
			token := w.issue()
			check(context.Background(), token)
			check(context.Background(), token)
			defer check(context.Background(), token)
		}
		w.now.Add(40)
		return "keys too old"
	}
}

// inUse returns the key that signed the last token, or another one if that is not published.
func (w *world) inUse(otherwise *worldIssuer) (i *worldIssuer, at int) {
	for _, i := range w.issuers {
		if at := slices.IndexFunc(i.keys, func(k worldKey) bool { return k.kid == w.latest.kid && k.alg == w.latest.alg }); at >= 0 {
			return i, at
		}
	}
	return otherwise, w.random.IntN(len(otherwise.keys))
}

// publishWhileBusy changes keys while tokens are verified. What is said meanwhile may be of before or of after.
func (w *world) publishWhileBusy(i *worldIssuer, token string) {
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					w.remembers.Verify(context.Background(), NewToken(token))
				}
			}
		})
	}
	w.publish(i)
	// from here on only what is true now, though checks that began before are still under way
	if said, ok := w.compare(context.Background(), token); !ok {
		w.t.Errorf("verify %s just after a change of keys: %s", token, said)
	}
	close(stop)
	group.Wait()
}

// TestRememberingChangesNothing: whatever happens in whatever order, a verifier that remembers says of every token what one
// that does not says, of the caller and of the reason.
func TestRememberingChangesNothing(t *testing.T) {
	sequences := 12
	if testing.Short() || raceDetector() {
		sequences = 4 // each takes ten times as long then
	}
	var hits, verified uint64
	for seed := range uint64(sequences) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed)
			var story []string
			for range 200 {
				story = append(story, w.step())
				for _, token := range w.tokens[max(0, len(w.tokens)-4):] {
					if said, ok := w.compare(context.Background(), token); !ok {
						t.Errorf("verify %s: %s", token, said)
					}
				}
				if t.Failed() {
					t.Fatalf("after %s", strings.Join(story[max(0, len(story)-12):], ", "))
				}
			}
			h, misses, _, _ := w.remembers.Remembered()
			hits, verified = hits+h+w.hits, verified+h+misses
		})
	}
	if hits < uint64(sequences)*50 {
		t.Errorf("%d hits in %d sequences: the test has hardly met the cache", hits, sequences)
	}
}
