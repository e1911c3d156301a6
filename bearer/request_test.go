package bearer

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestFromRequest(t *testing.T) {
	for _, test := range []struct {
		name    string
		headers []string
		query   string
		cookie  string
		token   string
		code    string
		status  int
	}{
		{name: "good", headers: []string{"Bearer abc.def.ghi"}, token: "abc.def.ghi"},
		{name: "scheme in lower case", headers: []string{"bearer abc"}, token: "abc"},
		{name: "scheme in capitals", headers: []string{"BEARER abc"}, token: "abc"},
		{name: "every character of a token", headers: []string{"Bearer aZ09-._~+/=="}, token: "aZ09-._~+/=="},
		{name: "another parameter in the query", headers: []string{"Bearer abc"}, query: "a=access_token&token=x&my_access_token=y&access_tokens", token: "abc"},
		{name: "another cookie", headers: []string{"Bearer abc"}, cookie: "session=x; a=access_token; my_access_token=y", token: "abc"},

		{name: "no header", code: codeMissing, status: 401},
		{name: "no header, token in the query", query: "access_token=abc", code: codeMissing, status: 401},
		{name: "no header, token in a cookie", cookie: "access_token=abc", code: codeMissing, status: 401},

		{name: "two headers", headers: []string{"Bearer abc", "Bearer abc"}, code: codeMultiple, status: 400},
		{name: "two headers, the second empty", headers: []string{"Bearer abc", ""}, code: codeMultiple, status: 400},
		{name: "two headers of two schemes", headers: []string{"Basic abc", "Bearer abc"}, code: codeMultiple, status: 400},
		{name: "joined with a comma", headers: []string{"Bearer a, Bearer b"}, code: codeMultiple, status: 400},
		{name: "joined without a space", headers: []string{"Bearer a,Bearer b"}, code: codeMultiple, status: 400},
		{name: "joined with another scheme before", headers: []string{"Basic a, bearer b"}, code: codeMultiple, status: 400},
		{name: "joined with another scheme after", headers: []string{"Bearer a, Basic b"}, code: codeMultiple, status: 400},
		{name: "joined in third place", headers: []string{"Basic a, Basic b,\tBearer c"}, code: codeMultiple, status: 400},
		{name: "token in the query too", headers: []string{"Bearer abc"}, query: "x=1&access_token=abc", code: codeMultiple, status: 400},
		{name: "empty token in the query too", headers: []string{"Bearer abc"}, query: "access_token", code: codeMultiple, status: 400},
		{name: "token in the query, escaped", headers: []string{"Bearer abc"}, query: "access%5ftoken=abc", code: codeMultiple, status: 400},
		{name: "token in the query after a semicolon", headers: []string{"Bearer abc"}, query: "x=1;access_token=abc", code: codeMultiple, status: 400},
		{name: "token in the query, in capitals", headers: []string{"Bearer abc"}, query: "ACCESS_TOKEN=abc", code: codeMultiple, status: 400},
		{name: "token in the query, as an array", headers: []string{"Bearer abc"}, query: "access_token[]=abc", code: codeMultiple, status: 400},
		{name: "token in the query, as an escaped array", headers: []string{"Bearer abc"}, query: "access_token%5B0%5D=abc", code: codeMultiple, status: 400},
		{name: "token in the query, value badly escaped", headers: []string{"Bearer abc"}, query: "access_token=%zz", code: codeMultiple, status: 400},
		{name: "token in a cookie too", headers: []string{"Bearer abc"}, cookie: "a=b; access_token=abc", code: codeMultiple, status: 400},

		{name: "token in a cookie behind more than net/http reads", headers: []string{"Bearer abc"}, cookie: strings.Repeat(";", 3001) + "access_token=abc", code: codeMultiple, status: 400},
		{name: "token in a cookie that net/http leaves out", headers: []string{"Bearer abc"}, cookie: `access_token=a\b`, code: codeMultiple, status: 400},
		{name: "token in a cookie behind a comma", headers: []string{"Bearer abc"}, cookie: `a=b, access_token=abc`, code: codeMultiple, status: 400},
		{name: "token in a cookie in capitals", headers: []string{"Bearer abc"}, cookie: "a=b;Access_Token = abc", code: codeMultiple, status: 400},
		{name: "token in a cookie without a value", headers: []string{"Bearer abc"}, cookie: "access_token", code: codeMultiple, status: 400},

		{name: "empty header", headers: []string{""}, code: codeMalformed, status: 400},
		{name: "scheme alone", headers: []string{"Bearer"}, code: codeMalformed, status: 400},
		{name: "scheme and a space", headers: []string{"Bearer "}, code: codeMalformed, status: 400},
		{name: "two spaces", headers: []string{"Bearer  abc"}, code: codeMalformed, status: 400},
		{name: "a tab", headers: []string{"Bearer\tabc"}, code: codeMalformed, status: 400},
		{name: "a space and a tab", headers: []string{"Bearer \tabc"}, code: codeMalformed, status: 400},
		{name: "a space after", headers: []string{"Bearer abc "}, code: codeMalformed, status: 400},
		{name: "a space before", headers: []string{" Bearer abc"}, code: codeMalformed, status: 400},
		{name: "a no-break space", headers: []string{"Bearer\u00a0abc"}, code: codeMalformed, status: 400},
		{name: "a no-break space in Latin-1", headers: []string{"Bearer\xa0abc"}, code: codeMalformed, status: 400},
		{name: "a comma for the space", headers: []string{"Bearer,abc"}, code: codeMalformed, status: 400},
		{name: "a comma in the token", headers: []string{"Bearer a,b"}, code: codeMalformed, status: 400},
		{name: "a comma after the token", headers: []string{"Bearer abc,"}, code: codeMalformed, status: 400},
		{name: "a quoted token", headers: []string{`Bearer "abc"`}, code: codeMalformed, status: 400},
		{name: "a parameter", headers: []string{"Bearer token=abc"}, code: codeMalformed, status: 400},
		{name: "padding alone", headers: []string{"Bearer =="}, code: codeMalformed, status: 400},
		{name: "a token in two parts", headers: []string{"Bearer abc def"}, code: codeMalformed, status: 400},
		{name: "NUL in the token", headers: []string{"Bearer a\x00b"}, code: codeMalformed, status: 400},
		{name: "a colon after the scheme", headers: []string{"Bearer: abc"}, code: codeMalformed, status: 400},

		{name: "Basic with the token as a password", headers: []string{"Basic OmFiYw=="}, code: codeScheme, status: 401},
		{name: "DPoP", headers: []string{"DPoP abc"}, code: codeScheme, status: 401},
		{name: "Digest with its list", headers: []string{`Digest username="a", realm="b"`}, code: codeScheme, status: 401},
		{name: "a token without scheme", headers: []string{"abc.def.ghi"}, code: codeScheme, status: 401},
		{name: "a longer scheme", headers: []string{"BearerX abc"}, code: codeScheme, status: 401},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &http.Request{Header: http.Header{}, URL: &url.URL{RawQuery: test.query}, Body: unreadable{t}}
			for _, value := range test.headers {
				r.Header.Add("Authorization", value)
			}
			if test.cookie != "" {
				r.Header.Set("Cookie", test.cookie)
			}
			token, err := FromRequest(r)
			if test.code == "" {
				if err != nil || *token.raw != test.token {
					t.Fatalf("got %v, %v", token.raw, err)
				}
				return
			}
			refusal := refusalOf(t, err, "")
			if token != (Token{}) || refusal.Code != test.code || refusal.Status() != test.status {
				t.Errorf("got %v (%d), want %s (%d)", refusal, refusal.Status(), test.code, test.status)
			}
		})
	}
}

