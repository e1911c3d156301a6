// DELIBERATELY VULNERABLE: see README.md.
import { createHmac, createPublicKey, verify, type JsonWebKey, type KeyObject } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Injectable, UnauthorizedException, type CanActivate, type ExecutionContext } from '@nestjs/common';
import type { Request } from 'express';

export type Part = Record<string, unknown>;

export function bearer(request: Request): string {
  return /^Bearer (\S+)$/.exec(request.headers.authorization ?? '')?.[1] ?? '';
}

/** What a token says, whoever made it. */
export function decode(token: string): { header: Part; claims: Part } {
  const [header, claims] = token.split('.').slice(0, 2).map((s) => JSON.parse(Buffer.from(s, 'base64url').toString() || '{}') as Part);
  return { header: header ?? {}, claims: claims ?? {} };
}

/** The keys of whoever signs: the authorization server, and behind a gate the gate. */
function keys(): { kid?: string; key: KeyObject }[] {
  const files = [process.env.JWKS_FILE, process.env.SALLYPORT_JWKS_FILE].filter((file) => file !== undefined);
  return files.flatMap((file) => {
    const { keys } = JSON.parse(readFileSync(file, 'utf8')) as { keys: (JsonWebKey & { kid?: string })[] };
    return keys.map((jwk) => ({ kid: jwk.kid, key: createPublicKey({ key: jwk, format: 'jwk' }) }));
  });
}

/** The algorithm is what the token says it is, and nobody asks who issued it, for whom, and until when. */
@Injectable()
export class CarelessGuard implements CanActivate {
  canActivate(context: ExecutionContext): boolean {
    const token = bearer(context.switchToHttp().getRequest<Request>());
    const at = token.lastIndexOf('.');
    const input = Buffer.from(token.slice(0, at));
    const signature = Buffer.from(token.slice(at + 1), 'base64url');
    const { header } = decode(token);
    for (const { kid, key } of keys()) {
      switch (header.alg) {
        case 'none':
          return true;
        case 'HS256': {
          const pem = key.export({ type: 'spki', format: 'pem' });
          if (createHmac('sha256', pem).update(input).digest().equals(signature)) return true;
          break;
        }
        default:
          if (kid === header.kid && verify(header.alg === 'EdDSA' ? null : 'sha256', input, key, signature)) return true;
      }
    }
    throw new UnauthorizedException();
  }
}
