package bearer

import (
	"slices"
	"strings"
	"testing"
)

func TestKindVectors(t *testing.T) { testVectors(t, kindsPath, makeKindVectors, 20, 80) }

var kindsReadme = []string{
	"Tokens of each kind of issuer that must be accepted or refused, in the form of tokens.json. bearer/vectorkinds_test.go writes this file",
	"(go test ./bearer -run TestKindVectors -update) and reads it. \"kind\" is the issuer's; \"bound_to\" what a Kubernetes token must be bound to;",
	"\"trust_domain\" whose SPIFFE IDs an issuer signs. A token without iss is of the issuer of the trust domain in its sub.",
	"The private keys were thrown away.",
}

// kindKeys are the private keys of one issuer of each kind.
type kindKeys struct{ login, cluster, nodes, tools, domain, federated, x509 signer }

func makeKindVectors() vectors {
	k := kindKeys{
		newSigner("login", "ES256"), newSigner("cluster", "RS256"), newSigner("nodes", "ES256"), newSigner("tools", "ES256"),
		newSigner("svid", "ES256"), newSigner("federated", "RS256"), newSigner("x509", "ES256"),
	}
	issuer := func(kind, name string, algorithms, types []string, keys ...object) vectorIssuer {
		return vectorIssuer{
			Issuer: name, Audience: []string{testAudience}, Algorithms: algorithms, TokenTypes: types, MaxLifetime: 3600, Leeway: 5,
			Required: []string{}, Only: []string{}, ScopeClaim: "scope", Kind: kind, JWKS: []byte(jwks(keys...)),
		}
	}
	plain := []string{"ES256", "RS256"}
	cluster := issuer(KindKubernetes, "https://kubernetes.default.svc.cluster.local", plain, []string{}, k.cluster.jwk())
	cluster.BoundTo = "pod"
	nodes := issuer(KindKubernetes, "https://nodes.example.com", plain, []string{}, k.nodes.jwk())
	nodes.BoundTo = "node"
	tools := issuer(KindKubernetes, "https://tools.example.com", plain, []string{}, k.tools.jwk())
	tools.BoundTo = "any"
	domain := issuer(KindSPIFFE, "spiffe://example.org", plain, []string{},
		k.domain.jwk(object{"use": "jwt-svid", "alg": nil}), k.x509.jwk(object{"use": "x509-svid", "alg": nil}))
	domain.TrustDomain = "example.org"
	federated := issuer(KindSPIFFE, "https://oidc.example.net", plain, []string{}, k.federated.jwk())
	federated.TrustDomain = "example.net"
	return vectors{
		Readme: kindsReadme, Now: testNow,
		Issuers: []vectorIssuer{issuer(KindOAuth, testIssuer, plain, []string{"at+jwt", "JWT"}, k.login.jwk()), cluster, nodes, tools, domain, federated},
		Cases:   slices.Concat(k.loginVectors(), k.clusterVectors(), k.svidVectors()),
	}
}

