package forwardauth

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/internal/ingress"
)

// tell answers the proxy.
func (s *Server) tell(w http.ResponseWriter, v ingress.Verdict) {
	h := w.Header()
	for name, values := range v.Header {
		h[name] = values
	}
	h["Cache-Control"] = []string{"no-store"} // a proxy that keeps answers would keep a permission
	if v.Allowed {
		for name, values := range v.Forward {
			h[name] = values
		}
		h["X-Sallyport-Target"] = []string{v.Target}
		if s.dialect.removes && len(v.Remove) > 0 {
			h["X-Envoy-Auth-Headers-To-Remove"] = []string{strings.ToLower(strings.Join(v.Remove, ","))}
		}
		w.WriteHeader(http.StatusOK)
		return
	}
	status := v.Status
	switch {
	case status == 0:
		status = http.StatusInternalServerError
	case status < 400: // a preflight, which is no allow
		status = http.StatusForbidden
	}
	if s.dialect.twoDenials {
		h["X-Sallyport-Status"] = []string{strconv.Itoa(status)}
		if c := h["Www-Authenticate"]; len(c) > 1 { // it hands the first line on alone
			h["Www-Authenticate"] = []string{strings.Join(c, ", ")}
		}
		h["X-Sallyport-Code"] = []string{string(v.Code)}
		if len(v.Body) > 0 {
			h["X-Sallyport-Problem"] = []string{string(v.Body)} // one line of JSON
		}
		if status != http.StatusUnauthorized {
			status = http.StatusForbidden
		}
	}
	w.WriteHeader(status)
	w.Write(v.Body)
}
