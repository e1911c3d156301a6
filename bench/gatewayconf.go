package main

import (
	"os"
	"strings"
)

// The configurations of the gateways that are compared, written as their manuals have it. Between @ and @ stand the port to listen on, the
// service to forward to, the issuer, the folder of its keys, and the algorithm.

func haproxyArgs() []string { return []string{"-db", "-f", "@config@"} }

// haproxy has rules for each request, and sections before the service.
func haproxy(sections, rules string) string {
	return `global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
` + sections + `frontend gate
  bind 127.0.0.1:@port@
` + rules + `  default_backend service
backend service
  http-reuse always
  server service @service@
`
}

// haproxyClaims read the token.
const haproxyClaims = `  http-request set-var(txn.now) date()
  http-request set-var(txn.bearer) http_auth_bearer
`

// haproxyVerifies refuses but what is signed by the key, for us, by the issuer, and not expired. Where it is not to be done, unless says so.
func haproxyVerifies(unless string) string {
	deny := func(condition string) string {
		return "  http-request deny deny_status 401" + unless + " " + condition + "\n"
	}
	set := func(name, expression string) string {
		return "  http-request set-var(txn." + name + ") " + expression + unless + "\n"
	}
	word := " if "
	if unless != "" {
		word = " "
	}
	return set("alg", "var(txn.bearer),jwt_header_query('$.alg')") +
		set("exp", "var(txn.bearer),jwt_payload_query('$.exp','int')") +
		set("iss", "var(txn.bearer),jwt_payload_query('$.iss')") +
		set("aud", "var(txn.bearer),jwt_payload_query('$.aud')") +
		deny(word+"!{ var(txn.alg) -m str @alg@ }") +
		deny(word+"!{ var(txn.bearer),jwt_verify(txn.alg,\"@keys@/@alg@.pem\") -m int 1 }") +
		deny(word+"!{ var(txn.iss) -m str @issuer@ }") +
		deny(word+"!{ var(txn.aud) -m str bench }") +
		deny(word+"!{ var(txn.exp),sub(txn.now) -m int gt 0 }")
}

func haproxyRules() string {
	return haproxyClaims + "  http-request deny deny_status 401 unless { var(txn.bearer) -m found }\n" + haproxyVerifies("")
}

// haproxyTable remembers when a token that was verified expires, in gpt0. Its key is the SHA-256 of the whole token.
const haproxyTable = `backend known
  stick-table type binary len 32 size 2m expire 60s store gpt0
`

func haproxyCacheRules() string {
	return haproxyClaims + `  http-request deny deny_status 401 unless { var(txn.bearer) -m found }
  http-request track-sc0 var(txn.bearer),sha2(256) table known
  acl known sc_get_gpt0(0),sub(txn.now) -m int gt 0
` + haproxyVerifies(" if !known") + `  http-request sc-set-gpt0(0) var(txn.exp) if !known
`
}

func nginxArgs() []string { return []string{"-p", "@folder@", "-c", "@config@"} }

// asRoot is a line of a configuration where we are root.
func asRoot(line string) string {
	if os.Getuid() == 0 {
		return line + "\n"
	}
	return ""
}

func nginxConfig(modules, auth string) string {
	script := ""
	if modules != "" {
		script = "  js_import jwt from @folder@/jwt.js;\n"
	}
	location := ""
	if auth != "" {
		location = "auth_request /auth; "
	}
	return modules + asRoot("user root;") + `daemon off;
worker_processes 1;
error_log stderr error;
pid @folder@/nginx.pid;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path @folder@/body;
  proxy_temp_path @folder@/proxy;
  fastcgi_temp_path @folder@/fastcgi;
  uwsgi_temp_path @folder@/uwsgi;
  scgi_temp_path @folder@/scgi;
` + script + `  upstream service {
    server @service@;
    keepalive 256;
    keepalive_requests 100000000;
  }
  server {
    listen 127.0.0.1:@port@;
    location / {
      ` + location + `proxy_pass http://service;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
    }
` + auth + `  }
}
`
}

