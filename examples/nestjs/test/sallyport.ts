import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { calculateJwkThumbprint, exportJWK, generateKeyPair, SignJWT, type JWK } from 'jose';
import type { Settings } from '../dist/settings.js';

/** Stands in for sallyport: a key, its published set in a file, and assertions signed with it. */
export class Sallyport {
  private constructor(
    readonly folder: string,
    readonly jwks: string, // the file
    readonly jwk: JWK, // as published
    readonly key: Parameters<SignJWT['sign']>[0],
  ) {}

  static async start(): Promise<Sallyport> {
    const { publicKey, privateKey } = await generateKeyPair('EdDSA', { crv: 'Ed25519' });
    const jwk = await publish(await exportJWK(publicKey));
    const folder = mkdtempSync(join(tmpdir(), 'orders-'));
    process.once('exit', () => rmSync(folder, { recursive: true }));
    const jwks = join(folder, 'jwks.json');
    writeFileSync(jwks, JSON.stringify({ keys: [jwk] }));
    return new Sallyport(folder, jwks, jwk, privateKey);
  }

  settings(adapter: Settings['adapter'] = 'express', more: Partial<Settings> = {}): Settings {
    return {
      adapter,
      listen: { host: '127.0.0.1', port: 0 },
      issuer: 'sallyport',
      audience: 'orders',
      trustDomain: 'demo.test',
      header: 'authorization',
      keys: { file: this.jwks },
      invoices: join(import.meta.dirname, '..', 'invoices'),
      ...more,
    };
  }

  /** A good assertion, but for what is said; undefined leaves a member out. */
  mint(claims: Record<string, unknown> = {}, header: Record<string, unknown> = {}, key = this.key): Promise<string> {
    return new SignJWT(present(this.claims(claims))).setProtectedHeader({ alg: 'EdDSA', ...present(this.header(header)) }).sign(key);
  }

  /** The members of rctx and tctx are named as a path: { 'tctx.service': 'billing' }. */
  claims(claims: Record<string, unknown> = {}): Record<string, unknown> {
    const now = Math.floor(Date.now() / 1000);
    const made: Record<string, unknown> = {
      iss: 'sallyport',
      aud: 'demo.test',
      sub: 'ada',
      txn: 'request-0',
      jti: 'request-1',
      scope: 'orders:read orders:write',
      req_wl: 'gateway,orders',
      rctx: { iss: 'https://issuer.test', jti: 'token-1', client_id: 'shop', sid: 'session-1', iat: now - 100 },
      tctx: { service: 'orders', route: 'a-route', claims: { roles: ['clerk'] } },
      iat: now,
      exp: now + 60,
    };
    for (const [path, value] of Object.entries(claims)) {
      const [section, name] = path.split('.') as [string, string?];
      if (name === undefined) made[section] = value;
      else made[section] = present({ ...(made[section] as object), [name]: value });
    }
    return made;
  }

  header(header: Record<string, unknown> = {}): Record<string, unknown> {
    return { alg: 'EdDSA', kid: this.jwk.kid, typ: 'txntoken+jwt', ...header };
  }
}

export async function publish(jwk: JWK): Promise<JWK> {
  return { ...jwk, kid: await calculateJwkThumbprint(jwk), alg: 'EdDSA', use: 'sig' };
}

export function segment(value: unknown): string {
  return Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');
}

function present(members: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));
}
