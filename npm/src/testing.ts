import { generateKeyPairSync, randomUUID, type KeyObject } from 'node:crypto';
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CompactSign } from 'jose';
import { thumbprint } from './keys';
import type { SallyportOptions } from './options';

/** What a test says of the caller; what it does not say has a default. */
export interface TestCaller {
  issuer?: string;
  subject?: string;
  client?: string;
  scopes?: readonly string[];
  /** Claims of the token that are passed on. */
  claims?: Record<string, unknown>;
  route?: string;
  requestId?: string;
  transaction?: string;
  workloads?: readonly string[];
  /** For a test of a refusal: changes claims of the assertion as they are signed; undefined takes one out. */
  raw?: Record<string, unknown>;
  /** For a test of a refusal: changes members of the header. */
  header?: Record<string, unknown>;
}

/** Stands in for sallyport in a test: a key that lives as long as the test, published in a file, and assertions by it. */
export class TestSallyport {
  private readonly folder = mkdtempSync(join(tmpdir(), 'sallyport-'));
  private key = newKey();
  private published = [this.key];

  constructor(private readonly names: { issuer?: string; audience?: string; trustDomain?: string; header?: string } = {}) {
    this.publish();
  }

  /** For SallyportModule.forRoot. */
  get options(): Required<Omit<SallyportOptions, 'undeclared'>> {
    const { issuer = 'sallyport', audience = 'test', trustDomain = audience, header = 'Txn-Token' } = this.names;
    return { issuer, audience, trustDomain, header, jwksFile: join(this.folder, 'jwks.json') };
  }

  /** An assertion about a caller, by default ada with no scopes, good for a minute. */
  mint(caller: TestCaller = {}): Promise<string> {
    const header = present({ alg: 'EdDSA', kid: this.key.kid, typ: 'txntoken+jwt', ...caller.header });
    const payload = Buffer.from(JSON.stringify(present({ ...this.claimsOf(caller), ...caller.raw })));
    return new CompactSign(payload).setProtectedHeader(header as { alg: string }).sign(this.key.private);
  }

  /** The headers that sallyport would send with a request of this caller. */
  async headers(caller: TestCaller = {}): Promise<Record<string, string>> {
    const assertion = await this.mint(caller);
    const { header } = this.options;
    return { [header]: header.toLowerCase() === 'authorization' ? `Bearer ${assertion}` : assertion };
  }

  /** Signs by a new key from now on. The old one stays published, unless it is withdrawn. */
  rotate({ withdraw = false } = {}): void {
    this.key = newKey();
    this.published = withdraw ? [this.key] : [...this.published, this.key];
    this.publish();
  }

  /** Replaces the key file in one step, as sallyport does; by default with the keys that are published. */
  publish(text = JSON.stringify({ keys: this.published.map(({ jwk }) => jwk) })): void {
    const { jwksFile } = this.options;
    writeFileSync(`${jwksFile}.new`, text);
    renameSync(`${jwksFile}.new`, jwksFile);
  }

  /** Removes the key file. */
  close(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }

  private claimsOf(caller: TestCaller): Record<string, unknown> {
    const { issuer, audience, trustDomain } = this.options;
    const { requestId = randomUUID(), scopes = [], workloads = [audience] } = caller;
    const now = Math.floor(Date.now() / 1000);
    return {
      iss: issuer,
      aud: trustDomain,
      sub: caller.subject ?? 'ada',
      txn: caller.transaction ?? requestId,
      jti: requestId,
      scope: scopes.length > 0 ? scopes.join(' ') : undefined,
      req_wl: workloads.join(','),
      rctx: { iss: caller.issuer ?? 'https://auth.test', jti: randomUUID(), client_id: caller.client, iat: now },
      tctx: { service: audience, route: caller.route ?? 'a-route', claims: caller.claims },
      iat: now,
      exp: now + 60,
    };
  }
}

interface Key {
  private: KeyObject;
  kid: string;
  jwk: Record<string, unknown>;
}

function newKey(): Key {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  const { kty, crv, x } = publicKey.export({ format: 'jwk' });
  const kid = thumbprint(x!);
  return { private: privateKey, kid, jwk: { kty, crv, x, kid, use: 'sig', alg: 'EdDSA' } };
}

function present(members: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));
}