// loginVectors are access tokens and ID tokens as authorization servers make them.
func (k kindKeys) loginVectors() []vector {
	now := testNow.Unix()
	base := object{"iss": testIssuer, "aud": testAudience, "sub": "alice", "iat": now - 10, "exp": now + 300}
	typed := func(typ string, changes object) string {
		return k.login.raw(mustJSON(object{"alg": "ES256", "kid": "login", "typ": typ}), mustJSON(with(base, changes)))
	}
	good := func(name string, changes object) vector { return accepted(name, typed("JWT", changes)) }
	id := func(name string, changes object) vector {
		return authentic(codeIDToken, name, typed("JWT", changes))
	}
	return []vector{
		good("an access token as Auth0 makes it", object{"aud": []any{testAudience, "https://tenant.auth0.example/userinfo"}, "azp": "spa", "scope": "openid profile orders:read", "permissions": []any{"orders:read"}}),
		good("an access token as Auth0 makes it for a machine", object{"azp": "m2m", "gty": "client-credentials"}),
		good("an access token as Entra makes it, v2", object{"azp": "9e6", "azpacr": "0", "scp": "orders.read", "oid": "0-1", "tid": "2-3", "uti": "x", "ver": "2.0", "aio": "A", "rh": "0.A", "name": "Alice"}),
		good("an access token as Entra makes it for a machine", object{"azp": "9e6", "azpacr": "1", "roles": []any{"orders.read"}, "idtyp": "app", "ver": "2.0"}),
		good("an access token as Entra makes it, v1", object{"appid": "9e6", "appidacr": "0", "scp": "orders.read", "ver": "1.0", "unique_name": "alice"}),
		good("an access token as Keycloak makes it", object{"typ": "Bearer", "azp": "web", "auth_time": now - 20, "sid": "s", "acr": "1", "scope": "openid email", "realm_access": object{"roles": []any{"user"}}}),
		good("an access token as Keycloak made it, with the nonce", object{"typ": "Bearer", "azp": "web", "auth_time": now - 20, "nonce": "n", "scope": "openid"}),
		good("an access token as Keycloak makes it without a scope", object{"typ": "Bearer", "azp": "web", "auth_time": now - 20, "nonce": "n"}),
		good("an access token as Keycloak makes it, bound", object{"typ": "DPoP", "azp": "web", "nonce": "n"}),
		good("an access token as Okta makes it", object{"cid": "0oa", "uid": "00u", "scp": []any{"orders:read"}, "auth_time": now - 20, "ver": 1}),
		good("an access token as Cognito makes it", object{"token_use": "access", "client_id": "c", "auth_time": now - 20, "scope": "orders/read", "origin_jti": "o"}),
		good("an access token by RFC 9068, but for its type", object{"client_id": "c", "azp": "c", "auth_time": now - 20, "acr": "1", "amr": []any{"pwd"}, "jti": "1"}),
		good("a token of our own making", object{"tenant": "acme"}),
		accepted("at+jwt says that it is none", typed("at+jwt", object{"nonce": "n", "auth_time": now - 20, "azp": "web", "at_hash": "h"})),
		accepted("at+jwt in full says so too", typed("application/at+jwt", object{"nonce": "n"})),

		id("an ID token as Auth0 makes it", object{"nonce": "n", "sid": "s", "name": "Alice", "email": "a@example.com"}),
		id("an ID token as Entra makes it", object{"nonce": "n", "roles": []any{"orders.read"}, "preferred_username": "alice", "tid": "2-3", "ver": "2.0"}),
		id("an ID token as Entra makes it in the hybrid flow", object{"c_hash": "h", "oid": "0-1", "ver": "2.0"}),
		id("an ID token as Keycloak makes it", object{"typ": "ID", "azp": "web", "auth_time": now - 20, "at_hash": "h", "sid": "s", "acr": "1"}),
		id("an ID token as Keycloak makes it, less", object{"typ": "ID"}),
		id("an ID token as Okta makes it", object{"at_hash": "h", "amr": []any{"pwd"}, "auth_time": now - 20, "idp": "00o", "ver": 1}),
		id("an ID token as Cognito makes it", object{"token_use": "id", "auth_time": now - 20, "cognito:username": "alice"}),
		id("an ID token as Google makes it", object{"azp": "web", "at_hash": "h", "email": "a@example.com"}),
		id("a log-in for a party", object{"azp": "web", "auth_time": now - 20}),
		id("s_hash", object{"s_hash": "h", "scope": "orders:read"}),
		id("at_hash beside a scope", object{"at_hash": "h", "scope": "orders:read"}),
		id("at_hash in a token that calls itself a bearer token", object{"at_hash": "h", "typ": "Bearer"}),
		id("roles are no scope", object{"nonce": "n", "roles": []any{"admin"}, "groups": []any{"all"}}),
		authentic(codeIDToken, "an ID token for somebody else is one first", typed("JWT", object{"nonce": "n", "aud": "https://elsewhere.example.com"})),
	}
}

