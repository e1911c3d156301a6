package oauth

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sallyport/sallyport/internal/jws"
)

// signedType is the media type, and the typ, of a signed answer (RFC 9701, section 5).
const signedType = "token-introspection+jwt"

// maxAge is how long after it was issued a signed answer is taken: it is to be of this question.
const maxAge = time.Minute

// readSigned takes an answer that is one JWT, and no other.
func readSigned(response *http.Response) (string, error) {
	data, err := readBody(response, "application/"+signedType)
	if err != nil {
		return "", err
	}
	if response.StatusCode == http.StatusOK {
		return string(data), nil
	}
	answer, err := jws.Object(data)
	if err != nil {
		return "", fmt.Errorf("read answer: %w", err)
	}
	return "", refusedBy(answer)
}

// Statement judges a signed answer (RFC 9701, section 5), whose signature has been verified: that it is one, of this issuer, for
// this client, of now. It returns what the answer says of the token. typ is in lower case, without "application/".
func Statement(typ string, claims map[string]any, issuer, client string, now time.Time, leeway time.Duration) (map[string]any, error) {
	issued, isTime := claims["iat"].(int64)
	said, isObject := claims["token_introspection"].(map[string]any)
	switch at := time.Unix(issued, 0); {
	case typ != signedType:
		return nil, fmt.Errorf("the signed answer's typ is not %s", signedType)
	case claims["iss"] != any(issuer):
		return nil, errors.New("the signed answer's iss is not the issuer")
	case !isFor(claims["aud"], client):
		return nil, errors.New("the signed answer's aud is not this client")
	case !isTime || at.Add(-leeway).After(now) || now.After(at.Add(maxAge+leeway)):
		return nil, fmt.Errorf("the signed answer has no iat of the last %s", maxAge)
	case !isObject:
		return nil, errors.New("the signed answer has no token_introspection that is an object")
	}
	for _, name := range []string{"exp", "nbf"} { // which need not be there
		value, there := claims[name]
		seconds, ok := value.(int64)
		at := time.Unix(seconds, 0)
		if there && (!ok || name == "exp" && !now.Before(at.Add(leeway)) || name == "nbf" && now.Add(leeway).Before(at)) {
			return nil, fmt.Errorf("the signed answer is not valid now: %s", name)
		}
	}
	return said, nil
}

// isFor says whether aud, a string or an array of strings, names the client.
func isFor(aud any, client string) bool {
	list, ok := aud.([]any)
	if !ok {
		return aud == any(client)
	}
	found := false
	for _, element := range list {
		s, ok := element.(string)
		if !ok {
			return false
		}
		found = found || s == client
	}
	return found
}
