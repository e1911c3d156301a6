import { readFile } from 'node:fs/promises';
import { Logger } from '@nestjs/common';
import { calculateJwkThumbprint, importJWK, type CryptoKey, type JWK } from 'jose';
import type { KeyLocation } from '../settings.js';

export type KeySet = ReadonlyMap<string, CryptoKey>;

const MEMBERS = new Set(['kty', 'crv', 'x', 'kid', 'alg', 'use']);

/**
 * Reads a JWKS (RFC 7517). One key that is not the public half of an Ed25519 key fails the whole set: a set that
 * holds anything else was not written by sallyport.
 */
export async function parseKeys(text: string): Promise<KeySet> {
  const { keys } = JSON.parse(text) as { keys?: unknown };
  if (!Array.isArray(keys) || keys.length === 0 || keys.length > 100) throw new Error('a key set holds 1 to 100 keys');
  const set = new Map<string, CryptoKey>();
  for (const jwk of keys as JWK[]) {
    const { kty, crv, x, kid, alg = 'EdDSA', use = 'sig' } = jwk ?? {};
    if (kty !== 'OKP' || crv !== 'Ed25519' || alg !== 'EdDSA' || use !== 'sig') throw new Error('a key is not an Ed25519 key');
    const stray = Object.keys(jwk).find((member) => !MEMBERS.has(member)); // "d": a private key was published
    if (stray) throw new Error(`a key has the member "${stray}"`);
    if (Buffer.from(String(x), 'base64url').length !== 32) throw new Error('a key is not 32 bytes long');
    if (!kid || kid !== (await calculateJwkThumbprint(jwk))) throw new Error('a kid is not its key\'s thumbprint');
    if (set.has(kid)) throw new Error('a key is there twice');
    set.set(kid, (await importJWK({ kty, crv, x }, 'EdDSA')) as CryptoKey);
  }
  return set;
}

/**
 * The published keys, read again when they may have changed. A file that cannot be read or does not parse leaves no
 * key at all: sallyport replaces it atomically, so a broken one is not its work. A URI may be away for `stale`.
 */
export class Keys {
  private readonly log = new Logger(Keys.name);
  private reading?: Promise<void>;
  private triedAt = Date.now();
  private readAt = Date.now();
  private fault = '';

  private constructor(
    private readonly read: () => Promise<string>,
    private readonly ms: { every: number; unknown: number; stale: number },
    private set: KeySet,
  ) {}

  /** Rejects if there are no usable keys: a service that can verify nothing must not start. */
  static async open(from: KeyLocation): Promise<Keys> {
    const read = 'file' in from ? () => readFile(from.file, 'utf8') : () => download(from.uri);
    const ms =
      'file' in from
        ? { every: 1_000, unknown: 100, stale: 0 }
        : { every: 60_000, unknown: 5_000, stale: 300_000 };
    const where = 'file' in from ? from.file : from.uri.href;
    try {
      return new Keys(read, ms, await parseKeys(await read()));
    } catch (cause) {
      throw new Error(`read sallyport's keys from ${where}: ${(cause as Error).message}`, { cause });
    }
  }

  async get(kid: string): Promise<CryptoKey | undefined> {
    const age = Date.now() - this.triedAt;
    if (age > (this.set.has(kid) ? this.ms.every : this.ms.unknown)) {
      this.reading ??= this.refresh().finally(() => (this.reading = undefined));
    }
    await this.reading;
    return this.set.get(kid);
  }

  private async refresh(): Promise<void> {
    this.triedAt = Date.now();
    try {
      this.set = await parseKeys(await this.read());
      this.readAt = Date.now();
      this.fault = '';
    } catch (error) {
      const { message } = error as Error;
      if (message !== this.fault) this.log.error(`read sallyport's keys: ${message}`);
      this.fault = message;
      if (Date.now() - this.readAt >= this.ms.stale) this.set = new Map();
    }
  }
}

async function download(uri: URL): Promise<string> {
  const response = await fetch(uri, { redirect: 'error', signal: AbortSignal.timeout(5_000) });
  if (!response.ok) throw new Error(`answered ${response.status}`);
  return response.text();
}