// podClaims are those of a token as a kubelet is given it for a pod (TokenRequest, Kubernetes 1.30).
func podClaims(issuer string) object {
	now := testNow.Unix()
	return object{
		"iss": issuer, "aud": []any{testAudience}, "sub": "system:serviceaccount:shop:orders", "jti": "5a6f1c4e-8f5b-4c3e-9a6b-0e6c2c1d7b1a",
		"iat": now - 10, "nbf": now - 10, "exp": now + 3000,
		"kubernetes.io": object{
			"namespace":      "shop",
			"serviceaccount": object{"name": "orders", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
			"pod":            object{"name": "orders-7d9c", "uid": "3a1d2f68-0f8f-4a4e-9d2b-6f5d4f1b8c11"},
			"node":           object{"name": "worker-1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
		},
	}
}

func (k kindKeys) clusterVectors() []vector {
	const home = "https://kubernetes.default.svc.cluster.local"
	now := testNow.Unix()
	sign := func(s signer, changes object) string {
		return s.raw(mustJSON(object{"alg": s.alg, "kid": s.kid}), mustJSON(changes))
	}
	pod := func(changes object) string { return sign(k.cluster, with(podClaims(home), changes)) }
	within := func(issuer string, changes object) object {
		claims := podClaims(issuer)
		return with(claims, object{"kubernetes.io": with(claims["kubernetes.io"].(object), changes)})
	}
	inside := func(changes object) string { return sign(k.cluster, within(home, changes)) }
	const nodes, tools = "https://nodes.example.com", "https://tools.example.com"
	reference := object{"name": "orders-7d9c", "uid": "3a1d2f68"}
	return []vector{
		accepted("a pod's token", pod(nil)),
		accepted("a pod's token, before nodes were named", inside(object{"node": nil})),
		accepted("a pod's token of typ JWT", k.cluster.raw(`{"alg":"RS256","kid":"cluster","typ":"JWT"}`, mustJSON(podClaims(home)))),
		accepted("a pod's token without jti, of an older cluster", pod(object{"jti": nil})),
		accepted("a pod's token that is warned about", inside(object{"warnafter": now + 100})),
		accepted("a node's token where it will do", sign(k.nodes, within(nodes, object{"pod": nil}))),
		accepted("a pod's token where a node's would do", sign(k.nodes, within(nodes, object{"node": nil}))),
		accepted("a token that nothing bounds where that will do", sign(k.tools, within(tools, object{"node": nil, "pod": nil}))),
		accepted("a Secret's token where that will do", sign(k.tools, within(tools, object{"node": nil, "pod": nil, "secret": object{"name": "s", "uid": "u"}}))),

		authentic(codeUnbound, "a node's token", inside(object{"pod": nil})),
		authentic(codeUnbound, "a token that nothing bounds", inside(object{"pod": nil, "node": nil})),
		authentic(codeUnbound, "a token that nothing bounds where a node's will do", sign(k.nodes, within(nodes, object{"node": nil, "pod": nil}))),
		authentic(codeLegacy, "a legacy token", sign(k.cluster, object{
			"iss": home, "sub": "system:serviceaccount:shop:orders", "kubernetes.io/serviceaccount/namespace": "shop",
			"kubernetes.io/serviceaccount/secret.name": "orders-token-x", "kubernetes.io/serviceaccount/service-account.name": "orders",
			"kubernetes.io/serviceaccount/service-account.uid": "14ee3fa4"})),
		authentic(codeIssuer, "a legacy token under its own name", sign(k.cluster, object{
			"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:shop:orders", "kubernetes.io/serviceaccount/namespace": "shop"})),
		authentic(codeLegacy, "a legacy token where anything will do", sign(k.tools, with(podClaims(tools), object{"kubernetes.io/serviceaccount/namespace": "shop"}))),
		authentic(codeAbsent, "no exp", pod(object{"exp": nil})),
		authentic(codeAbsent, "no iat in a cluster's token", pod(object{"iat": nil})),
		authentic(codeAbsent, "no aud in a cluster's token", pod(object{"aud": nil})),
		authentic(codeAbsent, "no kubernetes.io", pod(object{"kubernetes.io": nil})),
		authentic(codeAbsent, "kubernetes.io null", pod(object{"kubernetes.io": null})),
		authentic(codeAudience, "a token for the API server", pod(object{"aud": []any{home}})),
		authentic(codeExpired, "a pod's token that has expired", pod(object{"exp": now - 60})),
		authentic(codeLifetime, "a token of a year, as the API server extends them", pod(object{"exp": now + 365*86400})),
		authentic(codeType, "typ at+jwt is no cluster's", k.cluster.raw(`{"alg":"RS256","kid":"cluster","typ":"at+jwt"}`, mustJSON(podClaims(home)))),
		authentic(codeSubject, "another service account in sub", pod(object{"sub": "system:serviceaccount:shop:admin"})),
		authentic(codeSubject, "another namespace in sub", pod(object{"sub": "system:serviceaccount:kube-system:orders"})),
		authentic(codeSubject, "a user in sub", pod(object{"sub": "admin"})),
		authentic(codeSubject, "no sub in a cluster's token", pod(object{"sub": nil})),
		authentic(codeSubject, "another account in kubernetes.io", inside(object{"serviceaccount": object{"name": "admin", "uid": "u"}})),
		authentic(codeClaim, "a colon that moves", sign(k.cluster, with(within(home, object{"namespace": "shop:orders", "serviceaccount": object{"name": "x", "uid": "u"}}), object{"sub": "system:serviceaccount:shop:orders:x"}))),
		authentic(codeClaim, "kubernetes.io a string", pod(object{"kubernetes.io": "shop"})),
		authentic(codeClaim, "no namespace", inside(object{"namespace": nil})),
		authentic(codeClaim, "namespace a number", inside(object{"namespace": 1})),
		authentic(codeClaim, "no service account", inside(object{"serviceaccount": nil})),
		authentic(codeClaim, "a service account without uid", inside(object{"serviceaccount": object{"name": "orders"}})),
		authentic(codeClaim, "a service account without name", inside(object{"serviceaccount": object{"uid": "u"}})),
		authentic(codeClaim, "a pod without uid", inside(object{"pod": object{"name": "orders-7d9c"}})),
		authentic(codeClaim, "a pod that is a string", inside(object{"pod": "orders-7d9c"})),
		authentic(codeClaim, "a pod that is null", inside(object{"pod": null})),
		authentic(codeClaim, "a pod whose name is a path", inside(object{"pod": with(reference, object{"name": "../x"})})),
		authentic(codeClaim, "a node without name, beside a pod", inside(object{"node": object{"uid": "u"}})),
	}
}

func (k kindKeys) svidVectors() []vector {
	now := testNow.Unix()
	svid := func(s signer, header, changes object) string {
		claims := object{"sub": "spiffe://example.org/ns/shop/sa/orders", "aud": []any{testAudience}, "iat": now - 10, "exp": now + 290}
		return s.raw(mustJSON(with(object{"alg": s.alg, "kid": s.kid}, header)), mustJSON(with(claims, changes)))
	}
	good := func(name string, changes object) vector { return accepted(name, svid(k.domain, nil, changes)) }
	named := func(name string, sub any) vector {
		return authentic(codeIssuer, name, svid(k.domain, nil, object{"sub": sub}))
	}
	of := func(code, name string, sub any) vector {
		return authentic(code, name, svid(k.domain, nil, object{"iss": "spiffe://example.org", "sub": sub}))
	}
	return []vector{
		good("a JWT-SVID", nil),
		accepted("a JWT-SVID of typ JWT", svid(k.domain, object{"typ": "JWT"}, nil)),
		accepted("a JWT-SVID of typ JOSE", svid(k.domain, object{"typ": "JOSE"}, nil)),
		accepted("a JWT-SVID without kid, one key of its algorithm signs tokens", svid(k.domain, object{"kid": nil}, nil)),
		good("a JWT-SVID without iat", object{"iat": nil}),
		good("a JWT-SVID that names its domain as iss", object{"iss": "spiffe://example.org"}),
		good("a JWT-SVID of one segment", object{"sub": "spiffe://example.org/Orders_1.a-b"}),
		accepted("a JWT-SVID with the iss of its domain's provider", svid(k.federated, nil, object{"iss": "https://oidc.example.net", "sub": "spiffe://example.net/orders"})),
		accepted("a JWT-SVID of that domain without iss", svid(k.federated, nil, object{"sub": "spiffe://example.net/orders"})),

		authentic(codeAbsent, "a JWT-SVID without aud", svid(k.domain, nil, object{"aud": nil})),
		authentic(codeAudience, "a JWT-SVID for another", svid(k.domain, nil, object{"aud": "spiffe://example.org/billing"})),
		authentic(codeAbsent, "a JWT-SVID without exp", svid(k.domain, nil, object{"exp": nil})),
		authentic(codeExpired, "a JWT-SVID that has expired", svid(k.domain, nil, object{"exp": now - 10, "iat": now - 100})),
		authentic(codeType, "a JWT-SVID of typ at+jwt", svid(k.domain, object{"typ": "at+jwt"}, nil)),
		named("a JWT-SVID without sub", nil),
		named("sub a number", 1),
		named("sub of a trust domain that nobody knows", "spiffe://elsewhere.org/orders"),
		named("sub the trust domain alone", "spiffe://example.org"),
		named("sub the trust domain and a slash", "spiffe://example.org/"),
		named("a slash at the end", "spiffe://example.org/orders/"),
		named("an empty segment", "spiffe://example.org/ns//orders"),
		named("a segment of one dot", "spiffe://example.org/./orders"),
		named("a segment of two dots", "spiffe://example.org/ns/../orders"),
		named("an escape", "spiffe://example.org/ns%2Forders"),
		named("a query", "spiffe://example.org/orders?x=1"),
		named("a fragment", "spiffe://example.org/orders#x"),
		named("a port", "spiffe://example.org:443/orders"),
		named("user information", "spiffe://example.org@evil.example/orders"),
		named("the trust domain in capitals", "spiffe://EXAMPLE.org/orders"),
		named("the scheme in capitals", "SPIFFE://example.org/orders"),
		named("another scheme", "https://example.org/orders"),
		named("a letter of another script", "spiffe://ex\u0430mple.org/orders"),
		named("an ID that is too long", "spiffe://example.org/"+strings.Repeat("a", 2048)),
		of(codeSubject, "a domain's iss and another domain's sub", "spiffe://example.net/orders"),
		of(codeSubject, "a domain's iss and no SPIFFE ID", "orders"),
		authentic(codeIssuer, "a JWT-SVID of another's iss", svid(k.domain, nil, object{"iss": "https://oidc.example.org"})),
		authentic(codeIssuer, "a JWT-SVID whose iss is null", svid(k.domain, nil, object{"iss": null})),
		refusedAs(codeSignature, "one domain's key for another's sub", svid(k.domain, object{"kid": "federated", "alg": "RS256"}, object{"sub": "spiffe://example.net/orders"})),
		refusedAs(codeKey, "the domain's key for X.509-SVIDs", svid(k.x509, nil, nil)),
		refusedAs(codeKey, "an authorization server's key for a SPIFFE ID", svid(k.login, nil, nil)),
		refusedAs(codeAlgorithm, "no kid, and an algorithm that no key has", svid(k.federated, object{"kid": nil}, nil)),
	}
}
