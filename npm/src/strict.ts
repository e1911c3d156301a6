/**
 * The strict form of a token and of a key set: one reading or a refusal. It is that of sallyport's own Go packages
 * (internal/jws), with the same limits and the same codes, and it is held to the same vectors.
 *
 * JSON.parse is not enough: it takes the last of two members with one name where others take the first, keeps half a
 * surrogate pair, and rounds integers.
 */

/** A refusal of an assertion. The code may be told to the client; the message is for the log, and neither holds the assertion. */
export class AssertionError extends Error {
  constructor(
    readonly code: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = 'AssertionError';
  }
}

const MAX_LENGTH = 8 << 10;
const MAX_NAME = 256;
const MAX_DEPTH = 8;

/** Any JSON value. An integer beyond what a number holds exactly is a bigint. */
export type Json = string | number | bigint | boolean | null | Json[] | { [name: string]: Json };
export type JsonObject = { [name: string]: Json };

/** A token taken apart. Nothing in it has been verified. */
export interface Compact {
  alg: string;
  typ?: string;
  kid?: string;
  payload: StrictObject;
}

/** Reads exactly three segments of canonical base64url without padding, header and payload one JSON object each. */
export function parseCompact(token: string): Compact {
  if (token.length > MAX_LENGTH) throw new AssertionError('token_too_long', 'longer than 8 KiB');
  const segments = token.split('.');
  if (segments.length !== 3) throw new AssertionError('token_not_compact', 'not exactly three segments');
  if (segments.includes('')) throw new AssertionError('token_not_compact', 'an empty segment');
  const [header, payload, signature] = segments as [string, string, string];
  const { alg, typ, kid } = readHeader(parseObject(decode('header', header)));
  const claims = parseObject(decode('payload', payload));
  decode('signature', signature);
  return { alg, typ, kid, payload: claims };
}

/** Each byte string has exactly one spelling that is accepted, or a second token would carry the same content. */
function decode(part: string, segment: string): Uint8Array {
  const bytes = Buffer.from(segment, 'base64url');
  if (bytes.toString('base64url') !== segment) {
    throw new AssertionError('token_base64', `${part} is not canonical base64url without padding`);
  }
  return bytes;
}

/** A header that brings its own key, or a crit that would be ignored, must not get as far as a signature. */
function readHeader({ object }: StrictObject): { alg: string; typ?: string; kid?: string } {
  if (Object.hasOwn(object, 'crit')) throw new AssertionError('crit_unsupported', 'header has crit');
  if (Object.keys(object).some((name) => name !== 'alg' && name !== 'typ' && name !== 'kid')) {
    throw new AssertionError('header_unexpected', 'header has a member other than alg, typ and kid');
  }
  const { alg, typ, kid } = object;
  if (!isName(alg) || alg.toLowerCase() === 'none') {
    throw new AssertionError('alg_invalid', 'alg is absent, none or not a name');
  }
  if (typ !== undefined && !isName(typ)) throw new AssertionError('typ_invalid', 'typ is not a name');
  if (kid !== undefined && !isName(kid)) {
    throw new AssertionError('kid_invalid', 'kid is not a printable string of 1 to 256 bytes');
  }
  return { alg, typ, kid };
}

function isName(value: unknown): value is string {
  return typeof value === 'string' && value.length <= MAX_NAME && /^[ -~]+$/.test(value);
}

/** An object, and which of its members (and its members') are written as something else than an integer. */
export interface StrictObject {
  object: JsonObject;
  /** Says whether a member is a number that is written as an integer: 18e8 is not. */
  isInteger(of: JsonObject, name: string): boolean;
}

/** Reads bytes as one JSON object with one reading. */
export function parseObject(bytes: Uint8Array): StrictObject {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new AssertionError('token_encoding', 'not UTF-8');
  }
  try {
    JSON.parse(text);
  } catch {
    throw new AssertionError('token_json', 'not JSON');
  }
  return new Reader(text).read();
}

/** Walks a text that is known to be JSON, so that it need not hold it to the grammar. */
class Reader {
  private at = 0;
  private readonly integers = new WeakMap<object, Set<string>>();

  constructor(private readonly text: string) {}

  read(): StrictObject {
    if (this.next() !== '{') throw new AssertionError('token_json', 'not an object');
    const object = this.object(1);
    return { object, isInteger: (of, name) => this.integers.get(of)?.has(name) ?? false };
  }

  /** Skips white space, commas and colons, and returns the character there. */
  private next(): string {
    while (' \t\n\r,:'.includes(this.text[this.at]!)) this.at++;
    return this.text[this.at]!;
  }

  private object(depth: number): JsonObject {
    const members = new Map<string, Json>();
    const integers = new Set<string>();
    this.at++;
    while (this.next() !== '}') {
      const name = this.string();
      if (members.has(name)) throw new AssertionError('duplicate_member', 'a member name is given twice');
      this.next();
      const start = this.at;
      members.set(name, this.value(depth));
      if (/^-?[0-9]+$/.test(this.text.slice(start, this.at))) integers.add(name);
    }
    this.at++;
    const object = Object.fromEntries(members); // by definition, not assignment: "__proto__" is a name like another
    this.integers.set(object, integers);
    return object;
  }

  private array(depth: number): Json[] {
    const elements: Json[] = [];
    this.at++;
    while (this.next() !== ']') elements.push(this.value(depth));
    this.at++;
    return elements;
  }

  private value(depth: number): Json {
    const first = this.next();
    if (first === '"') return this.string();
    if (first === '{' || first === '[') {
      if (depth === MAX_DEPTH) throw new AssertionError('nesting_too_deep', `nested deeper than ${MAX_DEPTH}`);
      return first === '{' ? this.object(depth + 1) : this.array(depth + 1);
    }
    const word = this.take(/[^\s,\]}]+/y);
    if (word === 'true' || word === 'false') return word === 'true';
    return word === 'null' ? null : readNumber(word);
  }

  private string(): string {
    const string = JSON.parse(this.take(/"(?:[^"\\]|\\.)*"/y)) as string;
    if (string.includes('\0') || !string.isWellFormed()) {
      throw new AssertionError('token_encoding', 'a string has a lone surrogate or NUL');
    }
    return string;
  }

  private take(pattern: RegExp): string {
    pattern.lastIndex = this.at;
    const [match] = pattern.exec(this.text)!;
    this.at += match.length;
    return match;
  }
}

function readNumber(text: string): number | bigint {
  const number = Number(text);
  if (!Number.isFinite(number)) throw new AssertionError('number_out_of_range', 'a number is out of range');
  if (Number.isSafeInteger(number) || !/^-?[0-9]+$/.test(text)) return number === 0 ? 0 : number;
  const exact = BigInt(text);
  return BigInt.asIntN(64, exact) === exact ? exact : number; // beyond 64 bits, as in Go
}
