package ingress

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	rpc "google.golang.org/grpc/status"

	"github.com/sallyport/sallyport/internal/policy"
)

// testService is gRPC's own interoperability service, as far as it is asked for here, by the library that is not ours.
type testService struct {
	pb.UnimplementedTestServiceServer
	calls    atomic.Int64
	ended    chan error // of calls that wait for their context's end
	metadata atomic.Pointer[metadata.MD]
	deadline atomic.Int64 // left, of the last call that had one
}

func (s *testService) note(ctx context.Context) {
	s.calls.Add(1)
	md, _ := metadata.FromIncomingContext(ctx)
	s.metadata.Store(&md)
	if t, ok := ctx.Deadline(); ok {
		s.deadline.Store(int64(time.Until(t)))
	}
}

func (s *testService) EmptyCall(ctx context.Context, _ *pb.Empty) (*pb.Empty, error) {
	s.note(ctx)
	return &pb.Empty{}, nil
}

func (s *testService) UnaryCall(ctx context.Context, in *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	s.note(ctx)
	if e := in.GetResponseStatus(); e != nil {
		st, err := rpc.New(codes.Code(e.Code), e.Message).WithDetails(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "size", Description: "über"}}})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
	if in.ResponseSize < 0 { // waits
		<-ctx.Done()
		s.ended <- ctx.Err()
		return nil, ctx.Err()
	}
	md, _ := metadata.FromIncomingContext(ctx)
	grpc.SetHeader(ctx, metadata.MD{"echo-initial": md["echo-initial"]})
	grpc.SetTrailer(ctx, metadata.MD{"echo-trailing-bin": md["echo-trailing-bin"]})
	return &pb.SimpleResponse{Payload: &pb.Payload{Body: make([]byte, in.ResponseSize)}}, nil
}

func (s *testService) StreamingOutputCall(in *pb.StreamingOutputCallRequest, out pb.TestService_StreamingOutputCallServer) error {
	s.note(out.Context())
	for _, p := range in.ResponseParameters {
		if p.Size < 0 { // no message, no header: until somebody ends it
			<-out.Context().Done()
			s.ended <- out.Context().Err()
			return out.Context().Err()
		}
		if err := out.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, p.Size)}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *testService) StreamingInputCall(in pb.TestService_StreamingInputCallServer) error {
	s.note(in.Context())
	total := 0
	for {
		m, err := in.Recv()
		if err == io.EOF {
			return in.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: int32(total)})
		}
		if err != nil {
			return err
		}
		total += len(m.GetPayload().GetBody())
	}
}

// FullDuplexCall answers each message, and waits for the next.
func (s *testService) FullDuplexCall(both pb.TestService_FullDuplexCallServer) error {
	s.note(both.Context())
	for {
		m, err := both.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			select {
			case s.ended <- err:
			default:
			}
			return err
		}
		for _, p := range m.ResponseParameters {
			if p.Size < 0 {
				return rpc.Error(codes.FailedPrecondition, "enough")
			}
			if err := both.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, p.Size)}}); err != nil {
				return err
			}
		}
	}
}

// grpcStage is a stage before a gRPC service.
type grpcStage struct {
	*stage
	*testService
}

func grpcRoutes(t testing.TB, more ...policy.Route) *policy.Policy {
	t.Helper()
	p, err := policy.New(append(more,
		policy.Route{Name: "test-service", Match: "POST /grpc.testing.TestService/{method}", Scopes: []string{"test"}, When: `path.method != "CacheableUnaryCall"`},
	))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newTestService(t testing.TB, l net.Listener, options ...grpc.ServerOption) *testService {
	service := &testService{ended: make(chan error, 64)}
	server := grpc.NewServer(append(options, grpc.MaxRecvMsgSize(64<<20))...)
	pb.RegisterTestServiceServer(server, service)
	done := make(chan struct{})
	go func() { server.Serve(l); close(done) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return service
}

func openGRPC(t testing.TB, change func(*stage)) *grpcStage {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &grpcStage{testService: newTestService(t, l)}
	g.stage = openH2(t, func(s *stage) {
		s.config.Upstream = mustURL(t, "h2c://"+l.Addr().String())
		s.config.Rules.Policy = grpcRoutes(t)
		if change != nil {
			change(s)
		}
	})
	return g
}

// client is a gRPC client, whose every call has the token unless that is empty.
func (g *grpcStage) client(token string, options ...grpc.DialOption) (pb.TestServiceClient, *grpc.ClientConn) {
	g.t.Helper()
	bear := func(ctx context.Context) context.Context {
		if token == "" {
			return ctx
		}
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	c, err := grpc.NewClient("passthrough:///"+g.addr, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("api.example.com"), grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20)),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, in, out any, c *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			return invoke(bear(ctx), method, in, out, c, o...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, c *grpc.ClientConn, method string, stream grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(bear(ctx), d, c, method, o...)
		}),
	}, options...)...)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return pb.NewTestServiceClient(c), c
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func sizes(of ...int32) (made []*pb.ResponseParameters) {
	for _, n := range of {
		made = append(made, &pb.ResponseParameters{Size: n})
	}
	return made
}

func payload(n int) *pb.Payload { return &pb.Payload{Body: bytes.Repeat([]byte{7}, n)} }
