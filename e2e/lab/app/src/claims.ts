// DELIBERATELY VULNERABLE: see README.md.
import { Controller, ForbiddenException, Get, Param, Req } from '@nestjs/common';
import type { Request } from 'express';
import { bearer, decode } from './careless.guard.js';
import { canary } from './orders.js';

@Controller('tenants')
export class TenantsController {
  /** "The gateway has checked the token": so this one only reads it. */
  @Get(':namespace/secrets')
  secrets(@Param('namespace') namespace: string, @Req() request: Request) {
    const { claims } = decode(bearer(request));
    if (!(claims.roles as string[] | undefined)?.includes('admin') || claims.namespace !== namespace) throw new ForbiddenException();
    return { namespace, secret: canary() };
  }
}
