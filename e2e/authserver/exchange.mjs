// Token exchange (RFC 8693) for oidc-provider, which leaves the grant to whoever registers it.
//
// A client may exchange tokens that were issued for one resource, its own service's, for tokens of other resources, and each
// scope of the subject token says which scopes of the other resource it is good for:
//
//   {from: "https://orders.example", to: {"https://billing.example": {"orders:write": ["invoice:write"]}}}
//
// The new token is for the same subject, names the client as its actor, has no more scopes than were asked for and than the
// subject token is good for, and does not outlive it.

import { createLocalJWKSet, errors as jose, jwtVerify } from 'jose';
import { errors } from 'oidc-provider';

export const GRANT = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';

// register adds the grant. keys returns the public keys that verify subject tokens now, rules what a client may exchange, and
// resourceServer what is known of a resource.
export function register(provider, { keys, rules, resourceServer }) {
  async function subjectOf(token, from) {
    try {
      const { payload } = await jwtVerify(token, createLocalJWKSet({ keys: keys() }), {
        issuer: provider.issuer, audience: from, typ: 'at+jwt', requiredClaims: ['sub', 'exp', 'jti'],
      });
      return payload;
    } catch (error) {
      if (error instanceof jose.JOSEError) throw new errors.InvalidRequest(`the subject token is not accepted: ${error.code}`);
      throw error;
    }
  }

  provider.registerGrantType(GRANT, async (ctx) => {
    const { client, params } = ctx.oidc;
    const { from, to } = rules(client.clientId) ?? {};
    if (!from) throw new errors.UnauthorizedClient('the client exchanges nothing');
    if (params.subject_token_type !== ACCESS_TOKEN || (params.requested_token_type ?? ACCESS_TOKEN) !== ACCESS_TOKEN) {
      throw new errors.InvalidRequest('only access tokens are exchanged, for access tokens');
    }
    if (params.actor_token !== undefined) throw new errors.InvalidRequest('the client is the actor');
    if (!params.subject_token) throw new errors.InvalidRequest('no subject token');
    const subject = await subjectOf(params.subject_token, from);
    if (subject.cnf) throw new errors.InvalidRequest('the subject token is bound to its sender');

    const targets = new Set([params.audience, params.resource].filter((target) => target !== undefined));
    const [target] = targets;
    if (targets.size !== 1 || !Object.hasOwn(to, target)) throw new errors.InvalidTarget();

    const good = new Set((subject.scope ?? '').split(' ').flatMap((scope) => to[target][scope] ?? []));
    const granted = (params.scope ?? '').split(' ').filter((scope) => good.has(scope));
    if (granted.length === 0) throw new errors.InvalidScope('the subject token is good for none of these', params.scope);

    const now = Math.floor(Date.now() / 1000);
    const token = new provider.AccessToken({
      client, accountId: subject.sub, gty: 'token_exchange', scope: granted.join(' '),
      resourceServer: new provider.ResourceServer(target, await resourceServer(ctx, target)),
      expiresIn: Math.min(600, subject.exp - now),
    });
    ctx.oidc.entity('AccessToken', token);
    const value = await token.save();
    ctx.body = {
      access_token: value, issued_token_type: ACCESS_TOKEN, token_type: token.tokenType,
      expires_in: token.expiration, scope: token.scope,
    };
  }, ['subject_token', 'subject_token_type', 'requested_token_type', 'actor_token', 'audience', 'resource', 'scope']);
}

// actor is the claim that names who acts for the subject of an exchanged token (RFC 8693, section 4.1).
export function actor(token) {
  return token.gty === 'token_exchange' ? { act: { sub: token.clientId } } : undefined;
}
