package identity_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// A service behind sallyport: its handlers know who calls.
func ExampleRequire() {
	path, assertion := publishAndSign()

	keys, err := identity.KeysFile(path)
	if err != nil {
		log.Fatal(err)
	}
	verifier := &identity.Verifier{Issuer: "sallyport", Audience: "orders", Keys: keys}
	orders := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _ := identity.FromContext(r.Context())
		fmt.Fprintf(w, "%s on %s, request %s", caller.Subject, caller.Route, caller.RequestID)
	})
	service := identity.Require(verifier, "Txn-Token")(orders)

	for _, sent := range []string{assertion, ""} {
		r := httptest.NewRequest("GET", "/orders/1", nil)
		if sent != "" {
			r.Header.Set("Txn-Token", sent)
		}
		w := httptest.NewRecorder()
		service.ServeHTTP(w, r)
		fmt.Println(w.Code, w.Body)
	}
	// Output:
	// 200 alice on read-order, request 7Q2X
	// 401 {"title":"Unauthorized","status":401,"code":"missing_assertion"}
}

// publishAndSign does what sallyport does in front of the service.
func publishAndSign() (path, assertion string) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	key := identity.Key{ID: identity.Thumbprint(public), Private: private}
	path = filepath.Join(dir, "jwks.json")
	set := fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"%s","kid":"%s"}]}`, base64.RawURLEncoding.EncodeToString(public), key.ID)
	if err := os.WriteFile(path, []byte(set), 0o644); err != nil {
		log.Fatal(err)
	}
	signer := &identity.Signer{Issuer: "sallyport", Audience: "orders", Key: func() identity.Key { return key }}
	caller := identity.Caller{Issuer: "https://auth.example.com", Subject: "alice", TokenID: "at-1", Expires: time.Now().Add(time.Hour)}
	if assertion, err = signer.Sign(caller, "read-order", "7Q2X"); err != nil {
		log.Fatal(err)
	}
	return path, assertion
}
