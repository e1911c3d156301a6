package keys

import (
	"bytes"
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// What parses is one key under its own name, and is written again as the same key.
func FuzzParse(f *testing.F) {
	k, err := generate(f.TempDir(), nil, time.Unix(1_800_000_000, 0))
	if err != nil {
		f.Fatal(err)
	}
	good := encode(k)
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(`"kty"`), []byte(`"kty": "OKP", "kty"`), 1))
	f.Add(bytes.Replace(good, []byte("OKP"), []byte("EC"), 1))
	f.Add(bytes.Replace(good, []byte(`"d": "`), []byte(`"d": "AA`), 1))
	f.Add(bytes.Replace(good, []byte("Z\""), []byte("+02:00\""), 1))
	f.Add(bytes.Replace(good, []byte("2027-01-15T08:00:00Z"), []byte("9999-12-31T23:59:59-01:00"), 1))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := parse(data)
		if err != nil {
			if k.private != nil {
				t.Error("a key beside an error")
			}
			return
		}
		if k.id != identity.Thumbprint(k.private.Public().(ed25519.PublicKey)) || k.created.Location() != time.UTC {
			t.Errorf("%+v", k)
		}
		again, err := parse(encode(k))
		if err != nil || again.id != k.id || !again.private.Equal(k.private) || !again.created.Equal(k.created) {
			t.Errorf("again: %v, %v", again.id, err)
		}
	})
}
