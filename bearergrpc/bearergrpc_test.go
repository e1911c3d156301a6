package bearergrpc

import (
	"context"
	"crypto/ed25519"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/sallytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service tells who calls it.
type service struct {
	testgrpc.UnimplementedTestServiceServer
	ended chan error // why a stream that waits has ended
}

func (s *service) UnaryCall(ctx context.Context, _ *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	c, ok := identity.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "nobody")
	}
	return &testgrpc.SimpleResponse{Username: c.Subject}, nil
}

func (s *service) EmptyCall(context.Context, *testgrpc.Empty) (*testgrpc.Empty, error) {
	return &testgrpc.Empty{}, nil
}

// FullDuplexCall waits for messages.
func (s *service) FullDuplexCall(stream grpc.BidiStreamingServer[testgrpc.StreamingOutputCallRequest, testgrpc.StreamingOutputCallResponse]) error {
	c, _ := identity.FromContext(stream.Context())
	if err := stream.Send(&testgrpc.StreamingOutputCallResponse{Payload: &testgrpc.Payload{Body: []byte(c.Subject)}}); err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); err != nil {
			s.ended <- err
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

// StreamingOutputCall sends more than a client takes that does not read.
func (s *service) StreamingOutputCall(_ *testgrpc.StreamingOutputCallRequest, stream grpc.ServerStreamingServer[testgrpc.StreamingOutputCallResponse]) error {
	for {
		if err := stream.Send(&testgrpc.StreamingOutputCallResponse{Payload: &testgrpc.Payload{Body: make([]byte, 64<<10)}}); err != nil {
			s.ended <- err
			return err
		}
	}
}

const prefix = "/grpc.testing.TestService/"

func methods() Methods {
	return Methods{prefix + "UnaryCall": {"orders:read"}, prefix + "FullDuplexCall": {}, prefix + "StreamingOutputCall": {}}
}

type stage struct {
	t       *testing.T
	issuer  *sallytest.Issuer
	service *service
	client  testgrpc.TestServiceClient
}

// open serves the service behind the interceptors.
func open(t *testing.T, verifier func(*stage) Verifier) *stage {
	t.Helper()
	s := &stage{t: t, issuer: sallytest.NewIssuer(t), service: &service{ended: make(chan error, 1)}}
	v := verifier(s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(Unary(v, methods())), grpc.ChainStreamInterceptor(Stream(v, methods())), grpc.WaitForHandlers(true))
	testgrpc.RegisterTestServiceServer(server, s.service)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s.client = testgrpc.NewTestServiceClient(conn)
	return s
}

// tokens verifies those of the stage's issuer.
func tokens(s *stage) Verifier {
	s.t.Helper()
	jwks := filepath.Join(s.t.TempDir(), "jwks.json")
	if err := os.WriteFile(jwks, s.issuer.JWKS(), 0o600); err != nil {
		s.t.Fatal(err)
	}
	v, err := bearer.NewVerifier([]bearer.Issuer{{
		Issuer: s.issuer.URL, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{File: jwks}, Leeway: time.Millisecond,
	}}, bearer.Options{Bound: true})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(v.Close)
	return Token(v)
}

func sending(ctx context.Context, pairs ...string) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.Pairs(pairs...))
}

func TestTokens(t *testing.T) {
	s := open(t, tokens)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	good := s.issuer.Token(map[string]any{"scope": "orders:read"})
	for name, c := range map[string]struct {
		pairs   []string
		code    codes.Code
		message string
	}{
		"good":        {[]string{"authorization", "Bearer " + good}, codes.OK, ""},
		"lower case":  {[]string{"authorization", "bearer " + good}, codes.OK, ""},
		"none":        {nil, codes.Unauthenticated, "missing_token"},
		"two":         {[]string{"authorization", "Bearer " + good, "authorization", "Bearer " + good}, codes.Unauthenticated, "multiple_credentials"},
		"joined":      {[]string{"authorization", "Bearer " + good + ", Bearer " + good}, codes.Unauthenticated, "multiple_credentials"},
		"in a cookie": {[]string{"authorization", "Bearer " + good, "cookie", "access_token=" + good}, codes.Unauthenticated, "multiple_credentials"},
		"basic":       {[]string{"authorization", "Basic " + good}, codes.Unauthenticated, "unsupported_scheme"},
		"two spaces":  {[]string{"authorization", "Bearer  " + good}, codes.Unauthenticated, "malformed_authorization"},
		"forged":      {[]string{"authorization", "Bearer " + good[:len(good)-4] + "AAAA"}, codes.Unauthenticated, "bad_signature"},
		"bound":       {[]string{"authorization", "Bearer " + s.issuer.Token(map[string]any{"cnf": map[string]any{"jkt": "x"}})}, codes.Unauthenticated, "sender_constrained"},
		"scope":       {[]string{"authorization", "Bearer " + s.issuer.Token(map[string]any{"scope": "orders"})}, codes.PermissionDenied, "insufficient_scope"},
		"assertion":   {[]string{"txn-token", good}, codes.Unauthenticated, "missing_token"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := s.client.UnaryCall(sending(ctx, c.pairs...), &testgrpc.SimpleRequest{})
			if status.Code(err) != c.code || err != nil && status.Convert(err).Message() != c.message {
				t.Errorf("%v, want %s %s", err, c.code, c.message)
			}
			if err == nil && a.Username != "alice" {
				t.Errorf("the caller is %q", a.Username)
			}
			if err != nil && strings.Contains(err.Error(), good[20:40]) {
				t.Errorf("the message holds the token: %v", err)
			}
		})
	}
	// What Methods does not name is refused, to whoever calls.
	_, err := s.client.EmptyCall(sending(ctx, "authorization", "Bearer "+good), &testgrpc.Empty{})
	if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "method_not_named" {
		t.Errorf("a method without a name: %v", err)
	}
}

