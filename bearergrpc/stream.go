package bearergrpc

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errEnded = errors.New("what the caller was let in by has expired")

func errExpired() error { return status.Error(codes.Unauthenticated, "expired") }

// expired reports whether it was the token's end that ended ctx.
func expired(ctx context.Context) bool { return context.Cause(ctx) == errEnded }

// guarded is a stream whose methods return when its context ends, whatever the client does.
type guarded struct {
	grpc.ServerStream
	ctx context.Context
}

func (g *guarded) Context() context.Context { return g.ctx }

func (g *guarded) RecvMsg(m any) error {
	return g.until(func() error { return g.ServerStream.RecvMsg(m) })
}

func (g *guarded) SendMsg(m any) error {
	return g.until(func() error { return g.ServerStream.SendMsg(m) })
}

// until runs f, which may block for as long as the client likes. Where the end of the token does not let it return, it ends
// with the stream, behind the handler's return.
func (g *guarded) until(f func() error) error {
	if expired(g.ctx) {
		return errExpired()
	}
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-g.ctx.Done():
	}
	if expired(g.ctx) {
		return errExpired()
	}
	return <-done // the stream's own end, which f sees too
}
