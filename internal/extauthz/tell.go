package extauthz

import (
	"net/http"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/sallyport/sallyport/internal/ingress"
)

// tell makes an answer of a verdict. The message of the status is a code, and never what the client sent.
func tell(v ingress.Verdict) *authv3.CheckResponse {
	if !v.Allowed {
		return denied(v)
	}
	ok := &authv3.OkHttpResponse{Headers: set(v.Forward)}
	for _, name := range v.Remove {
		ok.HeadersToRemove = append(ok.HeadersToRemove, strings.ToLower(name))
	}
	for _, o := range set(v.Header) {
		switch o.Header.Key {
		case "cache-control": // the service may have said so more exactly
			o.AppendAction = corev3.HeaderValueOption_ADD_IF_ABSENT
		case "vary":
			o.AppendAction = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
		}
		ok.ResponseHeadersToAdd = append(ok.ResponseHeadersToAdd, o)
	}
	return &authv3.CheckResponse{
		Status:       grpcstatus.New(codes.OK, "").Proto(),
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok},
	}
}

func denied(v ingress.Verdict) *authv3.CheckResponse {
	status, code := v.Status, codes.PermissionDenied
	if _, known := typev3.StatusCode_name[int32(status)]; !known || status == 0 {
		status = http.StatusInternalServerError
	}
	switch status {
	case http.StatusUnauthorized:
		code = codes.Unauthenticated
	case http.StatusServiceUnavailable:
		code = codes.Unavailable
	}
	return &authv3.CheckResponse{
		Status: grpcstatus.New(code, string(v.Code)).Proto(),
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode(status)}, Headers: set(v.Header), Body: string(v.Body),
		}},
	}
}

// set lists headers to be set in place of whatever is there. Several values of one name become a list.
func set(h http.Header) []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	for name, values := range h {
		out = append(out, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: strings.ToLower(name), Value: strings.Join(values, ", ")},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	slices.SortFunc(out, func(a, b *corev3.HeaderValueOption) int { return strings.Compare(a.Header.Key, b.Header.Key) })
	return out
}
