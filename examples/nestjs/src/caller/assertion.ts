import { errors, jwtVerify, type JWTPayload } from 'jose';
import type { Keys } from './keys.js';

/** Who calls, as sallyport states it. */
export interface Identity {
  issuer: string; // of the caller's own token
  subject: string; // of the caller's own token; its client, where it has none
  client?: string;
  scopes: readonly string[];
  roles: readonly string[];
  route: string; // the name of the route that sallyport let the request through
  requestId: string;
  transaction: string; // the id of the first request, where others led to this one
  workloads: readonly string[]; // the services that the transaction came through, this one last
}

/** A refusal. The code may be told to the client, the message is for the log; neither holds the assertion. */
export class AssertionError extends Error {
  constructor(readonly code: string, message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

export interface Expected {
  issuer: string;
  audience: string; // this service
  trustDomain?: string; // the audience when absent
  now?: Date; // the clock; now when absent
}

const TYP = 'txntoken+jwt'; // draft-ietf-oauth-transaction-tokens-10
const LIFETIME = 60; // seconds, at most
const SKEW = 5; // seconds
const WORKLOADS = 8; // at most
const CLAIMS = 'iss aud sub txn jti scope req_wl rctx tctx iat exp'.split(' ');
const REQUESTER = 'iss jti digest client_id sid iat'.split(' ');
const TRANSACTION = 'service route claims'.split(' ');
const SCOPE = /^[!#-[\]-~]+( [!#-[\]-~]+)*$/; // RFC 6749, section 3.3
const WORKLOAD = /^[!#-+\--[\]-~]{1,256}$/; // the same without a comma
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/;

/** Verifies a compact JWS against sallyport's published keys, and everything that it must say. */
export async function verifyAssertion(assertion: string, keys: Keys, expected: Expected): Promise<Identity> {
  const { header, payload } = takeApart(assertion);
  const names = Object.keys(header).sort().join();
  if (names !== 'alg,kid,typ') throw new AssertionError('header_unexpected', 'its header does not have exactly alg, kid and typ');
  if (header.typ !== TYP) throw new AssertionError('typ_not_allowed', 'its typ is not that of an assertion');

  let claims: JWTPayload;
  try {
    const verified = await jwtVerify(assertion, async ({ kid }) => await known(keys, kid), {
      algorithms: ['EdDSA'],
      typ: TYP,
      issuer: expected.issuer,
      audience: expected.trustDomain ?? expected.audience,
      maxTokenAge: LIFETIME,
      clockTolerance: SKEW,
      requiredClaims: ['sub', 'txn', 'jti', 'exp', 'req_wl', 'rctx', 'tctx'],
      currentDate: expected.now,
    });
    claims = verified.payload;
  } catch (error) {
    throw refusal(error);
  }
  if (isAmbiguous(payload)) throw new AssertionError('token_encoding', 'two readers may read its payload differently');
  return identityOf(claims, expected.audience);
}

async function known(keys: Keys, kid: unknown) {
  const key = typeof kid === 'string' ? await keys.get(kid) : undefined;
  if (!key) throw new AssertionError('kid_unknown', 'its key is not published');
  return key;
}

/** Splits the assertion into texts that have one reading only: canonical base64url, JSON objects. */
function takeApart(assertion: string): { header: Record<string, unknown>; payload: string } {
  const parts = assertion.split('.');
  const canonical = (part: string) => part !== '' && Buffer.from(part, 'base64url').toString('base64url') === part;
  if (assertion.length > 8192 || parts.length !== 3 || !parts.every(canonical)) {
    throw new AssertionError('token_not_compact', 'it is not a canonical compact JWS');
  }
  const [header, payload] = parts.map((part) => Buffer.from(part, 'base64url').toString('utf8'));
  try {
    const object = JSON.parse(header!) as unknown;
    if (typeof object === 'object' && object !== null && !isAmbiguous(header!)) {
      return { header: object as Record<string, unknown>, payload: payload! };
    }
  } catch {
    // said below
  }
  throw new AssertionError('token_encoding', 'its header is not one JSON object');
}

/**
 * Says whether two readers may read one JSON text differently: JSON.parse takes the last of two members with one name,
 * others the first; NUL and half a surrogate pair do not survive every string type. The text must be JSON.
 */
function isAmbiguous(json: string): boolean {
  const open: Set<string>[] = []; // the names in each object (or array) that the scan is inside of
  for (const [token, text, colon] of json.matchAll(/("(?:[^"\\]|\\.)*")(\s*:)?|[[\]{}]/g)) {
    if (text === undefined) {
      if (token === '{' || token === '[') open.push(new Set());
      else open.pop();
      continue;
    }
    const string = JSON.parse(text) as string;
    if (string.includes('\0') || !string.isWellFormed()) return true;
    if (!colon) continue;
    const names = open.at(-1)!;
    if (names.has(string)) return true;
    names.add(string);
  }
  return false;
}

/** What jose does not judge: the one service that it is for, the types of our claims, and the lifetime that was given. */
function identityOf(claims: JWTPayload, service: string): Identity {
  const whole = sectionOf(claims, CLAIMS);
  const requester = sectionOf(claims.rctx, REQUESTER, 'rctx');
  const transaction = sectionOf(claims.tctx, TRANSACTION, 'tctx');
  const { iat, exp } = claims as { iat: number; exp: number };
  if (!Number.isSafeInteger(iat) || !Number.isSafeInteger(exp) || exp <= iat || exp - iat > LIFETIME) {
    throw new AssertionError('lifetime_too_long', `it is not valid for 1 to ${LIFETIME} seconds`);
  }
  whole.text('aud'); // jose would take a list too
  const scope = whole.optional('scope');
  if (scope !== undefined && !SCOPE.test(scope)) throw invalid('scope is not a list of scopes');
  const workloads = whole.text('req_wl').split(',');
  if (workloads.length > WORKLOADS || !workloads.every((name) => WORKLOAD.test(name))) {
    throw invalid(`req_wl is not a list of 1 to ${WORKLOADS} services`);
  }
  if ((requester.optional('jti') === undefined) === (requester.optional('digest') === undefined)) {
    throw invalid('rctx has neither or both of jti and digest');
  }
  const { iat: issued } = claims.rctx as { iat?: unknown };
  if (issued !== undefined && !(Number.isSafeInteger(issued) && Number(issued) > 0)) throw invalid('rctx.iat is not a positive integer');
  const passed = passedOn(claims.tctx as { claims?: unknown }, requester.optional('sid'));
  const identity = {
    issuer: requester.text('iss'),
    subject: whole.text('sub'),
    client: requester.optional('client_id'),
    scopes: scope?.split(' ') ?? [],
    roles: rolesOf(passed),
    route: transaction.text('route'),
    requestId: whole.text('jti'),
    transaction: whole.text('txn'),
    workloads,
  };
  if (transaction.text('service') !== service) throw new AssertionError('service_mismatch', 'it is for another service');
  return identity;
}

function invalid(what: string): AssertionError {
  return new AssertionError('claim_invalid', `its ${what}`);
}

/** One object of the payload, which has the members that are named and no others. */
function sectionOf(value: unknown, names: string[], at = '') {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalid(`${at} is not an object`);
  if (Object.keys(value).some((name) => !names.includes(name))) {
    throw new AssertionError('claim_unexpected', 'it has a claim that no assertion has');
  }
  const members = value as Record<string, unknown>;
  const optional = (name: string) => {
    const text = members[name];
    if (text === undefined || (typeof text === 'string' && text !== '' && !CONTROL.test(text))) return text;
    throw invalid(`${name} is not a string, is empty or has a control character`);
  };
  const text = (name: string) => {
    const found = optional(name);
    if (found === undefined) throw new AssertionError('claim_missing', `its ${name} is missing`);
    return found;
  };
  return { optional, text };
}

/** The claims of the caller's token that sallyport passes on. */
function passedOn({ claims }: { claims?: unknown }, sid: string | undefined): Record<string, unknown> {
  if (claims === undefined) return {};
  if (typeof claims !== 'object' || claims === null || Array.isArray(claims) || Object.keys(claims).length === 0) {
    throw invalid('claims are not an object, or empty');
  }
  const passed = claims as Record<string, unknown>;
  const differs = sid === undefined ? typeof passed.sid === 'string' && passed.sid !== '' : 'sid' in passed && passed.sid !== sid;
  if (differs) throw invalid('claims have another sid than rctx');
  return passed;
}

function rolesOf({ roles = [] }: { roles?: unknown }): string[] {
  if (!Array.isArray(roles) || !roles.every((role) => typeof role === 'string')) throw invalid('roles are not a list of strings');
  return roles;
}

function refusal(error: unknown): AssertionError {
  if (error instanceof AssertionError) return error;
  const say = (code: string) => new AssertionError(code, (error as Error).message, { cause: error });
  if (error instanceof errors.JWTExpired) return say('expired');
  if (error instanceof errors.JOSEAlgNotAllowed) return say('alg_not_allowed');
  if (error instanceof errors.JWSSignatureVerificationFailed) return say('signature_invalid');
  if (error instanceof errors.JWTClaimValidationFailed) {
    if (error.reason === 'check_failed' && error.claim === 'iss') return say('issuer_mismatch');
    if (error.reason === 'check_failed' && error.claim === 'aud') return say('audience_mismatch');
    if (error.reason === 'check_failed') return say('not_yet_valid'); // iat, nbf
    return say(error.reason === 'missing' ? 'claim_missing' : 'claim_invalid');
  }
  if (error instanceof errors.JOSEError) return say('token_encoding');
  throw error; // not about the assertion: 500
}
