package bearer_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
)

// A service that lets in callers with a token for it, and says who called.
func Example() {
	verifier, err := bearer.NewVerifier([]bearer.Issuer{{
		Issuer:   "https://auth.example.com",
		Audience: []string{"https://api.example.com"},
		Keys:     bearer.Keys{Discovery: true},
	}}, bearer.Options{Logger: slog.New(slog.NewJSONHandler(os.Stderr, nil))})
	if err != nil {
		slog.Error("cannot verify tokens", "error", err)
		os.Exit(1)
	}
	defer verifier.Close()

	mux := http.NewServeMux()
	mux.Handle("GET /orders/{id}", bearer.Require(verifier, "orders:read")(http.HandlerFunc(readOrder)))

	server := &http.Server{Addr: "127.0.0.1:3000", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	if err := server.ListenAndServe(); err != nil {
		slog.Error("serving ended", "error", err)
	}
}

func readOrder(w http.ResponseWriter, r *http.Request) {
	caller, _ := identity.FromContext(r.Context())
	fmt.Fprintf(w, "order %s, read by %s of %s\n", r.PathValue("id"), caller.Subject, caller.Issuer)
}

// A service that calls another with the caller's token, where that token is for the other too.
func ExampleTransport() {
	billing, err := bearer.NewVerifier([]bearer.Issuer{{
		Issuer:   "https://auth.example.com",
		Audience: []string{"https://billing.example.com"},
		Keys:     bearer.Keys{Discovery: true},
	}}, bearer.Options{})
	if err != nil {
		slog.Error("cannot verify tokens", "error", err)
		os.Exit(1)
	}
	defer billing.Close()

	type tokenKey struct{} // under which a middleware has put the result of bearer.FromRequest
	client := &http.Client{Timeout: 10 * time.Second, Transport: &bearer.Transport{
		Token: func(ctx context.Context) (bearer.Token, error) {
			token, _ := ctx.Value(tokenKey{}).(bearer.Token)
			return token, nil
		},
		Recipients: map[string]bearer.Recipient{
			"https://billing.example.com": {Verifier: billing, Scopes: []string{"invoice:write"}},
		},
	}}
	if _, err := client.Get("https://billing.example.com/invoices"); err != nil {
		slog.Error("not sent", "error", err) // missing_token: there is no caller here
	}
}
