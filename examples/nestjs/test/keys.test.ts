import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { setTimeout as wait } from 'node:timers/promises';
import { exportJWK, generateKeyPair, type JWK } from 'jose';
import { Keys, parseKeys } from '../dist/caller/keys.js';
import { publish, Sallyport } from './sallyport.js';

describe('parseKeys', async () => {
  const { jwk } = await Sallyport.start();
  const pair = await generateKeyPair('EdDSA', { extractable: true });
  const ec = await generateKeyPair('ES256');
  const rsa = await generateKeyPair('RS256');
  const { kid: _, ...nameless } = jwk;

  it('reads Ed25519 public keys', async () => {
    assert.deepEqual([...(await parseKeys(JSON.stringify({ keys: [jwk] }))).keys()], [jwk.kid]);
  });

  const sets: [string, unknown][] = [
    ['what is not JSON', '{'],
    ['a PEM', '-----BEGIN PUBLIC KEY-----'],
    ['a set without keys', {}],
    ['an empty set', { keys: [] }],
    ['a single key', jwk],
    ['a private key', { keys: [await publish(await exportJWK(pair.privateKey))] }],
    ['a P-256 key', { keys: [jwk, await publish(await exportJWK(ec.publicKey))] }],
    ['an RSA key', { keys: [jwk, await publish(await exportJWK(rsa.publicKey))] }],
    ['a symmetric key', { keys: [jwk, { kty: 'oct', k: 'c2VjcmV0', kid: 'x' }] }],
    ['a key for encryption', { keys: [{ ...jwk, use: 'enc' }] }],
    ['a key with a member more', { keys: [{ ...jwk, key_ops: ['verify'] }] }],
    ['a key for another algorithm', { keys: [{ ...jwk, alg: 'HS256' }] }],
    ['a key that names itself', { keys: [{ ...jwk, kid: 'mine' }] }],
    ['a key without a name', { keys: [nameless] }],
    ['a key of 31 bytes', { keys: [await publish({ ...nameless, x: Buffer.alloc(31, 7).toString('base64url') })] }],
    ['a key twice', { keys: [jwk, jwk] }],
    ['null', { keys: [null] }],
  ];
  for (const [name, set] of sets) {
    it(`refuses ${name}`, () => assert.rejects(parseKeys(typeof set === 'string' ? set : JSON.stringify(set))));
  }
});

describe('Keys', () => {
  const another = async (): Promise<JWK> => publish(await exportJWK((await generateKeyPair('EdDSA')).publicKey));

  it('follows the file: a new key, a withdrawn key, a broken file, a good one again', async () => {
    const { jwk, jwks } = await Sallyport.start();
    const next = await another();
    const replace = (text: string) => {
      writeFileSync(`${jwks}.new`, text);
      renameSync(`${jwks}.new`, jwks);
      return wait(1_050); // it is read once a second
    };
    const keys = await Keys.open({ file: jwks });
    assert.ok(await keys.get(jwk.kid!));
    assert.equal(await keys.get(next.kid!), undefined);

    await replace(JSON.stringify({ keys: [next, jwk] }));
    assert.ok((await keys.get(next.kid!)) && (await keys.get(jwk.kid!)));
    await replace(JSON.stringify({ keys: [next] }));
    assert.equal(await keys.get(jwk.kid!), undefined);
    await replace('{"keys":[');
    assert.equal(await keys.get(next.kid!), undefined);
    await replace(JSON.stringify({ keys: [next] }));
    assert.ok(await keys.get(next.kid!));
    rmSync(jwks);
    await wait(1_050);
    assert.equal(await keys.get(next.kid!), undefined);
  });

  it('reads a URI, and does not follow it elsewhere', async () => {
    const { jwk } = await Sallyport.start();
    const server = createServer((request, response) => {
      if (request.url === '/jwks.json') response.end(JSON.stringify({ keys: [jwk] }));
      else response.writeHead(302, { Location: '/jwks.json' }).end();
    }).listen(0, '127.0.0.1');
    await new Promise((done) => server.once('listening', done));
    const base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    try {
      const keys = await Keys.open({ uri: new URL('/jwks.json', base) });
      assert.ok(await keys.get(jwk.kid!));
      await assert.rejects(Keys.open({ uri: new URL('/elsewhere', base) }), /read sallyport's keys from http/);
    } finally {
      server.close();
    }
  });
});
