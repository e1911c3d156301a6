// A real OAuth 2.0 authorization server (npm oidc-provider) on loopback, for the end-to-end tests.
//
//   node server.mjs '{"port":0,"resources":[...],"clients":[...]}'
//
// Its only argument is a JSON object:
//
//   port       where to listen on 127.0.0.1; 0 or absent lets the kernel choose
//   resources  [{resource, algorithm, scopes}]: protected resources (RFC 8707), the signature algorithm of their
//              tokens (ES256 or RS256) and the scopes they know
//   clients    [{id, secret, lifetime, claims}]: clients of the client credentials grant, the lifetime of their tokens
//              in seconds (600 when absent) and claims that their tokens carry beside those of RFC 9068
//
// When it listens it prints one line, {"issuer": URL, "control": URL}, and it ends when its standard input does, so that it
// cannot outlive the test that started it.
//
// The control listener is another loopback port, because no authorization server has such an interface:
//
//   POST /publish  makes a new key of each algorithm and publishes it; the old keys go on signing
//   POST /rotate   makes new keys if none are waiting; they sign from now on, and the old ones stay published
//   POST /retire   the old keys leave the published set
//
// Each answers {"signing": [kid...], "published": [kid...]}. oidc-provider reads its keys once, so each of these builds a new
// Provider with the same issuer and swaps it in; what it keeps in memory (nothing that a JWT access token needs) is lost.

import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { Provider, errors } from 'oidc-provider';

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

function build(issuer) {
  const provider = new Provider(issuer, {
    jwks: { keys: [...signing, ...(waiting ?? []), ...retiring] },
    clients: [...clients.values()].map((c) => ({
      client_id: c.id, client_secret: c.secret,
      grant_types: ['client_credentials'], response_types: [], redirect_uris: [],
      token_endpoint_auth_method: 'client_secret_basic',
    })),
    scopes: [...new Set([...resources.values()].flatMap((r) => r.scopes))],
    ttl: { ClientCredentials: (_ctx, _token, client) => clients.get(client.clientId).lifetime ?? 600 },
    extraTokenClaims: (_ctx, token) => clients.get(token.clientId)?.claims,
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo(_ctx, indicator) {
          const known = resources.get(indicator);
          if (!known) throw new errors.InvalidTarget();
          const { kid } = signing.find((key) => key.alg === known.algorithm);
          return {
            scope: known.scopes.join(' '), audience: indicator,
            accessTokenFormat: 'jwt', jwt: { sign: { alg: known.algorithm, kid } },
          };
        },
      },
    },
  });
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

process.stdout.write(`${JSON.stringify({ issuer, control })}\n`);
process.stdin.on('end', () => process.exit(0)).resume();