const njsModule = "load_module /usr/lib/nginx/modules/ngx_http_js_module.so;\n"

const njsLocation = `    location = /auth {
      internal;
      js_content jwt.auth;
    }
`

// njsScript verifies by WebCrypto. The key is imported for each request, as each has a machine of its own.
const njsScript = `import fs from 'fs';
const alg = '@alg@';
const jwk = JSON.parse(fs.readFileSync('@keys@/@alg@.json')).keys[0];
const pem = fs.readFileSync('@keys@/@alg@.pem').toString();
const spki = Buffer.from(pem.replace(/-----[A-Z ]+-----/g, '').replace(/\s/g, ''), 'base64');
const key = alg === 'ES256' ? { name: 'ECDSA', namedCurve: 'P-256' } : { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' };
const how = alg === 'ES256' ? { name: 'ECDSA', hash: 'SHA-256' } : { name: 'RSASSA-PKCS1-v1_5' };

async function auth(r) {
  try {
    const given = r.headersIn.Authorization || '';
    if (!given.startsWith('Bearer ')) return r.return(401);
    const parts = given.slice(7).split('.');
    if (parts.length !== 3) return r.return(401);
    const header = JSON.parse(Buffer.from(parts[0], 'base64url'));
    if (header.alg !== alg || header.kid !== jwk.kid) return r.return(401);
    const imported = await crypto.subtle.importKey('spki', spki, key, false, ['verify']);
    const good = await crypto.subtle.verify(how, imported, Buffer.from(parts[2], 'base64url'), Buffer.from(parts[0] + '.' + parts[1]));
    if (!good) return r.return(401);
    const claims = JSON.parse(Buffer.from(parts[1], 'base64url'));
    if (claims.iss !== '@issuer@' || claims.aud !== 'bench' || !(claims.exp > Date.now() / 1000)) return r.return(401);
    r.return(204);
  } catch (e) {
    r.return(401);
  }
}

export default { auth };
`

// apacheConfig lets through what the module has verified, if the claims are as they should be.
func apacheConfig() string {
	var modules strings.Builder
	for _, m := range []string{"mpm_event", "authn_core", "authz_core", "authz_user", "proxy", "proxy_http", "auth_openidc"} {
		modules.WriteString("LoadModule " + m + "_module /usr/lib/apache2/modules/mod_" + m + ".so\n")
	}
	return modules.String() + asRoot("User www-data\nGroup www-data") + `ServerName bench
Listen 127.0.0.1:@port@
PidFile @folder@/apache.pid
DefaultRuntimeDir @folder@
ErrorLog /dev/stderr
LogLevel warn
StartServers 1
ServerLimit 1
ThreadsPerChild 128
MaxRequestWorkers 128
KeepAlive On
KeepAliveTimeout 60
MaxKeepAliveRequests 0
OIDCOAuthVerifyJwksUri @jwks@/@alg@.json
OIDCOAuthSSLValidateServer Off
OIDCOAuthRemoteUserClaim sub
OIDCOAuthAcceptTokenAs header
OIDCCryptoPassphrase bench-bench-bench
ProxyPass / http://@service@/ max=256 keepalive=On
ProxyPreserveHost On
<Location />
  AuthType oauth20
  <RequireAll>
    Require claim iss:@issuer@
    Require claim aud:bench
  </RequireAll>
</Location>
`
}

const oauth2ProxyConfig = `http_address = "127.0.0.1:@port@"
upstreams = ["http://@service@"]
provider = "oidc"
oidc_issuer_url = "@issuer@"
client_id = "bench"
client_secret = "bench"
cookie_secret = "0123456789abcdef0123456789abcdef"
cookie_secure = false
email_domains = ["*"]
oidc_email_claim = "sub"
skip_jwt_bearer_tokens = true
skip_provider_button = true
api_routes = ["^/"]
request_logging = false
auth_logging = false
standard_logging = false
reverse_proxy = false
`