// A stream ends with its token, whether the method waits for a message or for a client that does not read.
func TestStreamEnds(t *testing.T) {
	s := open(t, tokens)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	short := func() context.Context {
		return sending(ctx, "authorization", "Bearer "+s.issuer.Token(map[string]any{"exp": time.Now().Add(3 * time.Second).Unix()}))
	}
	duplex, err := s.client.FullDuplexCall(short())
	if err != nil {
		t.Fatal(err)
	}
	if m, err := duplex.Recv(); err != nil || string(m.Payload.Body) != "alice" {
		t.Fatalf("%v %v", m, err)
	}
	if _, err = duplex.Recv(); status.Code(err) != codes.Unauthenticated || status.Convert(err).Message() != "expired" {
		t.Errorf("the client is told %v", err)
	}
	if err := <-s.service.ended; status.Code(err) != codes.Unauthenticated {
		t.Errorf("the method is told %v", err)
	}
	output, err := s.client.StreamingOutputCall(short(), &testgrpc.StreamingOutputCallRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-s.service.ended; status.Code(err) != codes.Unauthenticated { // though nobody has read
		t.Errorf("the method is told %v", err)
	}
	for err == nil {
		_, err = output.Recv()
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("the client is told %v", err)
	}
	// One whose token lives on ends when the client wants it to.
	duplex, err = s.client.FullDuplexCall(sending(ctx, "authorization", "Bearer "+s.issuer.Token(nil)))
	if err != nil {
		t.Fatal(err)
	}
	duplex.CloseSend()
	for err == nil {
		_, err = duplex.Recv()
	}
	if ended := <-s.service.ended; err != io.EOF || ended != io.EOF {
		t.Errorf("%v, %v", err, ended)
	}
	// And without a token there is none.
	duplex, err = s.client.FullDuplexCall(ctx)
	if err == nil {
		_, err = duplex.Recv()
	}
	if status.Code(err) != codes.Unauthenticated || status.Convert(err).Message() != "missing_token" {
		t.Errorf("without a token: %v", err)
	}
}

func TestAssertions(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := identity.Key{ID: identity.Thumbprint(public), Private: private}
	s := open(t, func(*stage) Verifier {
		return Assertion(&identity.Verifier{Issuer: "sallyport", Audience: "orders", Keys: func(kid string) (ed25519.PublicKey, bool) { return public, kid == key.ID }})
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	sign := func(audience string) string {
		signer := &identity.Signer{Issuer: "sallyport", Audience: audience, Key: func() identity.Key { return key }}
		a, err := signer.Sign(identity.Caller{
			Issuer: "https://auth.example.com", Subject: "bob", Scopes: []string{"orders:read"}, TokenID: "7", IssuedAt: time.Now(), Expires: time.Now().Add(time.Hour), Transaction: "t",
		}, "read", "r")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	good := sign("orders")
	for name, c := range map[string]struct {
		pairs   []string
		message string
	}{
		"good":  {[]string{"txn-token", good}, ""},
		"none":  {nil, "missing_assertion"},
		"two":   {[]string{"txn-token", good, "txn-token", good}, "multiple_assertions"},
		"other": {[]string{"txn-token", sign("billing")}, "audience_mismatch"},
		"token": {[]string{"authorization", "Bearer " + good}, "missing_assertion"},
	} {
		a, err := s.client.UnaryCall(sending(ctx, c.pairs...), &testgrpc.SimpleRequest{})
		if c.message == "" {
			if err != nil || a.Username != "bob" {
				t.Errorf("%s: %v %v", name, a, err)
			}
		} else if status.Code(err) != codes.Unauthenticated || status.Convert(err).Message() != c.message {
			t.Errorf("%s: %v, want %s", name, err, c.message)
		}
	}
}

// The zero values let nobody in.
func TestZeroRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		v Verifier
		m Methods
	}{"no methods": {Token(nil), nil}, "no verifier": {Verifier{}, Methods{"/x": nil}}} {
		_, err := Unary(c.v, c.m)(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/x"}, func(context.Context, any) (any, error) {
			t.Errorf("%s: called", name)
			return nil, nil
		})
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
