// A real OAuth 2.0 authorization server (npm oidc-provider) on loopback, for the end-to-end tests.
//
//   node server.mjs '{"port":0,"resources":[...],"clients":[...]}'
//
// Its only argument is a JSON object:
//
//   port       where to listen on 127.0.0.1; 0 or absent lets the kernel choose
//   resources  [{resource, algorithm, scopes}]: protected resources (RFC 8707), the signature algorithm of their
//              tokens (ES256 or RS256; opaque for tokens that are introspected) and the scopes they know
//   clients    [{id, secret, lifetime, claims, exchange, dpop, mtls, jwk, dn, signed}]: clients of the client credentials grant, the lifetime of their
//              tokens in seconds (600 when absent), claims that their tokens carry beside those of RFC 9068, what they
//              may exchange (exchange.mjs), and whether their tokens are bound to a key (RFC 9449) or to the certificate of
//              their connection (RFC 8705). Each may introspect (RFC 7662) and revoke (RFC 7009). One with a jwk proves itself
//              by that key (RFC 7523), one with a dn by a certificate of that subject (RFC 8705), else by its secret; signed is the
//              algorithm by which answers about tokens are signed for it (RFC 9701), if it asks for that.
//   tls        {cert, key, ca}: PEM; when there, it listens on another port too, where it asks for a certificate; those of ca are trusted
//
// When it listens it prints one line, {"issuer": URL, "control": URL, "secure": URL}, and it ends when its standard input does, so that it
// cannot outlive the test that started it.
//
// The control listener is another loopback port, because no authorization server has such an interface:
//
//   POST /publish  makes a new key of each algorithm and publishes it; the old keys go on signing
//   POST /rotate   makes new keys if none are waiting; they sign from now on, and the old ones stay published
//   POST /retire   the old keys leave the published set
//
// Each answers {"signing": [kid...], "published": [kid...]}. oidc-provider reads its keys once, so each of these builds a new
// Provider with the same issuer and swaps it in.

import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import { Provider, errors } from 'oidc-provider';
import { GRANT, actor, register } from './exchange.mjs';

const config = JSON.parse(process.argv[2] ?? '{}');
const resources = new Map((config.resources ?? []).map((r) => [r.resource, r]));
const clients = new Map((config.clients ?? []).map((c) => [c.id, c]));

// A generation is one key of each algorithm.
function generation() {
  const pairs = {
    ES256: generateKeyPairSync('ec', { namedCurve: 'P-256' }),
    RS256: generateKeyPairSync('rsa', { modulusLength: 2048 }),
  };
  return Object.entries(pairs).map(([alg, { privateKey }]) => ({
    ...privateKey.export({ format: 'jwk' }), alg, use: 'sig', kid: `${alg}-${randomUUID()}`,
  }));
}

let signing = generation(); // signs
let waiting = null; // published, does not sign yet
let retiring = []; // published, does not sign any more
let handler; // the current Provider's

function resourceServer(_ctx, indicator) {
  const known = resources.get(indicator);
  if (!known) throw new errors.InvalidTarget();
  const scope = known.scopes.join(' ');
  if (known.algorithm === 'opaque') return { scope, audience: indicator, accessTokenFormat: 'opaque' };
  const { kid } = signing.find((key) => key.alg === known.algorithm);
  return { scope, audience: indicator, accessTokenFormat: 'jwt', jwt: { sign: { alg: known.algorithm, kid } } };
}

// What is kept outlives a Provider: a new one with new keys knows the opaque tokens of the one before.
const kept = new Map();

class Adapter {
  constructor(kind) { this.kind = kind; }

  key(id) { return `${this.kind}:${id}`; }

  async upsert(id, payload) { kept.set(this.key(id), payload); }

  async find(id) { return kept.get(this.key(id)); }

  async destroy(id) { kept.delete(this.key(id)); }

  async consume(id) { kept.get(this.key(id)).consumed = Math.floor(Date.now() / 1000); }

