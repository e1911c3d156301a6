package safedial_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/safedial"
)

func Example() {
	guard := &safedial.Guard{Allow: []string{"auth.internal:443"}}
	_, err := guard.Client().Get("http://169.254.169.254/latest/meta-data/")
	var denied *safedial.DeniedError
	if errors.As(err, &denied) {
		fmt.Println(denied.Code, denied.Entry)
		fmt.Println(denied)
	}
	// Output:
	// escape_target metadata-aws
	// refused to dial "169.254.169.254": metadata-aws: instance metadata: credentials and user data; nearly every cloud has it at this address (AWS docs, EC2: Access instance metadata); in 169.254.0.0/16, Link Local (RFC 3927)
}

// A client that follows redirects: each hop is judged, and credentials stay with the
// origin that they were meant for.
func ExampleTransport() {
	client := &http.Client{
		Transport: &safedial.Transport{
			Guard:       &safedial.Guard{},
			Credentials: []string{"X-Acme-Ticket"},
		},
		Timeout: 10 * time.Second,
	}
	_, err := client.Get("http://127.0.0.1:3000/admin")
	fmt.Println(err)
	// Output: Get "http://127.0.0.1:3000/admin": refused to dial "127.0.0.1": in 127.0.0.0/8, Loopback (RFC 1122)
}

// Deny is stronger than Allow, and the registry of escape targets is stronger than
// both.
func ExampleGuard_Check() {
	guard := &safedial.Guard{
		Allow: []string{"10.0.0.0/8", "db.internal:5432"},
		Deny:  []string{"10.0.0.5"},
	}
	for _, to := range []string{"10.0.0.4:80", "10.0.0.5:80", "10.0.0.4:2375", "192.168.7.7:80", "93.184.216.34:443"} {
		err := guard.Check("", netip.MustParseAddrPort(to))
		var denied *safedial.DeniedError
		if errors.As(err, &denied) {
			fmt.Println(to, denied.Code)
			continue
		}
		fmt.Println(to, "may be dialled")
	}
	// Output:
	// 10.0.0.4:80 may be dialled
	// 10.0.0.5:80 denied_address
	// 10.0.0.4:2375 escape_target
	// 192.168.7.7:80 special_address
	// 93.184.216.34:443 may be dialled
}

// Resolve and DialAddr are Dial in two steps, for whoever records the addresses
// before the connection is made.
func ExampleGuard_Resolve() {
	guard := &safedial.Guard{}
	to, err := guard.Resolve(context.Background(), "93.184.216.34", 443)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("about to dial", to)
	// conn, err := guard.DialAddr(ctx, "93.184.216.34", to)

	_, err = guard.Resolve(context.Background(), "0x7f.1", 443)
	fmt.Println(err)
	// Output:
	// about to dial [93.184.216.34:443]
	// refused to dial "0x7f.1": neither an address in its usual notation nor a name
}

// A destination in the registry needs both: its name in Unlock and its place in Allow.
func ExampleEscapes() {
	for _, e := range safedial.Escapes() {
		if e.Name == "etcd" {
			fmt.Println(e.Kind, e.Value, e.Why)
		}
	}
	guard := &safedial.Guard{Allow: []string{"etcd.internal:2379"}, Unlock: []string{"etcd"}}
	fmt.Println(guard.Check("etcd.internal", netip.MustParseAddrPort("10.0.0.7:2379")))
	// Output:
	// port 2379 the cluster's state: every secret of it
	// port 2380 the cluster's state: every secret of it
	// <nil>
}
