package sallytest

import (
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"time"
)

// PathIntrospection is where an Issuer is asked about its opaque tokens (RFC 7662), by anybody who says who they are. Whoever
// accepts a signed answer (RFC 9701) gets one.
const PathIntrospection = "/introspect"

// opaque is what an Issuer knows of the opaque tokens that it has made.
type opaque struct {
	tokens map[string]map[string]any
	answer func(w http.ResponseWriter, r *http.Request) // in place of the issuer's own; nil: none
}

// Opaque makes an opaque token: what Claims(overrides) are of a JWT, the answer says of it.
func (i *Issuer) Opaque(overrides map[string]any) string {
	token, claims := rand.Text()+rand.Text(), i.Claims(overrides)
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.opaque.tokens == nil {
		i.opaque.tokens = map[string]map[string]any{}
	}
	i.opaque.tokens[token] = claims
	return token
}

// End has an opaque token be active no more.
func (i *Issuer) End(token string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.opaque.tokens, token)
}

// Answer has f answer at PathIntrospection; nil: the issuer itself again.
func (i *Issuer) Answer(f func(w http.ResponseWriter, r *http.Request)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.opaque.answer = f
}

func (i *Issuer) introspect(w http.ResponseWriter, r *http.Request) {
	id, _, _ := r.BasicAuth()
	if id == "" {
		id = r.PostFormValue("client_id")
	}
	i.mu.Lock()
	claims, active := i.opaque.tokens[r.PostFormValue("token")]
	answer := i.opaque.answer
	i.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	if id == "" && r.PostFormValue("client_assertion") == "" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	said := map[string]any{"active": active}
	maps.Copy(said, claims)
	if r.Header.Get("Accept") != "application/token-introspection+jwt" {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(said)
		return
	}
	w.Header().Set("Content-Type", "application/token-introspection+jwt")
	_, _ = w.Write([]byte(i.SignedAnswer(id, said, nil, nil)))
}

// SignedAnswer is an answer for a client as RFC 9701 has it, with header and claims changed; a nil value takes a member away.
func (i *Issuer) SignedAnswer(client string, said, header, claims map[string]any) string {
	change := func(o, changes map[string]any) string {
		maps.Copy(o, changes)
		maps.DeleteFunc(o, func(_ string, v any) bool { return v == nil })
		data, err := json.Marshal(o)
		if err != nil {
			panic(err)
		}
		return string(data)
	}
	now := time.Now
	if i.Now != nil {
		now = i.Now
	}
	return i.Sign("ES256",
		change(map[string]any{"alg": "ES256", "kid": i.KeyID("ES256"), "typ": "token-introspection+jwt"}, header),
		change(map[string]any{"iss": i.URL, "aud": client, "iat": now().Unix(), "token_introspection": said}, claims))
}
