// Package bearergrpc lets only verified callers call the methods of a gRPC server.
//
//	v, err := bearer.NewVerifier([]bearer.Issuer{{
//		Issuer:   "https://auth.example.com",
//		Audience: []string{"https://orders.example.com"},
//		Keys:     bearer.Keys{Discovery: true},
//	}}, bearer.Options{})
//	if err != nil {
//		return err
//	}
//	defer v.Close()
//	methods := bearergrpc.Methods{
//		"/orders.v1.Orders/Get":    {"orders:read"},
//		"/orders.v1.Orders/Create": {"orders:read", "orders:write"},
//		"/orders.v1.Orders/WhoAmI": {}, // any verified caller
//	}
//	server := grpc.NewServer(
//		grpc.ChainUnaryInterceptor(bearergrpc.Unary(bearergrpc.Token(v), methods)),
//		grpc.ChainStreamInterceptor(bearergrpc.Stream(bearergrpc.Token(v), methods)),
//	)
//
// A method finds its caller by identity.FromContext. Behind a gate that makes assertions the server verifies those instead:
//
//	bearergrpc.Unary(bearergrpc.Assertion(&identity.Verifier{Issuer: "sallyport", Audience: "orders", Keys: keys}), methods)
//
// # What is refused
//
// A method that Methods does not name, with PERMISSION_DENIED, whoever calls. A call without one verified token, with
// UNAUTHENTICATED: none, two, one in an unknown form, one that does not verify. A caller without one of the method's scopes,
// with PERMISSION_DENIED. While the keys of issuers are not there, with UNAVAILABLE. The message of the status is the reason
// code of a bearer.Error or an identity.Error, and never holds what the caller sent.
//
// # What ends
//
// With Token a call lasts no longer than the token that it was let in by: when that expires its context ends, Recv and Send of a
// stream return, and the client is told UNAUTHENTICATED, "expired". With Assertion nothing ends here: an assertion is good for a
// minute, and says who called when the stream began. The gate in front ends the stream with the token; where something else
// hands assertions on, streams last for as long as their two ends like.
//
// # Limits
//
// The interceptors see calls, not connections: use TLS, and do not register services that they do not guard on another server
// at the same port. A method that heeds neither its context nor what Recv and Send return is not ended. Revocation is not
// asked for; a gate in front does. Tokens that are bound to a key or a certificate are refused, since no proof is checked.
// Reflection and health checks are methods like any other: name them, or let a server of their own serve them.
package bearergrpc

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
)

// Methods names those that may be called, by their full names ("/package.Service/Method"), and the scopes, all of which a
// caller needs; with none, any verified caller may. One that is not there is refused.
type Methods map[string][]string

// A Verifier finds out who calls, and until when that is good. The zero Verifier refuses.
type Verifier struct {
	verify func(context.Context, metadata.MD) (identity.Caller, time.Time, error)
}

// Token verifies the bearer token in the metadata "authorization".
func Token(v *bearer.Verifier) Verifier {
	return Verifier{func(ctx context.Context, md metadata.MD) (identity.Caller, time.Time, error) {
		// The reading is that of an HTTP request: one header, one scheme, one space, one token, and none in a cookie beside it.
		token, err := bearer.FromRequest(&http.Request{Header: http.Header{"Authorization": md["authorization"], "Cookie": md["cookie"]}})
		if err != nil {
			return identity.Caller{}, time.Time{}, err
		}
		caller, err := v.Verify(ctx, token)
		if err != nil {
			return identity.Caller{}, time.Time{}, err
		}
		if _, ok := caller.Claims["cnf"]; ok { // of a Verifier whose other users check proofs
			return identity.Caller{}, time.Time{}, &bearer.Error{Code: "sender_constrained", Detail: "cnf is there, and no proof is checked"}
		}
		return caller, caller.Expires.Add(v.Leeway(caller.Issuer)), nil
	}}
}

// Assertion verifies the assertion in the metadata "txn-token", which a gate in front has put there.
func Assertion(v *identity.Verifier) Verifier {
	return Verifier{func(_ context.Context, md metadata.MD) (identity.Caller, time.Time, error) {
		switch values := md["txn-token"]; len(values) {
		case 0:
			return identity.Caller{}, time.Time{}, &identity.Error{Code: "missing_assertion", Detail: "no txn-token"}
		case 1:
			caller, err := v.Verify(values[0])
			// A stream may outlive its assertion, which says who called when it began: the gate ends it with the token.
			return caller, time.Time{}, err
		default:
			return identity.Caller{}, time.Time{}, &identity.Error{Code: "multiple_assertions", Detail: "more than one txn-token"}
		}
	}}
}

// Unary guards the methods of one request and one answer.
func Unary(v Verifier, methods Methods) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		ctx, end, err := admit(ctx, v, methods, info.FullMethod)
		if err != nil {
			return nil, err
		}
		defer end()
		answer, err := next(ctx, request)
		if err != nil && expired(ctx) {
			return nil, errExpired()
		}
		return answer, err
	}
}

// Stream guards the methods that are streams.
func Stream(v Verifier, methods Methods) grpc.StreamServerInterceptor {
	return func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		ctx, end, err := admit(stream.Context(), v, methods, info.FullMethod)
		if err != nil {
			return err
		}
		defer end()
		err = next(service, &guarded{stream, ctx})
		if expired(ctx) {
			return errExpired()
		}
		return err
	}
}

// admit is the straight line: method, verify, scopes. The context that it returns holds the caller, and ends when what the
// caller was let in by does.
func admit(ctx context.Context, v Verifier, methods Methods, method string) (context.Context, context.CancelFunc, error) {
	scopes, named := methods[method]
	if !named {
		return nil, nil, status.Error(codes.PermissionDenied, "method_not_named")
	}
	if v.verify == nil {
		return nil, nil, status.Error(codes.Unavailable, "not_configured")
	}
	md, _ := metadata.FromIncomingContext(ctx)
	caller, until, err := v.verify(ctx, md)
	if err != nil {
		return nil, nil, refusal(err)
	}
	for _, scope := range scopes {
		if !slices.Contains(caller.Scopes, scope) {
			return nil, nil, status.Error(codes.PermissionDenied, "insufficient_scope")
		}
	}
	ctx = identity.NewContext(ctx, caller)
	if until.IsZero() {
		return ctx, func() {}, nil
	}
	ctx, end := context.WithDeadlineCause(ctx, until, errEnded)
	return ctx, end, nil
}

// refusal is the status of an error: its code, and nothing of its detail.
func refusal(err error) error {
	if refused, ok := errors.AsType[*bearer.Error](err); ok {
		code := codes.Unauthenticated
		switch refused.Status() {
		case http.StatusForbidden:
			code = codes.PermissionDenied
		case http.StatusServiceUnavailable:
			code = codes.Unavailable
		}
		return status.Error(code, refused.Code)
	}
	if refused, ok := errors.AsType[*identity.Error](err); ok {
		if refused.Code == "not_configured" {
			return status.Error(codes.Unavailable, refused.Code)
		}
		return status.Error(codes.Unauthenticated, refused.Code)
	}
	return status.Error(codes.Unauthenticated, "verification_canceled")
}
