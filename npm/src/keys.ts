import { createHash, createPublicKey, type KeyObject } from 'node:crypto';
import { closeSync, fstatSync, openSync, readFileSync, statSync, type BigIntStats } from 'node:fs';
import { parseObject, type Json } from './strict';

const MAX_KEYS = 100;
const MAX_BYTES = 64 << 10;
const REREAD_EVERY = 1_000; // ms: how long a new or withdrawn key may go unseen
const MEMBERS = new Set(['kty', 'crv', 'x', 'kid', 'use', 'alg']);

/**
 * The keys that sallyport publishes in a file, read again when it was replaced: it is looked at when a key is asked for,
 * at most once a second. While it cannot be read or is no key set, the last good set stays. An empty set means that every
 * key was withdrawn; at the start it is an error, since a service that can verify nothing must not start.
 */
export class KeysFile {
  private checked = performance.now();

  private constructor(
    private readonly path: string,
    private current: Version,
  ) {}

  /** Throws if there are no usable keys. */
  static open(path: string): KeysFile {
    try {
      const version = readVersion(path);
      if (version.keys.size === 0) throw new Error(`${path} holds no key`);
      return new KeysFile(path, version);
    } catch (cause) {
      throw new Error(`read the published keys: ${(cause as Error).message}`, { cause });
    }
  }

  get(kid: string): KeyObject | undefined {
    const now = performance.now();
    if (now - this.checked >= REREAD_EVERY) {
      this.checked = now;
      this.reread();
    }
    return this.current.keys.get(kid);
  }

  private reread(): void {
    try {
      if (!isSame(this.current.stat, statSync(this.path, { bigint: true }))) this.current = readVersion(this.path);
    } catch {
      // the last good set stays: sallyport replaces the file in one step, so what cannot be read is not its word
    }
  }
}

interface Version {
  stat: BigIntStats;
  keys: ReadonlyMap<string, KeyObject>;
}

function isSame(a: BigIntStats, b: BigIntStats): boolean {
  return a.dev === b.dev && a.ino === b.ino && a.size === b.size && a.mtimeNs === b.mtimeNs;
}

function readVersion(path: string): Version {
  // before it is opened, because opening a FIFO would wait for its writer
  if (!statSync(path).isFile()) throw new Error(`${path} is not a regular file`);
  const file = openSync(path, 'r');
  try {
    const stat = fstatSync(file, { bigint: true });
    if (stat.size > MAX_BYTES) throw new Error(`${path} is larger than ${MAX_BYTES} bytes`);
    return { stat, keys: parseKeys(readFileSync(file)) };
  } catch (cause) {
    throw new Error(`${path}: ${(cause as Error).message}`, { cause });
  } finally {
    closeSync(file);
  }
}

/**
 * Reads a JWK set (RFC 7517) of Ed25519 public keys (RFC 8037), each named by its thumbprint. One key that is anything
 * else fails the whole set: sallyport did not write it.
 */
export function parseKeys(bytes: Uint8Array): ReadonlyMap<string, KeyObject> {
  const { object } = parseObject(bytes);
  const list = object.keys;
  if (!Array.isArray(list) || Object.keys(object).length !== 1) {
    throw new Error('not a JWK set: an object with the one member "keys", an array, is expected');
  }
  if (list.length > MAX_KEYS) throw new Error(`${list.length} keys, over ${MAX_KEYS}`);
  const keys = new Map<string, KeyObject>();
  list.forEach((jwk, i) => {
    const { kid, key } = parseKey(jwk, i);
    if (keys.has(kid)) throw new Error(`key ${i}: ${kid} is there twice`);
    keys.set(kid, key);
  });
  return keys;
}

function parseKey(jwk: Json, i: number): { kid: string; key: KeyObject } {
  const refuse = (why: string) => new Error(`key ${i}: ${why}`);
  if (typeof jwk !== 'object' || jwk === null || Array.isArray(jwk)) throw refuse('not an Ed25519 key');
  if (Object.hasOwn(jwk, 'd')) {
    throw refuse('it holds a private part: this file is for public keys; replace the key, whoever could read the file has it');
  }
  if (Object.keys(jwk).some((member) => !MEMBERS.has(member))) {
    throw refuse('it has a member other than kty, crv, x, kid, use and alg');
  }
  const { kty, crv, x, kid, use = 'sig', alg = 'EdDSA' } = jwk;
  if (use !== 'sig') throw refuse('use is not "sig"');
  if (alg !== 'EdDSA' && alg !== 'Ed25519') throw refuse('alg is not "EdDSA"'); // RFC 9864 gave it a second name
  if (kty !== 'OKP' || crv !== 'Ed25519') throw refuse('not an Ed25519 key');
  const bytes = Buffer.from(typeof x === 'string' ? x : '', 'base64url');
  if (bytes.length !== 32 || bytes.toString('base64url') !== x) throw refuse('x is not 32 bytes in base64url');
  const name = thumbprint(x);
  if (kid !== name) throw refuse(`kid is not its thumbprint, ${name}`);
  return { kid: name, key: createPublicKey({ key: { kty, crv, x }, format: 'jwk' }) };
}

/** The name of an Ed25519 key: its SHA-256 JWK thumbprint (RFC 7638, section 3). */
export function thumbprint(x: string): string {
  return createHash('sha256').update(`{"crv":"Ed25519","kty":"OKP","x":"${x}"}`).digest('base64url');
}
