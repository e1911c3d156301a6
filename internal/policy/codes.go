package policy

// Code is a stable reason, the same word in the answer, the record and the metric.
type Code string

// The codes that this package gives. What each one means stands in Codes.
const (
	Allowed           Code = "allowed"
	AllowedPublic     Code = "public"
	NoRoute           Code = "no_route"
	MethodNotAllowed  Code = "method_not_allowed"
	PathAmbiguous     Code = "path_ambiguous"
	PathSpecial       Code = "path_special"
	PublicExpired     Code = "public_expired"
	MissingToken      Code = "missing_token"
	InsufficientScope Code = "insufficient_scope"
	ConditionFalse    Code = "condition_false"
	PolicyError       Code = "policy_error"

	// InsufficientAuthentication is that of RFC 9470, section 3.
	InsufficientAuthentication Code = "insufficient_user_authentication"
)

// CodeMeaning explains one code.
type CodeMeaning struct {
	Code    Code
	Meaning string // one sentence
}

// Codes lists every code that Select and Decide give, for the documentation and for the fixed labels of a metric.
func Codes() []CodeMeaning {
	return []CodeMeaning{
		{Allowed, "The caller has what the route asks for."},
		{AllowedPublic, "The route is public and its expiry lies ahead."},
		{NoRoute, "No route has this path."},
		{MethodNotAllowed, "Routes have this path, but none of them this method."},
		{PathAmbiguous, "A service may read the path as one that another route, with another requirement, decides."},
		{PathSpecial, "The path holds %2F or \";\", and the selected route does not allow that in its captures."},
		{PublicExpired, "The route was public until its expiry and is closed since."},
		{MissingToken, "The route asks for a verified caller and there is none."},
		{InsufficientScope, "The caller's token lacks a scope that the route asks for."},
		{InsufficientAuthentication, "The caller's user has not logged in as the route asks for, or not lately enough."},
		{ConditionFalse, "The route's condition is false for this caller and request."},
		{PolicyError, "The route's condition could not be evaluated."},
	}
}