  async revokeByGrantId() { throw new Error('no grant has an id here'); }
}

// authentication is how a client proves itself.
function authentication(c) {
  if (c.jwk) return { token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [c.jwk] } };
  if (c.dn) return { token_endpoint_auth_method: 'tls_client_auth', tls_client_auth_subject_dn: c.dn };
  return { token_endpoint_auth_method: 'client_secret_basic' };
}

function build(issuer) {
  const provider = new Provider(issuer, {
    jwks: { keys: [...signing, ...(waiting ?? []), ...retiring] },
    clients: [...clients.values()].map((c) => ({
      client_id: c.id, client_secret: c.secret,
      grant_types: ['client_credentials', ...(c.exchange ? [GRANT] : [])], response_types: [], redirect_uris: [],
      ...authentication(c),
      ...(c.signed && { introspection_signed_response_alg: c.signed }),
      dpop_bound_access_tokens: c.dpop === true,
      tls_client_certificate_bound_access_tokens: c.mtls === true,
    })),
    clientAuthMethods: ['client_secret_basic', 'private_key_jwt', 'tls_client_auth'],
    enabledJWA: { introspectionSigningAlgValues: ['ES256', 'RS256'] },
    scopes: [...new Set([...resources.values()].flatMap((r) => r.scopes))],
    ttl: { ClientCredentials: (_ctx, _token, client) => clients.get(client.clientId).lifetime ?? 600 },
    extraTokenClaims: (_ctx, token) => actor(token) ?? clients.get(token.clientId)?.claims,
    adapter: Adapter,
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      jwtIntrospection: { enabled: true },
      revocation: { enabled: true, allowedPolicy: () => true },
      dPoP: { enabled: true },
      mTLS: {
        enabled: true,
        certificateBoundAccessTokens: true,
        tlsClientAuth: true,
        certificateAuthorized: (ctx) => ctx.socket.authorized === true,
        certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_subject_dn'
          && ctx.socket.getPeerX509Certificate().subject === expected,
        getCertificate: (ctx) => ctx.socket.getPeerX509Certificate?.()?.toString(),
      },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: resourceServer,
      },
    },
  });
  const published = () => [...signing, ...(waiting ?? []), ...retiring].map(({ kty, crv, x, y, n, e, alg, use, kid }) => (
    { kty, crv, x, y, n, e, alg, use, kid }));
  register(provider, { keys: published, rules: (id) => clients.get(id)?.exchange, resourceServer });
  handler = provider.callback();
}

const transitions = {
  '/publish'() {
    waiting ??= generation();
  },
  '/rotate'() {
    retiring = [...signing, ...retiring];
    signing = waiting ?? generation();
    waiting = null;
  },
  '/retire'() {
    retiring = [];
  },
};

const listen = (server, port) => new Promise((resolve, reject) => {
  server.once('error', reject);
  server.listen(port, '127.0.0.1', () => resolve(`http://127.0.0.1:${server.address().port}`));
});

const issuer = await listen(createServer((req, res) => handler(req, res)), config.port ?? 0);
build(issuer);
const secure = config.tls && (await listen(createSecureServer(
  { ...config.tls, requestCert: true, rejectUnauthorized: false }, (req, res) => handler(req, res),
), 0)).replace('http:', 'https:');

const control = await listen(createServer((req, res) => {
  const transition = req.method === 'POST' ? transitions[req.url] : undefined;
  if (!transition) {
    res.writeHead(404).end();
    return;
  }
  transition();
  build(issuer);
  const kids = (keys) => keys.map((key) => key.kid);
  res.setHeader('content-type', 'application/json');
  res.end(JSON.stringify({
    signing: kids(signing), published: kids([...signing, ...(waiting ?? []), ...retiring]),
  }));
}), 0);

process.stdout.write(`${JSON.stringify({ issuer, control, secure })}\n`);
process.stdin.on('end', () => process.exit(0)).resume();
