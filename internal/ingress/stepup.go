package ingress

import (
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
)

// stepUp is the part of a challenge that tells the client how its user must have logged in for a route (RFC 9470, section 3).
func stepUp(r *policy.Route) string {
	var v string
	if len(r.ACR) > 0 {
		v += `, acr_values="` + strings.Join(r.ACR, " ") + `"`
	}
	if r.MaxAge > 0 {
		v += `, max_age="` + strconv.FormatInt(int64(r.MaxAge/time.Second), 10) + `"`
	}
	return v
}
