import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { verifyAssertion } from '../dist/assertion';
import { parseKeys } from '../dist/keys';
import { AssertionError } from '../dist/strict';

interface Vectors {
  now: string;
  issuer: string;
  audience: string;
  trust_domain?: string;
  jwks: unknown;
  cases: { name: string; assertion: string; valid: boolean; code?: string }[];
}

/** The file that Go's verifier writes and is held to: the two must agree on every case, and on the reason. */
describe('shared vectors', () => {
  const file = join(__dirname, '../../testdata/vectors/assertions.json');
  const { now, issuer, audience, trust_domain: trustDomain = audience, jwks, cases } = JSON.parse(readFileSync(file, 'utf8')) as Vectors;
  const keys = parseKeys(Buffer.from(JSON.stringify(jwks)));
  const verify = (assertion: string) => verifyAssertion(assertion, (kid) => keys.get(kid), { issuer, audience, trustDomain }, Date.parse(now));

  it('are there, good and bad', () => {
    assert.ok(cases.filter(({ valid }) => valid).length > 3 && cases.filter(({ valid }) => !valid).length > 100);
  });

  for (const { name, assertion, valid, code } of cases) {
    it(`${valid ? 'accepts' : `refuses, ${code}`}: ${name}`, async () => {
      if (valid) await verify(assertion);
      else {
        await assert.rejects(verify(assertion), (error) => {
          assert.ok(error instanceof AssertionError, String(error));
          assert.equal(error.code, code);
          return true;
        });
      }
    });
  }
});
