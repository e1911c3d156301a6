import assert from 'node:assert/strict';
import { createHmac, createPublicKey } from 'node:crypto';
import { before, describe, it } from 'node:test';
import { CompactSign, generateKeyPair } from 'jose';
import { AssertionError, verifyAssertion } from '../dist/caller/assertion.js';
import { Keys } from '../dist/caller/keys.js';
import { Sallyport, segment } from './sallyport.js';

describe('verifyAssertion', () => {
  let sallyport: Sallyport;
  let keys: Keys;
  const verify = (assertion: string, now?: Date) =>
    verifyAssertion(assertion, keys, { issuer: 'sallyport', audience: 'orders', trustDomain: 'demo.test', now });
  const refused = async (assertion: string, code: string, now?: Date) => {
    const error = await verify(assertion, now).then(() => assert.fail('it was accepted'), (error: unknown) => error);
    assert.ok(error instanceof AssertionError, String(error));
    assert.equal(error.code, code, error.message);
    const [, payload] = assertion.split('.');
    assert.ok(!payload || !error.message.includes(payload), 'the message holds the assertion');
  };
  const seconds = () => Math.floor(Date.now() / 1000);

  before(async () => {
    sallyport = await Sallyport.start();
    keys = await Keys.open({ file: sallyport.jwks });
  });

  it('says who calls', async () => {
    assert.deepEqual(await verify(await sallyport.mint()), {
      issuer: 'https://issuer.test',
      subject: 'ada',
      client: 'shop',
      scopes: ['orders:read', 'orders:write'],
      roles: ['clerk'],
      route: 'a-route',
      requestId: 'request-1',
      transaction: 'request-0',
      workloads: ['gateway', 'orders'],
    });
  });

  it('does without a client, a session, scopes and claims', async () => {
    const less = { scope: undefined, 'rctx.client_id': undefined, 'rctx.sid': undefined, 'rctx.iat': undefined, 'tctx.claims': undefined };
    const caller = await verify(await sallyport.mint(less));
    assert.equal(caller.client, undefined);
    assert.deepEqual([caller.scopes, caller.roles], [[], []]);
  });

  it('takes the service for the trust domain where none is set', async () => {
    const assertion = await sallyport.mint({ aud: 'orders' });
    await verifyAssertion(assertion, keys, { issuer: 'sallyport', audience: 'orders' });
    await refused(assertion, 'audience_mismatch');
  });

  it('tolerates a clock that is 5 seconds off, and no more', async () => {
    const assertion = await sallyport.mint();
    const at = (offset: number) => new Date((seconds() + offset) * 1000);
    await verify(assertion, at(-4));
    await verify(assertion, at(63));
    await refused(assertion, 'not_yet_valid', at(-8));
    await refused(assertion, 'expired', at(67));
  });

  const wrongClaims: [string, () => Record<string, unknown>, string][] = [
    ['for another service', () => ({ 'tctx.service': 'billing' }), 'service_mismatch'],
    ['for a list of services', () => ({ 'tctx.service': ['orders', 'billing'] }), 'claim_invalid'],
    ['without a service', () => ({ 'tctx.service': undefined }), 'claim_missing'],
    ['of another trust domain', () => ({ aud: 'other.test' }), 'audience_mismatch'],
    ['of a list of trust domains', () => ({ aud: ['demo.test', 'other.test'] }), 'claim_invalid'],
    ['without a trust domain', () => ({ aud: undefined }), 'claim_missing'],
    ['of another issuer', () => ({ iss: 'sallyport2' }), 'issuer_mismatch'],
    ['of an issuer with a slash more', () => ({ iss: 'sallyport/' }), 'issuer_mismatch'],
    ['expired', () => ({ iat: seconds() - 100, exp: seconds() - 50 }), 'expired'],
    ['without exp', () => ({ exp: undefined }), 'claim_missing'],
    ['without iat', () => ({ iat: undefined }), 'claim_missing'],
    ['with exp in words', () => ({ exp: String(seconds() + 60) }), 'claim_invalid'],
    ['issued in the future', () => ({ iat: seconds() + 30, exp: seconds() + 60 }), 'not_yet_valid'],
    ['good for an hour', () => ({ exp: seconds() + 3600 }), 'lifetime_too_long'],
    ['for ever', () => ({ exp: 1e300 }), 'lifetime_too_long'],
    ['with a fraction of a second', () => ({ exp: seconds() + 0.5 }), 'lifetime_too_long'],
    ['without a route', () => ({ 'tctx.route': undefined }), 'claim_missing'],
    ['without an id', () => ({ jti: '' }), 'claim_invalid'],
    ['without a transaction', () => ({ txn: undefined }), 'claim_missing'],
    ['without a subject', () => ({ sub: undefined }), 'claim_missing'],
    ['without the issuer of the token', () => ({ 'rctx.iss': undefined }), 'claim_missing'],
    ['without the id of the token', () => ({ 'rctx.jti': undefined }), 'claim_invalid'],
    ['without the requester', () => ({ rctx: undefined }), 'claim_missing'],
    ['with a requester that is a name', () => ({ rctx: 'ada' }), 'claim_invalid'],
    ['with another session among the claims', () => ({ 'tctx.claims': { sid: 'session-2' } }), 'claim_invalid'],
    ['with a claim that none has', () => ({ roles: ['admin'] }), 'claim_unexpected'],
    ['with a claim in its requester that none has', () => ({ 'rctx.act': { sub: 'root' } }), 'claim_unexpected'],
    ['that came through nine services', () => ({ req_wl: 'a,b,c,d,e,f,g,h,orders' }), 'claim_invalid'],
    ['that came through a service without a name', () => ({ req_wl: ',orders' }), 'claim_invalid'],
    ['with a list of scopes', () => ({ scope: ['orders:read'] }), 'claim_invalid'],
    ['with a subject that is a number', () => ({ sub: 7 }), 'claim_invalid'],
    ['with one role', () => ({ 'tctx.claims': { roles: 'orders-admin' } }), 'claim_invalid'],
    ['with a list of claims', () => ({ 'tctx.claims': [] }), 'claim_invalid'],
  ];
  for (const [name, claims, code] of wrongClaims) {
    it(`refuses one ${name}`, async () => refused(await sallyport.mint(claims()), code));
  }

  const wrongHeaders: [string, Record<string, unknown>, string][] = [
    ['the type of an access token', { typ: 'at+jwt' }, 'typ_not_allowed'],
    ['the type JWT', { typ: 'JWT' }, 'typ_not_allowed'],
    ['the type in capitals', { typ: 'TXNTOKEN+JWT' }, 'typ_not_allowed'],
    ['no type', { typ: undefined }, 'header_unexpected'],
    ['no key id', { kid: undefined }, 'header_unexpected'],
    ['an unknown key id', { kid: 'x'.repeat(43) }, 'kid_unknown'],
    ['a key id that is a path', { kid: '../../dev/null' }, 'kid_unknown'],
    ['a key of its own', { jwk: { kty: 'OKP', crv: 'Ed25519', x: 'AA' } }, 'header_unexpected'],
    ['a URL of keys', { jku: 'https://evil.test/jwks' }, 'header_unexpected'],
  ];
  for (const [name, header, code] of wrongHeaders) {
    it(`refuses a header with ${name}`, async () => refused(await sallyport.mint({}, header), code));
  }

  it('refuses another key under a known id', async () => {
    const { privateKey } = await generateKeyPair('EdDSA');
    await refused(await sallyport.mint({}, {}, privateKey), 'signature_invalid');
  });

  it('refuses a changed payload', async () => {
    const [header, , signature] = (await sallyport.mint()).split('.');
    await refused(`${header}.${segment(sallyport.claims({ scope: 'orders:admin' }))}.${signature}`, 'signature_invalid');
  });

  for (const alg of ['none', 'None', 'nOnE', '']) {
    it(`refuses the algorithm "${alg}"`, async () => {
      const unsigned = `${segment(sallyport.header({ alg }))}.${segment(sallyport.claims())}`;
      await refused(`${unsigned}.`, 'token_not_compact');
      await refused(`${unsigned}.AAAA`, alg ? 'alg_not_allowed' : 'token_encoding');
    });
  }

  it('refuses HS256 keyed with anything that is public', async () => {
    const key = createPublicKey({ key: sallyport.jwk as never, format: 'jwk' });
    const secrets = [
      key.export({ type: 'spki', format: 'pem' }),
      key.export({ type: 'spki', format: 'der' }),
      JSON.stringify(sallyport.jwk),
      Buffer.from(sallyport.jwk.x!, 'base64url'),
      '',
    ];
    for (const secret of secrets) {
      const input = `${segment(sallyport.header({ alg: 'HS256' }))}.${segment(sallyport.claims())}`;
      await refused(`${input}.${createHmac('sha256', secret).update(input).digest('base64url')}`, 'alg_not_allowed');
    }
  });

  it('refuses what is not one canonical compact JWS', async () => {
    const good = await sallyport.mint();
    const [header, payload, signature] = good.split('.') as [string, string, string];
    const notCompact = [
      '', 'x', '..', `${header}.${payload}`, `${good}.`, `${good}\n`, ` ${good}`, `${good}==`, `${header}.${payload}\n.${signature}`,
      `${header}.${payload}.${signature.slice(0, -1)}${signature.endsWith('A') ? 'B' : 'x'}`, // bits behind the last byte
      `${header}.${'A'.repeat(8192)}.${signature}`,
    ];
    for (const assertion of notCompact) await refused(assertion, 'token_not_compact');
    for (const text of ['7', 'null', '{"alg":"EdDSA","alg":"EdDSA"}', '{"alg":"EdDSA"}}', '{"alg":"\\u0000"}']) {
      await refused(`${segment(text)}.${payload}.${signature}`, 'token_encoding');
    }
  });

  it('refuses a payload that names a member twice, however deep', async () => {
    const twice = async (json: string) => {
      const jws = new CompactSign(Buffer.from(json)).setProtectedHeader({ alg: 'EdDSA', ...sallyport.header() });
      return jws.sign(sallyport.key);
    };
    const json = JSON.stringify(sallyport.claims({ 'tctx.claims': { note: 'a "scope": in a string', roles: [] } }));
    await verify(await twice(json));
    await refused(await twice(json.replace('{', '{"scope" : "orders:admin",')), 'token_encoding');
    await refused(await twice(json.replace('"roles":[]', '"roles":[],"r\\u006fles":["orders-admin"]')), 'token_encoding');
  });
});
