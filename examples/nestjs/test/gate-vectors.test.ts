import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { createLocalJWKSet, decodeJwt, jwtVerify, type JSONWebKeySet } from 'jose';

const vectors = <T>(name: string) =>
  JSON.parse(readFileSync(join(import.meta.dirname, '../../../testdata/vectors', name), 'utf8')) as T;

interface Issuer {
  issuer: string;
  audience: string[];
  algorithms: string[];
  max_lifetime_seconds: number;
  leeway_seconds: number;
  jwks: JSONWebKeySet;
}

interface Tokens {
  now: string;
  issuers: Issuer[];
  cases: { name: string; token: string; valid: boolean; authentic?: boolean }[];
}

/**
 * What the gate decides about a token, held against a JOSE library that knows nothing of it: every token that the gate
 * accepts must be good by the standards, and none may verify here that the gate does not hold for authentic.
 */
describe('token vectors', () => {
  const { now, issuers, cases } = vectors<Tokens>('tokens.json');

  async function verify(token: string): Promise<void> {
    const issuer = issuers.find(({ issuer }) => issuer === decodeJwt(token).iss);
    assert.ok(issuer, 'the issuer is not known');
    await jwtVerify(token, createLocalJWKSet(issuer.jwks), {
      issuer: issuer.issuer,
      audience: issuer.audience,
      algorithms: issuer.algorithms,
      clockTolerance: issuer.leeway_seconds,
      currentDate: new Date(now),
    });
  }

  it('are there, good and bad', () => {
    assert.ok(cases.some(({ valid }) => valid) && cases.some(({ valid }) => !valid));
  });

  for (const { name, token, valid, authentic } of cases) {
    if (valid) it(`accepted: ${name}`, () => verify(token));
    else if (!authentic) it(`refused: ${name}`, () => assert.rejects(verify(token)));
  }
});

interface Paths {
  vectors: { name: string; target: string; accept: boolean; path?: string; query?: string }[];
}

/** What the gate forwards must be read by Node, which is behind it, as the gate read it. */
describe('path vectors', () => {
  const accepted = vectors<Paths>('paths.json').vectors.filter(({ accept }) => accept);

  it('are there', () => assert.ok(accepted.length > 10));

  for (const { name, path, query } of accepted) {
    it(`is left as it is: ${name}`, () => {
      const url = new URL(`http://service.test${path}${query === undefined ? '' : `?${query}`}`);
      assert.equal(url.pathname, path);
      assert.equal(url.search, query ? `?${query}` : '');
    });
  }
});

interface Addresses {
  vectors: { host: string; verdict: string; url?: string }[];
}

/** Why the gate refuses some spellings of a host before it looks them up: Node reads an address in them. */
describe('address vectors', () => {
  const ambiguous = vectors<Addresses>('addresses.json').vectors.filter(({ url }) => url !== undefined);

  it('are there', () => assert.ok(ambiguous.length > 5));

  for (const { host, url } of ambiguous) {
    it(`Node reads ${url} in ${host}`, () => assert.equal(new URL(`http://${host}/`).hostname, url));
  }
});
