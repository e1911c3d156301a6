import type { KeyObject } from 'node:crypto';
import { compactVerify, errors } from 'jose';
import { AssertionError, parseCompact, type Json, type JsonObject, type StrictObject } from './strict';

/** Who calls, as sallyport states it: the answer to "who", never to "may they". */
export interface Caller {
  /** The issuer of the caller's own token. With it, and only with it, subject names somebody. */
  readonly issuer: string;
  /** The token's subject; where it has none, its client. */
  readonly subject: string;
  readonly client?: string;
  readonly scopes: readonly string[];
  /** The token's jti; where it has none, digest names the token. */
  readonly tokenId?: string;
  readonly digest?: string;
  /** When the token was issued; absent if it does not say. */
  readonly issuedAt?: Date;
  /** When this statement ends, at most 60 s after it was made: not the end of the token. */
  readonly expires: Date;
  /** Those claims of the token that sallyport was told to pass on. An integer beyond 2^53 is a bigint. */
  readonly claims: { readonly [name: string]: Json };
  /** The name of the route that sallyport let the request through. */
  readonly route: string;
  /** The request's id in sallyport's audit log. */
  readonly requestId: string;
  /** The transaction's id: the same on every hop. */
  readonly transaction: string;
  /** The services that the transaction came through, this one last. */
  readonly workloads: readonly string[];
  /** The name of the key that signed the statement. */
  readonly keyId: string;
}

/** Whose assertions are believed, and for whom they must be. */
export interface Expected {
  issuer: string;
  /** This service. */
  audience: string;
  trustDomain: string;
}

