package policy

import (
	"slices"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// aheadLogin is how far an issuer's clock may be ahead of ours when it says that somebody has just logged in.
const aheadLogin = 5 * time.Second

// lastSecond is the end of the year 9999: what is later is no date.
const lastSecond = 253402300799

// loggedIn is why a caller's user has not logged in as the route asks for (RFC 9470, section 4); empty: it has. What the token
// does not say, or not in its form, is not so.
func (r *route) loggedIn(caller *identity.Caller, now time.Time) string {
	if len(r.ACR) > 0 {
		acr, ok := caller.Claims["acr"].(string)
		switch {
		case !ok:
			return "the token has no acr that is a string, and the route asks for one"
		case !slices.Contains(r.ACR, acr):
			return "the token's acr is none of those that the route asks for"
		}
	}
	if r.MaxAge <= 0 {
		return ""
	}
	seconds, ok := caller.Claims["auth_time"].(int64)
	at := time.Unix(seconds, 0)
	switch {
	case !ok || seconds <= 0 || seconds > lastSecond:
		return "the token has no auth_time that is a whole number of seconds, and the route asks for one"
	case at.After(now.Add(aheadLogin)):
		return "the token's auth_time lies ahead"
	case now.Sub(at) > r.MaxAge:
		return "the token's auth_time is " + now.Sub(at).Round(time.Second).String() + " ago, and the route asks for " + r.MaxAge.String() + " at most"
	}
	return ""
}
