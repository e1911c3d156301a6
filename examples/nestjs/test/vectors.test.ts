import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { AssertionError, verifyAssertion } from '../dist/caller/assertion.js';
import { Keys } from '../dist/caller/keys.js';
import { Sallyport } from './sallyport.js';

interface Vectors {
  now: string;
  issuer: string;
  audience: string;
  trust_domain: string;
  jwks: unknown;
  cases: { name: string; assertion: string; valid: boolean; ours?: boolean }[];
}

/** The cases that sallyport's own verifier is held to: the two must not disagree about any. */
describe('shared vectors', async () => {
  const file = join(import.meta.dirname, '../../../testdata/vectors/assertions.json');
  const { now, issuer, audience, trust_domain: trustDomain, jwks, cases } = JSON.parse(readFileSync(file, 'utf8')) as Vectors;
  const sallyport = await Sallyport.start();
  writeFileSync(sallyport.jwks, JSON.stringify(jwks));
  const keys = await Keys.open({ file: sallyport.jwks });

  it('are there, good and bad', () => {
    assert.ok(cases.some(({ valid }) => valid) && cases.some(({ valid }) => !valid));
  });

  /** JavaScript has one kind of number: 18e8 is the integer that it says. Only sallyport could have signed it. */
  const harmless = (name: string) => name === 'exp with an exponent';

  for (const { name, assertion, valid, ours } of cases) {
    it(`${valid || harmless(name) ? 'accepts' : 'refuses'}: ${name}`, async () => {
      const verdict = verifyAssertion(assertion, keys, { issuer, audience, trustDomain, now: new Date(now) });
      if (valid || (ours && harmless(name))) await verdict;
      else await assert.rejects(verdict, AssertionError);
    });
  }
});
