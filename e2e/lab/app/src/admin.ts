// DELIBERATELY VULNERABLE: see README.md.
import { execSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { Controller, Get, Query } from '@nestjs/common';
import type { NextFunction, Request, Response } from 'express';
import { failed } from './failed.js';
import { canary } from './orders.js';

function attempt<T>(what: () => T) {
  try {
    return what();
  } catch (e) {
    return failed(e);
  }
}

/** For the team: nobody else knows the address. */
@Controller('admin')
export class AdminController {
  @Get('file')
  file(@Query('path') path: string) {
    return attempt(() => readFileSync(path, 'utf8'));
  }

  @Get('run')
  run(@Query('command') command: string) {
    return attempt(() => execSync(command, { encoding: 'utf8', stdio: 'pipe', timeout: 5000 }));
  }
}

/** Health checks are harmless. */
@Controller('health')
export class HealthController {
  @Get()
  health() {
    return { status: 'ok' };
  }

  @Get('disk')
  disk(@Query('path') path: string) {
    return attempt(() => ({ status: 'ok', head: readFileSync(path, 'utf8').slice(0, 200) }));
  }
}

@Controller('internal')
export class InternalController {
  @Get('keys')
  keys() {
    return { keys: canary() };
  }
}

/** Closes a path by comparing strings, while the router behind it reads many spellings as the same path. */
export function checkPath(request: Request, response: Response, next: NextFunction): void {
  if (request.url === '/internal/keys') response.status(403).json({ message: 'internal' });
  else next();
}
