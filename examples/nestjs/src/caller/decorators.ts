import { createParamDecorator, SetMetadata, type ExecutionContext } from '@nestjs/common';
import type { Identity } from './assertion.js';

/** The caller needs every one of these scopes. `@Scopes()` alone: any verified caller. */
export const Scopes = (...all: string[]) => SetMetadata('scopes', all);

/** The caller needs one of these roles, beside the scopes. */
export const Roles = (...any: string[]) => SetMetadata('roles', any);

/** Anybody may call. The handler's path must also be in PUBLIC_PATHS. */
export const Public = () => SetMetadata('public', true);

/** The verified caller of this request or message; undefined in a @Public handler that nobody proved themselves to. */
export const Caller = createParamDecorator(
  (_: unknown, context: ExecutionContext) => context.getArgByIndex<{ caller?: Identity }>(0).caller,
);
