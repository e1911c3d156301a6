// Package http1 serves HTTP/1 to clients and speaks it to one service, for a gate that stands between them.
//
// It takes the place of the server, the reverse proxy and the transport of the standard library. Those read a message twice
// behind a strict reader, the second time leniently, and spend four goroutines, a timer and some sixty allocations on a
// request; here one goroutine reads a head strictly and once (package wire), hands an *http.Request made of it to a
// handler, and writes what that answers:
//
//	server := &http1.Server{Handler: handler, Base: ctx, Idle: 2 * time.Minute, Log: log}
//	err := server.Serve(listener) // whose connections are of *wire.Conn
//
// A handler that forwards takes a Link of a Client, and knows its own connection as a *Conn:
//
//	link := client.Reused() // or client.Fresh(ctx)
//	link.Write(head)
//	link.ReadAnswer(&answer, method, w.Header(), until)
//
// # What a handler must know
//
// The request, its header and its answer's are used again for the next request of the connection: of them only strings may
// be kept. What it waits for ends by Interrupt, not by its context: that ends with the connection, and when the client has
// gone, for which it is looked only while Waits says so. Interrupt names a request by its Number, so that one who comes too
// late ends no other.
//
// # What it refuses of a service
//
// An answer is what RFC 9112 writes: CRLF, no folded lines, one length or the one coding "chunked" and not both, none where
// there is no content. A connection is used again only if its answer had an end of its own, nothing came behind it, and
// nothing has come until the next request is sent: what a service says unasked is no answer.
//
// # Limits
//
// To HTTP/1.0 one request of a connection is answered. An answer of unknown length ends with its connection, and so it cannot
// be seen whether it is whole. It runs on Linux.
package http1
