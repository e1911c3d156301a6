import 'reflect-metadata';

/** What a handler asks for, as its decorators say. */
export interface Requirement {
  readonly public: boolean;
  readonly all: readonly string[];
  readonly any: readonly (readonly string[])[];
}

export const REQUIREMENT = 'sallyport:requirement';

/**
 * Anybody may call: no assertion is asked for. One that comes is verified all the same, and refused if it does not hold.
 * With protect(app), the path must be allowed there too.
 */
export const Public = (reason?: string): MethodDecorator & ClassDecorator => declare({ public: true, reason });

/** The caller needs every one of these scopes. With none: any verified caller. */
export const Scopes = (...all: string[]): MethodDecorator & ClassDecorator => declare({ all: check(all) });

/** The caller needs at least one of these scopes, beside those that Scopes asks for. */
export const AnyScope = (...any: string[]): MethodDecorator & ClassDecorator => {
  if (any.length === 0) throw new Error('@AnyScope() names no scope: nobody could call');
  return declare({ any: [check(any)] });
};

/** A scope that no token can have (RFC 6749, section 3.3) would be closed for ever, or be two by mistake. */
function check(scopes: string[]): string[] {
  for (const scope of scopes) {
    if (!/^[!#-[\]-~]+$/.test(scope)) throw new Error(`${JSON.stringify(scope)} is not a scope`);
  }
  return scopes;
}

/** Adds to what the decorators of the same target have said. A handler's own requirement replaces its class's. */
function declare(more: { public?: true; reason?: string; all?: string[]; any?: string[][] }): MethodDecorator & ClassDecorator {
  return (target: object, _name?: string | symbol, descriptor?: PropertyDescriptor) => {
    const on = (descriptor?.value as object | undefined) ?? target;
    const said = Reflect.getOwnMetadata(REQUIREMENT, on) as Requirement | undefined;
    const isPublic = more.public ?? false;
    if (said && said.public !== isPublic) throw new Error('@Public beside @Scopes or @AnyScope: one of them is a mistake');
    const { all = [], any = [] } = more;
    const requirement = { public: isPublic, reason: more.reason, all: [...(said?.all ?? []), ...all], any: [...(said?.any ?? []), ...any] };
    Reflect.defineMetadata(REQUIREMENT, requirement, on);
  };
}
