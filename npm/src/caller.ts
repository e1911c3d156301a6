import { AsyncLocalStorage } from 'node:async_hooks';
import { createParamDecorator, Injectable, type ExecutionContext } from '@nestjs/common';
import { verifyAssertion, type Caller as VerifiedCaller } from './assertion';
import { KeysFile } from './keys';
import type { Settings } from './options';
import { AssertionError } from './strict';

/** What is known of the request (or message) that is being served. */
export interface Serving {
  readonly caller?: VerifiedCaller;
  /** Names this request to the gate behind: what the service sends on its behalf returns it. */
  readonly capability?: string;
  readonly traceparent?: string;
}

const serving = new AsyncLocalStorage<Serving>();

/** Runs what serves a request, and whatever that starts, so that CallerContext knows it. */
export function serve<T>(what: Serving, run: () => T): T {
  return serving.run(what, run);
}

/** The caller of the request that is being served, wherever the code stands: no request needs to be passed down. */
@Injectable()
export class CallerContext {
  /** Undefined outside a request, and in one that nobody proved themselves to. */
  get caller(): VerifiedCaller | undefined {
    return serving.getStore()?.caller;
  }

  get capability(): string | undefined {
    return serving.getStore()?.capability;
  }

  get traceparent(): string | undefined {
    return serving.getStore()?.traceparent;
  }
}

/** What of a request is read. rawHeaders is the one that every copy of a request shares, and the one that hides no double. */
export interface Incoming {
  rawHeaders: string[];
}

/** The member of a message that carries the assertion where there are no headers. */
export const TXN_TOKEN = 'txn-token';

/**
 * Knows who calls: by a request, by the request that opened a WebSocket, by a message. Each is verified once, when it
 * arrives, and known from then on: a stream that lives longer than its assertion is ended by sallyport, not here.
 */
export class Callers {
  private readonly known = new WeakMap<object, Promise<VerifiedCaller | undefined>>();

  constructor(
    private readonly settings: Settings,
    private readonly keys: KeysFile,
  ) {}

  /** The caller, or undefined if no assertion came. Rejects with an AssertionError if one came that does not hold. */
  of(request: Incoming): Promise<VerifiedCaller | undefined> {
    return this.once(request.rawHeaders, () => this.fromHeaders(valuesOf(request, this.settings.header)));
  }

  /** The same for a message. The assertion is taken out of it: what the handler gets can be passed on. */
  ofMessage(message: unknown): Promise<VerifiedCaller | undefined> {
    if (typeof message !== 'object' || message === null) return Promise.resolve(undefined);
    return this.once(message, async () => {
      if (!Object.hasOwn(message, TXN_TOKEN)) return undefined;
      const assertion: unknown = Reflect.get(message, TXN_TOKEN);
      Reflect.deleteProperty(message, TXN_TOKEN);
      if (typeof assertion !== 'string') throw new AssertionError('malformed_header', `${TXN_TOKEN} is not a string`);
      return this.verify(assertion);
    });
  }

  /** Remembers whose request opened a connection, by its socket. */
  opened(socket: object, caller: VerifiedCaller | undefined): void {
    this.known.set(socket, Promise.resolve(caller));
  }

  /** The caller whose request opened a connection; undefined if it did not come through protect. */
  ofSocket(socket: object): Promise<VerifiedCaller | undefined> {
    return this.known.get(socket) ?? Promise.resolve(undefined);
  }

  private once(key: object, verify: () => Promise<VerifiedCaller | undefined>): Promise<VerifiedCaller | undefined> {
    let caller = this.known.get(key);
    if (!caller) this.known.set(key, (caller = verify()));
    return caller;
  }

  private async fromHeaders(values: string[]): Promise<VerifiedCaller | undefined> {
    const { header } = this.settings;
    const [value, ...more] = values;
    if (value === undefined) return undefined;
    if (more.length > 0) throw new AssertionError('multiple_assertions', `more than one ${header} header`);
    if (header !== 'authorization') return this.verify(value);
    if (!value.startsWith('Bearer ') || value === 'Bearer ') {
      throw new AssertionError('malformed_header', 'Authorization is not "Bearer <assertion>"');
    }
    return this.verify(value.slice('Bearer '.length));
  }

  private verify(assertion: string): Promise<VerifiedCaller> {
    return verifyAssertion(assertion, (kid) => this.keys.get(kid), this.settings);
  }
}

/** Every value of a header, as it came: Node's headers[name] keeps the first of two, silently. */
export function valuesOf({ rawHeaders }: Incoming, name: string): string[] {
  return rawHeaders.filter((_, i) => i % 2 === 1 && rawHeaders[i - 1]!.toLowerCase() === name);
}

/** What CallerContext knows while a request is served. */
export function servingOf(request: Incoming | undefined, caller: VerifiedCaller | undefined): Serving {
  const only = (name: string) => {
    const values = request ? valuesOf(request, name) : [];
    return values.length === 1 && /^[!-~]+$/.test(values[0]!) ? values[0] : undefined;
  };
  return { caller, capability: only('x-sallyport-capability'), traceparent: only('traceparent') };
}

const callerOf = new WeakMap<object, VerifiedCaller | undefined>();

/** Remembers for the parameter decorator whom the guard let in. */
export function admit(context: ExecutionContext, caller: VerifiedCaller | undefined): void {
  callerOf.set(carrierOf(context), caller);
}

/** What all that sees a call has in common: the GraphQL context, the WebSocket client, else the request or message. */
function carrierOf(context: ExecutionContext): object {
  const carrier: unknown = context.getArgByIndex(context.getType<string>() === 'graphql' ? 2 : 0);
  return typeof carrier === 'object' && carrier !== null ? carrier : {};
}

/** Who calls. The type of what @Caller() gives. */
export type Caller = VerifiedCaller;

/**
 * The verified caller, or one field of it: `@Caller() caller: Caller`, `@Caller('subject') subject: string`. Undefined only
 * in a @Public handler, when nobody proved themselves.
 */
export const Caller: (field?: keyof VerifiedCaller) => ParameterDecorator = createParamDecorator((field: keyof VerifiedCaller | undefined, context: ExecutionContext) => {
  const caller = callerOf.get(carrierOf(context));
  return field === undefined ? caller : caller?.[field];
});
