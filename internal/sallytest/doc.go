// Package sallytest is for tests only: what stands around a gate, real but small.
//
//	issuer := sallytest.NewIssuer(t)                 // an authorization server
//	service := sallytest.NewRecorder(t)              // an upstream that counts what reaches it
//	token := issuer.Token(map[string]any{"sub": "alice", "scope": "orders:read"})
//	...
//	if n := service.Bytes(); n != 0 {
//		t.Errorf("%d bytes reached the service", n)
//	}
//
// Everything listens on loopback, on a port of its own, and ends with the test.
package sallytest
