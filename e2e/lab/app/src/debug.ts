// DELIBERATELY VULNERABLE: see README.md.
import { inspect } from 'node:util';
import { Controller, Get, UseGuards } from '@nestjs/common';
import type { NextFunction, Request, Response } from 'express';
import { CarelessGuard } from './careless.guard.js';

let before: Request | undefined;
let now: Request | undefined;

/** Keeps the last requests, for the page below. */
export function remember(request: Request, _: Response, next: NextFunction): void {
  [before, now] = [now, request];
  next();
}

/** "Only while we look for this one bug": whoever asks sees the request of whoever came before. */
@Controller('debug')
@UseGuards(CarelessGuard)
export class DebugController {
  @Get('last')
  last() {
    return inspect(before, { depth: 1, breakLength: Infinity });
  }
}
