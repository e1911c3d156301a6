package identity

import (
	"strings"
	"time"
)

// payload is what an assertion says.
type payload struct {
	issuer, domain, service string
	issued                  int64
	caller                  Caller
}

// readPayload reads the claims of an assertion. A claim that no assertion has
// is an error, at each level but that of the claims passed on.
func readPayload(claims map[string]any) (payload, error) {
	var first error
	p := claimReader{object: claims, err: &first}
	requester, transaction := p.section("rctx"), p.section("tctx")
	out := payload{
		issuer: p.required("iss"), domain: p.required("aud"), service: transaction.required("service"), issued: p.seconds("iat"),
		caller: Caller{
			Issuer:      requester.required("iss"),
			Subject:     p.required("sub"),
			Client:      requester.optional("client_id"),
			Scopes:      p.scopes(),
			TokenID:     requester.optional("jti"),
			Digest:      requester.optional("digest"),
			Expires:     time.Unix(p.seconds("exp"), 0),
			Claims:      transaction.claims(),
			Route:       transaction.required("route"),
			RequestID:   p.required("jti"),
			Transaction: p.required("txn"),
			Workloads:   p.workloads(),
		},
	}
	c := &out.caller
	if _, ok := requester.object["iat"]; ok {
		c.IssuedAt = time.Unix(requester.seconds("iat"), 0)
	}
	if (c.TokenID == "") == (c.Digest == "") {
		p.fail("claim_invalid", "rctx has neither or both of jti and digest")
	}
	p.session(c, requester.optional("sid"))
	p.nothingElse("iss", "aud", "sub", "txn", "jti", "scope", "req_wl", "rctx", "tctx", "iat", "exp")
	requester.nothingElse("iss", "jti", "digest", "client_id", "sid", "iat")
	transaction.nothingElse("service", "route", "claims")
	return out, first
}

// claimReader takes the members of one object of a payload. The first error, of all objects, stays.
type claimReader struct {
	object map[string]any
	at     string // what stands before a name in an error: "rctx."
	err    *error
}

func (p claimReader) fail(code, detail string) {
	if *p.err == nil {
		*p.err = refuse(code, detail)
	}
}

// section returns the reader of an object that must be there.
func (p claimReader) section(name string) claimReader {
	value, ok := p.object[name]
	if !ok {
		p.fail("claim_missing", name+" is missing")
	} else if _, ok = value.(map[string]any); !ok {
		p.fail("claim_invalid", name+" is not an object")
	}
	object, _ := value.(map[string]any)
	return claimReader{object: object, at: name + ".", err: p.err}
}

func (p claimReader) required(name string) string {
	if _, ok := p.object[name]; !ok {
		p.fail("claim_missing", p.at+name+" is missing")
		return ""
	}
	return p.optional(name)
}

// optional returns a string, empty if there is none. One that is there is not
// empty, and holds no control character, because it goes into records.
func (p claimReader) optional(name string) string {
	value, ok := p.object[name]
	if !ok {
		return ""
	}
	s, _ := value.(string)
	if s == "" || strings.ContainsFunc(s, isControl) {
		p.fail("claim_invalid", p.at+name+" is not a string, is empty or has a control character")
	}
	return s
}

// seconds returns a time as a positive number of seconds since 1970.
func (p claimReader) seconds(name string) int64 {
	value, ok := p.object[name]
	if !ok {
		p.fail("claim_missing", p.at+name+" is missing")
		return 0
	}
	n, _ := value.(int64)
	if n <= 0 {
		p.fail("claim_invalid", p.at+name+" is not a positive integer")
	}
	return n
}

func (p claimReader) scopes() []string {
	joined := p.optional("scope")
	if joined == "" {
		return nil
	}
	scopes := strings.Split(joined, " ")
	for _, s := range scopes {
		if !isScope(s) {
			p.fail("claim_invalid", "scope is not a list of scopes with one space between two")
		}
	}
	return scopes
}

func (p claimReader) workloads() []string {
	workloads := strings.Split(p.required("req_wl"), ",")
	if len(workloads) > maxWorkloads {
		p.fail("claim_invalid", "req_wl names more than 8 services")
	}
	for _, w := range workloads {
		if !isWorkload(w) {
			p.fail("claim_invalid", "req_wl is not a list of services with one comma between two")
		}
	}
	return workloads
}

func (p claimReader) claims() map[string]any {
	value, ok := p.object["claims"]
	if !ok {
		return nil
	}
	claims, _ := value.(map[string]any)
	if len(claims) == 0 {
		p.fail("claim_invalid", p.at+"claims is not an object, or empty")
	}
	return claims
}

// session puts the token's sid among the claims, where a caller has it.
func (p claimReader) session(c *Caller, sid string) {
	passed, ok := c.Claims["sid"]
	switch {
	case sid == "":
		if s, _ := passed.(string); s != "" {
			p.fail("claim_invalid", "tctx.claims has a sid that rctx has not")
		}
	case ok && passed != any(sid):
		p.fail("claim_invalid", "rctx and tctx.claims have different sids")
	case c.Claims == nil:
		c.Claims = map[string]any{"sid": sid}
	default:
		c.Claims["sid"] = sid
	}
}

// nothingElse refuses an object with a member that none of ours has.
func (p claimReader) nothingElse(names ...string) {
	known := 0
	for _, name := range names {
		if _, ok := p.object[name]; ok {
			known++
		}
	}
	if known != len(p.object) {
		p.fail("claim_unexpected", "there is a claim that no assertion has: "+p.at+"*")
	}
}
