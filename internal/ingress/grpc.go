package ingress

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/internal/policy"
)

// The gate understands of gRPC what "gRPC over HTTP2" (grpc/doc/PROTOCOL-HTTP2.md) says of requests, of the prefix of each
// message (grpc_message.go), and of how a call is told that it has failed.

const grpcType = "application/grpc"

// Status codes of gRPC (grpc/doc/statuscodes.md).
const (
	grpcInvalidArgument   = 3
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcUnimplemented     = 12
	grpcInternal          = 13
	grpcUnavailable       = 14
	grpcUnauthenticated   = 16
)

// grpcStatus is the one table from the status that answers a code to that of gRPC. A call that was let in and has lost what
// it was let in for is UNAUTHENTICATED, whatever it lost: to begin again, with a token, is what helps.
func grpcStatus(code policy.Code, status int) int {
	switch code {
	case lostRevoked, lostExpired, lostKey, lostRoute:
		return grpcUnauthenticated
	}
	switch status {
	case http.StatusUnauthorized:
		return grpcUnauthenticated
	case http.StatusForbidden:
		return grpcPermissionDenied
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType:
		return grpcUnimplemented
	case http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge, http.StatusTooManyRequests:
		return grpcResourceExhausted
	case http.StatusRequestTimeout, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return grpcUnavailable
	case http.StatusBadRequest, http.StatusExpectationFailed:
		return grpcInvalidArgument
	default:
		return grpcInternal
	}
}

// isGRPC reports whether a request wants an answer in gRPC: what of its content type begins like that is it, alone or with a
// message format.
func isGRPC(r *http.Request) bool {
	types := r.Header["Content-Type"]
	if r.ProtoMajor != 2 || len(types) != 1 || !likeGRPC(types[0]) {
		return false
	}
	rest := types[0][len(grpcType):]
	return rest == "" || rest[0] == '+' || rest[0] == ';'
}

// likeGRPC reports whether a content type begins like that of gRPC: one of gRPC-Web does too.
func likeGRPC(s string) bool {
	return len(s) >= len(grpcType) && strings.EqualFold(s[:len(grpcType)], grpcType)
}

// checkGRPC refuses, before a service that speaks gRPC, what says that it is and is not: a service may be of another opinion.
func (x *exchange) checkGRPC() bool {
	if !x.g.transport.grpc {
		return true
	}
	like := false
	for _, t := range x.r.Header["Content-Type"] {
		like = like || likeGRPC(strings.TrimLeft(t, " \t"))
	}
	switch {
	case !like:
		return true
	case !x.grpc:
		return x.deny(codeGRPCType, "the content type begins like gRPC, and is not that of a gRPC request over HTTP/2")
	case x.r.Method != http.MethodPost:
		return x.deny(codeGRPCMalformed, "a gRPC request is a POST")
	case len(x.r.Header["Te"]) != 1 || x.r.Header["Te"][0] != "trailers":
		return x.deny(codeGRPCMalformed, "a gRPC request has te: trailers")
	case x.target.RawQuery != "" || x.target.ForceQuery:
		return x.deny(codeGRPCMalformed, "a gRPC request has no query")
	}
	return true
}

// answerGRPC is answer for a gRPC call: HTTP status 200 and the rest in one header that is a trailer too (Trailers-Only). On
// record is the status that the code has elsewhere.
func (x *exchange) answerGRPC(code policy.Code, status int) {
	h := x.w.Header()
	h.Set("Content-Type", grpcType)
	x.sayGRPC(h, "", code, status)
	x.w.WriteHeader(http.StatusOK)
	x.w.status = status
}

// endGRPC ends an answer that has begun, in its trailers, where the call can still be told why. It reports whether it did.
func (x *exchange) endGRPC(res *http.Response) bool {
	code := x.reason(x.readErr)
	if !x.grpc || code == codeClientGone {
		return false
	}
	res.Trailer = nil // the service's, of which there are none
	x.sayGRPC(x.w.Header(), http.TrailerPrefix, code, status(code))
	return true
}

func (x *exchange) sayGRPC(h http.Header, prefix string, code policy.Code, status int) {
	h[prefix+"Grpc-Status"] = []string{strconv.Itoa(grpcStatus(code, status))}
	h[prefix+"Grpc-Message"] = []string{"sallyport: " + string(code)} // nothing that must be escaped
	h[prefix+"X-Sallyport-Code"] = []string{string(code)}
	if prefix != "" {
		h[prefix+"X-Request-Id"] = []string{x.id}
	}
}