const TYP = 'txntoken+jwt';
const MAX_LIFETIME = 60; // seconds
const LEEWAY = 5; // seconds that the two clocks may differ
const MAX_WORKLOADS = 8;
const SCOPE = /^[!#-[\]-~]+$/; // RFC 6749, section 3.3
const WORKLOAD = /^[!#-+\--[\]-~]{1,256}$/;
const CONTROL = /[\0-\x1f\x7f-\x9f]/;

/**
 * Returns the caller that an assertion states, or rejects with an AssertionError. It establishes that sallyport signed
 * these bytes for this service within the last 60 s. Everything is exact: what an assertion of sallyport's would not hold
 * is refused.
 */
export async function verifyAssertion(
  assertion: string,
  key: (kid: string) => KeyObject | undefined,
  expected: Expected,
  now: number = Date.now(),
): Promise<Caller> {
  const { alg, typ, kid, payload } = parseCompact(assertion);
  if (alg !== 'EdDSA') throw new AssertionError('alg_not_allowed', 'alg is not EdDSA');
  if (typ !== TYP) throw new AssertionError('typ_not_allowed', `typ is not ${TYP}`);
  if (kid === undefined) throw new AssertionError('kid_missing', 'the header has no kid');
  const published = key(kid);
  if (!published) throw new AssertionError('kid_unknown', 'no published key has this kid');
  try {
    await compactVerify(assertion, published, { algorithms: ['EdDSA'] });
  } catch (cause) {
    if (!(cause instanceof errors.JOSEError)) throw cause;
    throw new AssertionError('signature_invalid', 'the signature is not of the key that kid names', { cause });
  }
  // only now, because before the signature holds a claim is anybody's word
  const { caller, issuer, domain, service, issued, expires } = readPayload(payload, kid);
  if (issuer !== expected.issuer) throw new AssertionError('issuer_mismatch', 'iss is not the configured issuer');
  if (domain !== expected.trustDomain) throw new AssertionError('audience_mismatch', 'aud is not this trust domain');
  if (service !== expected.audience) throw new AssertionError('service_mismatch', 'tctx.service is not this service');
  checkTime(issued, expires, Math.floor(now / 1000));
  return caller;
}

function checkTime(issued: number, expires: number, at: number): void {
  if (expires <= issued) throw new AssertionError('claim_invalid', 'exp is not after iat');
  if (expires - issued > MAX_LIFETIME) throw new AssertionError('lifetime_too_long', 'exp is more than 60 s after iat');
  if (issued > at + LEEWAY) throw new AssertionError('not_yet_valid', 'iat is in the future');
  if (expires <= at - LEEWAY) throw new AssertionError('expired', 'exp has passed');
}

/** Reads the claims in the order of Go's identity, so that of several faults both name the same. */
function readPayload(payload: StrictObject, keyId: string) {
  const claims = new Section(payload, payload.object);
  const requester = claims.section('rctx');
  const transaction = claims.section('tctx');
  const issuer = claims.required('iss');
  const domain = claims.required('aud');
  const service = transaction.required('service');
  const issued = claims.seconds('iat');
  const by = {
    issuer: requester.required('iss'),
    subject: claims.required('sub'),
    client: requester.optional('client_id'),
    scopes: Object.freeze(claims.list('scope', ' ', SCOPE)),
    tokenId: requester.optional('jti'),
    digest: requester.optional('digest'),
  };
  const expires = claims.seconds('exp');
  const passed = transaction.claims();
  const on = {
    route: transaction.required('route'),
    requestId: claims.required('jti'),
    transaction: claims.required('txn'),
    workloads: Object.freeze(workloads(claims)),
  };
  const requested = requester.has('iat') ? requester.seconds('iat') : undefined;
  if ((by.tokenId === undefined) === (by.digest === undefined)) {
    throw new AssertionError('claim_invalid', 'rctx has neither or both of jti and digest');
  }
  const times = { issuedAt: requested === undefined ? undefined : new Date(requested * 1000), expires: new Date(expires * 1000) };
  const caller: Caller = { ...by, ...times, claims: Object.freeze(withSession(passed, requester.optional('sid'))), ...on, keyId };
  claims.nothingElse('iss', 'aud', 'sub', 'txn', 'jti', 'scope', 'req_wl', 'rctx', 'tctx', 'iat', 'exp');
  requester.nothingElse('iss', 'jti', 'digest', 'client_id', 'sid', 'iat');
  transaction.nothingElse('service', 'route', 'claims');
  return { caller: Object.freeze(caller), issuer, domain, service, issued, expires };
}

function workloads(claims: Section): string[] {
  claims.required('req_wl');
  const workloads = claims.list('req_wl', ',', WORKLOAD);
  if (workloads.length > MAX_WORKLOADS) throw new AssertionError('claim_invalid', 'req_wl names more than 8 services');
  return workloads;
}

/** Puts the token's sid among the claims, where a caller has it. */
function withSession(passed: JsonObject, sid: string | undefined): JsonObject {
  if (sid === undefined) {
    if (typeof passed.sid === 'string' && passed.sid !== '') {
      throw new AssertionError('claim_invalid', 'tctx.claims has a sid that rctx has not');
    }
    return passed;
  }
  if (Object.hasOwn(passed, 'sid') && passed.sid !== sid) {
    throw new AssertionError('claim_invalid', 'rctx and tctx.claims have different sids');
  }
  return { ...passed, sid };
}

/** Takes the members of one object of a payload. */
class Section {
  constructor(
    private readonly payload: StrictObject,
    private readonly object: JsonObject,
    private readonly at = '',
  ) {}

  has(name: string): boolean {
    return Object.hasOwn(this.object, name);
  }

  section(name: string): Section {
    if (!this.has(name)) throw new AssertionError('claim_missing', `${name} is missing`);
    return new Section(this.payload, asObject(this.object[name]!, name), `${name}.`);
  }

  required(name: string): string {
    const value = this.optional(name);
    if (value === undefined) throw new AssertionError('claim_missing', `${this.at}${name} is missing`);
    return value;
  }

  /** One that is there is not empty, and holds no control character, because it goes into records. */
  optional(name: string): string | undefined {
    if (!this.has(name)) return undefined;
    const value = this.object[name];
    if (typeof value === 'string' && value !== '' && !CONTROL.test(value)) return value;
    throw new AssertionError('claim_invalid', `${this.at}${name} is not a string, is empty or has a control character`);
  }

  seconds(name: string): number {
    if (!this.has(name)) throw new AssertionError('claim_missing', `${this.at}${name} is missing`);
    const value = this.object[name];
    if (this.payload.isInteger(this.object, name) && Number.isSafeInteger(value) && (value as number) > 0) return value as number;
    // a 64-bit integer that is no time either: it is read, and judged like any other far too late
    if (typeof value === 'bigint' && value > 0n) return Number(value);
    throw new AssertionError('claim_invalid', `${this.at}${name} is not a positive integer`);
  }

  list(name: string, separator: string, element: RegExp): string[] {
    const list = this.optional(name)?.split(separator) ?? [];
    if (list.every((e) => element.test(e))) return list;
    throw new AssertionError('claim_invalid', `${this.at}${name} is not a list with one "${separator}" between two`);
  }

  claims(): JsonObject {
    if (!this.has('claims')) return {};
    const claims = asObject(this.object.claims!, 'tctx.claims');
    if (Object.keys(claims).length === 0) throw new AssertionError('claim_invalid', 'tctx.claims is empty');
    return claims;
  }

  nothingElse(...names: string[]): void {
    if (Object.keys(this.object).some((name) => !names.includes(name))) {
      throw new AssertionError('claim_unexpected', `there is a claim that no assertion has: ${this.at}*`);
    }
  }
}

function asObject(value: Json, name: string): JsonObject {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value;
  throw new AssertionError('claim_invalid', `${name} is not an object`);
}
