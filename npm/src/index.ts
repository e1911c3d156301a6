export { Caller, CallerContext, TXN_TOKEN } from './caller';
export { AnyScope, Public, Scopes } from './decorators';
export { protect, type ProtectOptions } from './door';
export { SallyportGuard } from './guard';
export { listen, type ListenOptions } from './listen';
export { SallyportModule, type SallyportExtras } from './module';
export type { SallyportOptions } from './options';
export { SallyportException, type Problem } from './problem';
export { AssertionError, type Json } from './strict';
