import { errors, jwtVerify, type JWTPayload } from 'jose';
import type { Keys } from './keys.js';

/** Who calls, as sallyport states it. */
export interface Identity {
  issuer: string; // of the caller's own token
  subject?: string;
  client?: string;
  scopes: readonly string[];
  roles: readonly string[];
  route: string; // the name of the route that sallyport let the request through
  requestId: string;
}

/** A refusal. The code may be told to the client, the message is for the log; neither holds the assertion. */
export class AssertionError extends Error {
  constructor(readonly code: string, message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

export interface Expected {
  issuer: string;
  audience: string;
  now?: Date; // the clock; now when absent
}

const TYP = 'sallyport-assertion+jwt';
const LIFETIME = 60; // seconds, at most
const SKEW = 5; // seconds
const CLAIMS = new Set('iss aud sub client_id scope route jti iat exp caller_iss claims'.split(' '));
const SCOPE = /^[!#-[\]-~]+( [!#-[\]-~]+)*$/; // RFC 6749, section 3.3

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
      audience: expected.audience,
      maxTokenAge: LIFETIME,
      clockTolerance: SKEW,
      requiredClaims: ['route', 'jti', 'exp', 'caller_iss'],
      currentDate: expected.now,
    });
    claims = verified.payload;
  } catch (error) {
    throw refusal(error);
  }
  if (isAmbiguous(payload)) throw new AssertionError('token_encoding', 'two readers may read its payload differently');
  return identityOf(claims);
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

/** What jose does not judge: the types of our claims, and the lifetime that was given. */
function identityOf(claims: JWTPayload): Identity {
  const stray = Object.keys(claims).find((name) => !CLAIMS.has(name));
  if (stray) throw new AssertionError('claim_unexpected', 'it has a claim that no assertion has');
  const text = (name: string) => {
    const value = claims[name];
    if (value === undefined || (typeof value === 'string' && value !== '')) return value;
    throw new AssertionError('claim_invalid', `its ${name} is not a string, or empty`);
  };
  const { iat, exp } = claims as { iat: number; exp: number };
  if (!Number.isSafeInteger(iat) || !Number.isSafeInteger(exp) || exp <= iat || exp - iat > LIFETIME) {
    throw new AssertionError('lifetime_too_long', `it is not valid for 1 to ${LIFETIME} seconds`);
  }
  text('aud'); // jose would take a list too
  const scope = text('scope');
  if (scope !== undefined && !SCOPE.test(scope)) throw new AssertionError('claim_invalid', 'its scope is not a list of scopes');
  return {
    issuer: text('caller_iss')!,
    subject: text('sub'),
    client: text('client_id'),
    scopes: scope?.split(' ') ?? [],
    roles: claims.claims === undefined ? [] : rolesOf(claims.claims),
    route: text('route')!,
    requestId: text('jti')!,
  };
}

/** The roles among the claims of the caller's token that sallyport passes on. */
function rolesOf(passed: unknown): string[] {
  if (typeof passed !== 'object' || passed === null || Array.isArray(passed) || Object.keys(passed).length === 0) {
    throw new AssertionError('claim_invalid', 'its claims are not an object, or empty');
  }
  const { roles = [] } = passed as { roles?: unknown };
  if (!Array.isArray(roles) || !roles.every((role) => typeof role === 'string')) {
    throw new AssertionError('claim_invalid', 'its roles are not a list of strings');
  }
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