// unreadable is the body of a form that may hold a token: it is none of our business.
type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("the body is read")
	return 0, http.ErrBodyNotAllowed
}
func (u unreadable) Close() error { return nil }

// FuzzFromHeader: what is taken is what stands after the one space, and nothing that could be read as two credentials.
func FuzzFromHeader(f *testing.F) {
	for _, seed := range []string{"Bearer abc", "bearer a.b.c=", "Bearer  a", "Bearer a, Bearer b", "Basic a", "Bearer\u00a0a", "DPoP abc", "DPoP a, Bearer b", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		strict, dpop, strictErr := fromHeader(value, false)
		if dpop {
			t.Errorf("%q is taken as DPoP by who takes none", value)
		}
		token, dpop, err := fromHeader(value, true)
		if !dpop && ((err == nil) != (strictErr == nil) || err == nil && *token.raw != *strict.raw) || dpop && strictErr == nil {
			t.Errorf("%q: %v, and with proofs %v", value, strictErr, err)
		}
		if err != nil {
			refusalOf(t, err, "")
			return
		}
		scheme := "Bearer "
		if dpop {
			scheme = "DPoP "
		}
		if len(value) <= len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) || value[len(scheme):] != *token.raw {
			t.Errorf("%q is read as %q", value, *token.raw)
		}
		if strings.ContainsAny(*token.raw, " \t\r\n\",;\x00") || *token.raw != strings.ToValidUTF8(*token.raw, "") {
			t.Errorf("%q is taken for a token", *token.raw)
		}
	})
}
