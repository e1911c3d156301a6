import type { IncomingMessage } from 'node:http';
import { Inject, Injectable, Logger } from '@nestjs/common';
import { SETTINGS, type Settings } from '../settings.js';
import { unauthorized } from '../problem.js';
import { AssertionError, verifyAssertion, type Identity } from './assertion.js';
import { Keys } from './keys.js';

/** Paths, byte for byte, that may be asked for without an assertion. */
export const PUBLIC_PATHS: ReadonlySet<string> = new Set(['/health']);

/** Knows who calls: by a request, or by the WebSocket that a request opened. */
@Injectable()
export class Callers {
  private readonly log = new Logger(Callers.name);
  private readonly known = new WeakMap<object, Promise<Identity | undefined>>();

  constructor(
    @Inject(SETTINGS) private readonly settings: Settings,
    private readonly keys: Keys,
  ) {}

  /**
   * What every request must pass before anything else sees it: routes that were mounted beside the controllers
   * (Swagger, static files), middleware and body parsers know no guards. Rejects with 401.
   */
  async admit(request: IncomingMessage): Promise<Identity | undefined> {
    const caller = await this.of(request);
    if (!caller && !PUBLIC_PATHS.has(pathOf(request))) throw unauthorized('missing_assertion');
    return caller;
  }

  /** The caller, or undefined if no assertion came. Rejects with 401 if one came that does not hold. */
  of(request: IncomingMessage): Promise<Identity | undefined> {
    let caller = this.known.get(request);
    if (!caller) this.known.set(request, (caller = this.verify(request)));
    return caller;
  }

  /** The caller whose request opened this WebSocket. */
  ofClient(client: object): Promise<Identity | undefined> {
    return this.known.get(client) ?? Promise.resolve(undefined);
  }

  opened(client: object, request: IncomingMessage): void {
    this.known.set(client, this.of(request));
  }

  private async verify(request: IncomingMessage): Promise<Identity | undefined> {
    const { header, issuer, audience, trustDomain } = this.settings;
    const values = request.headersDistinct[header] ?? []; // headers[] keeps the first of two, silently
    if (values.length === 0) return undefined;
    const prefix = header === 'authorization' ? 'Bearer ' : '';
    try {
      if (values.length > 1) throw new AssertionError('multiple_assertions', `there are ${values.length} ${header} headers`);
      if (!values[0]!.startsWith(prefix)) throw new AssertionError('malformed_header', 'Authorization is not "Bearer <assertion>"');
      return await verifyAssertion(values[0]!.slice(prefix.length), this.keys, { issuer, audience, trustDomain });
    } catch (error) {
      if (!(error instanceof AssertionError)) throw error;
      this.log.warn({ refused: error.code, reason: error.message, method: request.method, path: pathOf(request) });
      throw unauthorized(error.code);
    }
  }
}

export function pathOf(request: IncomingMessage): string {
  return request.url!.split('?', 1)[0]!;
}
