import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { parseKeys } from '../dist/keys';
import { AssertionError, parseCompact, parseObject } from '../dist/strict';

const bytes = (text: string) => Buffer.from(text, 'utf8');
const read = (text: string) => parseObject(bytes(text)).object;

/** A generator of numbers that gives the same ones for the same seed, so that a failure can be seen again. */
function random(seed: number): (below: number) => number {
  return (below) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };
}

describe('parseObject', () => {
  it('reads what it accepts as JSON.parse does, whatever is done to the text', () => {
    const seeds = ['{"a":1,"b":[true,null,{"c":"\\u00e9\\ud83d\\ude00"}],"d":-1.5e3}', '{"__proto__":{"x":[]},"":"\\"\\\\"}', ' { "a" : [ 1 , 2 ] } '];
    const pieces = ['"', '\\', '{', '}', '[', ']', ',', ':', '1', 'e', '-', '.', '\\u0000', '\\ud800', 'null', '"a":', ' ', '\n', 'é', '\u0000'];
    const next = random(7);
    let accepted = 0;
    for (let i = 0; i < 40_000; i++) {
      let text = seeds[next(seeds.length)]!;
      for (let n = next(3); n >= 0; n--) {
        const at = next(text.length + 1);
        text = text.slice(0, at) + pieces[next(pieces.length)] + text.slice(at + next(3));
      }
      let object;
      try {
        object = read(text);
      } catch (error) {
        assert.ok(error instanceof AssertionError, `${text}: ${error}`);
        continue;
      }
      accepted++;
      assert.deepEqual(object, JSON.parse(text), text);
      assert.deepEqual(Object.keys(object), Object.keys(JSON.parse(text)), text);
    }
    assert.ok(accepted > 1_000, `${accepted} accepted`);
  });

  const refused: [string, string][] = [
    ['{"a":1,"a":1}', 'duplicate_member'],
    ['{"a":{"b":1,"\\u0062":2}}', 'duplicate_member'],
    ['{"a":"\\ud800"}', 'token_encoding'],
    ['{"a":"\\u0000"}', 'token_encoding'],
    ['{"a":1e999}', 'number_out_of_range'],
    ['{"a":[[[[[[[[1]]]]]]]]}', 'nesting_too_deep'],
    ['[]', 'token_json'],
    ['{} {}', 'token_json'],
    ['\ufeff{}', 'token_json'],
    ['{"a":01}', 'token_json'],
  ];
  for (const [text, code] of refused) it(`refuses ${text}`, () => assert.throws(() => read(text), { code }));

  it('rounds no integer', () => {
    assert.deepEqual(read('{"a":9007199254740993,"b":-9223372036854775808,"c":1.0,"d":-0}'), { a: 9007199254740993n, b: -(2n ** 63n), c: 1, d: 0 });
  });

  it('gives no object another prototype', () => {
    const object = read('{"__proto__":{"admin":true}}');
    assert.equal((object as { admin?: boolean }).admin, undefined);
    assert.equal(Object.getPrototypeOf(object), Object.prototype);
  });
});

describe('parseCompact', () => {
  it('accepts no second spelling of what it accepts', () => {
    const { cases } = JSON.parse(readFileSync(join(__dirname, '../../testdata/vectors/assertions.json'), 'utf8')) as { cases: { assertion: string; valid: boolean }[] };
    const good = cases.filter(({ valid }) => valid).map(({ assertion }) => assertion);
    const decoded = (token: string) => token.split('.').map((part) => Buffer.from(part, 'base64url').toString('hex')).join('.');
    const next = random(42);
    for (let i = 0; i < 20_000; i++) {
      const token = good[next(good.length)]!;
      const at = next(token.length);
      const mutant = token.slice(0, at) + 'AB-_+/=. \n'[next(10)] + token.slice(at + next(2));
      try {
        parseCompact(mutant);
      } catch (error) {
        assert.ok(error instanceof AssertionError, String(error));
        continue;
      }
      assert.ok(mutant === token || decoded(mutant) !== decoded(token), mutant);
    }
  });
});

describe('parseKeys', () => {
  const x = '11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo'; // RFC 8037, appendix A
  const good = { kty: 'OKP', crv: 'Ed25519', x, kid: 'kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k' };
  const parse = (...keys: unknown[]) => parseKeys(bytes(JSON.stringify({ keys })));

  it('names a key by its thumbprint', () => assert.deepEqual([...parse(good).keys()], [good.kid]));

  const refused: [string, unknown[], RegExp][] = [
    ['a private part', [{ ...good, d: 'AAAA' }], /private part/],
    ['a member more', [{ ...good, x5c: [] }], /other than/],
    ['a symmetric key', [{ kty: 'oct', k: 'c2VjcmV0' }], /other than/],
    ['RSA', [{ ...good, kty: 'RSA' }], /not an Ed25519/],
    ['X25519', [{ ...good, crv: 'X25519' }], /not an Ed25519/],
    ['a key for encryption', [{ ...good, use: 'enc' }], /use/],
    ['another algorithm', [{ ...good, alg: 'ES256' }], /alg/],
    ['padding', [{ ...good, x: `${x}=` }], /32 bytes/],
    ['a short key', [{ ...good, x: 'AAAA' }], /32 bytes/],
    ['another name', [{ ...good, kid: 'mine' }], /thumbprint/],
    ['no name', [{ ...good, kid: undefined }], /thumbprint/],
    ['a key twice', [good, good], /twice/],
    ['null', [null], /not an Ed25519/],
    ['too many', Array(101).fill(good), /over 100/],
  ];
  for (const [name, keys, message] of refused) it(`refuses ${name}`, () => assert.throws(() => parse(...keys), message));
  it('refuses what is no set', () => {
    for (const text of ['', '[]', '{}', '{"keys":[],"next":1}', '{"keys":[],"keys":[]}']) assert.throws(() => parseKeys(bytes(text)), Error, text);
  });
});
